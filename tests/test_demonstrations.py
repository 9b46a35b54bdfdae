"""Demonstrations and tuning pages: right, repeatable, as many as asked for, and of the training half only."""

import asyncio
import random
from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
import tiny

from zerosearch.agent.episode import EpisodeSettings
from zerosearch.agent.trajectory import Trajectory
from zerosearch.data import Document, Hop, Question
from zerosearch.data.text import normalize_answer
from zerosearch.data.world import build_world
from zerosearch.errors import UserError
from zerosearch.evaluation.benchmark import score_trajectory
from zerosearch.inference.tokens import encode_chat
from zerosearch.search.bm25 import BM25Engine
from zerosearch.simulation.quality import holds_answer
from zerosearch.simulation.template import format_documents, load_template
from zerosearch.simulation.tune import LabelledPage, collect_pages, page_example, tuning_trees
from zerosearch.training.demonstrations import (
    Plan,
    demonstrate,
    right_plan,
    script,
    supervised_tree,
    turn_trees,
    wrong_plan,
)

TOKENS = tiny.tokenizer()
SETTINGS = EpisodeSettings(max_turns=4, max_tokens_per_turn=200, max_observation_tokens=600, max_length=6000)


@cache
def engine() -> BM25Engine:
    return BM25Engine(build_world().train_passages)


@cache
def demonstrations(count: int = 64, seed: int = 0) -> list[Trajectory]:
    return asyncio.run(demonstrate(build_world().train, engine(), TOKENS, SETTINGS, count, seed))


@cache
def half_wrong(seed: int = 0) -> list[Trajectory]:
    return asyncio.run(demonstrate(build_world().train, engine(), TOKENS, SETTINGS, 60, seed, wrong_plans=0.5))


@cache
def pages(count: int = 80, seed: int = 0) -> list[LabelledPage]:
    return collect_pages(build_world().train, engine(), 3, count, seed)


def names_in(text: str) -> set[str]:
    """The entities of the test half that a text names."""
    words = f" {normalize_answer(text)} "
    return {name for name in build_world().test_entities if f" {normalize_answer(name)} " in words}


# Demonstrations


@pytest.mark.parametrize("count", [1, 7, 64])
def test_there_are_as_many_as_asked_for_and_no_question_twice(count: int) -> None:
    made = demonstrations(count)
    assert len(made) == len({trajectory.question.id for trajectory in made}) == count


def test_they_name_nothing_of_the_test_half() -> None:
    world = build_world()
    assert names_in(world.test[0].text), "the check finds names where they are"
    for trajectory in demonstrations():
        assert trajectory.question in world.train
        for segment in trajectory.segments:
            assert not names_in(segment.text)


def test_their_answers_are_right_and_shown_before() -> None:
    for trajectory in demonstrations():
        assert score_trajectory(trajectory).em == 1.0 and trajectory.ending == "answered"
        assert trajectory.invalid_actions == trajectory.truncated_pages == 0
        assert trajectory.searches[-1].answer_shown


def test_each_fact_is_searched_and_some_in_vain() -> None:
    for seed in range(3):
        made: Counter[str] = Counter()
        extra: Counter[str] = Counter()
        for trajectory in demonstrations(60, seed):
            made[trajectory.question.kind] += 1
            more = len(trajectory.searches) - len(trajectory.question.hops)
            extra[trajectory.question.kind] += more
            assert more in (0, 1)
        assert made == {"one_hop": 14, "two_hop": 18, "comparison": 28}
        assert extra == {"one_hop": 2, "two_hop": 3, "comparison": 5}, "a fifth of each kind"
    for trajectory in demonstrations():
        observations = [segment.text for segment in trajectory.segments if segment.kind == "observation"]
        seen = [text.replace("</information>", "") for text in observations]
        for hop in trajectory.question.hops:
            assert any(holds_answer([Document("", text)], hop.answers) for text in seen)


def test_the_first_thought_says_what_is_wanted_and_plans_what_is_looked_up() -> None:
    for trajectory in demonstrations():
        first = next(segment.text for segment in trajectory.segments if segment.kind == "policy")
        hop = trajectory.question.hops[0]
        wanted = f"the {hop.relation} of {hop.subject}"
        left = "".join(f", then the {hop.relation}" for hop in trajectory.question.hops[1:])
        asked = "".join(f"the {each.relation} of " for each in reversed(trajectory.question.hops)) + hop.subject
        begins = f"Wanted: {asked}. Look up {wanted}{left}."
        if trajectory.question.kind == "comparison":
            one, other, last = trajectory.question.hops
            (meant,) = one.answers if one.subject == last.subject else other.answers
            asked = f"the {last.relation} of the one of {one.subject} and {other.subject} with {one.relation} {meant}"
            plan = f"{wanted} and {other.subject}, then the {last.relation} of the one with {meant}"
            begins = f"Wanted: {asked}. Compare {plan}. Candidate 1: {wanted}."
        assert first.startswith(f"<think> {begins} </think>")


