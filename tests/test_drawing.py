"""Draws are uniform, the same everywhere, and take the token whose part of the unit interval holds them."""

import subprocess
import sys

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from zerosearch.inference.drawing import inverse_sample, uniform_draws


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from((1, 3, 255, 256, 257, 1000)),
    st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=4),
)
def test_a_draw_takes_the_token_whose_part_of_the_unit_interval_holds_it(
    seed: int, size: int, draws: list[float]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(draws), size, generator=generator) * 4
    logits[torch.rand(logits.shape, generator=generator) < 0.3] = float("-inf")
    logits[:, torch.randint(size, (1,), generator=generator)] = 0.0
    probs = logits.softmax(-1)
    tokens = inverse_sample(probs, torch.tensor(draws, dtype=torch.float64))
    ends = probs.double().cumsum(-1)
    for row, (token, draw) in enumerate(zip(tokens.tolist(), draws, strict=True)):
        assert probs[row, token] > 0
        start = ends[row, token] - probs[row, token]
        assert start - 1e-6 <= draw * ends[row, -1] <= ends[row, token] + 1e-6


def test_draws_are_uniform_and_the_same_in_every_process() -> None:
    draws = uniform_draws(np.arange(4000), np.zeros(4000))
    assert draws.min() >= 0 and draws.max() < 1
    assert np.histogram(draws, 10, (0, 1))[0].min() > 320
    positions = uniform_draws(np.full(4000, 5), np.arange(4000))
    assert np.histogram(positions, 10, (0, 1))[0].min() > 320
    assert len(set(draws) | set(positions)) > 7990
    assert uniform_draws(np.array([2**64 - 1], dtype=np.uint64), np.array([2**63], dtype=np.uint64))[0] < 1
    code = (
        "import numpy as np; from zerosearch.inference.drawing import uniform_draws; "
        "print(uniform_draws(np.array([3, 2**62]), np.array([0, 9])).tolist())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert other.stdout.strip() == str(uniform_draws(np.array([3, 2**62]), np.array([0, 9])).tolist())
