"""Judging search turns: each page is labelled by one or several judges, and how far they agree is told."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zerosearch.errors import UserError
from zerosearch.evaluation.agreement import agreement
from zerosearch.report.panel import open_display
from zerosearch.report.stage_file import StageFile, fingerprint
from zerosearch.search.engine import Noise
from zerosearch.simulation.judge import (
    REASONING_TOKENS,
    ChatJudge,
    Judge,
    JudgeName,
    judge_containment,
    judge_messages,
    judge_outcome,
)
from zerosearch.simulation.turns import SearchTurn, count_labels, read_turns

if TYPE_CHECKING:
    from zerosearch.inference.chat import ChatModel

STAGE = "judging"
PART = 64
"""Pages that are judged and then written together."""
SLOTS = 16
"""Of these, how many a chat model in this process has in hand at once."""


def judge(
    data: Path,
    out: Path,
    by: Sequence[JudgeName] = ("containment",),
    k: int = 0,
    words: int = 0,
    model: str = "",
    url: Sequence[str] = (),
    timeout: float = 60.0,
    retries: int = 3,
    live: bool = True,
) -> dict[str, Any]:
    """Label the pages of search turns by each judge in `by`; the first one's label is the page's.

    k, words: pages are cut to so many documents of so many words before they are judged; 0 leaves them whole.
    model, url: the chat model that judges for `llm`, behind OpenAI-compatible servers or in this process.
    timeout, retries: seconds of one try of such a server, and further tries.
    The same call goes on where it was broken off. Returns the summary: each judge's labels, and how pairs agree.

    Raises:
        UserError: a file or a judge is wrong. RunError: the chat model cannot be reached.
    """
    if len(set(by)) < len(by):
        raise UserError("a judge is named twice: name each once")
    if "llm" in by and not model:
        raise UserError("the judge 'llm' needs a chat model: name one with --model, and its server with --url")
    turns = [turn.cut(k, words) for turn in read_turns(data)]
    settings = {"data": str(data), "sha256": fingerprint(data), "by": list(by), "k": k, "words": words, "model": model}
    stage = StageFile(out, settings)
    with open_display("zerosearch simulate judge", [STAGE], live=live) as display:
        display.stage(STAGE, len(turns), stage.done)
        waiting = turns[stage.done :]
        asks = "llm" in by and waiting
        judges = _judges(by, _chat(waiting, model, url, timeout, retries) if asks else None)
        for start in range(stage.done, len(turns), PART):
            part = turns[start : start + PART]
            judged = asyncio.run(_judged(part, judges))
            stage.add([turn.to_record() for turn in judged], start + len(part))
            display.update(start + len(part), **count_labels(turn.noise for turn in judged))
    labelled = read_turns(out)
    stage.add([], len(turns), **_summary(labelled, by))
    return stage.summary


async def _judged(turns: Sequence[SearchTurn], judges: dict[JudgeName, Judge]) -> list[SearchTurn]:
    """The turns with every judge's verdict, and the first one's as their label."""

    async def one(turn: SearchTurn) -> SearchTurn:
        verdicts: dict[str, Noise | None] = {name: await each(turn) for name, each in judges.items()}
        return replace(turn, noise=next(iter(verdicts.values())), verdicts=verdicts)

    return await asyncio.gather(*map(one, turns))


def _judges(by: Sequence[JudgeName], chat: "ChatModel | None") -> dict[JudgeName, Judge]:
    known: dict[JudgeName, Judge] = {"containment": judge_containment, "outcome": judge_outcome}
    if chat:
        known["llm"] = ChatJudge(chat)
    return {name: known[name] for name in by if name in known}


def _chat(turns: Sequence[SearchTurn], model: str, url: Sequence[str], timeout: float, retries: int) -> "ChatModel":
    """The chat model: behind servers that answer, or in this process with room for the longest page."""
    if url:
        from zerosearch.inference.openai import OpenAIChat

        served = OpenAIChat(url, model, timeout=timeout, max_retries=retries)
        asyncio.run(served.check())
        return served
    from zerosearch.inference.models import compute_dtype, load_model, load_tokenizer
    from zerosearch.inference.plain import lane_sampler
    from zerosearch.inference.sampled_chat import SampledChat
    from zerosearch.inference.tokens import encode_chat

    tokenizer = load_tokenizer(model)
    longest = max(len(encode_chat(tokenizer, judge_messages(turn))) for turn in turns)
    sampler = lane_sampler(load_model(model), tokenizer, SLOTS, longest + REASONING_TOKENS, dtype=compute_dtype("auto"))
    return SampledChat(sampler, tokenizer, model)


def _summary(turns: Sequence[SearchTurn], by: Sequence[JudgeName]) -> dict[str, Any]:
    verdicts = {name: [turn.verdicts.get(name) for turn in turns] for name in by}
    pairs = {}
    for first, second in combinations(by, 2):
        found = agreement(verdicts[first], verdicts[second])
        pairs[f"{first}, {second}"] = {
            "pages": found.share.n,
            "share": found.share.mean,
            "share_se": found.share.standard_error,
            "kappa": found.kappa.mean,
            "kappa_se": found.kappa.standard_error,
        }
    return {"labels": {name: count_labels(given) for name, given in verdicts.items()}, "agreement": pairs}