@pytest.mark.parametrize("meant", ["A", "B"])
def test_a_comparison_looks_up_both_candidates_and_then_says_which_is_meant(meant: str) -> None:
    cities = {"A": "Rome", "B": "Oslo"}
    hops = (*(Hop(name, "birthplace", (city,)) for name, city in cities.items()), Hop(meant, "birth year", ("1900",)))
    corpus = [Document(name, f"birthplace {city}, birth year 1900") for name, city in cities.items()]
    question = Question("1", "?", ("1900",), "d", "comparison", hops=hops)
    turns = script(question, right_plan(question), BM25Engine(corpus), 2, None)
    assert turns is not None and len(turns) == 4
    assert turns[1].text.startswith("<think> The birthplace of A is Rome. Candidate 2: the birthplace of B. </think>")
    said = f"The birthplace of B is Oslo, then the birth year of the one with {cities[meant]}: {meant}."
    assert turns[2].text.startswith(f"<think> {said} Look up the birth year of {meant}. </think>")


def test_another_comparison_is_told_fact_by_fact() -> None:
    hops = (Hop("A", "birthplace", ("Rome",)), Hop("B", "birthplace", ("Oslo",)))
    corpus = [Document("A", "birthplace Rome"), Document("B", "birthplace Oslo")]
    question = Question("1", "?", ("no",), "d", "comparison", hops=hops)
    turns = script(question, right_plan(question), BM25Engine(corpus), 2, None)
    assert turns is not None
    plan = "Look up the birthplace of A, then the birthplace of B."
    assert turns[0].text.startswith(f"<think> Wanted: the birthplace of A and the birthplace of B. {plan} </think>")
    known = "The birthplace of A is Rome, then the birthplace of B."
    assert turns[1].text.startswith(f"<think> {known} Look up the birthplace of B. </think>")
    assert turns[2].text == "<think> The birthplace of B is Oslo. </think>\n<answer> no </answer>"


@pytest.mark.parametrize("seed", range(5))
def test_each_family_lies_evenly_over_their_order(seed: int) -> None:
    """Of n demonstrations of a family, one lies in each n-th of the order, give or take a place of another's."""
    order = [trajectory.question.family for trajectory in demonstrations(63, seed)]
    for family, number in Counter(order).items():
        places = [place for place, other in enumerate(order) if other == family]
        for index, place in enumerate(places):
            assert index / number - 0.15 <= place / len(order) <= (index + 1) / number + 0.15


def test_every_family_is_shown() -> None:
    shown = {trajectory.question.family for trajectory in demonstrations()}
    assert shown == {question.family for question in build_world().train}


def test_they_are_the_same_each_time_and_others_for_another_seed() -> None:
    again = asyncio.run(demonstrate(build_world().train, engine(), TOKENS, SETTINGS, 7, 0))
    assert [t.token_ids for t in again] == [t.token_ids for t in demonstrations(7)]
    other = {t.question.id for t in demonstrations(7, seed=1)}
    assert other != {t.question.id for t in demonstrations(7)}


@pytest.mark.parametrize("seed", range(3))
def test_of_each_kind_half_follow_a_wrong_plan_where_that_is_asked_for(seed: int) -> None:
    made = Counter((t.question.kind, t.answer in t.question.golden_answers) for t in half_wrong(seed))
    for kind in ("two_hop", "comparison"):
        assert abs(made[kind, True] - made[kind, False]) <= 1
    assert 2 <= made["one_hop", False] <= made["one_hop", True], "of some subjects only one fact is known"
    assert all(t.answer in t.question.golden_answers for t in demonstrations())


