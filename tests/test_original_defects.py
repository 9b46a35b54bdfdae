"""The defects of the original implementation, by number: each a scene in which it goes wrong.

D2 finds answers where there are none, D3 mixes up questions, D4 and D5 miscount questions and steps, D8 to D10 lose or
invent tokens and turns, D11 hides failures, D12 and D17 concern what the simulator is told, D13 what is drawn, D15
asking, D16 how things are called. What is learned from (D1, D6, D7, D14): `test_original_defects_learning.py`.
"""

import asyncio
import random
import re
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from episodes import ANSWER, LAST, LONG_PAGE, PAGE, SEARCH, SETTINGS, Engine, Script, observations, play, turns
from safetensors.torch import load_file
from test_simulator import NO_HOPS, TWO_HOPS, Writer, search, simulator
from whole_runs import ONLY_RL, bits, carry_out, rows

from zerosearch.agent.episode import Agent
from zerosearch.agent.protocol import TagProtocol
from zerosearch.agent.trajectory import Search, Trajectory
from zerosearch.cli.main import run as command
from zerosearch.data import Question
from zerosearch.errors import RunError, UserError
from zerosearch.evaluation.benchmark import run_benchmark, score_trajectory
from zerosearch.evaluation.metrics import exact_match
from zerosearch.evaluation.results import summarize
from zerosearch.inference.chat import ChatRequest
from zerosearch.inference.local import LocalSampler
from zerosearch.inference.openai import OpenAIChat
from zerosearch.inference.sampler import Sample, SamplingRequest
from zerosearch.inference.tokens import encode_text
from zerosearch.report.run_folder import RunFolder
from zerosearch.simulation.schedule import draw_noise
from zerosearch.simulation.template import parse_documents
from zerosearch.training.checkpoint import checkpoints
from zerosearch.training.health import step_figures
from zerosearch.training.lessons import lessons
from zerosearch.training.recipe import Recipe
from zerosearch.training.recipe_file import load_recipe
from zerosearch.training.rewards import reward_parts
from zerosearch.training.rollout import Group, QuestionOrder, run_groups

lively = pytest.mark.usefixtures("lively")

TOKENS = tiny.tokenizer()
QUESTION = Question("q1", "Who is it?", ("Alice",), "made-up")
FULL = ["training.micro_batch_tokens=4096", "training.max_grad_norm=1e9", "training.temperature=1"]


def recipe(*overrides: str) -> Recipe:
    return load_recipe("world", [*FULL, "algorithm.type=grpo", "algorithm.mini_batches=1", *overrides])


# D2


def test_d02_no_answer_is_no_answer_whatever_prompt_and_pages_hold() -> None:
    class WithExample(TagProtocol):
        def messages(self, question: str) -> Any:
            return [
                {"role": "user", "content": f"Such as <answer> Beijing </answer> or <answer> X </answer>. {question}"}
            ]

    for script in (turns(SEARCH, "I give up.", "I give up."), turns(SEARCH)):
        trajectory = asyncio.run(Agent(script, TOKENS, Engine(PAGE), SETTINGS, WithExample()).episode(QUESTION))
        assert "Beijing" in trajectory.segments[0].text and "Bob" in observations(trajectory)[0]
        assert trajectory.answer is None
        for name in ("f1", "em", "substring_em"):
            beijing = replace(trajectory, question=replace(QUESTION, golden_answers=("Beijing", "Bob", "None")))
            assert reward_parts(beijing, recipe(f"reward.type={name}")) == {name: 0.0}
        assert score_trajectory(trajectory).em == 0.0


def test_d02_one_answer_is_enough_under_a_prompt_without_an_example() -> None:
    class Bare(TagProtocol):
        def messages(self, question: str) -> Any:
            return [{"role": "user", "content": question}]

    trajectory = asyncio.run(Agent(turns(ANSWER), TOKENS, Engine(), SETTINGS, Bare()).episode(QUESTION))
    assert trajectory.answer == "Alice" and score_trajectory(trajectory).em == 1.0


# D3


