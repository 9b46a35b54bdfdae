"""Scoring a simulator: its pages beside a real engine's for the same queries, and a policy under each."""

import asyncio
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from zerosearch.data import Document, Question
from zerosearch.data.question_set import load_questions
from zerosearch.errors import RunError
from zerosearch.evaluation.pages import AnsweredQuery, compare_pages
from zerosearch.evaluation.results import Scalar
from zerosearch.evaluation.statistics import Estimate
from zerosearch.inference.chat_cache import folder_fingerprint
from zerosearch.report.files import json_file, write_atomically
from zerosearch.report.panel import Display, open_display
from zerosearch.report.run_folder import gather_versions
from zerosearch.report.simulator_score import SimulatorScore, plot_score, score_markdown
from zerosearch.report.stage_file import StageFile, fingerprint
from zerosearch.search.engine import Noise, Page, SearchEngine, SearchRequest
from zerosearch.simulation.quality import PageCounts
from zerosearch.simulation.schedule import ConstantNoise
from zerosearch.simulation.simulator import Simulator
from zerosearch.simulation.tune import WORDINGS
from zerosearch.simulation.turns import SearchTurn, read_turns
from zerosearch.training.engines import (
    TUNING_SUMMARY,
    check_servers,
    real_engine,
    real_kind,
    real_settings,
    simulation_chat,
    simulator_settings,
)
from zerosearch.training.simulator.trial import simulators, write_pages
from zerosearch.training.source import SIMULATION_MODEL, Source, policy_name

STAGE = "writing pages"
PART = 32
"""Queries whose pages are written at once and then kept."""
REAL, SIMULATED = "real engine", "simulator at noise {:g}"
NOISES = (0.0, 0.5, 1.0)


def score_simulator(
    source: Source, out: Path, turns: Path | None = None, queries: int = 200, overrides: Sequence[str] = ()
) -> SimulatorScore:
    """Compare the source's simulator with the real engine, and write `score.json`, `score.md` and `score.png`.

    turns: search turns whose queries are asked, and whose pages are the real engine's; without them the queries are
    made from the test questions. Where there is no page, the engine of the recipe's test (`evaluation.engine`) is
    asked. queries: how many are drawn; 0 takes all.
    Where the source is a run, its policy is measured with the real engine and with the simulator at noise 0, 0.5 and 1,
    into the run's results. overrides: those of the source, which name these measurements. The same call goes on where
    it was broken off.

    Raises:
        UserError: a file is wrong, or the folder holds another score. RunError: too many searches failed.
    """
    recipe = source.recipe
    asked = _drawn(read_turns(turns) if turns else _turns_of(_test_questions(source)), queries, recipe.seed)
    with open_display("zerosearch simulate score", [STAGE], live=recipe.report.live) as display:
        stage = StageFile(out / "pages.jsonl", _settings(source, turns, len(asked)))
        display.stage(STAGE, len(asked), stage.done)
        if stage.done < len(asked):
            _write_pages(source, asked, stage, display)
        policy = _policy_scores(source, overrides, display) if source.is_run else {}
    answered = list(_answered(stage))
    conditions: dict[str, Scalar] = {
        "simulator": recipe.simulation.model,
        "tuned_on": _tuned_on(source),
        "queries": len(asked),
        "from": str(turns or recipe.data.test),
        "engine": ", ".join(
            sorted({turn.engine or ("unnamed" if turn.documents else real_kind(recipe)) for turn in asked})
        ),
        "k": recipe.search.k,
        "temperature": recipe.simulation.temperature,
        "repair": recipe.simulation.repair,
        "noise_per": recipe.simulation.noise.per,
        "withhold": recipe.simulation.withhold,
        "seed": recipe.seed,
        "date": datetime.now(UTC).date().isoformat(),
        **{name: value for name, value in gather_versions().items() if name in ("zerosearch", "commit")},
    }
    quality = {
        noise: {name: float(figure) for name, figure in PageCounts(counted).summary().items()}
        for noise, counted in stage.summary.get("counts", {}).items()
    }
    score = SimulatorScore(conditions, compare_pages(answered, recipe.seed), quality, policy, _lengths(answered))
    write_atomically(out / "score.json", json_file(score.to_json()))
    write_atomically(out / "score.md", score_markdown(score))
    plot_score(score, out / "score.png")
    return score


def _tuned_on(source: Source) -> str | None:
    """What a simulator that was tuned by command learned from; its folder says so."""
    summary = Path(source.simulator, TUNING_SUMMARY)
    return str(json.loads(summary.read_text())["data"]) if summary.is_file() else None


def _test_questions(source: Source) -> Sequence[Question]:
    data = source.recipe.data
    return load_questions(data.test, "test", data.test_limit).questions


def _turns_of(questions: Sequence[Question]) -> list[SearchTurn]:
    """Queries without pages: one for each hop of the questions, or the question where it has none."""
    return [
        SearchTurn(question, query, (), turn=turn)
        for question in questions
        for turn, query in enumerate(
            [WORDINGS[0].format(subject=hop.subject, relation=hop.relation) for hop in question.hops] or [question.text]
        )
    ]


def _drawn(turns: Sequence[SearchTurn], count: int, seed: int) -> list[SearchTurn]:
    """So many of the turns, at random; a query that was asked again for its question counts once."""
    different = list({(*turn.key, turn.query): turn for turn in turns}.values())
    return random.Random(f"score {seed}").sample(different, min(count or len(different), len(different)))