def test_a_wrong_plan_looks_all_up_and_another_fact_in_the_end() -> None:
    for trajectory in half_wrong():
        question = trajectory.question
        turns = [segment.text for segment in trajectory.segments if segment.kind == "policy"]
        queries = list(dict.fromkeys(turn.split("<search> ")[1] for turn in turns[:-1]))  # those in vain come twice
        asked = [f"{hop.subject} {hop.relation} </search>" for hop in question.hops]
        assert trajectory.ending == "answered" and not trajectory.invalid_actions
        assert f"Wanted: the {question.hops[-1].relation} of " in turns[0]
        if trajectory.answer in question.golden_answers:
            assert queries == asked
        else:
            *first, last = queries
            # What is asked for by mistake may have been looked up before, where it tells two candidates apart.
            assert [*first, last] == asked[:-1] or (first == asked[:-1] and last.startswith(question.hops[-1].subject))


def test_wrong_plans_name_nothing_of_the_test_half() -> None:
    assert not any(names_in(segment.text) for trajectory in half_wrong() for segment in trajectory.segments)


def test_a_plan_is_wrong_where_another_fact_of_the_subject_is_known() -> None:
    question = Question("1", "How high?", ("900",), "d", "one_hop", hops=(Hop("Peru", "elevation", ("900",)),))
    known = {"Peru": [question.hops[0], Hop("Peru", "capital", ("Lima",))], "900": [Hop("900", "successor", ("901",))]}
    assert wrong_plan(question, known, random.Random(0)) == Plan((known["Peru"][1],), "Lima")
    assert wrong_plan(question, {"Peru": [question.hops[0]]}, random.Random(0)) is None


def test_they_keep_to_the_budget_of_an_episode() -> None:
    few = EpisodeSettings(1, 3, 200, 600, 6000)
    made = asyncio.run(demonstrate(build_world().train, engine(), TOKENS, few, 10, 0))
    assert {len(trajectory.searches) for trajectory in made} == {1}


def test_what_cannot_be_shown_is_the_users_mistake() -> None:
    bare = [
        Question("1", "Who?", ("Alice",), "d"),
        Question("2", "Who?", ("x",), "d", hops=(Hop("Nowhere", "it", ("x",)),)),
    ]
    with pytest.raises(UserError, match=r"only 0 of warm_start\.demonstrations = 3"):
        asyncio.run(demonstrate(bare, engine(), TOKENS, SETTINGS, 3, 0))


def test_a_script_looks_for_each_hop_and_then_answers() -> None:
    corpus = [
        Document("Silver Anchor", "Founder: Alice Turner."),
        Document("Alice Turner", "Birthplace: Lagos."),
        Document("Silver", "An anchor."),
    ]
    hops = (Hop("Silver Anchor", "founder", ("Alice Turner",)), Hop("Alice Turner", "birthplace", ("Lagos",)))
    question = Question("1", "Where was the founder of Silver Anchor born?", ("Lagos",), "d", "two_hop", "f", hops)
    found = script(question, right_plan(question), BM25Engine(corpus), 1, in_vain=None)
    assert found is not None
    assert [turn.text.split("\n")[1] for turn in found] == [
        "<search> Silver Anchor founder </search>",
        "<search> Alice Turner birthplace </search>",
        "<answer> Lagos </answer>",
    ]
    assert [turn.documents for turn in found] == [(corpus[0],), (corpus[1],), ()]
    vain = script(question, right_plan(question), BM25Engine(corpus), 1, in_vain=0)
    assert vain is not None and [turn.documents for turn in vain][:2] == [(corpus[2],), (corpus[0],)]
    assert script(question, right_plan(question), BM25Engine(corpus[1:]), 1, in_vain=None) is None


def test_without_searches_the_facts_are_recalled_and_the_prompt_speaks_of_no_engine() -> None:
    settings = EpisodeSettings(max_turns=0, max_tokens_per_turn=200, max_length=6000)
    made = asyncio.run(demonstrate(build_world().train, engine(), TOKENS, settings, 20, 0))
    assert len(made) == 20 and not any(trajectory.searches for trajectory in made)
    for trajectory in made:
        assert all("<search>" not in segment.text for segment in trajectory.segments)
        thought = next(segment.text for segment in trajectory.segments if segment.kind == "policy")
        assert all(hop.answers[0] in thought for hop in trajectory.question.hops)
        assert trajectory.answer == trajectory.question.golden_answers[0]


def test_supervised_learning_reads_the_episode_and_learns_what_the_policy_wrote() -> None:
    for trajectory in demonstrations(7):
        tree = supervised_tree(trajectory)
        (branch,) = tree.branches
        assert [*tree.prefix, *branch.token_ids] == trajectory.token_ids
        assert [*([False] * len(tree.prefix)), *branch.wanted] == trajectory.loss_mask
        learned = [token for token, wanted in zip(branch.token_ids, branch.wanted, strict=True) if wanted]
        text = TOKENS.decode(learned, clean_up_tokenization_spaces=False)
        assert text.count("<search>") == len(trajectory.searches) and "<information>" not in text


