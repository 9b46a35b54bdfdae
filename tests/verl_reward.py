"""A reward function that a test names."""

import time

from zerosearch.agent.trajectory import Trajectory


def hang(trajectory: Trajectory) -> float:
    time.sleep(3)
    return 0.0
