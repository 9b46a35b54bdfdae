"""Each algorithm on a model of two layers: what its losses teach, and what they never touch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from test_update import GROUPS, group
from torch import Tensor, nn
from transformers import PreTrainedModel

from zerosearch.errors import UserError
from zerosearch.inference.packed import Row, score
from zerosearch.training.critic import Critic
from zerosearch.training.experience import Experience
from zerosearch.training.lessons import Lesson, episodes_of, filled, judged, lessons, measured, worthwhile
from zerosearch.training.loss import fallen, importance_weights, policy_loss
from zerosearch.training.recipe import Recipe
from zerosearch.training.recipe_algorithm import PRESETS, Algorithm
from zerosearch.training.recipe_file import load_recipe
from zerosearch.training.rollout import Group
from zerosearch.training.update import update_critic, update_policy

TYPES = pytest.mark.parametrize("kind", PRESETS)
EVERY_PART = [
    "algorithm.kl_coefficient=0.1",
    "algorithm.kl_in=loss",
    "algorithm.kl_estimator=k3",
    "algorithm.entropy_coefficient=0.05",
    "algorithm.llds_coefficient=0.2",
    "algorithm.dual_clip=3",
    "algorithm.correction=sequence",
]


def recipe(kind: str, *overrides: str) -> Recipe:
    plain = [
        "training.max_grad_norm=1e9",
        "training.temperature=1",
        "algorithm.mini_batches=1",
        f"algorithm.type={kind}",
    ]
    return load_recipe("world", [*plain, *overrides])


def drawn(taught: list[Lesson], model: PreTrainedModel, made: Recipe) -> list[Lesson]:
    """The lessons with every column: log-probabilities near the model's own, a reference, values and advantages."""
    generator = torch.Generator().manual_seed(0)
    algorithm = made.algorithm
    taught = measured(taught, "old_W", lambda trees: score(model, trees).log_probs, 10_000)

    def near(scale: float) -> list[Tensor]:
        return [e.old_W + scale * torch.randn(e.tokens, generator=generator) for e in episodes_of(taught)]

    columns = {"sampled_W": near(0.1), "reference_W": near(0.5), "old_W": near(0.05)}
    values = [torch.randn(e.tokens, generator=generator) for e in episodes_of(taught)]
    for name, column in columns.items():
        taught = filled(taught, name, column)
    if algorithm.estimator == "critic":
        taught = filled(taught, "values_W", values)
    if algorithm.correction != "none":
        taught = filled(taught, "corrections_W", [importance_weights(e, algorithm) for e in episodes_of(taught)])
    in_reward = algorithm.kl_coefficient if algorithm.kl_in == "reward" else 0.0
    return judged(taught, algorithm, in_reward)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


def moved(model: nn.Module, update: Callable[[torch.optim.Optimizer], object]) -> Tensor:
    """By how much a step of size 1 goes down: the gradient of the update."""
    start = weights(model)
    update(torch.optim.SGD(model.parameters(), lr=1.0))
    return start - weights(model)


# The same gradient however it is split


@TYPES
@pytest.mark.parametrize("parts", [[], EVERY_PART], ids=["preset", "every part"])
def test_one_large_batch_has_the_gradient_of_its_split_into_any_micro_batches(kind: str, parts: list[str]) -> None:
    def gradient(limit: int) -> Tensor:
        made = recipe(kind, *parts, f"training.micro_batch_tokens={limit}")
        model = tiny.model().double()
        taught = drawn(lessons(GROUPS), model, made)
        return moved(model, lambda optimizer: update_policy(model, optimizer, taught, made))

    whole = gradient(10_000)
    assert whole.abs().max() > 0
    for limit in (1, 20, 45):
        assert torch.allclose(gradient(limit), whole, rtol=1e-4, atol=1e-6 * float(whole.abs().max()))


