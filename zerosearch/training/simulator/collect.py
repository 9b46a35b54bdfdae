"""Collecting search turns: an agent answers questions with a real engine, and every query and its page is kept."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from zerosearch.agent.chat_agent import chat_agent
from zerosearch.agent.episode import Agent
from zerosearch.agent.trajectory import Trajectory
from zerosearch.data import Question
from zerosearch.data.corpus import load_corpus
from zerosearch.data.question_set import load_questions
from zerosearch.errors import UserError
from zerosearch.evaluation.benchmark import check_failures, together
from zerosearch.evaluation.metrics import exact_match
from zerosearch.report.panel import Display, open_display
from zerosearch.report.stage_file import StageFile
from zerosearch.search.engine import Page, SearchEngine, SearchRequest
from zerosearch.simulation.turns import SearchTurn
from zerosearch.training.engines import episode_settings, make_teaching_engine, real_engine, real_kind, real_settings
from zerosearch.training.recipe import Recipe
from zerosearch.training.source import Source

if TYPE_CHECKING:
    from zerosearch.inference.openai import OpenAIChat

STAGE = "collecting"
PART = 4
"""Episodes that are written at once, in full batches."""
EARLY = "early"
"""In the summary: the numbers of plays that ended while one before them was broken off."""

Play = tuple[Question, int]
"""A question and which of its samples."""


class RecordingEngine:
    """Wraps an engine and keeps the page of every search that did not fail, by question and sample."""

    def __init__(self, engine: SearchEngine) -> None:
        self.engine, self.name = engine, engine.name
        self._turns: dict[Play, list[SearchTurn]] = {}

    async def search(self, request: SearchRequest) -> Page:
        page = await self.engine.search(request)
        if not page.error:
            date = datetime.now(UTC).isoformat(timespec="seconds")
            turn = SearchTurn(request.question, request.query, page.documents, self.name, date, turn=request.turn)
            self._turns.setdefault((request.question, request.sample), []).append(turn)
        return page

    def take(self, trajectory: Trajectory) -> list[SearchTurn]:
        """The turns of an episode that has ended, with how it ended; they are not kept any longer.

        An episode that a failed search broke off says nothing of the pages before.
        """
        found = self._turns.pop((trajectory.question, trajectory.sample), [])
        right = None if trajectory.ending == "search_failed" else ended_right(trajectory)
        return [replace(turn, right=right) for turn in found]


def ended_right(trajectory: Trajectory) -> bool:
    """Whether an episode's answer is a golden one, word for word."""
    return exact_match(trajectory.answer, trajectory.question.golden_answers) == 1


def collect(source: Source, out: Path, samples: int = 1, chat: "OpenAIChat | None" = None) -> dict[str, Any]:
    """Let an agent answer the source's training questions with the real engine, and write the turns into `out`.

    The engine is that of the recipe's test (`evaluation.engine`), BM25 without passages of the world's test half. The
    agent is the source's policy, or a chat model. Each question is answered `samples` times, at the temperature of
    training. The same call goes on where it was broken off. Returns the summary: episodes, how many ended right and how
    many searched nothing, and turns (`rows`).

    Raises:
        UserError: the file is taken. RunError: too many searches failed, or the chat model cannot be reached.
    """
    recipe = source.recipe
    if not recipe.agent.max_turns:
        raise UserError("agent.max_turns is 0, so nothing would be searched: set it to 1 or more to collect")
    questions = load_questions(recipe.data.train, "train", recipe.data.train_limit).questions
    plays = [(question, sample) for question in questions for sample in range(samples)]
    stage = StageFile(out, _settings(source, samples, chat))
    if chat and stage.done < len(plays):
        asyncio.run(chat.check())
    with open_display("zerosearch simulate collect", [STAGE], live=recipe.report.live) as display:
        if stage.done < len(plays):
            engine = RecordingEngine(_engine(recipe))
            settings = episode_settings(recipe, training=True)
            agent = chat_agent(chat, engine, settings) if chat else _policy_agent(source, engine, display)
            display.stage(STAGE, len(plays), stage.done)
            _run(agent, engine, plays, stage, recipe, display)
    return stage.summary


