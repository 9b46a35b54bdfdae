"""What an episode earns: scores, format, costs and functions of one's own, each part by itself."""

import asyncio
import sys
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from zerosearch.agent.episode import EpisodeSettings
from zerosearch.agent.trajectory import Search, Segment, Trajectory
from zerosearch.cli.plan import plan
from zerosearch.data import Question
from zerosearch.data.world import build_world
from zerosearch.errors import UserError
from zerosearch.search.bm25 import BM25Engine
from zerosearch.training.demonstrations import demonstrate
from zerosearch.training.recipe import Recipe
from zerosearch.training.recipe_file import load_recipe
from zerosearch.training.rewards import load_function, overlength, reward_parts, rewarded, well_formed
from zerosearch.training.rollout import Group, QuestionOrder, run_groups
from zerosearch.training.stages import train

QUESTION = Question("q7", "Who?", ("Alice Turner",), "d")
SEARCH, ANSWER = "<think> so </think>\n<search> who </search>", "<think> oh </think> <answer> Alice </answer>"
WEIGHTS = ("f1", "em", "substring_em", "format")


def episode(*turns: str, answer: str | None = "Alice", searches: int = 0, invalid: int = 0) -> Trajectory:
    """Each turn counts ten tokens."""
    return Trajectory(
        QUESTION,
        segments=[Segment("policy", turn, (1,) * 10, (0.0,) * 10) for turn in turns],
        searches=[Search("q", None, 3, 0.0)] * searches,
        answer=answer,
        ending="no_answer" if answer is None else "answered",
        invalid_actions=invalid,
    )


def recipe(*overrides: str) -> Recipe:
    return load_recipe("world", overrides)


def earned(trajectory: Trajectory, *overrides: str) -> dict[str, float]:
    return reward_parts(trajectory, recipe(*overrides))


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    sys.modules.pop("reward_under_test", None)
    yield "reward_under_test"
    for thread in threading.enumerate():
        if thread.name == "reward":
            thread.join(30)  # else it might import the module into the next test
    sys.modules.pop("reward_under_test", None)


@pytest.mark.parametrize(("name", "value"), [("f1", 2 / 3), ("em", 0.0), ("substring_em", 0.0)])
def test_a_type_is_the_score_of_the_answer_and_nothing_else(name: str, value: float) -> None:
    assert earned(episode(ANSWER), f"reward.type={name}") == {name: pytest.approx(value)}
    assert earned(episode(ANSWER, answer="Alice Turner"), f"reward.type={name}") == {name: 1.0}
    assert earned(episode(SEARCH, answer=None), f"reward.type={name}") == {name: 0.0}


@given(
    st.fixed_dictionaries({name: st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.0, -1.0]) for name in WEIGHTS}),
    st.sampled_from(["Alice", "Alice Turner", "is Alice Turner", "Bob", None]),
    st.sampled_from([0.0, 0.05, 0.3]),
    st.integers(0, 4),
    st.integers(0, 3),
)
def test_a_reward_is_the_sum_of_its_weighted_parts(
    weights: dict[str, float], answer: str | None, cost: float, free: int, searches: int
) -> None:
    if not any(weights.values()):
        weights["f1"] = 1.0
    given_weights = [f"reward.weights.{name}={weight}" for name, weight in weights.items()]
    trajectory = episode(*[SEARCH] * searches, ANSWER, answer=answer, searches=searches)
    parts = earned(
        trajectory, "reward.type=weighted", *given_weights, f"reward.search_cost={cost}", f"reward.free_searches={free}"
    )
    scores = {name: earned(trajectory, f"reward.type={name}")[name] for name in WEIGHTS[:3]}
    scores["format"] = float(answer is not None)
    expected = {name: weight * scores[name] for name, weight in weights.items() if weight}
    if cost:
        expected["searches"] = -cost * max(0, searches - free)
    assert parts == pytest.approx(expected)


