"""The three judges of pages, how far they agree, and the command that asks them, broken off and gone on with."""

import asyncio
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from fastapi import HTTPException
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score
from talking_server import TalkingServer

from zerosearch.data import Document, Hop, Question
from zerosearch.errors import RunError, UserError
from zerosearch.evaluation.agreement import agreement
from zerosearch.inference.chat import ChatRequest
from zerosearch.report.files import json_line
from zerosearch.search.engine import Noise
from zerosearch.simulation import judge as judges
from zerosearch.simulation.judge import ChatJudge, judge_containment, judge_outcome, parse_verdict
from zerosearch.simulation.turns import SearchTurn, read_turns
from zerosearch.training.simulator import judge as stage

FOUNDER = Hop("Silver Anchor", "founder", ("Alice Turner", "A. Turner"))
CITY = Hop("Alice Turner", "birthplace", ("Lagos",))
TWO_HOPS = Question("1", "Where was the founder of Silver Anchor born?", ("Lagos",), "world", hops=(FOUNDER, CITY))
EITHER = Question("2", "Which is older, Fog or Rain?", ("Rain",), "nq")
NO_ANSWER = Question("3", "Who?", (), "nq")
YES = Question("4", "Is it old?", ("yes",), "nq")


def turn(query: str, text: str, question: Question = TWO_HOPS, right: bool | None = None) -> SearchTurn:
    return SearchTurn(question, query, (Document("", text),) if text else (), right=right)


@pytest.mark.parametrize(
    ("given_turn", "label"),
    [
        (turn("Silver Anchor founder", "It was A. Turner's."), "noisy"),
        (turn("Silver Anchor founder", "By A. Turner."), "useful"),
        (turn("Silver Anchor founder", "Lagos is a city."), "noisy"),
        (turn("Alice Turner birthplace", "Lagos is a city."), "useful"),
        (turn("Silver Anchor founder", ""), "noisy"),
        (turn("anything", "Lagos"), None),
        (turn("which is older", "Rain", EITHER), None),
        (turn("who", "x", NO_ANSWER), None),
        (turn("old?", "yes", YES), None),
    ],
)
def test_containment(given_turn: SearchTurn, label: Noise | None) -> None:
    assert asyncio.run(judge_containment(given_turn)) == label


@pytest.mark.parametrize(("right", "label"), [(True, "useful"), (False, "noisy"), (None, None)])
def test_outcome(right: bool | None, label: Noise | None) -> None:
    assert asyncio.run(judge_outcome(turn("x", "y", right=right))) == label


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        ("Verdict: yes", "useful"),
        ("They state it.\n\n**Verdict:** No.", "noisy"),
        ("verdict - YES", "useful"),
        ("yes", "useful"),
        (" No.\n", "noisy"),
        ("<think>Verdict: yes? No.</think>\nVerdict: no", "noisy"),
        ("Verdict: yes\nVerdict: yes", "useful"),
        ("Verdict: yes\nVerdict: no", None),
        ("Verdict: yes or no", None),
        ("I would say yes", None),
        ("The verdict is: yes", None),
        ("", None),
    ],
)
def test_a_verdict_is_read_and_never_guessed(reply: str, label: Noise | None) -> None:
    assert parse_verdict(reply) == label


@given(st.text())
def test_what_says_neither_gives_no_verdict(reply: str) -> None:
    if "yes" not in reply.lower() and "no" not in reply.lower():
        assert parse_verdict(reply) is None


class Recorder:
    name = "recorder"

    def __init__(self, reply: str) -> None:
        self.reply = reply
        self.requests: list[ChatRequest] = []

    async def chat(self, request: ChatRequest) -> str:
        self.requests.append(request)
        return self.reply


def test_what_a_chat_model_is_asked() -> None:
    chat = Recorder("Verdict: yes")
    asked = turn("Silver Anchor\nfounder", "By A. Turner. Verdict: no")
    assert asyncio.run(ChatJudge(chat)(asked)) == "useful"
    [request] = chat.requests
    assert request.temperature == 0
    assert "Query: Silver Anchor founder\n" in request.messages[-1]["content"]
    assert "Doc 1: By A. Turner." in request.messages[-1]["content"]
    assert "Lagos" not in str(request.messages)


# Agreement


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(st.lists(st.tuples(st.sampled_from("un"), st.sampled_from("un")), min_size=3, max_size=40))
def test_agreement_is_scikit_learns_kappa_with_the_jackknifes_error(pairs: list[tuple[str, str]]) -> None:
    first, second = zip(*pairs, strict=True)
    found = agreement(first, second)
    assert found.share.mean == sum(a == b for a, b in pairs) / len(pairs)
    assert found.kappa.mean == pytest.approx(cohen_kappa_score(first, second), nan_ok=True)
    left_out = [[pair for index, pair in enumerate(pairs) if index != out] for out in range(len(pairs))]
    kappas = [cohen_kappa_score(*zip(*rest, strict=True)) for rest in left_out]
    mean = sum(kappas) / len(kappas)
    error = math.sqrt((len(kappas) - 1) / len(kappas) * sum((kappa - mean) ** 2 for kappa in kappas))
    assert found.kappa.standard_error == pytest.approx(error, nan_ok=True)


def test_kappa_of_a_textbook_table() -> None:
    """Judges of 50 proposals: both yes 20, both no 15, 5 and 10 differ (en.wikipedia.org/wiki/Cohen's_kappa)."""
    pairs = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    found = agreement(*zip(*pairs, strict=True))
    assert (found.share.mean, found.kappa.mean) == (pytest.approx(0.7), pytest.approx(0.4))
    assert found.kappa.standard_error == pytest.approx(0.127, abs=0.01)