def _engine(recipe: Recipe) -> SearchEngine:
    kind = real_kind(recipe)
    if kind == "bm25":
        return make_teaching_engine(recipe, load_corpus(recipe.search.corpus))
    return real_engine(recipe, kind)


def _policy_agent(source: Source, engine: SearchEngine, display: Display) -> Agent:
    """The agent of the source's policy, in this process."""
    from zerosearch.training.run import Run

    run = Run(source.recipe, source.folder, display)
    run.take_policy(source.policy)
    settings = run.settings(training=True)
    return run.agent(run.sampler(run.policy, source.recipe.evaluation.batch, settings.max_length), engine, settings)


def _run(
    agent: Agent, engine: RecordingEngine, plays: Sequence[Play], stage: StageFile, recipe: Recipe, display: Display
) -> None:
    size = PART * recipe.evaluation.batch
    early = set(stage.summary.get(EARLY, ()))
    missing = [number for number in range(stage.done, len(plays)) if number not in early]
    for start in range(0, len(missing), size):
        part = {number: plays[number] for number in missing[start : start + size]}
        ended: dict[int, Trajectory] = {}
        try:
            asyncio.run(_play(agent, part, ended, recipe, _progress(display, len(plays) - len(missing) + start)))
        except BaseException:
            # What was paid for stays, and what failed is done again.
            _keep({number: each for number, each in ended.items() if _succeeded(each)}, engine, stage)
            raise
        _keep(ended, engine, stage)


async def _play(
    agent: Agent,
    part: Mapping[int, Play],
    ended: dict[int, Trajectory],
    recipe: Recipe,
    progress: Callable[[Trajectory], None],
) -> None:
    """Run the episodes, and put each where it belongs as soon as it has ended.

    Raises:
        RunError: too many searches failed. Whatever an episode raises, once those that are under way have ended: none
            begins after it.
    """
    places, errors = asyncio.Semaphore(recipe.evaluation.batch), list[Exception]()

    async def one(number: int, play: Play) -> None:
        async with places:
            if errors:
                return
            try:
                ended[number] = await agent.episode(*play)
                failed = [each for each in ended.values() if not _succeeded(each)]
                check_failures(failed, len(part), recipe.search.failure_threshold)
            except Exception as error:
                errors.append(error)
            else:
                progress(ended[number])

    await together(one(number, play) for number, play in part.items())
    if errors:
        raise errors[0]


def _succeeded(trajectory: Trajectory) -> bool:
    return trajectory.ending != "search_failed"


def _keep(ended: Mapping[int, Trajectory], engine: RecordingEngine, stage: StageFile) -> None:
    """Write the turns of episodes that have ended, by the numbers of their plays and in their order."""
    kept = [ended[number] for number in sorted(ended)]
    turns = [engine.take(trajectory) for trajectory in kept]
    counts = {
        "right": int(stage.summary.get("right", 0)) + sum(map(ended_right, kept)),
        "without_search": int(stage.summary.get("without_search", 0)) + sum(not each for each in turns),
    }
    done, early = stage.done, {*stage.summary.get(EARLY, ()), *ended}
    while done in early:
        early.remove(done)
        done += 1
    rows = [turn.to_record() for each in turns for turn in each]
    stage.add(rows, done, **counts, **({EARLY: sorted(early)} if early else {}))


def _progress(display: Display, before: int) -> Callable[[Trajectory], None]:
    """Shows episodes as they end, and of those since the beginning of the part which share ended right."""
    ended: list[Trajectory] = []

    def progress(trajectory: Trajectory) -> None:
        ended.append(trajectory)
        display.update(
            before + len(ended),
            right=fmean(map(ended_right, ended)),
            searches=fmean(len(each.searches) for each in ended),
        )

    return progress


def _settings(source: Source, samples: int, chat: "OpenAIChat | None") -> dict[str, Any]:
    """What the turns depend on."""
    recipe = source.recipe
    return {
        "agent_model": chat.name if chat else source.policy,
        "prompt": recipe.model.prompt,
        "questions": recipe.data.train,
        "questions_used": recipe.data.train_limit,
        "samples": samples,
        **real_settings(recipe),
        "agent": recipe.agent.model_dump(),
        "temperature": recipe.training.temperature,
        "seed": recipe.seed,
    }