@pytest.mark.parametrize(
    ("turns", "good"),
    [
        ([ANSWER], True),
        ([SEARCH, SEARCH, ANSWER], True),
        ([f"\n{SEARCH}\n", ANSWER], True),
        (["<think>\nWho? <3 a < b\n</think><answer>x</answer>"], True),
        (["<answer> Alice </answer>"], False),
        ([SEARCH, "<answer> Alice </answer>"], False),
        (["<think> </think><answer> Alice </answer>"], False),
        (["<think> so <answer> Alice </answer>"], False),
        ([f"Well. {ANSWER}"], False),
        ([f"{ANSWER} Bye."], False),
        (["<answer> Alice </answer><think> oh </think>"], False),
        (["<think> a </think> b <answer> Alice </answer>"], False),
        (["<think> <think> a </think> <answer> Alice </answer>"], False),
        (["<think> a </think> <think> b </think> <answer> Alice </answer>"], False),
        (["<think> a </think> <search> a </answer> </search>"], False),
        ([SEARCH, "<think> <information> x </information> </think> <answer> Alice </answer>"], False),
    ],
)
def test_the_format_is_thought_then_action_in_every_turn(turns: list[str], good: bool) -> None:
    assert well_formed(episode(*turns)) is good


def test_the_format_needs_an_answer_and_valid_actions() -> None:
    assert not well_formed(episode(SEARCH, SEARCH, answer=None))
    assert not well_formed(episode(SEARCH, ANSWER, invalid=1))
    weighted = ["reward.type=weighted", "reward.weights.f1=0.9", "reward.weights.format=0.1"]
    assert sum(earned(episode(ANSWER, answer="Alice Turner"), *weighted).values()) == pytest.approx(1.0)


def test_demonstrations_have_the_format() -> None:
    world = build_world()
    shown = asyncio.run(
        demonstrate(
            world.train, BM25Engine(world.train_passages), tiny.tokenizer(), EpisodeSettings(max_length=9999), 40, 0
        )
    )
    assert len(shown) == 40 and all(map(well_formed, shown))


def test_searches_cost_beyond_the_free_ones() -> None:
    cost = ["reward.search_cost=0.1", "reward.free_searches=1"]
    assert [earned(episode(ANSWER, searches=n), *cost)["searches"] for n in range(4)] == pytest.approx(
        [0.0, 0.0, -0.1, -0.2]
    )


def test_length_costs_from_its_start_to_the_limit_of_the_agent() -> None:
    shape = ["agent.max_turns=3", "agent.max_tokens_per_turn=10", "reward.length_start=20", "reward.length_penalty=0.5"]
    assert [earned(episode(*[ANSWER] * n), *shape)["length"] for n in (1, 2, 3, 4)] == pytest.approx(
        [0.0, 0.0, -0.25, -0.5]
    )


@given(st.integers(0, 50), st.integers(1, 50), st.integers(0, 200), st.integers(0, 200))
def test_overlength_grows_from_nothing_to_one(start: int, room: int, one: int, other: int) -> None:
    limit = start + room
    shorter, longer = (overlength(length, start, limit) for length in sorted((one, other)))
    assert 0 <= shorter <= longer <= 1
    assert overlength(start, start, limit) == 0 and overlength(limit, start, limit) == 1


class Player:
    """Stands for an agent that searches as often as its sample's number says."""

    async def episode(self, question: Question, sample: int = 0, step: int = 0) -> Trajectory:
        return episode(ANSWER, searches=sample)


def groups_of(made: Recipe, questions: Sequence[Question] = (QUESTION,)) -> Coroutine[None, None, list[Group]]:
    return run_groups(Player(), QuestionOrder(questions, 0), made, 1)  # type: ignore[arg-type]


