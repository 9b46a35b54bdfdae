"""Drawing questions and running their groups: each unique, resumable, counted when it fails."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerosearch.agent.trajectory import Search, Trajectory
from zerosearch.data import Question
from zerosearch.errors import RunError
from zerosearch.training.recipe import Balance, Recipe
from zerosearch.training.recipe_file import load_recipe
from zerosearch.training.rollout import Group, QuestionOrder, run_groups

QUESTIONS = [Question(str(n), "Who?", ("Alice",), "d") for n in range(10)]


class Player:
    """Stands for an agent: answers right or wrong by a rule, and remembers what it was asked."""

    def __init__(self, right: object = lambda question, sample: sample % 2 == 0, broken: int = 10**6):
        self.right, self.broken = right, broken
        self.asked: list[tuple[str, int, int]] = []

    async def episode(self, question: Question, sample: int = 0, step: int = 0) -> Trajectory:
        self.asked.append((question.id, sample, step))
        number = len(self.asked)
        await asyncio.sleep(0.001 * (sample % 3))
        if number > self.broken:
            return Trajectory(
                question, sample, step, searches=[Search("q", None, 0, 0, "away")], ending="search_failed"
            )
        answer = "Alice" if self.right(question, sample) else "Bob"  # type: ignore[operator]
        return Trajectory(question, sample, step, answer=answer, ending="answered")


def recipe(*overrides: str) -> Recipe:
    small = ["training.questions_per_step=3", "training.samples_per_question=4", "algorithm.mini_batches=1"]
    return load_recipe("world", [*small, *overrides])


def run(player: Player, order: QuestionOrder, made: Recipe, step: int = 5) -> list[Group]:
    return asyncio.run(run_groups(player, order, made, step))


@given(st.integers(0, 5), st.integers(0, 40))
def test_every_round_asks_each_question_once_in_an_order_that_can_be_resumed(seed: int, position: int) -> None:
    whole = QuestionOrder(QUESTIONS, seed)
    drawn = [whole.draw().id for _ in range(60)]
    for start in range(0, 60, 10):
        assert sorted(drawn[start : start + 10], key=int) == [str(n) for n in range(10)]
    assert drawn[:10] != drawn[10:20]
    resumed = QuestionOrder(QUESTIONS, seed, position)
    assert [resumed.draw().id for _ in range(60 - position)] == drawn[position:]
    assert resumed.position == 60


@given(st.integers(0, 20), st.lists(st.integers(1, 12), min_size=1, max_size=5))
def test_every_part_of_a_round_holds_each_family_by_its_share(seed: int, sizes: list[int]) -> None:
    questions = [
        Question(f"{family} {n}", "Who?", ("Alice",), "d", kind="one_hop", family=str(family))
        for family, size in enumerate(sizes)
        for n in range(size)
    ]
    order = QuestionOrder(questions, seed)
    drawn = [order.draw().family for _ in questions]
    for count in range(len(questions)):
        asked = [drawn[:count].count(str(family)) / size for family, size in enumerate(sizes)]
        for one, share in zip(sizes, asked, strict=True):
            for other, other_share in zip(sizes, asked, strict=True):
                assert abs(share - other_share) <= 1 / one + 1 / other


@given(st.sampled_from(["kind", "data_set"]), st.integers(0, 5), st.integers(0, 40))
def test_a_balanced_order_draws_each_kind_or_data_set_as_often_as_the_others(
    balance: Balance, seed: int, position: int
) -> None:
    sizes = {"comparison": 7, "one_hop": 2, "two_hop": 4}
    questions = [
        Question(f"{name} {n}", "Who?", ("Alice",), **{"data_set": "d", balance: name})  # type: ignore[arg-type]
        for name, size in sizes.items()
        for n in range(size)
    ]
    whole = QuestionOrder(questions, seed, balance=balance)
    drawn = [whole.draw() for _ in range(60)]
    for start in range(0, 60, 3):
        assert sorted(getattr(question, balance) for question in drawn[start : start + 3]) == list(sizes)
    for name, size in sizes.items():
        own = [question.id for question in drawn if getattr(question, balance) == name]
        assert {own.count(each) for each in own[: size * (20 // size)]} <= {20 // size, 20 // size + 1}
    resumed = QuestionOrder(questions, seed, position, balance)
    assert [resumed.draw() for _ in range(60 - position)] == drawn[position:]


def test_a_group_is_the_samples_of_one_question_in_order() -> None:
    player = Player()
    groups = run(player, QuestionOrder(QUESTIONS, 0), recipe())
    assert len(groups) == 3 and len({group.trajectories[0].question.id for group in groups}) == 3
    for group in groups:
        assert [trajectory.sample for trajectory in group.trajectories] == [0, 1, 2, 3]
        assert {trajectory.question for trajectory in group.trajectories} == {group.trajectories[0].question}
        assert {trajectory.step for trajectory in group.trajectories} == {5}
        assert group.rewards == (1.0, 0.0, 1.0, 0.0)
    assert len(set(player.asked)) == 12


def test_a_question_drawn_twice_in_a_step_gives_two_different_groups() -> None:
    player = Player()
    groups = run(player, QuestionOrder(QUESTIONS[:1], 0), recipe())
    assert [[t.sample for t in group.trajectories] for group in groups] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert len(set(player.asked)) == 12


@pytest.mark.parametrize(("resample", "groups"), [(0, 3), (2, 5), (4, 7)])
def test_groups_without_spread_are_drawn_again_so_often_at_most_and_kept(resample: int, groups: int) -> None:
    order = QuestionOrder(QUESTIONS, 0)
    flat = Player(lambda question, sample: True)
    assert len(run(flat, order, recipe(f"training.resample={resample}"))) == groups == order.position
    assert len(set(flat.asked)) == 4 * groups


def test_a_failed_search_makes_no_spread() -> None:
    order = QuestionOrder(QUESTIONS, 0)
    player = Player(lambda question, sample: True, broken=11)
    groups = run(player, order, recipe("training.resample=2", "search.failure_threshold=0.9"))
    assert len(groups) == 5 and not any(group.has_spread for group in groups)
    mixed = next(group for group in groups if 1.0 in group.rewards and 0.0 in group.rewards)
    assert [reward for _, reward in mixed.earned] == [1.0, 1.0, 1.0]
    assert len(mixed.rewards) == 4 and len(mixed.parts) == 3


def test_only_as_many_are_drawn_again_as_lacked_spread() -> None:
    order = QuestionOrder(QUESTIONS, 0)
    first = QuestionOrder(QUESTIONS, 0).draw().id
    player = Player(lambda question, sample: question.id == first or sample % 2 == 0)
    groups = run(player, order, recipe("training.resample=9"))
    assert [group.replaced for group in groups] == [not group.has_spread for group in groups]
    assert len(groups) == 4


def test_what_could_not_be_replaced_stays() -> None:
    flat = Player(lambda question, sample: True)
    groups = run(flat, QuestionOrder(QUESTIONS, 0), recipe("training.resample=2"))
    assert [group.replaced for group in groups] == [True, True, False, False, False]


def test_failed_searches_beyond_the_threshold_stop_the_step() -> None:
    made = recipe("search.failure_threshold=0.25")
    found = run(Player(broken=9), QuestionOrder(QUESTIONS, 0), made)
    assert sum(t.ending == "search_failed" for group in found for t in group.trajectories) == 3
    assert all(sum(group.rewards) <= 2 for group in found), "a failed search earns nothing"
    with pytest.raises(RunError, match=r"4 of 12 episodes .*search\.failure_threshold = 0\.25 .*: away"):
        run(Player(broken=8), QuestionOrder(QUESTIONS, 0), made)