def test_the_critics_gradient_does_not_depend_on_the_split_either() -> None:
    def gradient(limit: int) -> Tensor:
        made = recipe("ppo", f"training.micro_batch_tokens={limit}")
        critic = some_critic()
        taught = drawn(lessons(GROUPS), tiny.model(), made)
        return moved(critic, lambda optimizer: update_critic(critic, optimizer, taught, made))

    whole = gradient(10_000)
    assert whole.abs().max() > 0
    for limit in (1, 20, 45):
        assert torch.allclose(gradient(limit), whole, rtol=1e-3, atol=1e-5 * float(whole.abs().max()))


def test_a_fixed_length_divides_the_gradient_and_is_all_that_an_episode_may_write_unless_it_is_set() -> None:
    def gradient(*overrides: str) -> Tensor:
        made = recipe("grpo", "algorithm.aggregation=fixed_length", *overrides)
        model = tiny.model()
        taught = drawn(lessons(GROUPS), model, made)
        return moved(model, lambda optimizer: update_policy(model, optimizer, taught, made))

    set_to_10 = gradient("algorithm.fixed_length=10")
    assert set_to_10.abs().max() > 0
    for overrides in (["algorithm.fixed_length=40"], ["agent.max_turns=3", "agent.max_tokens_per_turn=10"]):
        assert torch.allclose(gradient(*overrides) * 4, set_to_10, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "fixed_length"])
def test_a_flat_group_that_is_left_out_counts_as_one_that_is_kept(aggregation: str) -> None:
    made = recipe("grpo", "algorithm.kl_coefficient=0", f"algorithm.aggregation={aggregation}")

    def gradient(leave_out: bool, *groups: Group) -> Tensor:
        model = tiny.model().double()
        whole = drawn(lessons(groups), model, made)
        taught = worthwhile(whole) if leave_out else whole
        assert (len(taught) < len(whole)) is (leave_out and len(groups) > len(GROUPS))
        return moved(model, lambda optimizer: update_policy(model, optimizer, taught, made, whole=whole))

    flat = group([0.5, 0.5], [3, 14], "s")
    kept, left_out = (gradient(leave_out, *GROUPS, flat) for leave_out in (False, True))
    assert torch.allclose(left_out, kept, rtol=1e-4, atol=1e-6 * float(kept.abs().max()))
    assert kept.norm() < 0.9 * gradient(True, *GROUPS).norm(), "it thins the gradient"


def test_every_token_weighs_the_same_for_the_critic_whatever_it_does_for_the_policy() -> None:
    def gradient(aggregation: str) -> Tensor:
        made = recipe("ppo", f"algorithm.aggregation={aggregation}")
        critic = some_critic()
        taught = drawn(lessons(GROUPS), tiny.model(), made)
        return moved(critic, lambda optimizer: update_critic(critic, optimizer, taught, made))

    assert torch.equal(gradient("sequence_mean"), gradient("token_mean"))
    assert torch.equal(gradient("fixed_length"), gradient("token_mean"))


def test_the_critics_activations_are_computed_again_where_that_is_wanted() -> None:
    tree = lessons(GROUPS)[0].tree

    def learn_once(critic: Critic) -> int:
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
            values_W = critic.values([tree])
        values_W.sum().backward()
        return sum(kept)

    plain, again = some_critic().train(), some_critic().train()
    again.model.gradient_checkpointing_enable()
    assert learn_once(again) < learn_once(plain) / 2
    for mine, expected in zip(again.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine.grad, expected.grad, rtol=1e-3, atol=1e-5 * (1 + float(expected.grad.abs().max())))


def some_critic(seed: int = 0) -> Critic:
    critic = Critic(tiny.model(seed=seed))
    nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(seed))
    return critic


# Observations


