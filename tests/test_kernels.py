"""The compiled kernels do what PyTorch's operations do, and sampling goes on without them."""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_local_sampler import LONG_PROMPT, TOKENS, run

from zerosearch.inference import kernels as compiled
from zerosearch.inference.adapters import add_adapters
from zerosearch.inference.cache import CacheAttention, Chunk, DenseAttention, KernelAttention, SlotCache
from zerosearch.inference.decoder import rotate
from zerosearch.inference.kernels import Kernels, kernels
from zerosearch.inference.local import LocalSampler
from zerosearch.inference.packed import Branch, Tree, score
from zerosearch.inference.sampler import SamplingRequest
from zerosearch.training import doctor
from zerosearch.training.recipe import Recipe

KNOWN = ("llama, for kernels", "qwen2, for kernels", "qwen2-untied", "qwen3")
"""Shapes of `tiny` with heads that the kernels know."""

DTYPES = {torch.float32: 1e-5, torch.bfloat16: 8e-3}
"""With the relative error of one rounding."""
CPU = torch.device("cpu")
dtypes = st.sampled_from(list(DTYPES))
lengths = st.integers(1, 70)


def made(width: int = 16, share: int = 3, dtype: torch.dtype = torch.float32) -> Kernels:
    found = kernels(width, share, dtype, "cpu")
    assert found is not None, "the tests need a C++ compiler"
    return found


def numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def assert_near(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=DTYPES[dtype], atol=DTYPES[dtype])


@settings(max_examples=60)
@given(lengths, lengths, dtypes, st.booleans())
def test_sums_are_normalised(tokens: int, width: int, dtype: torch.dtype, more: bool) -> None:
    x, y = numbers(tokens, width), numbers(tokens, width, dtype=dtype, seed=1) if more else None
    expected = x.double() + (0 if y is None else y.double())
    found = made(dtype=dtype).add_normalise(x, y, 1e-5)
    assert found.dtype == dtype
    assert_near(x, expected, torch.float32)
    assert_near(found, expected * (expected.square().mean(-1, keepdim=True) + 1e-5).rsqrt(), dtype)


@settings(max_examples=60)
@given(lengths, lengths, dtypes, st.sampled_from([0.1, 3.0, 60.0]))
def test_gates_weigh(tokens: int, width: int, dtype: torch.dtype, scale: float) -> None:
    x = numbers(tokens, 2 * width, dtype=dtype, scale=scale)
    gates, ups = x.double().chunk(2, -1)
    assert_near(made(dtype=dtype).gate(x), torch.nn.functional.silu(gates) * ups, dtype)


def test_extreme_gates_are_finite_and_what_is_no_number_stays_none() -> None:
    x = torch.tensor([[-1e4, -100.0, 100.0, 1e30, float("nan"), 1.0] + [1.0] * 6])
    for dtype in DTYPES:
        found = made(dtype=dtype).gate(x.to(dtype))[0]
        assert found[:2].abs().max() < 1e-30 and found[2] == 100 and found[3] > 9e29
        assert found[4].isnan() and not found[5].isnan()


@settings(max_examples=40)
@given(lengths, st.integers(1, 5), st.integers(0, 4), st.sampled_from([16, 48, 64]), dtypes)
def test_heads_are_rotated(tokens: int, turned: int, others: int, width: int, dtype: torch.dtype) -> None:
    x = numbers(tokens, turned + others, width, dtype=dtype)
    angles = numbers(tokens, width // 2, seed=1)
    cos, sin = (torch.cat((each, each), -1) for each in (angles.cos(), angles.sin()))
    expected = x.double().clone()
    expected[:, :turned] = rotate(expected[:, :turned], cos.double(), sin.double())
    made(width, dtype=dtype).rotate(x, turned, angles.cos(), angles.sin())
    assert_near(x, expected, dtype)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 90), st.integers(1, 5)), min_size=1, max_size=6),
    st.sampled_from([(16, 1), (16, 3), (64, 3), (64, 7), (128, 5), (128, 16)]),
    dtypes,
    st.integers(1, 3),
    st.permutations(range(7)),
)
def test_attention_is_that_of_products_over_the_slots(
    sizes: list[tuple[int, int]], shape: tuple[int, int], dtype: torch.dtype, groups: int, slots: list[int]
) -> None:
    """Of rows that lie apart, as those of queries, keys and values that one product made."""
    width, share = shape
    heads = groups * share
    shape_of = {"num_attention_heads": heads, "num_key_value_heads": groups, "head_dim": width, "hidden_size": heads}
    config = tiny.model(**shape_of).config
    chunks = [Chunk(slot, start, length, length - 1) for slot, (start, length) in zip(slots, sizes, strict=False)]
    count = sum(chunk.length for chunk in chunks)
    mixed = numbers(count, heads + 2 * groups, width, dtype=dtype, scale=1.0)
    results = []
    for exact in (False, True):
        cache = SlotCache(config, 7, 96, torch.float64 if exact else dtype, CPU)
        cache.reserve(96)
        for memory in (cache.keys[1], cache.values[1]):
            memory.copy_(numbers(*memory.shape, seed=1, scale=1.0).to(dtype))
        attention = (
            DenseAttention(cache, chunks) if exact else KernelAttention(made(width, share, dtype), cache, chunks)
        )
        parts = (mixed[:, :heads], mixed[:, heads : heads + groups], mixed[:, heads + groups :])
        found = attention(1, *(part.to(cache.keys[1].dtype) for part in parts))
        results.append((found.reshape(count, heads, width), cache.keys[1], cache.values[1]))
    for found, expected in zip(*results, strict=True):
        assert_near(found, expected, dtype)


