"""Packed scoring: the same numbers and gradients as each sequence alone, and nothing of unwanted tokens."""

import time
from collections.abc import Iterator, Sequence
from itertools import accumulate, combinations, takewhile

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from zerosearch.inference import supervised
from zerosearch.inference.packed import Branch, SelectiveLogSoftmax, Tree, micro_batches, score
from zerosearch.inference.supervised import SupervisedSettings, learn
from zerosearch.inference.trie import WORTH_SHARING, lay_out

TOKEN = st.integers(3, 300)
BRANCH = (
    st.lists(st.tuples(TOKEN, st.booleans()), min_size=1, max_size=9)
    .filter(lambda pairs: any(wanted for _, wanted in pairs))
    .map(lambda pairs: Branch([token for token, _ in pairs], [wanted for _, wanted in pairs]))
)
TREES = st.lists(
    st.builds(Tree, st.lists(TOKEN, min_size=1, max_size=6), st.lists(BRANCH, min_size=1, max_size=4)),
    min_size=1,
    max_size=3,
)
FIXED = [
    Tree([5, 6, 7], [Branch([8, 9, 10, 11], [True, True, False, True]), Branch([12, 13], [True, True])]),
    Tree([20], [Branch([22, 23, 24], [True, False, True]), Branch([25], [True]), Branch([26, 27], [False, True])]),
]
MODELS = {architecture: tiny.model(architecture).double() for architecture in tiny.ARCHITECTURES}