def test_turn_by_turn_the_same_tokens_are_learned_after_the_same_ones() -> None:
    for trajectory in demonstrations(7):
        trees = turn_trees(trajectory)
        assert len(trees) == len(trajectory.searches) + 1
        learned: dict[int, int] = {}
        for tree in trees:
            (branch,) = tree.branches
            assert all(branch.wanted) and [*tree.prefix, *branch.token_ids] == trajectory.token_ids[: tree.tokens]
            learned |= dict(enumerate(branch.token_ids, len(tree.prefix)))
        mask = enumerate(zip(trajectory.token_ids, trajectory.loss_mask, strict=True))
        assert learned == {place: token for place, (token, wanted) in mask if wanted}


# Pages for tuning a simulator


def test_tuning_pages_name_nothing_of_the_test_half() -> None:
    assert len(pages()) == 80
    for page in pages():
        assert not names_in(f"{page.query} {page.question.text} {page.answer} {format_documents(page.documents)}")


def test_tuning_pages_are_labelled_by_what_they_hold() -> None:
    labels = Counter(page.noise for page in pages())
    assert min(labels.values()) >= 20, "about half of each"
    for page in pages():
        assert len(page.documents) == 3
        assert holds_answer(page.documents, [page.answer]) is (page.noise == "useful")
        assert any(page.answer in hop.answers for hop in page.question.hops)


def test_of_several_answers_a_simulator_is_told_one_that_its_page_holds() -> None:
    city = Hop("Ada Lovelace", "home city", ("Londinium", "London"))
    question = Question("1", "Where does Ada Lovelace live?", ("Londinium", "London"), "d", hops=(city,))
    passages = [Document("Ada Lovelace", f"Ada Lovelace has her home city London since {year}.") for year in (1, 2)]
    (page,) = collect_pages([question], BM25Engine(passages), 1, 1, 0)
    assert (page.answer, page.noise) == ("London", "useful")


def test_tuning_pages_are_the_same_each_time_and_as_many_as_asked_for() -> None:
    assert collect_pages(build_world().train, engine(), 3, 80, 0) == pages()
    assert pages(80, seed=1) != pages()
    with pytest.raises(UserError, match=r"simulation\.tuning\.pages = 5, but .* only 0 pages"):
        collect_pages([Question("1", "Who?", ("Alice",), "d")], engine(), 3, 5, 0)


def test_a_tuned_simulator_reads_the_prompt_that_it_will_be_asked_with_and_learns_the_page() -> None:
    template = load_template("sft")
    examples = [page_example(page, template) for page in pages()]
    for page, tree in zip(pages(), tuning_trees(examples, TOKENS), strict=True):
        messages = template.render(page.query, page.question.text, page.answer, page.noise, 3)
        assert list(tree.prefix) == encode_chat(TOKENS, messages)
        (branch,) = tree.branches
        assert all(branch.wanted) and branch.token_ids[-1] == TOKENS.eos_token_id
        text = TOKENS.decode(list(branch.token_ids[:-1]), clean_up_tokenization_spaces=False)
        assert text == format_documents(page.documents)


@pytest.mark.parametrize("weight", [1, 3])
def test_the_answer_that_a_page_was_asked_for_counts_as_often_as_is_said(weight: int) -> None:
    template = load_template("sft")
    document = Document("Mist Inn", "Run by alice  B. turner since 1931, before by Alice Turnerson.")
    asked = LabelledPage(
        Question("1", "Who runs it?", ("Alice B. Turner",), "d"), "q", "Alice B. Turner", (document,), "useful"
    )
    counted = []
    for page in (asked, replace(asked, noise="noisy"), replace(asked, answer="Bob"), replace(asked, answer="")):
        (tree,) = tuning_trees([page_example(page, template)], TOKENS, weight)
        first, *again = tree.branches
        assert all(first.wanted) and len(again) in (0, weight - 1)
        assert tree.tokens == len(tree.prefix) + len(first.token_ids), "nothing is computed twice"
        wanted = [[t for t, w in zip(b.token_ids, b.wanted, strict=True) if w] for b in again]
        counted.append([TOKENS.decode(ids).strip() for ids in wanted])
    assert counted == [["alice  B. turner"] * (weight - 1), [], [], []]
