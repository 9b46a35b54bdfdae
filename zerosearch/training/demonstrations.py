"""Demonstrations of the protocol, made from training questions: scripted episodes that run as real ones do.

The same coroutine that runs the policy runs the script, so a demonstration has the very tokens that an
episode would have. Some of them search in vain first, and search again. Some ask for another fact in the end than
the question does: how facts are looked up can be imitated from those, but which one answers the question cannot.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zerosearch.agent.episode import Agent, EpisodeSettings
from zerosearch.agent.protocol import TagProtocol
from zerosearch.agent.trajectory import Trajectory
from zerosearch.data import Document, Question
from zerosearch.data.question import Hop
from zerosearch.draws import spread
from zerosearch.errors import UserError
from zerosearch.inference.packed import Branch, Tree
from zerosearch.inference.sampler import Sample, SamplingRequest
from zerosearch.inference.tokens import encode_text
from zerosearch.search.bm25 import BM25Engine
from zerosearch.search.engine import Page, SearchRequest
from zerosearch.simulation.quality import holds_answer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHARES = {"one_hop": 2, "two_hop": 3, "comparison": 7}
"""Demonstrations of a family by its kind. After fewer of comparisons a small model does not begin them as such; after
fewer of one hop it goes on to a second one."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What the script writes, and the page that a search of it brings."""

    text: str
    documents: tuple[Document, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What is looked up for a question, and what is answered then."""

    hops: tuple[Hop, ...]
    answer: str


def right_plan(question: Question) -> Plan:
    """Return the plan of the question's own hops."""
    return Plan(question.hops, question.golden_answers[0])


def wrong_plan(question: Question, facts: Mapping[str, Sequence[Hop]], generator: random.Random) -> Plan | None:
    """Return the plan whose last hop asks for another fact of the same subject; None where no other is known.

    facts: by subject.
    """
    *hops, last = question.hops
    others = [hop for hop in facts.get(last.subject, ()) if hop.relation != last.relation]
    if not others:
        return None
    other = generator.choice(others)
    return Plan((*hops, other), other.answers[0])


class _Script:
    """A sampler and a search engine that both read from the script."""

    name = "script"

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", turns: Sequence[Turn]):
        self._tokenizer, self._turns = tokenizer, iter(turns)
        self._turn = Turn("")

    async def sample(self, request: SamplingRequest) -> Sample:
        self._turn = next(self._turns)
        ids = tuple(encode_text(self._tokenizer, self._turn.text))
        return Sample(ids, (0.0,) * len(ids), "stop")

    async def search(self, request: SearchRequest) -> Page:
        return Page(self._turn.documents)


def script(question: Question, plan: Plan, engine: BM25Engine, k: int, in_vain: int | None) -> list[Turn] | None:
    """Return the turns that carry the plan out; None where the engine does not find a hop's answer.

    in_vain: the hop at which a first search brings a page without the answer; None for none.
    """
    turns: list[Turn] = []
    known = _opening(question, plan)
    for index, hop in enumerate(plan.hops):
        found = engine.rank(f"{hop.subject} {hop.relation}", 2 * k)
        page, next_page = tuple(found[:k]), tuple(found[k:])
        if not holds_answer(page, hop.answers):
            return None
        wish = _wish(question, plan, index)
        query = f"<search> {hop.subject} {hop.relation} </search>"
        if index == in_vain:
            if holds_answer(next_page, hop.answers):
                return None
            turns.append(Turn(f"<think> {known}{wish} </think>\n{query}", next_page))
            known, wish = "", f"That does not tell it. {wish}"
        turns.append(Turn(f"<think> {known}{wish} </think>\n{query}", page))
        known = _fact(question, plan, index)
    return [*turns, _conclusion(known, plan)]


def recall(question: Question) -> list[Turn]:
    """Return the one turn that answers from memory, hop by hop: for a policy that has no engine."""
    plan = right_plan(question)
    return [_conclusion("".join(_fact(question, plan, index) for index in range(len(plan.hops))), plan)]


def _opening(question: Question, plan: Plan) -> str:
    """What the question asks for, in the words of its hops, so that how far to go is read from it and is no habit; and
    all that a comparison looks up."""
    if _compares(question):
        one, other, last = question.hops
        meant, both = _meant(question), f"{one.subject} and {other.subject}"
        asked = f"the {last.relation} of the one of {both} with {meant.relation} {meant.answers[0]}"
        return f"Wanted: {asked}. Compare the {one.relation} of {both}{_asked_of_one(question, plan)}. "
    found: dict[str, str] = {}
    wanted: list[str] = []
    for hop in question.hops:
        inner = found.get(hop.subject)
        wanted = [each for each in wanted if each != inner] + [f"the {hop.relation} of {inner or hop.subject}"]
        found |= dict.fromkeys(hop.answers, wanted[-1])
    return f"Wanted: {' and '.join(wanted)}. "


def _wish(question: Question, plan: Plan, index: int) -> str:
    """What is looked up now, and what is left for later. Of a comparison, first the candidates are."""
    hop = plan.hops[index]
    wanted = f"the {hop.relation} of {hop.subject}"
    if _compares(question):
        return f"Candidate {index + 1}: {wanted}." if index < 2 else f"Look up {wanted}."
    return f"Look up {wanted}{_left(plan, index)}."


def _fact(question: Question, plan: Plan, index: int) -> str:
    """What the hop at that index found, and what is left; after both candidates of a comparison, of which of them."""
    hop = plan.hops[index]
    if not _compares(question):
        left = _left(plan, index)
    elif index == 1:
        left = f"{_asked_of_one(question, plan)}: {question.hops[-1].subject}"
    else:
        left = ""
    return f"The {hop.relation} of {hop.subject} is {hop.answers[0]}{left}. "


def _left(plan: Plan, index: int) -> str:
    """What is to be looked up after the hop at that index: a plan that says how far to go before it is begun, and is
    said again with each fact, so that all that the policy needs to go on or to end is to copy."""
    known = {answer for hop in plan.hops for answer in hop.answers}
    wanted = (
        f"the {hop.relation}" if hop.subject in known else f"the {hop.relation} of {hop.subject}"
        for hop in plan.hops[index + 1 :]
    )
    return "".join(f", then {each}" for each in wanted)


def _asked_of_one(question: Question, plan: Plan) -> str:
    """What the plan of a comparison looks up after its candidates, of the one that has what the question says."""
    return "".join(f", then the {hop.relation} of the one with {_meant(question).answers[0]}" for hop in plan.hops[2:])


def _meant(question: Question) -> Hop:
    """What the question says of one of a comparison's candidates."""
    return next(hop for hop in question.hops if hop.subject == question.hops[-1].subject)


def _compares(question: Question) -> bool:
    """Whether the hops are a property of each of two candidates and a fact of the one that is meant."""
    return question.kind == "comparison" and len(question.hops) == 3


def _conclusion(known: str, plan: Plan) -> Turn:
    return Turn(f"<think> {known}</think>\n<answer> {plan.answer} </answer>")


async def demonstrate(
    questions: Sequence[Question],
    engine: BM25Engine,
    tokenizer: "PreTrainedTokenizerBase",
    settings: EpisodeSettings,
    count: int,
    seed: int,
    wrong_plans: float = 0.0,
    in_vain_share: float = 0.2,
) -> list[Trajectory]:
    """Return `count` demonstrations: each family's share is that of `SHARES`, and lies evenly over their order.

    wrong_plans: the share of them that follows a wrong plan, in each family and among the first ones of a kind's
    families; those of which no other fact is known have none. in_vain_share: the share of each kind with a fruitless
    search, as far as there are turns for it.

    Raises:
        UserError: too few questions have hops that the engine finds.
    """
    generator = random.Random(f"demonstrations {seed}")
    families: dict[str, list[Question]] = {}
    for question in generator.sample(list(questions), len(questions)):
        if question.hops:
            families.setdefault(question.family, []).append(question)
    facts = _facts(questions)
    demonstrations: list[Trajectory] = []
    made: Counter[str] = Counter()
    places = _places({group[0].family: group[0].kind for _, group in sorted(families.items())})
    turn_of_family = [group for _, group in sorted(families.items()) for _ in range(SHARES.get(group[0].kind, 1))]
    generator.shuffle(turn_of_family)
    while len(demonstrations) < count and any(turn_of_family):
        for family in turn_of_family:
            if len(demonstrations) == count or not family:
                continue
            place = places[family[0].family]
            wrong, of_kind = _falls(place, wrong_plans), made[family[0].kind]
            question, plan = _take(family, facts if wrong and settings.max_turns else {}, generator)
            in_vain = generator.randrange(len(question.hops)) if _falls(of_kind, in_vain_share) else None
            turns = _turns(question, plan, engine, settings, in_vain)
            if turns is None:
                continue
            play = _Script(tokenizer, turns)
            searched = play if settings.max_turns else None
            protocol = TagProtocol(searches=searched is not None)
            trajectory = await Agent(play, tokenizer, searched, settings, protocol).episode(question)
            if trajectory.answer == plan.answer:
                demonstrations.append(trajectory)
                places[question.family] += 1
                made[question.kind] += 1
    if len(demonstrations) < count:
        raise UserError(
            f"only {len(demonstrations)} of warm_start.demonstrations = {count} could be made: the training questions "
            "need hops whose answers the real engine finds; lower the number or give such questions"
        )
    shown: dict[str, list[Trajectory]] = {}
    for trajectory in demonstrations:
        shown.setdefault(trajectory.question.family, []).append(trajectory)
    return spread(shown.values(), generator)  # what a small model learns last it does everywhere


def _turns(
    question: Question, plan: Plan, engine: BM25Engine, settings: EpisodeSettings, in_vain: int | None
) -> list[Turn] | None:
    """The turns of a demonstration, without the fruitless search where there is no turn for it; None where it cannot be
    shown within the budget."""
    if not settings.max_turns:
        return recall(question)
    for vain in dict.fromkeys((in_vain, None)):
        turns = script(question, plan, engine, settings.k, vain)
        if turns is not None and len(turns) <= settings.max_turns + 1:
            return turns
    return None


def _falls(place: int, share: float) -> bool:
    """Whether the one at this place, the first being 0, is of those that a share picks, as evenly as it can."""
    return int((place + 1) * share) > int(place * share)


def _places(kinds: Mapping[str, str]) -> dict[str, int]:
    """The place of each family among those of its kind, the first being 0: where counting its demonstrations begins, so
    that of a kind's families with one demonstration each as many are wrong as of those with many."""
    seen: Counter[str] = Counter()
    places: dict[str, int] = {}
    for family, kind in kinds.items():
        places[family] = seen[kind]
        seen[kind] += 1
    return places


def _take(
    family: list[Question], facts: Mapping[str, Sequence[Hop]], generator: random.Random
) -> tuple[Question, Plan]:
    """Take a question out of its family: with a wrong plan if the facts give one of them such a plan."""
    for index in reversed(range(len(family))):
        if plan := wrong_plan(family[index], facts, generator):
            return family.pop(index), plan
    question = family.pop()
    return question, right_plan(question)


def _facts(questions: Sequence[Question]) -> dict[str, list[Hop]]:
    """What the questions' hops tell, by subject, each fact once."""
    facts: dict[str, list[Hop]] = {}
    for hop in dict.fromkeys(hop for question in questions for hop in question.hops):
        facts.setdefault(hop.subject, []).append(hop)
    return facts


def supervised_tree(trajectory: Trajectory) -> Tree:
    """Return what supervised learning reads: the prompt, and the rest with the policy's tokens wanted."""
    prompt = trajectory.segments[0].token_ids
    rest = len(prompt)
    return Tree(prompt, [Branch(trajectory.token_ids[rest:], trajectory.loss_mask[rest:])])


def turn_trees(trajectory: Trajectory) -> list[Tree]:
    """Return a tree for each turn: all that precedes it, and its tokens, which are wanted."""
    trees: list[Tree] = []
    before: list[int] = []
    for segment in trajectory.segments:
        if segment.kind == "policy":
            trees.append(Tree(list(before), [Branch(list(segment.token_ids), [True] * len(segment.token_ids))]))
        before += segment.token_ids
    return trees
