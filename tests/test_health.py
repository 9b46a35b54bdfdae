"""The figures of a step, and what a run does when they go where they should not."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from whole_runs import ONLY_RL, arguments, bits, carry_out, rows

from zerosearch.agent.trajectory import Search, Segment, Trajectory
from zerosearch.cli.main import run as command
from zerosearch.data import Question
from zerosearch.errors import RunError
from zerosearch.inference.models import load_model
from zerosearch.report.progress import figure_text
from zerosearch.training import trainer
from zerosearch.training.checkpoint import checkpoint_before, checkpoints, drop_old, load_state
from zerosearch.training.health import ALARMS, Watch, repetition, step_figures
from zerosearch.training.learner import Learner
from zerosearch.training.recipe_file import built_in_recipes, load_recipe
from zerosearch.training.recipe_health import Health
from zerosearch.training.rollout import Group

pytestmark = pytest.mark.usefixtures("lively")

ONE, TWO = (Question(kind, "?", ("Alice Turner",), "d", kind=kind) for kind in ("one_hop", "two_hop"))


def search(documents: int = 3, shown: bool = False, error: str = "") -> Search:
    return Search("q", None, documents, 0.0, error, shown)


def episode(
    question: Question, answer: str | None, *searches: Search, turns: list[list[int]] | None = None, **counts: Any
) -> Trajectory:
    segments = [Segment("policy", "", tuple(ids), (0.0,) * len(ids)) for ids in turns or [[1, 2, 3]]]
    return Trajectory(question, segments=segments, searches=list(searches), answer=answer, **counts)


# Figures


def test_a_steps_figures_say_what_its_episodes_were_like() -> None:
    groups = [
        Group(
            (
                episode(ONE, "Alice Turner", search(shown=True)),
                episode(ONE, "Alice", search(0), search(shown=True), turns=[[1] * 9, [2]], truncated_turns=1),
            ),
            (1.0, 0.7),
            ({"f1": 0.9, "format": 0.1}, {"f1": 0.7, "format": 0.0}),
        ),
        Group(
            (
                episode(TWO, None, search(0, error="away"), invalid_actions=2, turns=[[1], [2], [3]]),
                episode(TWO, "Bob", truncated_pages=1),
            ),
            (0.0, 0.0),
            ({"f1": 0.0, "format": 0.0}, {"f1": 0.0, "format": 0.0}),
        ),
    ]
    expected = {
        "reward": 0.425,
        "em": 0.25,
        "searches": 1.0,
        "invalid_actions": 0.5,
        "invalid_action_rate": 2 / 7,
        "truncated_turns": 0.25,
        "truncated_turn_rate": 1 / 7,
        "truncated_pages": 0.25,
        "unanswered": 0.25,
        "failed_episode_rate": 0.0,
        "tokens": 4.75,
        "policy_tokens": 4.75,
        "policy_tokens_max": 10,
        "repetition": 5 / 6,
        "groups": 2,
        "groups_without_spread": 0.5,
        "reward/one_hop": 0.85,
        "reward/two_hop": 0.0,
        "searches/one_hop": 1.5,
        "searches/two_hop": 0.5,
        "reward/part/f1": 0.4,
        "reward/part/format": 0.025,
        "empty_page_rate": 1 / 3,
        "answer_shown": 2 / 3,
        "searches/turn_1": 0.75,
        "searches/turn_2": 0.25,
        "answer_shown/turn_1": 0.5,
        "answer_shown/turn_2": 1.0,
    }
    assert step_figures(groups) == pytest.approx(expected)


def test_an_episode_whose_search_failed_is_no_reward_and_no_spread() -> None:
    right, failed = episode(ONE, "Alice Turner"), episode(TWO, None, search(0, error="away"), ending="search_failed")
    parts = ({"f1": 1.0}, {"f1": 1.0})
    figures = step_figures([Group((right, failed, right), (1.0, 0.0, 1.0), parts)])
    assert figures["reward"] == figures["em"] == figures["reward/part/f1"] == figures["reward/one_hop"] == 1.0
    assert figures["groups_without_spread"] == 1.0 and figures["searches"] == pytest.approx(1 / 3)
    nothing = step_figures([Group((failed,), (0.0,))])
    assert (nothing["reward"], nothing["reward/two_hop"], nothing["groups_without_spread"]) == (0.0, 0.0, 1.0)


def test_a_step_without_searches_or_parts_has_figures_too() -> None:
    figures = step_figures([Group((episode(ONE, None),), (0.0,))])
    assert figures["empty_page_rate"] == figures["answer_shown"] == figures["repetition"] == 0
    assert not [name for name in figures if "turn_1" in name or "part" in name]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=9))
def test_searches_by_turn_add_up_to_searches(counts: list[int]) -> None:
    episodes = tuple(episode(ONE, None, *[search()] * count) for count in counts)
    figures = step_figures([Group(episodes, (0.0,) * len(counts))])
    by_turn = [value for name, value in figures.items() if name.startswith("searches/turn_")]
    assert sum(by_turn) == pytest.approx(figures["searches"])
    assert by_turn == sorted(by_turn, reverse=True)


@given(st.lists(st.lists(st.integers(0, 5), max_size=30), min_size=1, max_size=4))
def test_repetition_is_a_share_and_writing_all_again_is_half_at_least(turns: list[list[int]]) -> None:
    once = repetition([episode(ONE, None, turns=turns)])
    twice = repetition([episode(ONE, None, turns=turns + turns)])
    assert 0 <= once <= twice < 1
    if any(len(turn) >= 4 for turn in turns):
        assert twice >= 0.5
    assert repetition([episode(ONE, None, turns=turns)] * 2) == once, "other episodes may say the same"


@given(st.integers(1, 40))
def test_repetition_of_new_and_of_old(length: int) -> None:
    assert repetition([episode(ONE, None, turns=[list(range(length))])]) == 0
    groups = max(0, length - 3)
    expected = (groups - 1) / groups if groups else 0
    assert repetition([episode(ONE, None, turns=[[7] * length])]) == pytest.approx(expected)
    page = Segment("observation", "", (7,) * 99)
    quiet = episode(ONE, None)
    quiet.segments.append(page)
    assert repetition([quiet]) == 0, "pages may repeat themselves"


# Alarms

GOOD = {
    "reward": 0.5,
    "kl": 0.1,
    "entropy": 0.5,
    "gradient_norm": 1.0,
    "invalid_action_rate": 0.1,
    "truncated_turn_rate": 0.1,
    "empty_page_rate": 0.1,
    "repetition": 0.2,
    "ratio_max": 1.5,
    "clip_fraction": 0.1,
    "policy_tokens": 90.0,
    "groups_without_spread": 0.4,
    "searches": 2.0,
}
LIMITS = Health(
    patience=3,
    max_kl=1.0,
    min_entropy=0.1,
    max_gradient_norm=10.0,
    max_invalid_actions=0.5,
    max_truncated_turns=0.5,
    max_empty_pages=0.5,
    max_repetition=0.5,
    max_ratio=20.0,
    max_clip_fraction=0.5,
    max_policy_tokens=200.0,
    max_groups_without_spread=0.8,
    min_searches=0.25,
    min_reward=0.5,
    reward_steps=4,
)
BAD = {
    "kl": 2.0,
    "entropy": 0.05,
    "gradient_norm": 11.0,
    "invalid_action_rate": 0.6,
    "truncated_turn_rate": 0.7,
    "empty_page_rate": 0.9,
    "repetition": 0.8,
    "ratio_max": 50.0,
    "clip_fraction": 0.7,
    "policy_tokens": 300.0,
    "groups_without_spread": 0.9,
}


def stop(limits: Health, figures: list[dict[str, Any]], folder: Path = Path("nowhere")) -> tuple[int, str, int]:
    """The step after which the run stops (0: never), its sentence and the last step whose weights are well."""
    watch = Watch(limits)
    for step, row in enumerate(figures, 1):
        watch.see(step, {name: value for name, value in (GOOD | row).items() if value is not ...})
        try:
            watch.check(folder, "the-start")
        except RunError as error:
            assert "\n" not in str(error)
            return step, str(error), watch.good_step
    return 0, "", watch.good_step


@pytest.mark.parametrize("alarm", ALARMS, ids=lambda alarm: alarm.key)
def test_a_figure_that_stays_beyond_its_limit_stops_the_run_and_says_where_it_went(alarm: Any) -> None:
    bad = {alarm.figure: BAD[alarm.figure]}
    assert stop(LIMITS, [{}, bad, bad, {}, bad, bad, {}])[0] == 0, "fewer in a row are borne"
    step, sentence, good = stop(LIMITS, [{}, {}, bad, bad, bad, bad])
    assert (step, good) == (5, 1), "the weights after step 2 played the episodes of step 3"
    way = f"{alarm.figure} went from {figure_text(GOOD[alarm.figure])} to {figure_text(BAD[alarm.figure])}"
    side = "not below" if alarm.largest else "not above"
    limit = getattr(LIMITS, alarm.key)
    assert f"collapsed: {way}, {side} health.{alarm.key} = {limit:g} in 3 steps in a row (steps 3 to 5); " in sentence
    assert sentence.endswith(f"settings, or go on as it is with resume=true health.{alarm.key}=0")
    assert stop(LIMITS.model_copy(update={alarm.key: type(limit)(0)}), [bad] * 9)[0] == 0, "0 = not watched"
    assert stop(LIMITS, [{alarm.figure: limit}] * 9)[0] == 3, "a share of 1 can be reached and not passed"
    taught_nothing = {alarm.figure: ...}
    stopped, sentence, _ = stop(LIMITS, [{}, bad, taught_nothing, bad, taught_nothing, taught_nothing, bad])
    assert stopped == 7 and "in 3 steps in a row (steps 2 to 7)" in sentence
    assert stop(LIMITS, [bad, bad, taught_nothing, taught_nothing])[0] == 0


@pytest.mark.parametrize("nothing", [float("nan"), float("inf"), None])
def test_a_figure_that_is_no_number_stops_the_run_at_once_whatever_the_limits(nothing: float | None) -> None:
    off = Health(**{alarm.key: 0.0 for alarm in ALARMS}, min_reward=0.0, min_searches=0.0)
    step, sentence, good = stop(off, [{}, {"gradient_norm": nothing}, {}])
    assert (step, good) == (2, 0)
    assert "gradient_norm went from 1.000 to no finite number in 1 step (steps 2 to 2)" in sentence
    assert "resume=true" not in sentence


@pytest.mark.parametrize("name", ["value_error", "critic_gradient_norm", "reward", "reward/part/f1", "hit_rate"])
@pytest.mark.parametrize("nothing", [float("nan"), float("-inf"), None])
def test_whatever_figure_is_no_number_stops_the_run(name: str, nothing: float | None) -> None:
    step, sentence, good = stop(LIMITS, [{name: 0.5}, {name: nothing}, {}])
    assert (step, good) == (2, 0)
    assert f"{name} went from 0.500 to no finite number in 1 step (steps 2 to 2)" in sentence
    assert stop(LIMITS, [{"verl/anything": nothing, "stage": "reinforcement"}])[0] == 0, "figures that verl alone has"
    again = Watch(LIMITS, [{"step": n, **GOOD, name: 0.5 if n < 9 else None} for n in range(1, 10)])
    assert again.good_step == 7


def test_a_reward_that_falls_to_a_share_of_its_best_stops_the_run() -> None:
    earned = [0.2, 0.4, 0.6, 0.8, 0.8, 0.6, 0.1, 0.1, 0.1, 0.1]
    step, sentence, good = stop(LIMITS, [{"reward": reward} for reward in earned])
    assert (step, good) == (9, 5), "the mean of the last four is below half of the best one, 0.7"
    told = "the mean of reward over 4 steps went from 0.700 at best to 0.225, less than health.min_reward = 0.5 of it"
    assert told in sentence
    assert "(steps 7 to 9)" in sentence and "health.min_reward=0" in sentence
    assert stop(LIMITS, [{"reward": 0.8}] * 6 + [{"reward": 0.1}] * 2 + [{"reward": 0.8}] * 6)[0] == 0
    assert stop(LIMITS.model_copy(update={"min_reward": 0.0}), [{"reward": reward} for reward in earned])[0] == 0
    assert stop(LIMITS, [{"reward": -0.1 * n} for n in range(20)])[0] == 0, "there was no best to fall from"
    assert stop(LIMITS, [{"reward": 0.8}] * 3 + [{"reward": 0.0}] * 40)[0] == 6


def test_a_policy_that_gives_up_searching_is_stopped() -> None:
    searched = [0.4, 1.2, 2.8, 2.8, 2.8, 2.8, 0.2, 0.1, 0.0, 0.0, 0.0]
    step, sentence, good = stop(LIMITS, [{"searches": each} for each in searched])
    assert (step, good) == (10, 5)
    told = "the mean of searches over 4 steps went from 2.800 at best to 0.075, less than health.min_searches = 0.25"
    assert told in sentence and "(steps 7 to 10)" in sentence and sentence.endswith("health.min_searches=0")
    fewer = [{"searches": each} for each in [2.8, 2.8, 2.8, 2.8, 2.0, 1.4, 1.0, 1.0, 1.0, 1.0]]
    assert stop(LIMITS, fewer)[0] == 0, "to search less is no collapse"
    assert stop(LIMITS, [{"searches": 0.0}] * 20)[0] == 0, "without a search engine there are none"
    without = LIMITS.model_copy(update={"min_searches": 0.0})
    assert stop(without, [{"searches": each} for each in searched])[0] == 0


def test_a_reward_of_costs_alone_is_not_watched() -> None:
    assert stop(LIMITS, [{"reward": -0.1}] * 6 + [{"reward": -9.0}] * 20)[0] == 0


def test_rewards_that_come_seldom_raise_no_alarm_and_hold_up_no_checkpoint() -> None:
    watch = Watch(Health())
    for step in range(1, 60):
        watch.see(step, GOOD | {"reward": 0.0 if step % 5 < 2 else 0.5})
        assert not watch.troubles
    assert watch.good_step in (56, 57, 58)


def test_weights_are_known_to_be_well_when_their_episodes_were_played() -> None:
    rows = [{"step": step, **GOOD} for step in range(1, 9)]
    assert Watch(LIMITS, rows).good_step == 7
    assert Watch(LIMITS, rows, behind=2).good_step == 6
    assert Watch(LIMITS, rows[:1], behind=2).good_step == 0


def test_figures_that_older_rows_lack_are_not_beyond_anything() -> None:
    watch = Watch(LIMITS, [{"step": step, "reward": 0.5} for step in range(1, 9)])
    watch.check(Path("nowhere"), "x")
    assert watch.good_step == 7


def test_the_first_of_several_troubles_is_told_and_good_is_before_all_of_them() -> None:
    one, both = {"kl": 2.0}, {"kl": 2.0, "repetition": 0.9}
    step, sentence, good = stop(LIMITS, [{}, {}, {}, one, both, both])
    assert (step, good) == (6, 2) and "collapsed: kl" in sentence


@given(
    st.lists(st.fixed_dictionaries({name: st.sampled_from([GOOD[name], BAD[name]]) for name in BAD}), max_size=12),
    st.integers(0, 12),
)
def test_a_watch_that_reads_the_rows_again_says_the_same(figures: list[dict[str, float]], cut: int) -> None:
    watch = Watch(LIMITS)
    for step, row in enumerate(figures, 1):
        watch.see(step, GOOD | row)
    written = [{"step": step, **GOOD, **row} for step, row in enumerate(figures, 1)]
    again = Watch(LIMITS, json.loads(json.dumps(written[:cut])))
    for row in written[cut:]:
        again.see(row["step"], row)
    assert again.good_step == watch.good_step
    outcomes = []
    for each in (watch, again):
        try:
            each.check(Path("nowhere"), "x")
            outcomes.append("well")
        except RunError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("name", built_in_recipes())
def test_the_limits_of_the_recipes_bear_what_runs_of_the_embedded_world_do(name: str) -> None:
    recipe = load_recipe(name)
    limits = recipe.health
    assert 2 * max(limits.patience, limits.reward_steps) <= recipe.training.steps, "an alarm can be heard in time"
    measured = {"kl": 0.3, "entropy": 0.05, "gradient_norm": 5.0, "invalid_action_rate": 0.3, "repetition": 0.4}
    measured |= {"searches": 1.0, "ratio_max": 30.0, "groups_without_spread": 1.0, "policy_tokens": 380.0}
    earned = [0.36, 0.22, 0.5, 0.31, 0.48, 0.56, 0.45, 0.3, 0.6, 0.55, 0.7, 0.68]
    assert stop(limits, [measured | {"reward": reward, "truncated_turn_rate": 0.3} for reward in earned])[0] == 0


# Whole runs

SHORT = [
    *ONLY_RL,
    "training.steps=6",
    "data.test_limit=1",
    "training.questions_per_step=1",
    "health.max_truncated_turns=0",  # a random model never stops by itself
    "health.max_empty_pages=0",  # nor does it write documents
]


def collapsing(monkeypatch: pytest.MonkeyPatch, first: int, last: int = 99) -> None:
    """The divergence is 50 from one step to another."""
    learn = Learner.learn

    def diverge(self: Learner, groups: list[Group], step: int, *between: Any) -> dict[str, float]:
        return learn(self, groups, step, *between) | {"kl": 50.0 if first <= step <= last else 0.1}

    monkeypatch.setattr(Learner, "learn", diverge)


def test_a_run_that_collapses_ends_with_one_sentence_and_keeps_its_last_good_checkpoint(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, few = tmp_path / "run", [*SHORT, "health.patience=3", "health.max_kl=20"]
    with monkeypatch.context() as patch:
        collapsing(patch, first=3)
        with pytest.raises(SystemExit) as ended:
            command(["train", "world", *arguments(model, run, *few)])
        said = capsys.readouterr().err.strip()
        assert ended.value.code == 1 and "\n" not in said
        good = run / "checkpoints" / "step-000001"
        assert re.fullmatch(
            r"error: training has collapsed: kl went from \S+ to 50\.0, not below health\.max_kl = 20 "
            rf"in 3 steps in a row \(steps 3 to 5\); the last good state is {good}: .*",
            said,
        )
    assert [path.name for path in checkpoints(run / "checkpoints")] == ["step-000001", "step-000004"]
    assert [row["step"] for row in rows(run)] == [1, 2, 3, 4, 5]
    assert load_state(good).step == 1

    with monkeypatch.context() as patch:
        collapsing(patch, first=1)
        with pytest.raises(
            RunError, match=r"went from \S+ to 50\.0.*\(steps 3 to 5\); the last good state is \S+-000001"
        ):
            carry_out(model, run, "resume=true", *few)
    gentler = [f"model.name={good}", "training.steps=1", "training.learning_rate=1e-5"]
    assert rows(carry_out(model, tmp_path / "gentler", *SHORT, *gentler))
    carry_out(model, run, "resume=true", *few, "health.max_kl=0")
    unbroken = carry_out(model, tmp_path / "unbroken", *SHORT)
    assert bits(run) == bits(unbroken), "watching changes nothing"
    assert [path.name for path in checkpoints(run / "checkpoints")] == ["step-000006"]


@given(
    st.lists(st.tuples(st.sampled_from([0.1, 2.0]), st.sampled_from([0.1, 0.6, 0.8])), max_size=30),
    st.integers(1, 4),
    st.integers(1, 3),
)
def test_the_last_good_checkpoint_is_there_whenever_a_run_stops(
    figures: list[tuple[float, float]], every: int, keep: int
) -> None:
    watch, saved = Watch(LIMITS), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for step, (kl, reward) in enumerate(figures, 1):
            watch.see(step, GOOD | {"kl": kl, "reward": reward})
            good = max((each for each in saved if each <= watch.good_step), default=None)
            assert checkpoint_before(folder, watch.good_step) == (good and folder / f"step-{good:06d}")
            if step % every == 0:
                saved.append(step)
                (folder / f"step-{step:06d}").mkdir()
                (folder / f"step-{step:06d}" / "state.json").touch()
                drop_old(folder, keep, watch.good_step)
                assert keep <= len(checkpoints(folder)) + max(0, keep - len(saved)) <= keep + 1


def test_the_checkpoint_that_is_named_was_written_before_the_weights_broke(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The update of step 3 breaks the policy; its repetition shows it from step 4 on."""
    run, learn, figures = tmp_path / "run", Learner.learn, trainer.step_figures
    broken: list[bool] = []

    def breaking(self: Learner, groups: list[Group], step: int, *between: Any) -> dict[str, float]:
        found = learn(self, groups, step, *between)
        if step >= 3:
            torch.nn.init.zeros_(self.policy.model.norm.weight)
        broken.append(is_broken(self.policy))
        return found

    def repeating(groups: list[Group]) -> dict[str, float]:
        return figures(groups) | {"repetition": 0.99 if broken[-1:] == [True] else 0.3}

    monkeypatch.setattr(Learner, "learn", breaking)
    monkeypatch.setattr(trainer, "step_figures", repeating)
    with pytest.raises(RunError, match=r"collapsed: repetition .* \(steps 4 to 5\)") as stopped:
        carry_out(model, run, *SHORT, "health.patience=2")
    named = re.search(r"the last good state is (\S+): ", str(stopped.value))
    assert named and Path(named[1]).name == "step-000002"
    assert not is_broken(load_model(named[1])) and is_broken(load_model(str(checkpoints(run / "checkpoints")[-1])))


