"""What tests put in the place of the buffer, to see the batch that verl trains on.

PROBE names a file that gets a line for each trajectory of each update; with SHIFTED_MASK its masks go one token to the
right before, as a mistake would have it.
"""

import json
import os
from pathlib import Path

import torch
import transfer_queue as tq
from tensordict import TensorDict
from verl.trainer.ppo.v1.trainer_base import PPOTrainer

from zerosearch.training.verl.buffer import EpisodeBuffer

FIELDS = ["responses", "response_mask", "loss_mask", "rollout_log_probs", "old_log_probs", "advantages", "rm_scores"]


class ProbeBuffer(EpisodeBuffer):
    """Ours; importing this module is what matters."""


update_actor, compute_advantage = PPOTrainer._update_actor, PPOTrainer._compute_advantage


def seen(self, batch, metrics):
    """Written once the update is done: one that a dead worker breaks off has trained nothing."""
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=[*FIELDS, "extra_fields"])
    found = update_actor(self, batch, metrics)
    with Path(os.environ["PROBE"]).open("a") as file:
        for place, key in enumerate(batch.keys):
            row = {name: data[name][place].tolist() for name in FIELDS}
            trajectory = data["extra_fields"][place]["trajectory"]
            about = {"step": self.global_steps, "key": key, "padding": batch.tags[place].get("is_padding", False)}
            file.write(json.dumps(about | row | {"trajectory": json.loads(trajectory)}) + "\n")
    return found


def shifted(self, batch, metrics):
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["response_mask"])
    masks = torch.nested.as_nested_tensor(
        [mask.roll(1) for mask in data["response_mask"].unbind()], layout=torch.jagged
    )
    fields = TensorDict({"response_mask": masks, "loss_mask": masks.clone()}, batch_size=len(batch.keys))
    tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)
    return compute_advantage(self, batch, metrics)


if "PROBE" in os.environ:
    PPOTrainer._update_actor = seen
if "SHIFTED_MASK" in os.environ:
    PPOTrainer._compute_advantage = shifted