def alone(model: PreTrainedModel, trees: Sequence[Tree], temperature: float = 1.0) -> Iterator[torch.Tensor]:
    """The distribution before each wanted token by transformers' own forward pass, one sequence at a time."""
    for tree in trees:
        for branch in tree.branches:
            table = model(torch.tensor([[*tree.prefix, *branch.token_ids]])).logits[0] / temperature
            for index, wanted in enumerate(branch.wanted):
                if wanted:
                    yield table[len(tree.prefix) + index - 1].log_softmax(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_gradients_of_chosen_tokens_are_those_of_a_plain_log_softmax(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(100, 37, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(37, (100,), generator=generator)
    weights = torch.randn(100, generator=generator, dtype=torch.float64)
    plain = (logits / temperature).log_softmax(-1)
    chosen = plain.gather(-1, targets[:, None])[:, 0]
    (expected,) = torch.autograd.grad((chosen * weights).sum(), logits)
    log_probs, entropies = SelectiveLogSoftmax.apply(logits * 1.0, targets, temperature)
    (found,) = torch.autograd.grad((log_probs * weights).sum(), logits)
    assert torch.allclose(log_probs, chosen) and torch.allclose(found, expected)
    assert torch.allclose(entropies, -(plain.exp() * plain).sum(-1)) and not entropies.requires_grad


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_entropies_carry_the_gradient_of_the_plain_formula_when_asked(temperature: float) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(100, 37, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(37, (100,), generator=generator)
    chosen_W, entropy_W = torch.randn(2, 100, generator=generator, dtype=torch.float64)
    plain = (logits / temperature).log_softmax(-1)
    wanted = plain.gather(-1, targets[:, None])[:, 0] @ chosen_W - (plain.exp() * plain).sum(-1) @ entropy_W
    (expected,) = torch.autograd.grad(wanted, logits)
    log_probs, entropies = SelectiveLogSoftmax.apply(logits * 1.0, targets, temperature, True)
    (found,) = torch.autograd.grad(log_probs @ chosen_W + entropies @ entropy_W, logits)
    assert torch.allclose(found, expected) and entropies.requires_grad


def wanted_tokens(trees: Sequence[Tree]) -> list[int]:
    return [
        token
        for tree in trees
        for branch in tree.branches
        for token, wanted in zip(branch.token_ids, branch.wanted, strict=True)
        if wanted
    ]


def gradients(model: PreTrainedModel) -> list[torch.Tensor]:
    found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@settings(max_examples=15)
@given(trees=TREES, temperature=st.sampled_from([1.0, 0.7]))
def test_scores_are_those_of_each_sequence_alone(architecture: str, trees: list[Tree], temperature: float) -> None:
    model = MODELS[architecture]
    with torch.no_grad():
        found = score(model, trees, temperature)
        tables = torch.stack(list(alone(model, trees, temperature)))
    expected = tables.gather(-1, torch.tensor(wanted_tokens(trees))[:, None])[:, 0]
    assert torch.allclose(found.log_probs, expected, atol=1e-5)
    assert torch.allclose(found.entropies, -(tables.exp() * tables).sum(-1), atol=1e-5)


@pytest.mark.parametrize("shape", tiny.SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_without_gradients_are_those_with_them_to_the_bit(shape: str, dtype: torch.dtype) -> None:
    architecture, given = tiny.SHAPES[shape]
    model = tiny.model(architecture, **given)
    with torch.no_grad():
        measured = score(model, SHARING, dtype=dtype).log_probs
    assert torch.equal(measured, score(model, SHARING, dtype=dtype).log_probs)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_gradients_are_those_of_each_sequence_alone(architecture: str) -> None:
    model = MODELS[architecture]
    weights = torch.linspace(-1, 1, len(wanted_tokens(FIXED)), dtype=torch.float64)
    (score(model, FIXED).log_probs * weights).sum().backward()
    found = gradients(model)
    tables = torch.stack(list(alone(model, FIXED)))
    (tables.gather(-1, torch.tensor(wanted_tokens(FIXED))[:, None])[:, 0] * weights).sum().backward()
    for mine, expected in zip(found, gradients(model), strict=True):
        assert torch.allclose(mine, expected, atol=1e-5 * (1 + expected.abs().max().item()))


PAGE = list(range(100, 100 + WORTH_SHARING))
"""Enough tokens to be worth sharing."""
SHARING = [
    Tree(
        [5, 6],
        [
            Branch([9, *PAGE, 8, 7, *PAGE, 4], [True] * 2 + [False] * (2 * WORTH_SHARING + 1) + [True]),
            Branch([9, *PAGE, 8, 7, *PAGE, 4], [False] * (2 * WORTH_SHARING + 3) + [True]),
            Branch([9, *PAGE, 8, 7, *PAGE, 3], [False] * (2 * WORTH_SHARING + 3) + [True]),
            Branch([9, *PAGE, 11, 12], [True] * (WORTH_SHARING + 3)),
            Branch([9, *PAGE], [True] * (WORTH_SHARING + 1)),
            Branch([9, 8], [True, True]),
        ],
    ),
    FIXED[0],
]


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_what_branches_share_is_computed_once_and_counts_for_each(architecture: str) -> None:
    model = MODELS[architecture]
    assert SHARING[0].tokens == 2 + (1 + len(PAGE)) + (2 + len(PAGE)) + 1 + 1 + 2 + 2
    weights = torch.linspace(-1, 1, len(wanted_tokens(SHARING)), dtype=torch.float64)
    scores = score(model, SHARING, entropy_gradient=True)
    (scores.log_probs @ weights + scores.entropies @ weights.flip(0)).backward()
    found = gradients(model)
    tables = torch.stack(list(alone(model, SHARING)))
    chosen = tables.gather(-1, torch.tensor(wanted_tokens(SHARING))[:, None])[:, 0]
    entropies = -(tables.exp() * tables).sum(-1)
    assert torch.allclose(scores.log_probs, chosen, atol=1e-5)
    assert torch.allclose(scores.entropies, entropies, atol=1e-5)
    (chosen @ weights + entropies @ weights.flip(0)).backward()
    for mine, expected in zip(found, gradients(model), strict=True):
        assert torch.allclose(mine, expected, atol=1e-5 * (1 + expected.abs().max().item()))


def test_a_shared_token_passes_the_output_layer_once() -> None:
    model = tiny.model()
    seen: list[torch.Tensor] = []
    model.lm_head.register_forward_hook(lambda _, inputs, output: seen.append(output))
    scores = score(model, SHARING[:1])
    assert len(scores.log_probs) == len(wanted_tokens(SHARING[:1])) == 43
    # the first branch's three, the third's last, the fourth's PAGE and two, the last one's second
    assert [len(output) for output in seen] == [3 + 1 + WORTH_SHARING + 1 + 1]


STEPS = st.lists(st.sampled_from([[7], [8], PAGE, [*PAGE, 9], [3, *PAGE]]), max_size=4)


@given(prefix=st.lists(TOKEN, min_size=1, max_size=3), written=st.lists(STEPS, min_size=1, max_size=6))
def test_a_trie_holds_every_sequence_at_its_places(prefix: list[int], written: list[list[list[int]]]) -> None:
    branches = [[token for step in steps for token in step] for steps in written]
    trie = lay_out(prefix, branches)
    row = [token for run in trie.runs for token in run.token_ids]
    starts = list(accumulate((len(run.token_ids) for run in trie.runs), initial=0))
    assert row[: len(prefix)] == prefix and trie.tokens == len(row)
    for branch, places in zip(branches, trie.places, strict=True):
        assert [row[place] for place in places] == branch
        # its places are those of a chain of runs from the prefix on, each whole and at the right position
        chain = [number for number, start in enumerate(starts[:-1]) if start in places]
        assert [trie.runs[number].parent for number in chain] == [0, *chain][: len(chain)]
        assert [trie.runs[n].position for n in chain] == [len(prefix) + places.index(starts[n]) for n in chain]
        assert sum(len(trie.runs[number].token_ids) for number in chain) == len(branch)
    # sharing what is worth it: no two branches hold the same beginning of that length twice
    for one, two in combinations(range(len(branches)), 2):
        pairs = zip(branches[one], branches[two], strict=False)
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        alike = sum(a == b for a, b in zip(trie.places[one], trie.places[two], strict=False))
        assert alike > common - WORTH_SHARING


def test_only_wanted_tokens_reach_the_output_layer() -> None:
    model = tiny.model()
    seen: list[torch.Tensor] = []
    model.lm_head.register_forward_hook(lambda _, inputs, output: seen.append(output))
    score(model, FIXED)
    assert [len(output) for output in seen] == [len(wanted_tokens(FIXED))]


def test_a_token_that_nothing_wanted_follows_teaches_nothing_at_all() -> None:
    model = tiny.model("qwen2-untied")

    def learned(last: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tree = Tree([5, 6], [Branch([8, 9, last], [True, True, False]), Branch([10, 11], [True, True])])
        loss = -score(model, [tree]).log_probs.sum()
        loss.backward()
        inputs = model.get_input_embeddings().weight.grad.clone()
        outputs = model.lm_head.weight.grad.clone()
        model.zero_grad(set_to_none=True)
        return loss.detach(), inputs, outputs

    (loss, inputs, outputs), (other_loss, other_inputs, other_outputs) = learned(400), learned(401)
    assert torch.equal(loss, other_loss)
    assert torch.equal(inputs, other_inputs) and torch.equal(outputs, other_outputs)
    assert not inputs[400:402].any()


def test_one_branch_does_not_see_another_nor_one_tree_the_next() -> None:
    model = tiny.model("qwen3")
    other = [
        Tree(FIXED[0].prefix, [FIXED[0].branches[0], Branch([200, 201, 202], [True] * 3)]),
        Tree([90, 91], [Branch([92], [True])]),
    ]
    with torch.no_grad():
        assert torch.allclose(score(model, FIXED).log_probs[:3], score(model, other).log_probs[:3], atol=1e-6)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_gradient_checkpointing_gives_the_same_gradients_from_less_memory(architecture: str) -> None:
    model = tiny.model(architecture)

    def learn_once() -> tuple[list[torch.Tensor], int]:
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
            loss = -score(model, FIXED).log_probs.sum()
        loss.backward()
        return gradients(model), sum(kept)

    plain, kept = learn_once()
    model.gradient_checkpointing_enable()
    model.train()
    again, kept_less = learn_once()
    assert kept_less < kept / 2
    for mine, expected in zip(again, plain, strict=True):
        assert torch.allclose(mine, expected, atol=1e-5 * (1 + expected.abs().max().item()))


def test_products_in_another_type_leave_weights_and_scores_in_full() -> None:
    model = tiny.model()
    scores = score(model, FIXED, dtype=torch.bfloat16)
    scores.log_probs.sum().backward()
    assert scores.log_probs.dtype == torch.float32
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.allclose(scores.log_probs, score(model, FIXED).log_probs, atol=0.3)
    assert not torch.equal(scores.log_probs, score(model, FIXED).log_probs)


@given(st.lists(st.integers(1, 40)), st.integers(1, 60))
def test_micro_batches_are_few_and_keep_to_the_limit(sizes: list[int], limit: int) -> None:
    items = list(enumerate(sizes))
    batches = micro_batches(items, limit, lambda item: item[1])
    assert sorted(item for batch in batches for item in batch) == items
    totals = [sum(size for _, size in batch) for batch in batches]
    for batch, total in zip(batches, totals, strict=True):
        assert len(batch) == 1 or total <= limit
    assert all(one + other > limit for one, other in combinations(totals, 2)), "what fits together stays together"


# Supervised learning


def taught(**settings: object) -> tuple[PreTrainedModel, list[float]]:
    model = tiny.model("qwen2-untied")
    losses = learn(model, FIXED * 4, SupervisedSettings(**{"batch_size": 3, "learning_rate": 1e-3, **settings}))  # type: ignore[arg-type]
    return model, losses


def test_supervised_learning_is_the_same_however_it_is_split() -> None:
    model, losses = taught(epochs=2, micro_batch_tokens=10_000)
    other, other_losses = taught(epochs=2, micro_batch_tokens=1)
    assert len(losses) == 6 and losses == pytest.approx(other_losses, rel=1e-4)
    for mine, expected in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(mine, expected, atol=1e-4)


def test_supervised_learning_lowers_the_loss_of_wanted_tokens_and_repeats() -> None:
    before = -score(tiny.model("qwen2-untied"), FIXED).log_probs.mean().item()
    model, losses = taught(epochs=10)
    assert -score(model, FIXED).log_probs.mean().item() < before / 2
    assert losses == taught(epochs=10)[1]
    assert losses != taught(epochs=10, seed=1)[1]
    assert not model.training


def test_the_first_epoch_may_take_the_given_order() -> None:
    """One example to a step: before it is learnt, what it costs tells which one it is."""
    rate = 1e-12
    costs = [-score(tiny.model("qwen2-untied"), [tree]).log_probs.mean().item() for tree in FIXED]
    assert len({round(cost, 3) for cost in costs}) == len(FIXED) > 1
    for seed in range(4):
        settings = SupervisedSettings(epochs=2, batch_size=1, learning_rate=rate, seed=seed, ordered=True)
        losses = learn(tiny.model("qwen2-untied"), FIXED, settings)
        assert losses[: len(FIXED)] == pytest.approx(costs, rel=1e-3)
        assert sorted(losses[len(FIXED) :]) == pytest.approx(sorted(costs), rel=1e-3)


@pytest.mark.parametrize(("average", "last"), [(0.0, 1), (0.25, 2), (0.5, 4), (1.0, 8)])
def test_the_weights_after_the_last_steps_are_averaged(average: float, last: int) -> None:
    after: list[list[torch.Tensor]] = []
    model = tiny.model("qwen2-untied")

    def keep(step: int, loss: float) -> None:
        after.append([parameter.detach().clone() for parameter in model.parameters()])

    learn(model, FIXED * 4, SupervisedSettings(batch_size=1, learning_rate=1e-2, average=average), keep)
    assert len(after) == 8
    for found, *each in zip(model.parameters(), *after[-last:], strict=True):
        assert torch.allclose(found, torch.stack(each).mean(0), atol=1e-6)
    assert last == 1 or not torch.allclose(next(model.parameters()), after[-1][0], atol=1e-6)


def test_supervised_learning_goes_on_in_whole_batches_for_the_seconds_given() -> None:
    started = time.perf_counter()
    _, losses = taught(seconds=0.5)
    assert 0.5 <= time.perf_counter() - started < 3
    assert len(losses) > 3 and losses[-1] < losses[0]


def test_however_few_the_seconds_an_epoch_is_learned() -> None:
    _, losses = taught(seconds=1e-9)
    assert len(losses) == len(taught(epochs=1)[1]) == 3


@pytest.mark.parametrize("warmup", [0.1, 0.5])
def test_the_rate_follows_the_clock(warmup: float, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 5))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    settings = SupervisedSettings(seconds=100, batch_size=3, warmup=warmup)
    rates = [rate for rate, _ in supervised._rates_by_time(6, settings)]
    assert len(rates) == 19 and max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) == round(warmup * 20) - 1
    assert rates[0] == 0.1 and rates[-1] == pytest.approx(0.1 + 0.045 / (1 - warmup))