def test_parts_reach_the_groups_and_their_sum_is_the_reward() -> None:
    weighted = ["reward.type=weighted", "reward.weights.f1=0.6", "reward.weights.format=0.4", "reward.search_cost=0.1"]
    made = recipe(*weighted, "training.questions_per_step=1", "algorithm.mini_batches=1")
    (group,) = asyncio.run(groups_of(made))
    assert [sorted(parts) for parts in group.parts] == [["f1", "format", "searches"]] * 4
    assert group.rewards == pytest.approx([0.8 - 0.1 * n for n in range(4)])
    assert group.rewards == tuple(sum(parts.values()) for parts in group.parts)


# Functions of one's own

OWN = ["reward.type=weighted", "reward.weights.function=0.5"]


def test_a_function_gets_the_trajectory_and_is_weighted(mine: str, tmp_path: Path) -> None:
    (tmp_path / f"{mine}.py").write_text("def searched(trajectory):\n    return len(trajectory.searches)\n")
    parts = earned(episode(ANSWER, searches=3), *OWN, f"reward.function={mine}:searched")
    assert parts == {"function": 1.5}


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("return None", "returned None: it must return a finite number"),
        ("return 'much'", "returned 'much': it must return a finite number"),
        ("return float('nan')", "returned nan: it must return a finite number"),
        ("return float('inf')", "returned inf: it must return a finite number"),
        ("return trajectory.nothing", "raised AttributeError: .*: it must return a number for every episode"),
        ("raise ValueError('two\\nlines')", "raised ValueError: two lines: it must"),
        ("raise SystemExit(3)", "raised SystemExit: 3: it must"),
    ],
)
def test_what_a_function_does_wrong_is_one_sentence(mine: str, tmp_path: Path, body: str, sentence: str) -> None:
    (tmp_path / f"{mine}.py").write_text(f"def judge(trajectory):\n    {body}\n")
    with pytest.raises(
        UserError, match=rf"reward\.function reward_under_test:judge on question 'q7' {sentence}"
    ) as error:
        earned(episode(ANSWER), *OWN, f"reward.function={mine}:judge")
    assert "\n" not in str(error.value)


SMALL = ["training.questions_per_step=2", "training.samples_per_question=2", "algorithm.mini_batches=1"]


def test_the_event_loop_goes_on_while_a_function_works(mine: str, tmp_path: Path) -> None:
    """The function waits until the loop has turned, and in each group for what another group's waits for."""
    (tmp_path / f"{mine}.py").write_text(
        "import threading\n"
        "turned, both = threading.Event(), threading.Barrier(2)\n"
        "def judge(trajectory):\n"
        "    both.wait(20)\n"
        "    return float(turned.wait(20))\n"
    )
    made = recipe(*OWN, *SMALL, f"reward.function={mine}:judge")
    turned = load_function(made.reward.function).__globals__["turned"]  # type: ignore[attr-defined]

    async def step() -> list[Group]:
        running = asyncio.create_task(groups_of(made, [QUESTION, replace(QUESTION, id="q8")]))
        await asyncio.sleep(0.1)
        turned.set()
        return await running

    assert [group.rewards for group in asyncio.run(step())] == [(0.5, 0.5)] * 2


def test_a_function_that_takes_too_long_is_one_sentence_and_holds_nothing_up(mine: str, tmp_path: Path) -> None:
    (tmp_path / f"{mine}.py").write_text(
        "import time\ndef judge(trajectory):\n    time.sleep(1)\n    raise ValueError('late')\n"
    )
    made = recipe(
        *OWN, *SMALL[1:], "training.questions_per_step=1", f"reward.function={mine}:judge", "reward.timeout=0.1"
    )
    started = time.perf_counter()
    sentence = (
        r"^reward\.function reward_under_test:judge on question 'q7' took longer than 0\.1 seconds: .* raise reward"
    )
    with pytest.raises(UserError, match=sentence):
        asyncio.run(groups_of(made))
    assert time.perf_counter() - started < 0.9
    (thread,) = {each for each in threading.enumerate() if each.name == "reward"}
    assert thread.daemon
    thread.join(5)  # what it has to say in the end is of no account: pytest would report an error in it


