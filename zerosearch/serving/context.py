"""What a simulator is told besides the query: its question, and where in training it stands."""

from collections.abc import Iterable
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from zerosearch.data import Question
from zerosearch.draws import seed_for
from zerosearch.errors import UserError
from zerosearch.search.engine import SearchRequest

MOST_QUESTIONS = 1_000_000
"""Questions that a server remembers at most."""

Text = Annotated[str, Field(max_length=20_000)]
"""A query or a question, which a server may remember."""

DATA_SET = "client"
"""The data set of questions that name none."""


class UnknownQuestionError(Exception):
    """A question's id that nobody registered, or that several data sets have: one sentence."""


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


class Context(BaseModel):
    """What a simulator may know of a query; real engines do without. A question is named by its id or given here."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, coerce_numbers_to_str=True)

    question_id: Text = ""
    """A registered question, where `question` is empty; else the id of the question given here."""
    data_set: Text = ""
    """The data set in which the id is unique; may be left out where only one has it."""
    question: Text = ""
    """The question's text."""
    golden_answers: Annotated[list[Text], BeforeValidator(_as_list), Field(max_length=1000)] = []
    """Its right answers."""
    step: Annotated[int, Field(ge=0, le=10**9)] | None = None
    """The step of training, of those that the server's recipe has."""
    progress: Annotated[float, Field(ge=0, le=1)] | None = None
    """In place of the step: how much of training is done."""
    sample: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """Which of the question's episodes this is."""
    turn: Annotated[int, Field(ge=0, le=1000)] | None = None
    """How many searches of the episode went before."""


class QuestionBook:
    """The questions that clients may name by their ids."""

    def __init__(self, questions: Iterable[Question] = ()) -> None:
        self._questions: dict[str, dict[str, Question]] = {}
        self._count = 0
        for question in questions:
            self.add(question)

    def __len__(self) -> int:
        return self._count

    def add(self, question: Question) -> None:
        """Remember a question, in place of one with the same id and data set.

        Raises:
            UserError: the book is full.
        """
        if question.data_set not in self._questions.get(question.id, {}):
            if self._count >= MOST_QUESTIONS:
                raise UserError(f"the server holds {MOST_QUESTIONS} questions already: start another one")
            self._count += 1
        self._questions.setdefault(question.id, {})[question.data_set] = question

    def find(self, question_id: str, data_set: str) -> Question:
        """The question of an id.

        Raises:
            UnknownQuestionError: there is none, or several are meant.
        """
        named = self._questions.get(question_id, {})
        if data_set and data_set in named:
            return named[data_set]
        if data_set or not named:
            place = f" in data set '{data_set}'" if data_set else ""
            raise UnknownQuestionError(
                f"no question '{question_id}' is registered{place}: register it (POST /questions), or send question "
                "and golden_answers in the context"
            )
        if len(named) > 1:
            raise UnknownQuestionError(
                f"question '{question_id}' is in {len(named)} data sets ({', '.join(sorted(named))[:200]}): name one "
                "as data_set in the context"
            )
        return next(iter(named.values()))


def search_request(query: str, k: int, context: Context, book: QuestionBook, steps: int) -> SearchRequest:
    """The request of a query in its context. steps: of training, which `progress` is a share of.

    Where sample or turn are not known, the query stands in their place: the page's label is then a function of the
    query, too.

    Raises:
        UnknownQuestionError: see `QuestionBook.find`.
    """
    step = context.step if context.step is not None else round((context.progress or 0.0) * steps)
    sample, turn = context.sample, context.turn
    if sample is None or turn is None:
        sample = seed_for("query in place of its place", query, sample or 0, turn or 0)
    return SearchRequest(query, _question(query, context, book), k, sample, turn or 0, step)


def _question(query: str, context: Context, book: QuestionBook) -> Question:
    data_set = context.data_set
    if context.question:
        question_id = context.question_id or context.question
        return Question(question_id, context.question, tuple(context.golden_answers), data_set or DATA_SET)
    if context.question_id:
        return book.find(context.question_id, data_set)
    return Question(query, "", tuple(context.golden_answers), data_set or DATA_SET)