def test_d03_each_query_travels_with_its_own_question() -> None:
    """Every second episode answers at once, so that those that search do not stand where they stood."""
    chance, chat = random.Random(0), Writer("Doc 1: a page.")
    asked = [Question(str(n), f"Who is number {n}?", (f"golden{n}",), "made-up") for n in range(16)]
    numbers = re.compile(r"Who is number (\d+)\?")

    class Slow(Script):
        async def sample(self, request: SamplingRequest) -> Sample:
            await asyncio.sleep(chance.random() / 100)
            return await super().sample(request)

    def write(request: SamplingRequest, _: int) -> list[int]:
        number = int(numbers.findall(TOKENS.decode(list(request.token_ids)))[0])
        return encode_text(TOKENS, f"<search> find {number} </search>" if number % 2 else "<answer> x </answer>")

    async def run() -> list[Trajectory]:
        agent = Agent(Slow(write), TOKENS, simulator(chat, template="prompt"), SETTINGS)
        return await asyncio.gather(*[agent.episode(question) for question in asked])

    asyncio.run(run())
    said = [request.messages[-1]["content"] for request in chat.requests]
    assert len(said) == 8, "one page for each question that searched"
    for text in said:
        (number,) = re.findall(r"find (\d+)", text)
        assert numbers.findall(text) == [number] and re.findall(r"golden(\d+)", text) == [number]


# D4


@lively
def test_d04_the_test_is_greedy(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[float]] = {"training": set(), "test": set()}
    sample, stage = LocalSampler.sample, "training"

    async def watched(self: LocalSampler, request: SamplingRequest) -> Sample:
        if request.stop == TagProtocol().stop:
            seen[stage].add(request.temperature)
        return await sample(self, request)

    monkeypatch.setattr(LocalSampler, "sample", watched)
    carry_out(model, tmp_path / "run", *ONLY_RL, "training.steps=1", "training.save_every=1", "data.test_limit=2")
    stage = "test"
    with pytest.raises(SystemExit):
        command(["eval", str(tmp_path / "run")])
    assert seen == {"training": {load_recipe("world").training.temperature, 0.0}, "test": {0.0}}


def test_d04_no_question_of_the_test_is_dropped() -> None:
    asked = [replace(QUESTION, id=str(n)) for n in range(125)]

    async def episode(question: Question) -> Trajectory:
        return Trajectory(question)

    found = asyncio.run(run_benchmark(episode, asked, concurrency=72))
    assert [trajectory.question.id for trajectory in found] == [question.id for question in asked]
    assert summarize([score_trajectory(t) for t in found], {}).all.n == 125


@pytest.mark.parametrize(
    ("answer", "golden"), [("nobody", "no"), ("in 2019", "2019"), ("Paris", "The"), ("Paris", "A"), ("", "The")]
)
def test_d04_exact_match_is_exact(answer: str, golden: str) -> None:
    assert exact_match(answer, [golden]) == 0.0
    assert score_trajectory(Trajectory(replace(QUESTION, golden_answers=(golden,)), answer=answer)).em == 0.0


def test_d04_what_is_written_as_f1_is_f1() -> None:
    trajectory = Trajectory(replace(QUESTION, golden_answers=("Alice Turner",)), answer="Alice", ending="answered")
    scores = summarize([score_trajectory(trajectory)], {}).all
    assert (scores.em, scores.f1) == (0.0, pytest.approx(2 / 3))


# D5


RUN = [*ONLY_RL, "training.steps=3", "training.save_every=2", "training.warmup_steps=2", "training.final_rate=1"]
RUN += ["data.test_limit=2"]


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        tiny.act_by_chance(patch.setattr)
        return carry_out(model, tmp_path_factory.mktemp("runs") / "whole", *RUN)


@lively
def test_d05_every_step_is_done_and_the_last_one_is_saved_and_measured(whole: Path) -> None:
    steps = [row["step"] for row in rows(whole) if row["stage"] == "reinforcement"]
    assert steps == [1, 2, 3]
    (last,) = checkpoints(whole / "checkpoints")
    assert last.name == "step-000003", "though training.save_every = 2 does not divide it"
    assert "after RL" in RunFolder.open(whole).read_results().systems


@lively
def test_d05_the_learning_rate_grows_over_the_steps_that_the_recipe_names_and_no_longer(whole: Path) -> None:
    rates = [row["learning_rate"] for row in rows(whole) if row["stage"] == "reinforcement"]
    assert rates == pytest.approx([0.5e-3, 1e-3, 1e-3])


# D8


