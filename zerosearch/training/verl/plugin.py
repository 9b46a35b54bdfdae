"""What verl loads in each of its processes, by the entry point `verl.plugins`.

The agent loop itself needs no loading: the file that `rollout.agent.agent_loop_config_path` names says where it is.
"""

import os

if os.environ.get("VERL_PLATFORM") == "cpu":
    from zerosearch.training.verl import cpu, replica

    cpu.register()
    replica.register()