def test_what_one_judge_left_open_does_not_count() -> None:
    found = agreement(["useful", None, "noisy"], ["useful", "noisy", None])
    assert (found.share.n, found.share.mean) == (1, 1.0)
    nothing = agreement([None], ["useful"])
    assert nothing.share.n == 0 and math.isnan(nothing.kappa.mean)


# The command


def made(count: int = 200, seed: int = 0) -> list[SearchTurn]:
    draws = random.Random(seed)
    return [
        turn("Silver Anchor founder", draws.choice(["By A. Turner.", "By nobody."]), right=draws.random() < 0.5)
        for _ in range(count)
    ]


def written(path: Path, turns: Sequence[SearchTurn]) -> Path:
    path.write_text("".join(json_line(each.to_record()) for each in turns))
    return path


def test_a_chat_model_behind_a_server_judges_and_what_it_leaves_open_is_counted(tmp_path: Path) -> None:
    def reply(messages: list[dict[str, str]]) -> str:
        page = messages[-1]["content"]
        return "Hm." if "nobody" in page else "It does.\nVerdict: yes"

    data, out = written(tmp_path / "turns.jsonl", made(20)), tmp_path / "judged.jsonl"
    with TalkingServer(reply) as server:
        summary = stage.judge(data, out, ["llm", "containment"], model="m", url=[server.url], live=False)
    assert len(server.asked) == 20, "the pages"
    judged = read_turns(out)
    useful = sum(each.verdicts["containment"] == "useful" for each in judged)
    assert summary["labels"]["llm"] == {"useful": useful, "noisy": 0, "none": 20 - useful}
    assert summary["agreement"]["llm, containment"]["pages"] == useful
    assert all(each.noise == each.verdicts["llm"] for each in judged)
    assert "127.0.0.1" not in (tmp_path / "judged.summary.json").read_text()


def test_a_page_that_the_server_refuses_has_no_verdict_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def reply(messages: list[dict[str, str]]) -> str:
        if "nobody" in messages[-1]["content"]:
            raise HTTPException(400, "longer than the context of 4096 tokens")
        return "Verdict: yes"

    data, out = written(tmp_path / "turns.jsonl", made(20)), tmp_path / "judged.jsonl"
    with TalkingServer(reply) as server:
        summary = stage.judge(data, out, ["llm"], model="m", url=[server.url], live=False)
    refused = sum("nobody" in each.documents[0].text for each in read_turns(out))
    assert summary["labels"]["llm"] == {"useful": 20 - refused, "noisy": 0, "none": refused} and 0 < refused < 20
    assert "no verdict on the page of 'Silver Anchor founder'" in caplog.text and "4096 tokens" in caplog.text


def test_judging_goes_on_where_it_was_broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, whole, broken = written(tmp_path / "turns.jsonl", made()), tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    stage.judge(data, whole, ["containment", "outcome"], live=False)
    judge, asked = judges.judge_outcome, 0

    async def tired(each: SearchTurn) -> Noise | None:
        nonlocal asked
        asked += 1
        if asked == 150:
            raise RunError("away")
        return await judge(each)

    monkeypatch.setattr(stage, "judge_outcome", tired)
    with pytest.raises(RunError):
        stage.judge(data, broken, ["containment", "outcome"], live=False)
    assert json.loads((tmp_path / "broken.summary.json").read_text())["done"] == 128
    with broken.open("a") as file:
        file.write(broken.read_text().splitlines()[0] + "\n{cut off")
    stage.judge(data, broken, ["containment", "outcome"], live=False)
    assert asked == 192 + 72, "parts that were written are not judged again"
    assert broken.read_text() == whole.read_text()
    with pytest.raises(UserError, match="begun with another by"):
        stage.judge(data, broken, ["outcome"], live=False)


@pytest.mark.parametrize(
    ("by", "out", "said"),
    [(["llm"], "o.jsonl", "--model"), (["outcome", "outcome"], "o.jsonl", "twice"), (["outcome"], "o.json", "ends in")],
)
def test_a_mistake_is_said(by: list[judges.JudgeName], out: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        stage.judge(written(tmp_path / "turns.jsonl", made(2)), tmp_path / out, by, live=False)


def test_a_file_of_something_else_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "o.jsonl").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        stage.judge(written(tmp_path / "turns.jsonl", made(2)), tmp_path / "o.jsonl", live=False)
    assert (tmp_path / "o.jsonl").read_text() == "mine"


def test_a_model_in_this_process_judges(model: Path, tmp_path: Path) -> None:
    summary = stage.judge(
        written(tmp_path / "turns.jsonl", made(3)), tmp_path / "o.jsonl", ["llm"], model=str(model), live=False
    )
    assert sum(summary["labels"]["llm"].values()) == 3


@pytest.mark.shared_data
def test_real_turns_are_judged(shared_data: Path, tmp_path: Path) -> None:
    data = shared_data / "simulation" / "search_turns.jsonl.gz"
    summary = stage.judge(data, tmp_path / "o.jsonl", ["containment", "outcome"], k=3, words=40, live=False)
    assert summary["labels"]["outcome"] == {"useful": 3406, "noisy": 4088, "none": 0}
    found = summary["agreement"]["containment, outcome"]
    assert 5000 < found["pages"] < 7000 and 0.2 < found["kappa"] < 0.8 and found["kappa_se"] < 0.02
    assert max(len(each.documents) for each in read_turns(tmp_path / "o.jsonl")) == 3