def test_d08_a_turn_ends_with_its_tag() -> None:
    """The tag stands for what a random model happens to write."""
    sampler = LocalSampler(tiny.model(vocabulary=len(TOKENS)), TOKENS, slots=4, length=1000)
    prompt = tuple(encode_text(TOKENS, "Who is it?"))
    free = asyncio.run(sampler.sample(SamplingRequest(prompt, 40, seed=3)))
    tag = TOKENS.decode(list(free.token_ids[8:12]))
    cut = asyncio.run(sampler.sample(SamplingRequest(prompt, 40, (tag,), seed=3)))
    assert cut.stop_reason == "stop" and len(cut.token_ids) <= 12 < len(free.token_ids)
    assert cut.token_ids == free.token_ids[: len(cut.token_ids)] and tag in TOKENS.decode(list(cut.token_ids))


def test_d08_the_episode_asks_for_that() -> None:
    for engine, stop in ((Engine(), ("</search>", "</answer>")), (None, ("</answer>",))):
        script = turns(ANSWER)
        play(script, engine)
        assert [request.stop for request in script.requests] == [stop]


# D9


def test_d09_neither_question_nor_answer_nor_the_end_of_a_page_falls_out() -> None:
    limits = replace(SETTINGS, max_turns=3, max_length=620, max_observation_tokens=300)
    script = turns(SEARCH, SEARCH, SEARCH, "<answer> Alice Turner </answer>")
    trajectory = play(script, Engine(LONG_PAGE), limits)
    prompt = list(trajectory.segments[0].token_ids)
    assert trajectory.truncated_pages > 0 and len(trajectory.token_ids) <= limits.max_length
    for request in script.requests:
        assert list(request.token_ids[: len(prompt)]) == prompt and QUESTION.text in TOKENS.decode(prompt)
    shown = [text.removesuffix(LAST) for text in observations(trajectory)]
    assert shown and all(text.rstrip().endswith("</information>") for text in shown)
    (lesson,) = lessons([Group((trajectory,), (1.0,))])
    learned = [*lesson.tree.prefix, *lesson.tree.branches[0].token_ids]
    assert learned == trajectory.token_ids, "what is trained on is what was read and written"
    if trajectory.ending == "answered":
        assert "Alice Turner" in TOKENS.decode(learned)


def test_d09_an_answer_after_long_pages_is_whole() -> None:
    limits = replace(SETTINGS, max_length=420, max_observation_tokens=500)
    trajectory = play(turns(SEARCH, "<answer> Alice Turner </answer>"), Engine(LONG_PAGE), limits)
    assert trajectory.truncated_pages == 1 and trajectory.answer == "Alice Turner"


# D10


def test_d10_the_last_turn_searches_no_more_and_was_told_so() -> None:
    engine, script = Engine(), turns(SEARCH)
    trajectory = play(script, engine)
    assert len(engine.requests) == len(trajectory.searches) == SETTINGS.max_turns
    assert len(script.requests) == SETTINGS.max_turns + 1
    assert "answer now" in observations(trajectory)[-1] and "answer now" not in observations(trajectory)[0]


def test_d10_a_step_in_which_nobody_came_to_the_last_turn_has_its_figures() -> None:
    early = play(turns(ANSWER), Engine())
    figures = step_figures([Group((early,), (1.0,))])
    assert {"searches", "invalid_actions", "unanswered", "truncated_turns", "empty_page_rate"} <= figures.keys()


# D11


def test_d11_a_failed_page_says_so_and_is_counted() -> None:
    engine = simulator(Writer(RunError("the server is away")), template="prompt")
    page = search(engine, "who", NO_HOPS)
    assert page.error == "the server is away" and page.documents == ()
    assert engine.counters()["simulator/errors"] == 1 and engine.counters()["simulator/empty_pages"] == 0


def test_d11_failures_above_the_threshold_end_the_run() -> None:
    made = recipe("training.questions_per_step=1", "training.samples_per_question=2")
    agent = Agent(turns(SEARCH), TOKENS, simulator(Writer(RunError("the server is away"))), SETTINGS)
    with pytest.raises(RunError, match=r"2 of 2 episodes .* search\.failure_threshold .*: the server is away"):
        asyncio.run(run_groups(agent, QuestionOrder([NO_HOPS], 0), made, 1))


def test_d11_a_server_that_does_not_answer_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zerosearch.calls.FIRST_PAUSE", 0.01)
    request = ChatRequest([{"role": "user", "content": "hello"}], 7, 0.5, 1)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        chat = OpenAIChat(f"http://127.0.0.1:{deaf.getsockname()[1]}/v1", "m", timeout=0.3, max_retries=1)
        started = time.monotonic()
        with pytest.raises(RunError, match="failed 2 times"):
            asyncio.run(chat.chat(request))
    assert time.monotonic() - started < 10