def test_a_loop_that_stands_still_is_not_the_functions_time(mine: str, tmp_path: Path) -> None:
    """The function returns at once, and leaves behind what holds the loop up for longer than the timeout."""
    (tmp_path / f"{mine}.py").write_text(
        "import time\nloop = None\n"
        "def judge(trajectory):\n    loop.call_soon_threadsafe(time.sleep, 0.5)\n    return 1.0\n"
    )
    made = recipe(*OWN, "reward.timeout=0.2", f"reward.function={mine}:judge")
    found = load_function(made.reward.function).__globals__  # type: ignore[attr-defined]

    async def judged() -> dict[str, float]:
        found["loop"] = asyncio.get_running_loop()
        return await rewarded(episode(ANSWER), made)

    assert asyncio.run(judged()) == {"function": 0.5}


def test_what_a_function_raises_in_its_thread_reaches_the_run(mine: str, tmp_path: Path) -> None:
    (tmp_path / f"{mine}.py").write_text("def judge(trajectory):\n    return 1 / 0\n")
    with pytest.raises(UserError, match=r"^reward\.function .* raised ZeroDivisionError: division by zero: it must"):
        asyncio.run(groups_of(recipe(*OWN, *SMALL, f"reward.function={mine}:judge")))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, r"cannot be imported \(ModuleNotFoundError: .*\): it must be installed or lie in the working folder"),
        ("import nothing_here", r"cannot be imported \(ModuleNotFoundError: No module named 'nothing_here'\)"),
        ("def", r"cannot be imported \(SyntaxError: "),
        ("other = 1", "reward_under_test has no function judge"),
        ("judge = 1", "reward_under_test has no function judge"),
    ],
)
def test_a_function_that_is_not_there_is_told_before_the_run_begins(
    mine: str, tmp_path: Path, text: str | None, sentence: str
) -> None:
    if text is not None:
        (tmp_path / f"{mine}.py").write_text(text)
    with pytest.raises(UserError, match=sentence) as error:
        train(recipe(*OWN, f"reward.function={mine}:judge", f"output={tmp_path / 'run'}"))
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_a_function_may_come_from_a_package() -> None:
    for name in ("zerosearch.training.rewards:well_formed", "zerosearch.training.rewards.well_formed"):
        assert load_function(name) is well_formed
    assert recipe(*OWN, "reward.function=zerosearch.training.rewards.well_formed").reward.function


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["reward.type=weighted"], ["every weight is 0", "reward.weights.f1 = 1.0"]),
        (["reward.weights.em=1"], ["reward.weights.em is set", 'reward.type = "weighted"']),
        (["reward.type=weighted", "reward.weights.function=1"], ["reward.function", "both or neither"]),
        (["reward.function=a:b"], ["reward.function", "both or neither"]),
        ([*OWN, "reward.function=found"], ['reward.function is "found"', "package.module.function"]),
        ([*OWN, "reward.function=a:b:c"], ['reward.function is "a:b:c"', "package.module.function"]),
        (["reward.weights.f1=nan"], ["reward.weights.f1 is nan", "finite"]),
        (["reward.search_cost=-1"], ["reward.search_cost is -1", "at least 0"]),
        (
            ["reward.length_penalty=1", "reward.length_start=480"],
            ["reward.length_start is 480", "at most 480 tokens", "agent.max_turns"],
        ),
    ],
)
def test_a_reward_that_makes_no_sense_says_what_to_do(given: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        recipe(*given)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "reward f1)"),
        (["reward.type=weighted", "reward.weights.f1=0.9", "reward.weights.format=0.1"], "reward 0.9 f1 + 0.1 format)"),
        (["reward.search_cost=0.05", "reward.length_penalty=1"], "reward f1 less 0.05 a search less 1 for length)"),
    ],
)
def test_the_plan_says_what_is_rewarded(given: list[str], said: str) -> None:
    assert any(said in line for line in plan(recipe(*given)))
