"""How the pages of a simulator compare with those of a real engine for the same queries."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zerosearch.data import Question
from zerosearch.data.text import normalize_answer
from zerosearch.evaluation.metrics import token_f1
from zerosearch.evaluation.statistics import Estimate, mean_with_error
from zerosearch.search.engine import Page
from zerosearch.simulation.hops import answers_for
from zerosearch.simulation.quality import holds_answer, telling_answers

FOLDS = 5
FEWEST = 10
"""With fewer pages of either kind no classifier is trained."""
NOTHING = Estimate(math.nan, math.nan, 0)


@dataclass(frozen=True, slots=True)
class AnsweredQuery:
    """A query and the pages that came for it: the real engine's, and by their names those of simulators."""

    question: Question
    query: str
    real: Page
    simulated: Mapping[str, Page]

    @property
    def asked(self) -> tuple[str, ...]:
        """The answers of the fact that the query asks for, without those that tell nothing."""
        return telling_answers(answers_for(self.query, self.question), self.question)

    @property
    def known(self) -> tuple[str, ...]:
        """Those and the answers of the whole question."""
        return *self.asked, *telling_answers(self.question.golden_answers, self.question)


@dataclass(frozen=True, slots=True)
class PageFigures:
    """Means over the pages that one engine wrote for the queries; NaN over nothing.

    documents: on a page. words: of a document, its title included. query_overlap: the share of the query's words that
    stand on the page. likeness: token F1 with the real engine's page for the same query.
    holds_asked: the share of pages that hold an answer of the fact asked for, of those for which one is known.
    holds_any: the same for that fact or the whole question: what leaks where a page is to be noisy.
    told_apart: cross-validated area under the ROC curve of a classifier that tells these pages from the real ones: 0.5
    where it cannot, 1 where it always can; its error is over folds.
    """

    failed: int
    documents: Estimate
    words: Estimate
    query_overlap: Estimate
    likeness: Estimate
    holds_asked: Estimate
    holds_any: Estimate
    told_apart: Estimate


def compare_pages(queries: Sequence[AnsweredQuery], seed: int = 0) -> dict[str, PageFigures]:
    """The figures of the real engine, as `real`, and of each simulator. Failed searches are counted and left out."""
    names = list(queries[0].simulated) if queries else []
    real = _figures(queries, [query.real for query in queries])
    return {"real": real} | {
        name: _figures(queries, [query.simulated[name] for query in queries], seed) for name in names
    }


def page_text(page: Page) -> str:
    """Titles and texts, one after the other."""
    return "\n".join(f"{document.title}\n{document.text}" for document in page.documents)


def told_apart(ours: Sequence[str], theirs: Sequence[str], groups: Sequence[str], seed: int = 0) -> Estimate:
    """How well logistic regression on TF-IDF of words tells two engines' pages for the same queries apart.

    groups: of each query; pages of one group are never both in training and in test. Area under the ROC curve, mean and
    standard error over five folds; NaN where there are fewer than ten pages.
    """
    if len(ours) < FEWEST or len(set(groups)) < FOLDS:
        return NOTHING
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_score
    from sklearn.pipeline import make_pipeline

    classifier = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(max_iter=1000))
    areas = cross_val_score(
        classifier,
        [*ours, *theirs],
        [0] * len(ours) + [1] * len(theirs),
        groups=[*groups, *groups],
        cv=StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed),
        scoring="roc_auc",
    )
    return mean_with_error(areas)


def _figures(queries: Sequence[AnsweredQuery], pages: Sequence[Page], seed: int | None = None) -> PageFigures:
    """seed: of the comparison with the real pages; None where these are the real ones."""
    written = [(q, page) for q, page in zip(queries, pages, strict=True) if not page.error and not q.real.error]
    texts, real_texts = [page_text(page) for _, page in written], [page_text(q.real) for q, _ in written]
    likeness = apart = NOTHING
    if seed is not None:
        likeness = _mean([token_f1(*pair) for pair in zip(texts, real_texts, strict=True)])
        apart = told_apart(real_texts, texts, [q.question.text for q, _ in written], seed)
    return PageFigures(
        failed=len(queries) - len(written),
        documents=_mean([len(page.documents) for _, page in written]),
        words=_mean([len(f"{d.title} {d.text}".split()) for _, page in written for d in page.documents]),
        query_overlap=_mean([_shared(q.query, text) for (q, _), text in zip(written, texts, strict=True)]),
        likeness=likeness,
        holds_asked=_mean([holds_answer(page.documents, q.asked) for q, page in written if q.asked]),
        holds_any=_mean([holds_answer(page.documents, q.known) for q, page in written if q.known]),
        told_apart=apart,
    )


def _mean(values: Sequence[float]) -> Estimate:
    return mean_with_error(values) if values else NOTHING


def _shared(query: str, text: str) -> float:
    words = set(normalize_answer(query).split())
    return len(words & set(normalize_answer(text).split())) / len(words) if words else 0.0