def test_threads_change_no_bit() -> None:
    config = tiny.model("qwen3").config
    chunks = [Chunk(slot, 7 * slot, 1) for slot in range(9)]
    found = []
    threads = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        cache = SlotCache(config, 9, 64, torch.float32, CPU)
        x = [numbers(9, heads, 16, seed=heads) for heads in (6, 2, 2)]
        found.append(CacheAttention(cache, chunks)(0, *x))
    torch.set_num_threads(threads)
    assert torch.equal(*found)


@pytest.mark.parametrize("shape", KNOWN)
def test_samples_are_those_without_kernels(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    architecture, more = tiny.SHAPES[shape]
    model = tiny.model(architecture, **more)
    requests = [SamplingRequest([*LONG_PROMPT, 100 + n], 20, temperature=n % 2, seed=n) for n in range(12)]
    which = LocalSampler(model, TOKENS, slots=4, length=128, drafts=3)
    assert which.layout.kernels and which.cache.kernels
    with_kernels = run(which, requests)
    kernels.cache_clear()
    monkeypatch.setenv("ZEROSEARCH_KERNELS", "0")
    plain = LocalSampler(model, TOKENS, slots=4, length=128, drafts=3)
    assert plain.layout.kernels is None and plain.cache.kernels is None
    without = run(plain, requests)
    kernels.cache_clear()
    for one, other in zip(with_kernels, without, strict=True):
        assert one.token_ids == other.token_ids
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)


def test_a_shape_that_the_kernels_were_not_compiled_for_is_refused() -> None:
    which, memory, chunks = made(16, 3), torch.zeros(1, 2, 8, 16), torch.zeros(1, 4, dtype=torch.int64)
    keys = torch.zeros(1, 2, 16)
    with pytest.raises(AssertionError, match="of another shape"):
        which.attend(torch.zeros(1, 4, 16), keys, keys, memory, memory, chunks)


# Learning


