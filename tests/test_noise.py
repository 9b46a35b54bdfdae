"""The finer dial of noise: mixed pages, kinds, whom they are shared with, what is withheld, and repair."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerosearch.data import Document, Hop, Question
from zerosearch.data.text import normalize_answer
from zerosearch.data.world import build_world
from zerosearch.errors import RunError, UserError
from zerosearch.inference.chat import ChatRequest
from zerosearch.search.engine import Page, SearchRequest
from zerosearch.simulation.distractors import TRIES, Distractors, _walk
from zerosearch.simulation.noise import KINDS, Dial, Label, draw_labels
from zerosearch.simulation.quality import (
    Wanted,
    Written,
    about,
    entities,
    faults,
    foreign,
    holds_answer,
    misses,
    refuses,
)
from zerosearch.simulation.schedule import ConstantNoise, draw_noise
from zerosearch.simulation.simulator import Repair, Simulator, Writing
from zerosearch.simulation.telling import Teller, Withhold
from zerosearch.simulation.template import load_template

FOUNDER = Hop("Silver Anchor", "founder", ("Alice Turner",))
CITY = Hop("Alice Turner", "birthplace", ("Lagos",))
QUESTION = Question("1", "Where was the founder of Silver Anchor born?", ("Lagos",), "world", hops=(FOUNDER, CITY))
PLAIN = Question("2", "In which city was the founder of Silver Anchor born?", ("Lagos",), "nq")
OTHERS = tuple(
    Question(number, text, hop.answers, "world", hops=(hop,))
    for number, text, hop in [
        ("3", "Who wrote The Red Door?", Hop("The Red Door", "author", ("Ben Young",))),
        ("4", "Who founded Grey Lens?", Hop("Grey Lens", "founder", ("Carl Martin",))),
        ("5", "Who founded Silver Anchor?", FOUNDER),
    ]
)
places = st.fixed_dictionaries({"sample": st.integers(0, 9), "turn": st.integers(0, 4), "step": st.integers(0, 99)})


class Writer:
    """A chat model that writes k documents about what it is asked, or prepared texts in turn; it remembers all."""

    name = "writer"

    def __init__(self, *texts: str | Exception) -> None:
        self.texts, self.requests = texts, list[ChatRequest]()

    async def chat(self, request: ChatRequest) -> str:
        self.requests.append(request)
        text = self.texts[(len(self.requests) - 1) % len(self.texts)] if self.texts else self._documents(request)
        if isinstance(text, Exception):
            raise text
        return text

    def _documents(self, request: ChatRequest) -> str:
        """As an obedient model would: useful documents state the answer that it was told, noisy ones do not."""
        lines = dict(line.split(": ", 1) for line in request.messages[-1]["content"].split("\n") if ": " in line)
        useful = request.messages[-1]["content"].rstrip().endswith("Useful:")
        told = f" It is {lines['Answer']}." if useful and "Answer" in lines else ""
        count = int(request.stop[0].removeprefix("\nDoc ")) - 1
        return "\n".join(f"Doc {n}(Title: {lines['Query']}) Text {n}.{told}" for n in range(1, count + 1))


def simulator(
    chat: Writer,
    noise: float = 1.0,
    dial: Dial | None = None,
    repair: Repair = "none",
    withhold: Withhold = "hops",
    judge: Writer | None = None,
    others: Sequence[Question] = OTHERS,
) -> Simulator:
    return Simulator(
        chat,
        load_template("sft"),
        ConstantNoise(noise),
        writing=Writing(repair=repair),
        dial=dial or Dial(),
        teller=Teller(withhold, judge),
        distractors=Distractors(others),
    )


def search(
    engine: Simulator, query: str = "silver anchor founder", question: Question = QUESTION, **place: int
) -> Page:
    return asyncio.run(engine.search(SearchRequest(query, question, 3, **place)))


# Labels


@given(places, st.integers(0, 5), st.floats(0, 1))
def test_a_page_of_one_label_is_drawn_as_the_paper_draws_it(place: dict[str, int], seed: int, level: float) -> None:
    drawn = draw_labels(seed, Dial(), SearchRequest("q", QUESTION, 3, **place), level)
    assert drawn == (draw_noise(seed, QUESTION, place["sample"], place["turn"], place["step"], level),) * 3


def labels_of(dial: Dial, level: float, count: int = 2000, k: int = 5) -> list[tuple[Label, ...]]:
    return [draw_labels(0, dial, SearchRequest("q", QUESTION, k, sample), level) for sample in range(count)]


def test_documents_are_drawn_for_themselves() -> None:
    pages = labels_of(Dial(per="document"), 0.3)
    noisy = [sum(label == "noisy" for label in page) for page in pages]
    assert 0.28 < sum(noisy) / 10_000 < 0.32
    # as many noisy documents on a page as a binomial distribution says
    assert 0.13 < noisy.count(0) / 2000 < 0.21 and 0.33 < noisy.count(1) / 2000 < 0.39
    assert all(len(set(page)) == 1 for page in labels_of(Dial(per="page"), 0.3))


def test_kinds_come_by_their_weights() -> None:
    dial = Dial(per="document", irrelevant=1, near_miss=2, contradicting=1)
    found = Counter(label for page in labels_of(dial, 0.5) for label in page)
    assert 0.47 < found["useful"] / 10_000 < 0.53 and 0.11 < found["irrelevant"] / 10_000 < 0.14
    assert 0.23 < found["near_miss"] / 10_000 < 0.27 and 0.11 < found["contradicting"] / 10_000 < 0.14
    assert all(len(set(page)) == 1 for page in labels_of(replace(dial, per="page"), 0.5))
    with pytest.raises(UserError, match="weight of near_miss noise is -1"):
        Dial(near_miss=-1)


@given(places, st.sampled_from(["page", "document"]), st.integers(0, 9))
def test_a_group_shares_its_noise_where_that_is_asked_for(place: dict[str, int], per: str, other: int) -> None:
    dial = Dial(per, "group", irrelevant=1, near_miss=1)  # type: ignore[arg-type]
    one, two = (SearchRequest("q", QUESTION, 4, **place | {"sample": sample}) for sample in (place["sample"], other))
    assert draw_labels(0, dial, one, 0.5) == draw_labels(0, dial, two, 0.5)


def test_samples_groups_and_turns_differ() -> None:
    for dial in (Dial("document"), Dial("document", "group")):
        turns = {draw_labels(0, dial, SearchRequest("q", QUESTION, 4, turn=turn), 0.5) for turn in range(30)}
        assert len(turns) > 5
    assert len(set(labels_of(Dial("document", "group"), 0.5))) == 1


# Distractors


def test_a_draw_looks_at_so_many_candidates_in_a_row_and_at_no_other_one() -> None:
    class Noted(list[int]):
        def __getitem__(self, place: Any) -> Any:
            assert isinstance(place, int), "nothing is copied"
            return super().__getitem__(place)

    for count in (0, 1, 7, 49, 50, 51, 200):
        found = list(_walk(Noted(range(count)), "place", count))
        assert len(found) == min(count, TRIES)
        assert all(after == (before + 1) % count for before, after in pairwise(found))
    assert len({next(_walk(range(200), place)) for place in range(50)}) > 30


@given(st.integers(0, 10_000))
def test_distractors_of_the_world_are_of_the_type_and_wrong(number: int) -> None:
    questions, distractors = build_world(0).test, WORLD
    question = questions[number % len(questions)]
    hop = question.hops[number % len(question.hops)]
    wrong = distractors.wrong_answer(f"{hop.subject} {hop.relation}", question, hop.answers, number)
    relations = {h.relation for q in build_world(0).train for h in q.hops if wrong in h.answers}
    assert hop.relation in relations
    assert normalize_answer(wrong) not in {normalize_answer(a) for a in (*hop.answers, *question.golden_answers)}
    fact = distractors.other_fact(question, number)
    assert fact is not None and not holds_answer([Document(fact.query, fact.question)], entities(question))


WORLD = Distractors(build_world(0).train)


def test_without_hops_wrong_answers_look_like_the_right_one() -> None:
    def wrong(*answers: str, right: str) -> str:
        others = [Question(str(n), f"Question {n}?", (answer,), "nq") for n, answer in enumerate(answers)]
        asked = Question("x", "What?", (right,), "nq")
        return Distractors(others).wrong_answer("q", asked, asked.golden_answers, 0)

    pool = ("Paris", "New York", "1912", "77", "no", "yes")
    assert wrong(*pool, right="1931") == "1912"
    assert wrong(*pool, right="5") == "77"
    assert wrong(*pool, right="yes") == "no"
    assert wrong(*pool, right="Los Angeles") == "New York"
    assert wrong(*pool, right="the Paris") == ""
    assert Distractors(()).other_fact(QUESTION) is None


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Who wrote the novel The Red Door?", ("The Red Door",)),
        ("In which year was Bank of the West founded by John Smith?", ("Bank of the West", "John Smith")),
        ("Which film has the director born later, “une femme”, or El Extraño?", ("une femme", "El Extraño")),
        ("what is the capital of Österreich", ("Österreich",)),
        ("who is he", ()),
    ],
)
def test_names_in_a_question_without_hops(text: str, names: tuple[str, ...]) -> None:
    assert entities(Question("1", text, ("x",), "nq")) == names
    assert entities(QUESTION) == ("Silver Anchor", "Alice Turner")


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("Silver Anchor is blue.", True),
        ("An anchor of silver was found.", True),
        ("Fog is grey.", False),
        ("Silver is a metal that is founded in rock.", False),
        ("Who was the anchor?", False),
    ],
)
def test_what_is_about_a_question_without_names(text: str, near: bool) -> None:
    question = Question("1", "who made silver anchor", ("x",), "nq")
    assert not entities(question)
    assert about(Document("", text), question) is near
    near_miss = Written(Document("", text), "near_miss")
    irrelevant = Written(Document("", text), "irrelevant")
    wanted = Wanted(question, (), ("x",))
    assert (near_miss.of_its_kind(wanted), irrelevant.of_its_kind(wanted)) == (near, not near)


def test_an_unrelated_fact_shares_no_two_words_with_a_question_without_names() -> None:
    asked = Question("1", "who made silver anchor", ("x",), "nq")
    others = [Question("2", "when was silver anchor made", ("1931",), "nq"), Question("3", "is fog grey", ("y",), "nq")]
    for place in range(10):
        fact = Distractors(others).other_fact(asked, place)
        assert fact is not None and fact.question == "is fog grey"


def test_another_fact_gives_none_of_the_questions_answers_away() -> None:
    hop = Hop("Ann Lee", "year of birth", ("1931",))
    asked = Question("1", "How old was Ann Lee's house in 1990?", ("59",), "d", hops=(hop,))
    others = [Question("2", "When did Mist Hall open?", ("1931",), "d"), Question("3", "Is fog grey?", ("y",), "d")]
    for place in range(10):
        fact = Distractors(others).other_fact(asked, place)
        assert fact is not None and fact.question == "Is fog grey?"


def test_what_quotes_a_refusal_is_none() -> None:
    for text in ('"I Don\'t Know How to Love Him" is a song of 1971.', f"{'Fog is grey. ' * 20} I cannot say why."):
        assert not refuses(text), text
    assert refuses("I don't know how to answer that.")


def test_a_refusal_in_any_words_is_counted() -> None:
    for reply in ("I’m sorry, I can’t provide that.", "I'm sorry, I can't provide that."):
        engine = simulator(Writer(reply), dial=Dial())
        assert not search(engine).documents
        assert (engine.counters()["simulator/refusals"], engine.counters()["simulator/empty_pages"]) == (1, 1)
    engine = simulator(Writer("Doc 1: I’m unable to help.\nDoc 2: Fog."), dial=Dial())
    search(engine)
    assert engine.counters()["simulator/refusals"] == 1


# Pages


def told(chat: Writer) -> list[str]:
    return [request.messages[-1]["content"] for request in chat.requests]


def test_a_contradicting_page_is_written_for_a_wrong_answer() -> None:
    chat = Writer()
    engine = simulator(chat, dial=Dial(contradicting=1))
    page = search(engine)
    assert told(chat) == [f"Question: {QUESTION.text}\nAnswer: Carl Martin\nQuery: silver anchor founder\nUseful:\n"]
    assert page.noise == "noisy" and all("Carl Martin" in document.text for document in page.documents)
    counts = engine.counters()
    assert (counts["simulator/contradicting_rate"], counts["simulator/leak_rate"]) == (1, 0)


def test_an_irrelevant_page_answers_another_question() -> None:
    chat = Writer()
    engine = simulator(chat, dial=Dial(irrelevant=1))
    search(engine)
    assert "Silver Anchor" not in told(chat)[0] and "Alice" not in told(chat)[0]
    assert told(chat)[0].endswith("Useful:\n")
    assert engine.counters()["simulator/irrelevant_rate"] == 1


def test_kinds_that_cannot_be_made_are_plainly_noisy() -> None:
    for kind in KINDS:
        chat = Writer()
        search(simulator(chat, dial=Dial(**{kind: 1.0}), others=()))
        assert told(chat)[0].endswith("Query: silver anchor founder\nNoisy:\n")


def test_the_rates_of_kinds_are_measured() -> None:
    chat = Writer("Doc 1: Grey Lens was founded in 1900.\nDoc 2: Silver Anchor is blue.\nDoc 3: By Alice Turner.")
    rates = {}
    for kind in KINDS:
        engine = simulator(chat, dial=Dial(**{kind: 1.0}))
        search(engine)
        rates[kind] = engine.counters()[f"simulator/{kind}_rate"]
    # the third one leaks, so that it is of no kind
    assert rates == pytest.approx({"irrelevant": 1 / 3, "near_miss": 1 / 3, "contradicting": 0})


def test_a_mixed_page_has_its_documents_at_their_places() -> None:
    chat = Writer()
    engine = simulator(chat, 0.5, Dial("document", irrelevant=1, contradicting=1))
    for sample in range(30):
        page = search(engine, sample=sample)
        labels = draw_labels(0, Dial("document", irrelevant=1, contradicting=1), request(sample), 0.5)
        expected = ["Alice Turner" if label == "useful" else "Carl Martin" for label in labels if label != "irrelevant"]
        found = [document.text for document in page.documents if document.title == "silver anchor founder"]
        assert [text.split("is ")[1].rstrip(".") for text in found] == expected
        assert len(page.documents) == 3 and page.noise == ("useful" if "useful" in labels else "noisy")
    counts = engine.counters()
    assert counts["simulator/hit_rate"] == counts["simulator/contradicting_rate"] == 1
    assert 0.3 < counts["simulator/noise_realised"] < 0.7 and counts["simulator/delivered_rate"] == 1


def request(sample: int) -> SearchRequest:
    return SearchRequest("silver anchor founder", QUESTION, 3, sample)


def test_a_failure_of_one_call_fails_the_mixed_page() -> None:
    engine = simulator(Writer(RunError("away")), 0.5, Dial("document"))
    assert search(engine).error == "away" and engine.counters()["simulator/errors"] == 1


# Repair

LEAK = "Doc 1: Alice Turner did.\nDoc 2: Blue.\nDoc 3: Green."
CLEAN = "Doc 1: Red.\nDoc 2: Blue.\nDoc 3: Green."
NOTHING = "I do not know."


@pytest.mark.parametrize(
    ("repair", "texts", "shown", "calls"),
    [
        ("none", [LEAK], ["Alice Turner did.", "Blue.", "Green."], 1),
        ("drop", [LEAK], ["Blue.", "Green."], 1),
        ("rewrite", [LEAK, CLEAN], ["Red.", "Blue.", "Green."], 2),
        ("rewrite", [CLEAN], ["Red.", "Blue.", "Green."], 1),
        ("rewrite", [LEAK, LEAK], ["Blue.", "Green."], 2),
        ("rewrite", [LEAK, NOTHING], ["Blue.", "Green."], 2),
        ("rewrite", [LEAK, RunError("away")], ["Blue.", "Green."], 2),
        ("rewrite", ["Doc 1: Red.\nDoc 2: red\nDoc 3: Green.", CLEAN], ["Red.", "Blue.", "Green."], 2),
        ("rewrite", ["Doc 1: Red.", "Doc 1: Blue.\nDoc 2: Green."], ["Blue.", "Green."], 2),
        ("drop", ["Doc 1: I'm sorry, I can't help with that.\nDoc 2: Blue.\nDoc 3: Blue!"], ["Blue."], 1),
    ],
)
def test_noisy_pages_are_repaired(repair: Repair, texts: list[str], shown: list[str], calls: int) -> None:
    chat = Writer(*texts)
    engine = simulator(chat, repair=repair)
    assert [document.text for document in search(engine).documents] == shown
    assert len(chat.requests) == calls and len({each.seed for each in chat.requests}) == calls
    counts = engine.counters()
    assert counts["simulator/rewritten_rate"] == (calls == 2)
    assert counts["simulator/first/leak_rate"] == ("Alice" in str(texts[0]))
    assert counts["simulator/leak_rate"] == any("Alice" in text for text in shown)


def test_a_useful_page_without_its_answer_is_written_again_and_kept_as_it_is() -> None:
    engine = simulator(Writer(CLEAN, LEAK), 0.0, repair="rewrite")
    assert search(engine).documents[0].text == "Alice Turner did."
    counts = engine.counters()
    assert (counts["simulator/first/hit_rate"], counts["simulator/hit_rate"]) == (0, 1)
    vain = simulator(Writer(CLEAN, CLEAN), 0.0, repair="rewrite")
    assert len(search(vain).documents) == 3 and vain.counters()["simulator/hit_rate"] == 0
    assert vain.counters()["simulator/documents_dropped"] == 0


texts = st.lists(st.sampled_from(["Red.", "Blue.", "red", "Alice Turner.", "I cannot provide that.", "Lagos, a city."]))
kinds = st.sampled_from(["useful", "noisy", "irrelevant", "near_miss", "contradicting"])


@given(texts, st.data())
def test_repair_drops_documents_whole_and_nothing_else(texts: list[str], data: st.DataObject) -> None:
    written = [Written(Document("", text), data.draw(kinds)) for text in texts]
    wanted = Wanted(QUESTION, ("Alice Turner",), ("Lagos",), "Carl Martin")
    dropped = faults(written, wanted)
    kept = [each for place, each in enumerate(written) if place not in dropped]
    assert not faults(kept, wanted)
    assert all(each in written for each in kept)
    for place in dropped:
        assert faults([*kept, written[place]], wanted) or written[place] in kept
    assert misses(written, ["useful"], wanted) != any(
        w.label == "useful" and "Alice" in w.document.text for w in written
    )


def test_other_scripts_are_noticed() -> None:
    assert foreign(Document("", "Лагос это город в Нигерии"), QUESTION)
    assert not foreign(Document("", "Lagos (Лагос), a city: 1931"), QUESTION)
    assert not foreign(Document("", "1931"), QUESTION)


# What is told


@pytest.mark.parametrize(
    ("withhold", "question", "query", "answer"),
    [
        ("hops", QUESTION, "silver anchor founder", "Alice Turner"),
        ("hops", QUESTION, "weather", ""),
        ("hops", PLAIN, "silver anchor founder", "Lagos"),
        ("never", QUESTION, "silver anchor founder", "Lagos"),
        ("never", QUESTION, "weather", "Lagos"),
        ("judge", QUESTION, "silver anchor founder", "Alice Turner"),
    ],
)
def test_what_a_simulator_is_told(withhold: Withhold, question: Question, query: str, answer: str) -> None:
    chat, judge = Writer(), Writer("ANSWER")
    search(simulator(chat, 0.0, withhold=withhold, judge=judge), query, question)
    assert (f"Answer: {answer}\n" in told(chat)[0]) if answer else ("Answer" not in told(chat)[0])
    assert not judge.requests


def test_nobody_judges_what_there_is_no_answer_to_withhold_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zerosearch.simulation.telling.MOST_JUDGED", 1)
    chat, judge = Writer(), Writer("ANSWER")
    engine = simulator(chat, 0.0, withhold="judge", judge=judge)
    search(engine, question=Question("2", "", (), "client"))
    assert not judge.requests
    for query in ("one", "two", "two", "one"):
        search(engine, query, PLAIN, step=len(judge.requests))
    assert len(judge.requests) == 3, "only so many verdicts are kept"
    search(engine, "one", replace(PLAIN, text="Another question?"))
    assert len(judge.requests) == 4, "a verdict belongs to the question as it is"


@pytest.mark.parametrize(
    ("reply", "tells", "unclear"),
    [
        ("STEP", False, 0),
        ("Answer.", True, 0),
        ("**ANSWER**", True, 0),
        ("answer or step", False, 1),
        ("", False, 1),
        ("<think>\nIs it a step? No.\n</think>\n\nANSWER", True, 0),
        ("<think>\nThe ANSWER", False, 1),
    ],
)
def test_a_judge_says_which_queries_ask_for_the_answer(reply: str, tells: bool, unclear: int) -> None:
    chat, judge = Writer(), Writer(reply)
    engine = simulator(chat, 0.0, withhold="judge", judge=judge)
    for turn in range(2):
        search(engine, question=PLAIN, turn=turn)
    assert ("Answer: Lagos" in told(chat)[0]) == tells
    assert len(judge.requests) == 1, "a verdict is kept"
    assert judge.requests[0].max_tokens > 256, "room for a thought"
    assert engine.counters()["simulator/unclear_verdicts"] == unclear
    assert engine.counters()["simulator/aimless_pages"] == (0 if tells else 2)
    assert PLAIN.text in told(judge)[0] and "silver anchor founder" in told(judge)[0]
