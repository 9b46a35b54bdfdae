"""The search episode as an agent loop of verl."""

import json
import logging
from dataclasses import dataclass
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput

from zerosearch.agent.trajectory import Trajectory
from zerosearch.data import Question
from zerosearch.errors import RunError, UserError
from zerosearch.evaluation.benchmark import score_trajectory
from zerosearch.training.rewards import reward_parts
from zerosearch.training.verl.data import read_question
from zerosearch.training.verl.served import Served
from zerosearch.training.verl.workshop import workshop

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an episode failed. ends_run: every other one would fail so, too."""

    sentence: str
    ends_run: bool


class ZeroSearchAgentLoop(AgentLoopBase):
    """One episode of a row, made anew for each; what is costly is the process's `Workshop`.

    It never raises: an episode that fails, or whose search fails, comes back as one masked token with
    `extra_fields["error"]`. `extra_fields` hold the whole trajectory, what it earned and what the engine counted; the
    buffer (`buffer.py`) makes the step's figures of them.

    recipe: path of the resolved recipe, from the agent loop's YAML file.
    """

    def __init__(self, *args: Any, recipe: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._workshop = workshop(recipe, self.rollout_config.agent.num_workers)

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> AgentLoopOutput:
        """Run the row's episode.

        row: the columns of the row; `extra_info["split"]` tells test rows, which are greedy and search with the engine
        of the recipe's evaluation. `global_steps` is the step of training.
        """
        shop, recipe, extra = self._workshop, self._workshop.recipe, row["extra_info"]
        step, sample = int(row["global_steps"]), int(extra["first_sample"]) + int(row["session_id"])
        training = extra["split"] != "test"
        rollout = recipe.verl.rollout
        seeded = rollout == "local" or recipe.training.deterministic
        served = Served(self.server_manager, self.tokenizer, rollout, sampling_params, seeded)
        sampler = served.session()
        trajectory = Trajectory(_unread(row), sample, step, ending="search_failed")
        parts: dict[str, float] = {}
        failure = None
        try:
            trajectory.question = question = read_question(row["question"])
            agent = shop.agent(training, sampler, self.tokenizer, step, anew=served)
            trajectory = await agent.episode(question, sample, step)
            parts = reward_parts(trajectory, recipe)
            if trajectory.ending == "search_failed":
                failure = Failure(trajectory.searches[-1].error, ends_run=False)
        except Exception as error:
            log.exception("an episode failed")
            failure = Failure(_said(error), ends_run=isinstance(error, RunError | UserError))
        versions = sampler.versions or [step]
        fields = {
            "trajectory": json.dumps(trajectory.to_json()),
            "parts": parts,
            "error": failure.sentence if failure else "",
            "ends_run": failure is not None and failure.ends_run,
            "worker": shop.name,
            "counted": shop.counted() if training else {},
            "min_global_steps": min(versions),
            "max_global_steps": max(versions),
            "reward_extra_info": _scores(trajectory),
        }
        metrics = AgentLoopMetrics(
            generate_sequences=sampler.seconds, tool_calls=sum(search.seconds for search in trajectory.searches)
        )
        prompt = len(trajectory.segments[0].token_ids) if trajectory.segments else 0
        ids, mask, log_probs = trajectory.token_ids, trajectory.loss_mask, trajectory.log_probs
        if failure:
            nothing = [self.tokenizer.eos_token_id]
            prompt, ids, mask, log_probs = 1, [*nothing, *nothing], [False, False], [0.0, 0.0]
        return AgentLoopOutput(
            prompt_ids=ids[:prompt],
            response_ids=ids[prompt:],
            response_mask=[int(own) for own in mask[prompt:]],
            response_logprobs=log_probs[prompt:],
            reward_score=0.0 if failure else sum(parts.values()),
            num_turns=len(trajectory.segments),
            metrics=metrics,
            extra_fields=fields,
        )


def _unread(row: dict[str, Any]) -> Question:
    """What stands in for the question of a row until it is read."""
    return Question(str(row["uid"]), "", (), str(row.get("data_source", "")))


def _scores(trajectory: Trajectory) -> dict[str, float]:
    """What verl averages over its validation."""
    scored = score_trajectory(trajectory)
    return {"f1": scored.f1, "em": scored.em, "substring_em": scored.substring_em, "searches": float(scored.searches)}


def _said(error: Exception) -> str:
    if isinstance(error, RunError | UserError):
        return str(error)
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