@contextmanager
def last_hidden_states(body: nn.Module) -> Iterator[list[Tensor]]:
    """The normalised states (T, width) of every pass, with their gradients."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: object, states: Tensor) -> None:
        if states.requires_grad:
            states.retain_grad()
            seen.append(states)

    handle = body.norm.register_forward_hook(keep)
    yield seen
    handle.remove()


def predicting_policy_tokens(lesson: Lesson) -> Tensor:
    """For each token of the lesson's row: whether a token that the policy wrote comes next in some episode.

    Of the tokens that the row is filled up with none does.
    """
    places = [False] * lesson.tree.tokens
    last, start = len(lesson.tree.prefix) - 1, len(lesson.tree.prefix)
    for branch in lesson.tree.branches:
        for index, own in enumerate(branch.wanted):
            if own:
                places[start + index - 1 if index else last] = True
        start += len(branch.token_ids)
    return torch.tensor([*places, *[False] * (-len(places) % Row.multiple)])


@TYPES
def test_what_predicts_an_observation_has_exactly_no_gradient(kind: str) -> None:
    made = recipe(kind, *EVERY_PART)
    model = tiny.model()
    taught = drawn(lessons(GROUPS[:1]), model, made)
    expected = predicting_policy_tokens(taught[0])
    assert expected.sum() > 10 and (~expected).sum() > 10
    with last_hidden_states(model.model) as seen:
        moved(model, lambda optimizer: update_policy(model, optimizer, taught, made))
    assert torch.equal(seen[0].grad.abs().sum(-1) > 0, expected)


def test_the_value_loss_leaves_what_predicts_an_observation_alone_too() -> None:
    made = recipe("ppo")
    critic = some_critic()
    taught = drawn(lessons(GROUPS[:1]), tiny.model(), made)
    with last_hidden_states(critic.model) as seen:
        moved(critic, lambda optimizer: update_critic(critic, optimizer, taught, made))
    touched = seen[0].grad.abs().sum(-1) > 0
    expected = predicting_policy_tokens(taught[0])
    assert not touched[~expected].any()
    assert touched.sum() > 0.5 * expected.sum(), "all but values that their clip holds"


def test_advantages_skip_observations() -> None:
    """What stands at observations, and how long they are, changes no advantage and no return."""
    made = recipe("ppo", "algorithm.discount=0.9")

    def found(observation: tuple[int, ...]) -> list[Tensor]:
        one = group([1.0, 0.5], [3, 4])
        for trajectory in one.trajectories:
            trajectory.segments[2] = replace(trajectory.segments[2], token_ids=observation)
        taught = lessons([one])
        values = [torch.linspace(-1, 1, episode.tokens) for episode in episodes_of(taught)]
        return [e.advantages_W for e in episodes_of(judged(filled(taught, "values_W", values), made.algorithm))]

    for short, long in zip(found((8,)), found((9, 10, 11, 12, 13)), strict=True):
        assert torch.equal(short, long)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize(
    "overrides",
    [
        ("grpo",),
        ("reinforce", "algorithm.baseline=group"),
        ("rloo",),
        ("grpo", "algorithm.whiten=true"),
        ("reinforce_plus_plus",),
        ("reinforce_plus_plus_baseline",),
        ("ppo",),
    ],
    ids=" ".join,
)
def test_what_is_worse_than_expected_counts_as_much_as_the_recipe_says(
    weight: float, overrides: tuple[str, ...]
) -> None:
    kind, *parts = overrides
    groups = [group([1.0, 0.0, 0.0, 1.0], [3, 4, 5, 2]), group([0.5, 0.5], [3, 4])]

    def found(*more: str) -> Tensor:
        algorithm = recipe(kind, "algorithm.kl_coefficient=0", *parts, *more).algorithm
        return torch.cat([episode.advantages_W for episode in episodes_of(judged(lessons(groups), algorithm))])

    full_W, weighed_W = found(), found(f"algorithm.negative={weight:g}")
    assert torch.equal(weighed_W[full_W >= 0], full_W[full_W >= 0]) and (full_W > 0).any()
    assert torch.equal(weighed_W[full_W < 0], weight * full_W[full_W < 0]) and (full_W < 0).any()


def test_with_failures_left_out_only_successes_that_stand_out_are_learned_from() -> None:
    made = recipe("reinforce_positive", "algorithm.kl_coefficient=0")
    groups = [group([1.0, 0.0], [3, 4]), group([1.0, 1.0], [3, 4]), group([0.0, 0.0], [3, 4])]
    [lesson] = worthwhile(judged(lessons(groups), made.algorithm))
    assert [episode.rewards_E.item() for episode in lesson.episodes] == [1.0]


# The pull to the reference


@pytest.mark.parametrize("estimator", ["k2", "k3"])
@TYPES
def test_the_divergence_in_the_loss_pulls_back(kind: str, estimator: str) -> None:
    made = recipe(kind, "algorithm.kl_coefficient=1.0", "algorithm.kl_in=loss", f"algorithm.kl_estimator={estimator}")
    assert divergence_after(made) < 0.5


def divergence_after(made: Recipe) -> float:
    """What is left of the divergence of a policy that was pushed away, after twenty updates of its log-probabilities.

    A table of three tokens stands for the policy; each update sees every token in the share that the policy gives it.
    """
    reference = torch.log_softmax(torch.tensor([1.0, 0.0, -1.0]).double(), -1)
    logits = torch.tensor([-2.0, 1.0, 2.0]).double().requires_grad_()
    ones = torch.ones(3, dtype=torch.long)
    zeros = torch.zeros(3).double()

    def left() -> float:
        policy = logits.log_softmax(-1)
        return (policy.exp() * (policy - reference)).sum().item()

    before = left()
    for _ in range(200):
        policy = logits.log_softmax(-1)
        old = policy.detach()
        experience = Experience(ones, ones, zeros, old, old, zeros, zeros, zeros, reference)
        if made.algorithm.kl_in == "reward":
            kl = old - reference
            advantage = -made.algorithm.kl_coefficient * (kl - (old.exp() * kl).sum())
            experience = replace(experience, advantages_W=advantage)
        loss = policy_loss(policy, zeros, experience, old.exp(), made.algorithm).value
        (gradient,) = torch.autograd.grad(loss, logits)
        with torch.no_grad():
            logits -= 0.5 * gradient
    return left() / before


def test_k1_in_the_loss_pulls_nowhere_but_in_the_reward_it_does() -> None:
    k1 = ["algorithm.kl_coefficient=1.0", "algorithm.kl_estimator=k1"]
    with pytest.raises(UserError, match=r'kl_in is "reward", but algorithm.normalize_std makes whole advantages'):
        recipe("grpo", *k1, "algorithm.kl_in=reward")
    with pytest.raises(UserError, match=r'kl_estimator is "k1", .* set it to "k2" or "k3", or algorithm.kl_in = "rew'):
        recipe("grpo", *k1, "algorithm.kl_in=loss")
    in_loss = recipe("grpo", "algorithm.kl_coefficient=1.0")
    k1_in_loss = in_loss.algorithm.model_copy(update={"kl_estimator": "k1"})
    assert divergence_after(in_loss.model_copy(update={"algorithm": k1_in_loss})) == pytest.approx(1.0)
    assert divergence_after(recipe("ppo", *k1, "algorithm.clip_high=100", "algorithm.clip_low=0.99")) < 0.5


@pytest.mark.parametrize("kind", ["reinforce_plus_plus", "rloo", "ppo"])
def test_the_divergence_in_the_reward_lowers_what_strayed(kind: str) -> None:
    made = recipe(kind, "algorithm.kl_coefficient=0.5", "algorithm.whiten=false")
    taught = lessons([group([1.0, 0.0], [4, 4])])
    strayed = [torch.tensor([-9.0]).repeat(e.tokens) if not n else e.old_W for n, e in enumerate(episodes_of(taught))]
    plain, pulled = (
        judged(filled(taught, "reference_W", strayed), made.algorithm, coefficient) for coefficient in (0.0, 0.5)
    )
    before, after = (episodes_of(each)[0].advantages_W for each in (plain, pulled))
    assert (after < before).all()


# Other parts


@TYPES
def test_a_bonus_for_entropy_raises_it(kind: str) -> None:
    def entropies(coefficient: float) -> list[float]:
        made = recipe(kind, f"algorithm.entropy_coefficient={coefficient}", "algorithm.kl_coefficient=0")
        model = tiny.model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        taught = lessons([group([0.5, 0.5, 0.5], [9, 7, 8])])
        taught = measured(taught, "old_W", lambda trees: score(model, trees).log_probs, 10_000)
        return [update_policy(model, optimizer, taught, made)["entropy"] for _ in range(10)]

    without, bonus = entropies(0.0), entropies(0.5)
    assert without[-1] == pytest.approx(without[0])
    assert bonus[-1] > bonus[0] + 0.05


def test_likelihood_is_kept_only_where_a_good_turn_became_less_likely() -> None:
    # Turns: fell as a whole, with one token that rose; rose as a whole, with one that fell; fell, but was bad; fell.
    old = torch.zeros(7)
    new = torch.tensor([-1.0, 0.5, 1.0, -0.5, -1.0, -1.0, -0.25]).requires_grad_()
    advantage = torch.tensor([0.3, 0.3, 0.3, 0.3, -0.1, -0.1, 0.0])
    turns, lengths = torch.tensor([2, 2, 2, 1]), torch.tensor([4, 2, 1])
    experience = Experience(lengths, turns, torch.zeros(3), old, old, advantage, old, old)
    penalty = fallen(new, old, advantage, turns)
    assert penalty.tolist() == [1.0, 0, 0, 0, 0, 0, 0.25]
    assert torch.autograd.grad(penalty.sum(), new)[0].tolist() == [-1.0, 0, 0, 0, 0, 0, -1.0]
    plain, kept = (Algorithm(llds_coefficient=each, kl_coefficient=0.0) for each in (0.0, 0.2))
    losses = [policy_loss(new, old, experience, torch.ones(7), each).value.item() for each in (plain, kept)]
    assert losses[1] - losses[0] == pytest.approx(0.2 * 1.25)


@TYPES
def test_before_the_first_update_nothing_has_become_less_likely(kind: str) -> None:
    def after(coefficient: float) -> Tensor:
        made = recipe(kind, f"algorithm.llds_coefficient={coefficient}", "algorithm.kl_coefficient=0")
        model = tiny.model()
        taught = lessons([group([1.0, 0.0, 0.5], [9, 7, 8])])
        taught = measured(taught, "old_W", lambda trees: score(model, trees).log_probs, 10_000)
        taught = judged(filled(taught, "values_W", [e.old_W for e in episodes_of(taught)]), made.algorithm)
        update_policy(model, torch.optim.SGD(model.parameters(), lr=0.5), taught, made)
        return weights(model)

    assert torch.equal(after(0.2), after(0.0))


def test_a_failure_that_weighs_nothing_is_not_kept_likely() -> None:
    made = recipe("reinforce_positive", "algorithm.kl_coefficient=0", "algorithm.llds_coefficient=0.2")
    [lesson] = judged(lessons([group([1.0, 0.0], [3, 4])]), made.algorithm)
    for episode, kept in zip(lesson.episodes, (True, False), strict=True):
        fall = fallen(episode.old_W - 1, episode.old_W, episode.advantages_W, episode.turns_N)
        assert bool(fall.any()) is kept


@given(st.floats(1.5, 5), st.floats(0.1, 20), st.floats(-3, 3))
def test_dual_clip_bounds_the_loss_of_bad_tokens_only(bound: float, ratio: float, advantage: float) -> None:
    assume(abs(ratio - bound) > 1e-3)
    one, value = torch.ones(1, dtype=torch.long), torch.tensor([advantage])
    new, zero = torch.tensor([ratio]).log(), torch.zeros(1)
    experience = Experience(one, one, zero, zero, zero, value, zero, zero)
    plain, dual = (
        policy_loss(new, zero, experience, torch.ones(1), Algorithm(dual_clip=each)) for each in (0.0, bound)
    )
    expected = min(plain.value.item(), -bound * advantage) if advantage < 0 else plain.value.item()
    assert dual.value.item() == pytest.approx(expected)
    cut = advantage < 0 and plain.value.item() > -bound * advantage
    assert dual.figures["clip_fraction"] == max(plain.figures["clip_fraction"], cut)