def test_d11_there_is_no_engine_that_nobody_knows() -> None:
    assert Recipe().search.type == "simulated"
    with pytest.raises(UserError, match=r'search\.type is "simulate"'):
        recipe("search.type=simulate")


# D12


@pytest.mark.parametrize("k", [1, 2, 7])
@pytest.mark.parametrize("name", ["prompt", "sft"])
def test_d12_the_simulator_is_asked_for_k_documents_of_no_particular_engine(name: str, k: int) -> None:
    chat = Writer("\n".join(f"Doc {n}(Title: T) text {n}" for n in range(1, 12)))
    page = search(simulator(chat, template=name), "who", NO_HOPS, k=k)
    text = chat.requests[0].messages[-1]["content"]
    assert [document.text for document in page.documents] == [f"text {n}" for n in range(1, k + 1)]
    assert "Google" not in text and "five" not in text.lower()
    assert name == "sft" or re.search(rf"\b{k}\b", text)


def test_d12_the_tenth_document_is_not_the_first() -> None:
    text = "Doc 10: ten\nDoc 1: one"
    assert parse_documents("Doc 1: one\nDoc 10: ten", 1, "s")[0].text == "one"
    assert [document.text for document in parse_documents("Doc 9: nine\nDoc 10: ten", 10, "s")] == ["nine", "ten"]
    assert parse_documents(text, 1, "s") == ()


def test_d12_pages_are_checked_for_what_they_were_to_hold() -> None:
    good, leaking, short = "Doc 1: Alice Turner.\nDoc 2: x", "Doc 1: by A. Turner\nDoc 2: x", "Doc 1: nothing"
    useful = simulator(Writer(good, short, ""), 0.0)
    for number in range(3):
        search(useful, f"query {number}", NO_HOPS, k=2)
    counted = useful.counters()
    assert counted["simulator/hit_rate"] == pytest.approx(1 / 3)
    assert counted["simulator/short_pages"] == counted["simulator/empty_pages"] == 1
    noisy = simulator(Writer(leaking, "Doc 1: x\nDoc 2: y"), 1.0)
    for number in range(2):
        search(noisy, f"query {number}", NO_HOPS, k=2)
    assert noisy.counters()["simulator/leak_rate"] == 0.5


def test_d12_who_is_to_write_noise_is_not_told_the_answer() -> None:
    for noise, told in ((0.0, True), (1.0, False)):
        chat = Writer()
        search(simulator(chat, noise, template="prompt"), "who founded it", NO_HOPS)
        assert ("Alice Turner" in chat.requests[0].messages[-1]["content"]) is told


# D13


@lively
def test_d13_the_base_of_the_schedule_can_be_set(model: Path, tmp_path: Path) -> None:
    levels = []
    for base in (4, 1):
        run = carry_out(model, tmp_path / str(base), *RUN, f"simulation.noise.base={base}", "training.steps=2")
        levels.append([row["noise_scheduled"] for row in rows(run)])
    assert levels[0] == pytest.approx([0.2 + (4**0.5 - 1) / 3 * 0.6, 0.8])
    assert levels[1] == pytest.approx([0.5, 0.8])


def test_d13_what_is_drawn_does_not_depend_on_who_comes_first() -> None:
    places = [(question, sample, turn) for question in "abc" for sample in range(4) for turn in range(3)]

    def labels(order: list[tuple[str, int, int]]) -> dict[tuple[str, int, int], object]:
        engine, found = simulator(Writer(), 0.5), {}
        for identity, sample, turn in order:
            page = search(engine, "q", replace(NO_HOPS, id=identity), sample=sample, turn=turn)
            found[identity, sample, turn] = page.noise
        return found

    shuffled = random.Random(0).sample(places, len(places))
    assert labels(places) == labels(shuffled) and len(set(labels(places).values())) == 2
    assert labels(places)["a", 0, 0] == draw_noise(0, replace(NO_HOPS, id="a"), 0, 0, 0, 0.5)
    orders = [
        [order.draw().id for _ in range(8)]
        for order in (QuestionOrder([replace(QUESTION, id=str(n)) for n in range(8)], seed) for seed in (0, 0, 1))
    ]
    assert orders[0] == orders[1] != orders[2]