def slopes(found: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The gradients of a sum in which each number found has a weight of its own."""
    weights = [numbers(*each.shape, seed=9 + place).double() for place, each in enumerate(found)]
    total = sum((each.double() * weight).sum() for each, weight in zip(found, weights, strict=True))
    return list(torch.autograd.grad(total, inputs))


def leaves(*given: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The same numbers twice, in their own type and exactly, all of which want gradients."""
    return [each.clone().requires_grad_() for each in given], [each.double().requires_grad_() for each in given]


def assert_learns_alike(
    found: Sequence[torch.Tensor],
    expected: Sequence[torch.Tensor],
    leaves_of: tuple[list[torch.Tensor], list[torch.Tensor]],
    dtype: torch.dtype,
) -> None:
    for one, other in zip(found, expected, strict=True):
        assert_near(one, other, torch.float32 if one.dtype == torch.float32 else dtype)
    for one, other in zip(slopes(found, leaves_of[0]), slopes(expected, leaves_of[1]), strict=True):
        size = float(other.abs().max()) + 1
        assert_near(one.double() / size, other / size, dtype)


@settings(max_examples=60)
@given(lengths, lengths, dtypes, st.booleans())
def test_the_gradients_of_a_normalised_sum(tokens: int, width: int, dtype: torch.dtype, more: bool) -> None:
    given_ = [numbers(tokens, width), numbers(width, seed=2), numbers(tokens, width, dtype=dtype, seed=1)][: 2 + more]
    ours, exact = leaves(*given_)
    found = made(dtype=dtype).normalised_sum(ours[0], ours[2] if more else None, ours[1], 1e-5)
    total = exact[0] + (exact[2] if more else 0)
    expected = total, total * (total.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * exact[1]
    assert found[0].dtype == torch.float32 and found[1].dtype == dtype
    assert_learns_alike(found, expected, (ours, exact), dtype)


@settings(max_examples=60)
@given(lengths, lengths, dtypes)
def test_the_gradients_of_gates(tokens: int, width: int, dtype: torch.dtype) -> None:
    ours, exact = leaves(*(numbers(tokens, width, dtype=dtype, seed=seed) for seed in range(2)))
    found = made(dtype=dtype).gated(*ours)
    assert_learns_alike([found], [torch.nn.functional.silu(exact[0]) * exact[1]], (ours, exact), dtype)


@settings(max_examples=40)
@given(lengths, st.integers(1, 5), st.sampled_from([16, 48, 64]), dtypes)
def test_the_gradients_of_a_rotation(tokens: int, heads: int, width: int, dtype: torch.dtype) -> None:
    ours, exact = leaves(numbers(tokens, heads, width, dtype=dtype))
    angles = numbers(tokens, width // 2, seed=1)
    cos, sin = (torch.cat((each, each), -1).double() for each in (angles.cos(), angles.sin()))
    found = made(width, dtype=dtype).rotated(*ours, angles.cos(), angles.sin())
    assert_learns_alike([found], [rotate(*exact, cos, sin)], (ours, exact), dtype)


@pytest.mark.parametrize("shape", KNOWN)
@pytest.mark.parametrize("more", ["", "checkpointing", "adapters"])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_a_model_learns_as_without_kernels(
    shape: str, more: str, dtype: torch.dtype, near: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture, given = tiny.SHAPES[shape]

    def learned() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model = tiny.model(architecture, **given)
        if more == "checkpointing":
            model.gradient_checkpointing_enable()
        if more == "adapters":
            add_adapters(model, rank=4, alpha=8.0, seed=3)
        trees = [Tree(LONG_PROMPT, [Branch([5, 6, 7, first, 9], [True] * 5) for first in (8, 11)])]
        log_probs = score(model, trees, dtype=dtype).log_probs
        log_probs.sum().backward()
        gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
        return log_probs.detach(), gradients

    log_probs, gradients = learned()
    kernels.cache_clear()
    monkeypatch.setenv("ZEROSEARCH_KERNELS", "0")
    expected, without = learned()
    kernels.cache_clear()
    torch.testing.assert_close(log_probs, expected, rtol=near, atol=near)
    assert gradients.keys() == without.keys() and without
    for name, slope in without.items():
        size = float(slope.abs().max())
        torch.testing.assert_close(gradients[name], slope, rtol=near, atol=2 * near * size)


def test_what_gates_and_ups_give_is_computed_again_rather_than_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    architecture, given = tiny.SHAPES["llama, for kernels"]
    model = tiny.model(architecture, **given)
    calls: list[str] = []
    call = Kernels.call
    monkeypatch.setattr(Kernels, "call", lambda ours, name, *given: calls.append(name) or call(ours, name, *given))
    trees = [Tree(LONG_PROMPT, [Branch([5, 6, 7, 8, 9], [True] * 5)])]
    log_probs = score(model, trees, dtype=torch.bfloat16).log_probs
    layers = model.config.num_hidden_layers
    assert calls.count("gate") == layers
    log_probs.sum().backward()
    assert calls.count("gate") == 2 * layers
    with torch.no_grad():
        score(model, trees, dtype=torch.bfloat16)
    assert calls.count("gate") == 3 * layers


# Compiling


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder in which nothing was compiled yet."""
    monkeypatch.setenv("ZEROSEARCH_CACHE", str(tmp_path))
    kernels.cache_clear()
    yield tmp_path / "kernels"
    kernels.cache_clear()


def test_what_was_compiled_is_kept(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert made()
    (library,) = fresh.iterdir()
    kernels.cache_clear()
    monkeypatch.setattr(compiled.subprocess, "run", lambda *_, **__: pytest.fail("compiled again"))
    assert made()
    assert list(fresh.iterdir()) == [library]


def compiler(path: Path, lines: str) -> str:
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (None, "install a C++ compiler"),
        ("echo unknown option >&2; exit 1", "unknown option"),
        ("exec sleep 60", "timed out"),
        (
            "for last; do :; done; touch kernels.so; cp kernels.so \"$(echo $* | sed 's/.*-o \\([^ ]*\\).*/\\1/')\"",
            "too short",
        ),
    ],
)
def test_without_a_compiler_that_works_sampling_goes_on(
    fresh: Path,
    tmp_path: Path,
    program: str | None,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compiled, "COMPILE_SECONDS", 1)
    name = compiler(tmp_path / "compiler", program) if program else str(tmp_path / "missing")
    monkeypatch.setenv("CXX", name)
    with caplog.at_level(logging.WARNING):
        which = LocalSampler(tiny.model("qwen3"), TOKENS, slots=2, length=64)
    assert which.layout.kernels is None
    assert "no compiled kernels" in caplog.text and reason in caplog.text
    assert len(run(which, [SamplingRequest(LONG_PROMPT, 4, seed=1)])[0].token_ids) > 0
    (finding,) = doctor._kernels(Recipe())
    assert finding.state == "warning" and reason in finding.said


def test_the_doctor_finds_kernels() -> None:
    (finding,) = doctor._kernels(Recipe())
    assert finding.state == "ok"


def test_other_devices_types_and_widths_do_without() -> None:
    assert kernels(16, 3, torch.float32, "cuda") is None
    assert kernels(16, 3, torch.float16, "cpu") is None
    assert kernels(8, 3, torch.float32, "cpu") is None


def test_a_folder_that_cannot_be_written_is_no_hindrance(fresh: Path, caplog: pytest.LogCaptureFixture) -> None:
    fresh.parent.mkdir(exist_ok=True)
    fresh.write_text("no folder")
    with caplog.at_level(logging.WARNING):
        assert kernels(16, 3, torch.float32, "cpu") is None
    assert "kernels" in caplog.text and os.fspath(fresh) in caplog.text
