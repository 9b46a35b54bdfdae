"""The token-exact record of an episode: what training, evaluation and the viewer all read."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from zerosearch.data import Hop, Question
from zerosearch.errors import UserError
from zerosearch.search.engine import Noise

SegmentKind = Literal["prompt", "policy", "observation"]
Ending = Literal["answered", "no_answer", "no_room", "search_failed"]


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive tokens of one writer. `log_probs` has one entry per token of the policy, else none."""

    kind: SegmentKind
    text: str
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Search:
    """One search of an episode and what it brought."""

    query: str
    noise: Noise | None
    documents: int
    seconds: float
    error: str = ""
    answer_shown: bool = False


@dataclass(slots=True)
class Trajectory:
    """An episode, from its prompt to its end.

    sample: which of the group's episodes. step: of training, at dispatch. answer: None where none was given.
    ending: `answered`; `no_answer` (the last turn gave none); `no_room` (the length was used up);
    `search_failed` (the engine returned an error).
    """

    question: Question
    sample: int = 0
    step: int = 0
    segments: list[Segment] = field(default_factory=list)
    searches: list[Search] = field(default_factory=list)
    answer: str | None = None
    ending: Ending = "no_answer"
    invalid_actions: int = 0
    truncated_turns: int = 0
    truncated_pages: int = 0

    @property
    def token_ids(self) -> list[int]:
        return [token for segment in self.segments for token in segment.token_ids]

    @property
    def loss_mask(self) -> list[bool]:
        """True for each token that the policy wrote."""
        return [segment.kind == "policy" for segment in self.segments for _ in segment.token_ids]

    @property
    def log_probs(self) -> list[float]:
        """The sampler's log-probabilities; 0.0 for tokens that the policy did not write."""
        return [
            value
            for segment in self.segments
            for value in (segment.log_probs if segment.kind == "policy" else [0.0] * len(segment.token_ids))
        ]

    @property
    def policy_tokens(self) -> int:
        return sum(len(segment.token_ids) for segment in self.segments if segment.kind == "policy")

    def check_trainable(self) -> None:
        """Refuse a record without the sampled tokens and their log-probabilities.

        Raises:
            UserError: the trajectory holds text only.
        """
        policy = [segment for segment in self.segments if segment.kind == "policy"]
        if not policy or any(len(segment.log_probs) != len(segment.token_ids) for segment in policy):
            raise UserError(
                f"the trajectory of question '{self.question.id}' holds text but not the sampled tokens and their "
                "log-probabilities: only episodes that a sampler wrote can be trained on"
            )
        if any(segment.text and not segment.token_ids for segment in self.segments):
            raise UserError(f"the trajectory of question '{self.question.id}' has a segment without token ids")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Trajectory":
        """Read a record back; keys beside the trajectory's own, such as scores, are left aside."""
        question = dict(record["question"])
        question["golden_answers"] = tuple(question["golden_answers"])
        question["hops"] = tuple(Hop(h["subject"], h["relation"], tuple(h["answers"])) for h in question["hops"])
        nested = ("question", "segments", "searches")
        rest = {f.name: record[f.name] for f in fields(cls) if f.name not in nested}
        return cls(
            question=Question(**question),
            segments=[
                Segment(s["kind"], s["text"], tuple(s["token_ids"]), tuple(s["log_probs"])) for s in record["segments"]
            ],
            searches=[Search(**search) for search in record["searches"]],
            **rest,
        )
