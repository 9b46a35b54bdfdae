"""What verl loads in each of its processes, by the entry point `verl.plugins`.

The agent loop itself needs no loading: the file that `rollout.agent.agent_loop_config_path` names says where it is.
"""

import os

from verl.utils import import_utils

# verl 0.9.1 asks TRL, where it is installed, for a value head that TRL no longer has since 1.15, and fails.
import_utils.is_trl_available = lambda: False

if os.environ.get("VERL_PLATFORM") == "cpu":
    from zerosearch.training.verl import cpu, vllm_cpu

    cpu.register()
    vllm_cpu.register()