def is_broken(policy: Any) -> bool:
    return not policy.model.norm.weight.any()


def test_a_figure_that_comes_back_needs_no_old_checkpoint(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []
    collapsing(monkeypatch, first=3, last=4)
    saved = trainer.save_checkpoint

    def save(folder: Path, *given: Any) -> Path:
        made = saved(folder, *given)
        kept.append([int(path.name[-1]) for path in checkpoints(folder)])
        return made

    monkeypatch.setattr(trainer, "save_checkpoint", save)
    carry_out(model, tmp_path / "run", *SHORT, "health.max_kl=20")
    assert kept == [[1], [1, 2], [1, 3], [1, 4], [4, 5], [6]]


def test_a_run_that_collapses_before_its_first_checkpoint_names_its_start(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collapsing(monkeypatch, first=1)
    with pytest.raises(RunError, match=rf"kl 50\.0, not below .* in 2 steps in a row .* last good state is {model}: "):
        carry_out(model, tmp_path / "run", *SHORT, "health.patience=2")


def test_a_run_of_real_figures_is_stopped_by_each_kind_of_alarm(model: Path, tmp_path: Path) -> None:
    for number, tight in enumerate(("max_gradient_norm=1e-9", "max_truncated_turns=0.5", "min_entropy=99")):
        with pytest.raises(
            RunError, match=rf"health\.{tight.split('=')[0]} = \S+ in 2 steps in a row \(steps 1 to 2\)"
        ):
            carry_out(model, tmp_path / str(number), *SHORT, "health.patience=2", f"health.{tight}")


def test_the_newest_checkpoint_up_to_a_step(tmp_path: Path) -> None:
    assert checkpoint_before(tmp_path, 9) is None
    for step in (2, 10, 999999):
        (tmp_path / f"step-{step:06d}").mkdir()
        (tmp_path / f"step-{step:06d}" / "state.json").touch()
    found = [checkpoint_before(tmp_path, step) for step in (1, 2, 9, 10, 500000)]
    assert [path and path.name for path in found] == [None, "step-000002", "step-000002", "step-000010", "step-000010"]


def test_rows_of_a_run_have_its_health(model: Path, tmp_path: Path) -> None:
    weighted = ["reward.type=weighted", "reward.weights.f1=1"]
    for row in rows(carry_out(model, tmp_path / "run", *SHORT, *weighted, "training.steps=2")):
        assert row["reward"] == row["reward/part/chance"]
        assert 0 < row["ratio_min"] <= 1 <= row["ratio_max"]
        assert max(row["ratio_max"] - 1, 1 - row["ratio_min"]) >= row["ratio_deviation"]
        assert row["searches"] == pytest.approx(sum(v for n, v in row.items() if n.startswith("searches/turn_")))
        assert {"entropy", "clip_fraction", "gradient_norm", "repetition", "policy_tokens_max"} <= row.keys()