def _settings(source: Source, turns: Path | None, count: int) -> dict[str, Any]:
    """What the pages depend on."""
    recipe = source.recipe
    corpus = Path(recipe.search.corpus)
    return {
        "simulator": source.simulator,
        "simulator_sha256": _weights(source),
        **simulator_settings(recipe),
        "queries": count,
        "turns": fingerprint(turns) if turns else recipe.data.test,
        **real_settings(recipe),
        "corpus_sha256": fingerprint(corpus) if corpus.is_file() else None,
    }


def _weights(source: Source) -> str | None:
    """What tells a simulator in a folder from one that lay there before; None of a model that has no folder."""
    folder = Path(source.simulator)
    return folder_fingerprint(folder) if folder.is_dir() else None


def _write_pages(source: Source, asked: Sequence[SearchTurn], stage: StageFile, display: Display) -> None:
    recipe = source.recipe
    check_servers(recipe)
    engines = simulators(source, simulation_chat(recipe, source.simulator))
    for noise, counted in stage.summary.get("counts", {}).items():
        engines[noise].counts = PageCounts(counted)
    real = None if all(turn.documents for turn in asked) else real_engine(recipe, real_kind(recipe))
    pages_asked = len(asked) * (len(engines) + (real is not None))
    failed = int(stage.summary.get("failed", 0))
    for start in range(stage.done, len(asked), PART):
        part = asked[start : start + PART]
        pages = asyncio.run(_pages_for(part, real, engines, recipe.search.k))
        errors = [page.error for found, written in pages for page in (found, *written.values()) if page.error]
        failed += len(errors)
        if failed > recipe.search.failure_threshold * pages_asked:
            raise RunError(
                f"{failed} of {pages_asked} searches failed, more than search.failure_threshold = "
                f"{recipe.search.failure_threshold:g} allows; the last error was: {errors[-1]}"
            )
        rows = [
            {
                **replace(
                    turn, documents=found.documents, engine=turn.engine or (real.name if real else "")
                ).to_record(),
                "error": found.error,
                "simulated": {noise: asdict(page) for noise, page in written.items()},
            }
            for turn, (found, written) in zip(part, pages, strict=True)
        ]
        counts = {noise: engine.counts.to_json() for noise, engine in engines.items()}
        stage.add(rows, start + len(part), counts=counts, failed=failed)
        display.update(start + len(part), failed=failed)


async def _pages_for(
    turns: Sequence[SearchTurn], real: SearchEngine | None, engines: dict[Noise, Simulator], k: int
) -> list[tuple[Page, dict[Noise, Page]]]:
    """The real page of each turn, its own where it has one, and the simulated ones."""

    async def one(turn: SearchTurn) -> tuple[Page, dict[Noise, Page]]:
        request = SearchRequest(turn.query, turn.question, k, turn=turn.turn)
        own = Page(turn.cut(k).documents)
        found = own if own.documents or real is None else await real.search(request)
        return found, await write_pages(engines, request)

    return await asyncio.gather(*map(one, turns))


def _answered(stage: StageFile) -> Iterator[AnsweredQuery]:
    """The queries and pages that were written."""
    for turn, row in zip(read_turns(stage.path), stage.rows(), strict=True):
        simulated = {noise: _page(page) for noise, page in row["simulated"].items()}
        yield AnsweredQuery(turn.question, turn.query, Page(turn.documents, error=row["error"]), simulated)


def _page(record: Mapping[str, Any]) -> Page:
    documents = tuple(Document(**document) for document in record["documents"])
    return Page(documents, record["noise"], record["error"], record["seconds"])


def _lengths(answered: Sequence[AnsweredQuery]) -> dict[str, list[int]]:
    """Words of each document, its title included."""
    pages = {"real": [query.real for query in answered]}
    for name in answered[0].simulated if answered else ():
        pages[name] = [query.simulated[name] for query in answered]
    return {
        name: [len(f"{document.title} {document.text}".split()) for page in each for document in page.documents]
        for name, each in pages.items()
    }


def _policy_scores(source: Source, overrides: Sequence[str], display: Display) -> dict[str, Estimate]:
    """F1 of the run's policy with the real engine and with the simulator, measured where the run has it not yet."""
    from zerosearch.training.checkpoint import steps_done
    from zerosearch.training.run import Run
    from zerosearch.training.stages import measure

    said = [override for override in overrides if not override.startswith("report.")]
    policy = policy_name(source.folder)
    real = ", ".join([policy, *(override for override in said if not override.startswith("simulation."))])
    systems: dict[str, tuple[str, float | None]] = {REAL: (real, None)}
    # A run's own simulator stays what it is.
    weights = _weights(source) if any(override.startswith(SIMULATION_MODEL) for override in said) else None
    told = [*said, *([f"sha256 {weights[:12]}"] if weights else [])]
    for share in NOISES:
        name = SIMULATED.format(share)
        systems[name] = ", ".join([policy, name, *told]), share
    missing = {
        system: noise for system, noise in systems.values() if system not in source.folder.read_results().systems
    }
    if any(noise is not None for noise in missing.values()):
        check_servers(source.recipe)
    with closing(Run(source.recipe, source.folder, display)) as run:
        for system, noise in missing.items():
            run.take_policy(source.policy)
            engine = run.real_engine if noise is None else run.simulator(ConstantNoise(noise))
            measure(run, system, engine, step=steps_done(source.folder.checkpoints))
    found = source.folder.read_results().systems
    return {name: found[system].all.f1_estimate for name, (system, _) in systems.items()}
