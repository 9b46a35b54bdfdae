"""What `training.deterministic` keeps, with several threads too, and what every run keeps."""

from pathlib import Path

import pytest
from whole_runs import ONLY_RL, bits, carry_out, rows, trajectories

from zerosearch.inference.local import LocalSampler
from zerosearch.inference.sampler import Sample, SamplingRequest

pytestmark = pytest.mark.usefixtures("lively")

TWO_STEPS = [*ONLY_RL, "training.steps=2", "evaluation.trained=false"]


def test_two_threads_give_equal_bits(model: Path, tmp_path: Path) -> None:
    first, second = (carry_out(model, tmp_path / name, "training.threads=2", *TWO_STEPS) for name in ("a", "b"))
    assert bits(first) == bits(second) and rows(first) == rows(second)
    assert trajectories(first) == trajectories(second)


def test_a_fast_run_keeps_questions_seeds_and_noise(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    sample = LocalSampler.sample

    async def noting(self: LocalSampler, request: SamplingRequest) -> Sample:
        seeds.append(request.seed)
        return await sample(self, request)

    monkeypatch.setattr(LocalSampler, "sample", noting)

    def carried_out(deterministic: str) -> tuple[list[int], list[object]]:
        seeds.clear()
        run = carry_out(model, tmp_path / deterministic, f"training.deterministic={deterministic}", *TWO_STEPS)
        known = [
            (row["step"], row["question"]["id"], row["sample"], [search["noise"] for search in row["searches"]])
            for row in trajectories(run)
        ]
        return sorted(seeds), sorted(known)

    fast, fixed = carried_out("false"), carried_out("true")
    assert fast == fixed
    assert {label for *_, labels in fixed[1] for label in labels} == {"useful", "noisy"}