@lively
def test_d13_a_run_goes_on_where_it_was_with_its_optimiser(
    model: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0

    async def impatient(*given: Any, **more: Any) -> list[Group]:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise KeyboardInterrupt
        return await run_groups(*given, **more)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("zerosearch.training.trainer.run_groups", impatient)
        carry_out(model, tmp_path / "run", *RUN)
    (half,) = checkpoints(tmp_path / "run" / "checkpoints")
    assert half.name == "step-000002" and load_file(half / "optimizer.safetensors")
    assert bits(carry_out(model, tmp_path / "run", "resume=true", *RUN)) == bits(whole)


# D15


def test_d15_a_turn_without_a_query_asks_nothing_again() -> None:
    engine = Engine()
    trajectory = play(turns(SEARCH, "so, the <search> tag", ANSWER), engine, replace(SETTINGS, max_turns=3))
    assert [request.query for request in engine.requests] == ["who"]
    assert trajectory.invalid_actions == 1 and trajectory.answer == "Alice"


def test_d15_an_episode_ends_whatever_the_policy_does() -> None:
    for text in (SEARCH, "hm", ""):
        script = Script(lambda _, turn, text=text: encode_text(TOKENS, text))  # type: ignore[misc]
        play(script, Engine())
        assert len(script.requests) == SETTINGS.max_turns + 1


def test_d15_an_observation_follows_what_was_written_and_an_answer_ends_the_episode() -> None:
    script = turns(SEARCH, ANSWER, SEARCH)
    trajectory = play(script, Engine())
    assert [segment.kind for segment in trajectory.segments] == ["prompt", "policy", "observation", "policy"]
    assert trajectory.segments[1].text.endswith("</search>")
    assert trajectory.segments[2].text.startswith("\n\n<information>")
    assert len(script.requests) == 2


def test_d15_an_empty_question_is_one_too() -> None:
    agent = Agent(turns(ANSWER), TOKENS, Engine(), SETTINGS)
    assert asyncio.run(agent.episode(replace(QUESTION, text=""))).answer == "Alice"


# D16


def test_d16_a_recipe_has_names_and_unknown_ones_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for given, sentence in (
        (["8"], '"8" is no override'),
        (["NUM_GPUS_PER_NODE", "8"], "is no override"),
        (["TOTAL_STEPS=203"], "the recipe has no key TOTAL_STEPS; did you mean "),
        (["simulation.llm=x"], "the recipe has no key simulation.llm"),
    ):
        with pytest.raises(SystemExit) as ended:
            command(["train", "world", *given, "--dry-run"])
        said = capsys.readouterr().err.strip()
        assert ended.value.code == 2 and sentence in said and "\n" not in said


@lively
def test_d16_the_simulator_that_is_named_is_the_one_that_plays(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model folder '\./another'"):
        carry_out(model, tmp_path / "run", *ONLY_RL, "simulation.model=./another")


# D17


def test_d17_a_query_for_the_first_hop_does_not_bring_the_final_answer() -> None:
    for noise in (0.0, 1.0):
        chat = Writer()
        engine = simulator(chat, noise, template="sft")
        for query in ("Silver Anchor founder", TWO_HOPS.text, "something else"):
            search(engine, query)
        said = [request.messages[-1]["content"] for request in chat.requests]
        assert "Alice Turner" in said[0] and not any("Lagos" in text for text in said)
        search(engine, "Alice Turner birthplace")
        assert "Lagos" in chat.requests[-1].messages[-1]["content"]


def test_d17_where_answers_are_shown_is_counted_by_turn() -> None:
    engine = simulator(Writer("Doc 1: It was Alice Turner.", "Doc 1: She is from Lagos."), 0.0)
    for turn, query in enumerate(("Silver Anchor founder", "Alice Turner birthplace")):
        search(engine, query, turn=turn)
    counted = engine.counters()
    assert (counted["simulator/turn_1/gold_rate"], counted["simulator/turn_2/gold_rate"]) == (0.0, 1.0)
    shown = [Search("q", "useful", 3, 0.0, "", False), Search("q", "useful", 3, 0.0, "", True)]
    figures = step_figures([Group((Trajectory(TWO_HOPS, searches=shown),), (0.0,))])
    assert (figures["answer_shown/turn_1"], figures["answer_shown/turn_2"]) == (0.0, 1.0)
