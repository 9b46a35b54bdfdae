"""The local sampler: continuous batching in one process, on CPU or one GPU.

Each request takes a slot of the cache. What a slot already knows of the request's tokens (an earlier turn of
the same episode, the prompt of the same group) is kept or copied, and only the rest is computed. A finished
request gives its slot to the next one at once.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch

from zerosearch.errors import UserError
from zerosearch.inference.cache import CacheAttention, Chunk, SlotCache
from zerosearch.inference.drafts import Drafts
from zerosearch.inference.drawing import draw
from zerosearch.inference.layout import Layout
from zerosearch.inference.sampler import Sample, Sampler, SamplingRequest, StopReason

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_log = logging.getLogger(__name__)


class Lane:
    """The machine's one place for computing: samplers that share it take turns.

    Steps run in the event loop itself and hold it up while they last. A thread of their own would have a second
    pool of OpenMP threads beside the main thread's; with more of those than cores, libgomp lets them sleep between
    operations, and each step takes about twice as long.

    A step costs nearly as much for few requests as for many, so a sampler keeps the turn until another one has
    `worth_turning` times as many requests: batches then gather instead of halving.
    """

    worth_turning = 4

    def __init__(self) -> None:
        self._samplers: WeakKeyDictionary[BatchSampler, None] = WeakKeyDictionary()  # in order of joining
        self._pump: asyncio.Task[None] | None = None

    def join(self, sampler: "BatchSampler") -> None:
        self._samplers[sampler] = None

    def forget(self) -> None:
        """Let the samplers forget what they hold, so that what follows depends on nothing before."""
        for sampler in self._samplers:
            sampler.forget()

    def wake(self) -> None:
        """Start stepping, in the running event loop, until no sampler has work."""
        if self._pump is None or self._pump.done():
            self._pump = asyncio.get_running_loop().create_task(self._run())

    async def rest(self, moment: float = 0.002) -> None:
        """Return when no sampler has had work for a moment, in seconds."""
        await asyncio.sleep(moment)
        while self._pump is not None and not self._pump.done():
            await asyncio.wait([self._pump])
            await asyncio.sleep(moment)

    async def _run(self) -> None:
        sampler = None
        while busy := [sampler for sampler in self._samplers if sampler.load]:
            fullest = max(busy, key=lambda sampler: sampler.load)
            if sampler is None or fullest.load > self.worth_turning * sampler.load:
                sampler = fullest
            try:
                finished = sampler.step()
            except Exception as error:
                try:
                    sampler.fail(error)
                except Exception:  # the other samplers go on
                    _log.exception("a sampler could not end its requests")
                continue
            for active, reason in finished:
                active.finish(reason)
            await asyncio.sleep(0)


@dataclass(eq=False, slots=True)
class Active:
    """A request that is being continued."""

    request: SamplingRequest
    future: "asyncio.Future[Sample]"
    slot: int = -1
    sampled: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)

    def add(self, token: int, log_prob: float) -> None:
        self.sampled.append(token)
        self.log_probs.append(log_prob)

    def finish(self, reason: StopReason) -> None:
        if not self.future.done():
            self.future.set_result(Sample(tuple(self.sampled), tuple(self.log_probs), reason))


class BatchSampler(Sampler, Protocol):
    """A sampler of a model's, whose requests go on together in a lane, step by step.

    tokens_sampled: since it was made.
    """

    tokens_sampled: int

    @property
    def load(self) -> int:
        """How many requests are being continued or wait for their turn."""
        ...

    def take_weights(self, model: "PreTrainedModel") -> None:
        """Go on with the weights that the model has now, and drop the keys and values that earlier ones made."""

    def forget(self) -> None:
        """Drop all keys and values. Not while a request is under way."""

    def fail(self, error: Exception) -> None:
        """End every request with the error that a step raised."""

    def step(self) -> list[tuple[Active, StopReason]]:
        """Go on with the requests, by one token or more; return those that finished."""
        ...


class QueuedSampler(ABC):
    """A `BatchSampler` whose requests wait in a queue for a place in a batch of its own.

    length: the longest sequence, in tokens.
    """

    def __init__(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", length: int, lane: Lane | None
    ) -> None:
        self.tokenizer, self.length = tokenizer, length
        self.tokens_sampled = 0
        self._waiting: deque[Active] = deque()
        self._active: list[Active] = []
        self._end_ids = end_token_ids(model, tokenizer)
        self.lane = lane or Lane()
        self.lane.join(self)

    @property
    def load(self) -> int:
        return len(self._active) + len(self._waiting)

    async def sample(self, request: SamplingRequest) -> Sample:
        check_room(request, self.length)
        active = Active(request, asyncio.get_running_loop().create_future())
        if self._continues(request):
            self._waiting.appendleft(active)
        else:
            self._waiting.append(active)
        self.lane.wake()
        return await active.future

    def _continues(self, request: SamplingRequest) -> bool:
        """Whether the request goes on with what is held, and so should come before others take its place."""
        return False

    @abstractmethod
    def step(self) -> list[tuple[Active, StopReason]]: ...

    @abstractmethod
    def take_weights(self, model: "PreTrainedModel") -> None: ...

    @abstractmethod
    def forget(self) -> None: ...

    def fail(self, error: Exception) -> None:
        for active in [*self._active, *self._waiting]:
            if not active.future.done():
                active.future.set_exception(error)
        self._active.clear()
        self._waiting.clear()


class LocalSampler(QueuedSampler):
    """Continues token ids with a Llama, Qwen2 or Qwen3 model, of whose weights it holds its own copy (see `Layout`).

    slots: how many sequences are held at once. length: the longest sequence, in tokens. dtype: of the products.
    drafts: tokens that a draft holds at most (see `Drafts`); 0: none. A draft follows the tokens of a sequence into the
    same step, which reads weights, keys and values once for all of them; what is drawn is the same without.
    tokens_drafted, tokens_accepted: since it was made; accepted are those that were drawn, too.
    """

    prefill_tokens = 1536
    """At most so many prompt and observation tokens enter one step, so that decoding never waits long; a longer
    prompt enters alone."""

    draft_tokens = 96
    """At most so many drafted tokens enter one step."""

    worth_waiting = 16
    """A request waits for a slot that is about to know so many more of its first tokens than any slot knows."""

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        slots: int = 48,
        length: int = 768,
        lane: Lane | None = None,
        dtype: torch.dtype = torch.float32,
        drafts: int = 0,
    ):
        super().__init__(model, tokenizer, length, lane)
        self.drafts = Drafts(drafts)
        self.layout = Layout(model, dtype)
        self.cache = SlotCache(model.config, slots, length, dtype, model.device)
        self._known = np.full((slots, length), -1, dtype=np.int64)
        self._known_length = np.zeros(slots, dtype=np.int64)
        self._prompt_length = np.zeros(slots, dtype=np.int64)
        self._last_used = np.zeros(slots, dtype=np.int64)
        self._taken = np.zeros(slots, dtype=bool)
        self._clock = 0
        self.tokens_prefilled = self.tokens_drafted = self.tokens_accepted = 0

    def take_weights(self, model: "PreTrainedModel") -> None:
        self.layout = Layout(model, self.layout.dtype)
        self.forget()

    def forget(self) -> None:
        self._known_length[:] = 0
        self._last_used[:] = 0
        self.cache.clear()
        self.drafts.clear()

    def fail(self, error: Exception) -> None:
        super().fail(error)
        self._taken[:] = False
        self.forget()

    @torch.inference_mode()
    def step(self) -> list[tuple[Active, StopReason]]:
        self._active = [active for active in self._active if self._wanted(active)]
        self._admit()
        rows = sorted(self._active, key=lambda active: self._missing(active) > 1)
        chunks: list[Chunk] = []
        batch: list[Active] = []
        budget, draft_budget = self.prefill_tokens, self.draft_tokens
        for active in rows:
            missing = self._missing(active)
            if missing > 1 and budget < min(missing, self.prefill_tokens):
                continue
            budget -= missing if missing > 1 else 0
            drafted = self._draft(active, draft_budget)
            draft_budget -= drafted
            chunks.append(Chunk(active.slot, int(self._known_length[active.slot]), missing + drafted, drafted))
            batch.append(active)
        if not batch:
            return []
        finished = self._draw(batch, chunks, self._forward(batch, chunks))
        for active, _ in finished:
            self._taken[active.slot] = False
        done = {id(active) for active, _ in finished}
        self._active = [active for active in self._active if id(active) not in done]
        return finished

    def _continues(self, request: SamplingRequest) -> bool:
        """Whether what a free slot knows, more than its own prompt, is what this request begins with."""
        length = len(request.token_ids)
        known = self._known_length
        held = np.flatnonzero(~self._taken & (known > self._prompt_length) & (known < length))
        if not len(held):
            return False
        equal = self._known[held, :length] == np.asarray(request.token_ids, dtype=np.int64)
        return bool((_leading(equal) >= known[held]).any())

    def _wanted(self, active: Active) -> bool:
        if active.future.cancelled():
            self._taken[active.slot] = False
            return False
        return True

    def _missing(self, active: Active) -> int:
        return len(active.request.token_ids) + len(active.sampled) - int(self._known_length[active.slot])

    def _draft(self, active: Active, most: int) -> int:
        """Write a draft behind a request's tokens and return its length; the token after it has room, too."""
        end = len(active.request.token_ids) + len(active.sampled)
        room = active.request.max_tokens - len(active.sampled) - 1
        known = self._known[active.slot]
        draft = self.drafts.guess(known[:end], min(most, room))
        known[end : end + len(draft)] = draft
        return len(draft)

    def _admit(self) -> None:
        """Give waiting requests a slot, reusing what any slot knows of their tokens.

        Where another request is about to compute much of the same beginning (the prompt of the same group), the
        rest wait for it.
        """
        later: list[Active] = []
        while self._waiting and not self._taken.all():
            active = self._waiting.popleft()
            if active.future.cancelled():
                continue
            ids = np.asarray(active.request.token_ids, dtype=np.int64)
            places = np.arange(len(ids))
            equal = self._known[:, : len(ids)] == ids
            # The last token is computed again where all are known: its logits are needed.
            shared = _leading(equal & (places < self._known_length[:, None])).clip(max=len(ids) - 1)
            source = int(shared.argmax())
            keep = int(shared[source])
            soon = _leading(equal & (places < self._prompt_length[:, None]))[self._taken].max(initial=0)
            if min(soon, len(ids) - 1) - keep >= self.worth_waiting:
                later.append(active)
                continue
            if (
                not self._taken[source]
                and self._known_length[source] <= len(ids)
                and keep >= self._known_length[source] - 1
            ):
                slot = source
            else:
                free = np.flatnonzero(~self._taken)
                slot = int(free[self._last_used[free].argmin()])
                if keep and slot != source:
                    self.cache.copy(source, slot, keep)
            self._clock += 1
            self._known[slot, : len(ids)] = ids
            self._known_length[slot] = keep
            self._prompt_length[slot] = len(ids)
            self._last_used[slot] = self._clock
            self._taken[slot] = True
            active.slot = slot
            self._active.append(active)
        self._waiting.extendleft(reversed(later))

    def _forward(self, batch: list[Active], chunks: list[Chunk]) -> torch.Tensor:
        """Return the logits (R, V) after each chunk's last token that is not drafted and after each drafted one."""
        ids, positions, rows = [], [], []
        end = 0
        for chunk in chunks:
            ids.append(self._known[chunk.slot, chunk.start : chunk.start + chunk.length])
            positions.append(np.arange(chunk.start, chunk.start + chunk.length))
            end += chunk.length
            rows.append(np.arange(end - 1 - chunk.drafted, end))
        device = self.layout.device
        hidden = self.layout.hidden_states(
            torch.from_numpy(np.concatenate(ids)).to(device),
            torch.from_numpy(np.concatenate(positions)).to(device),
            CacheAttention(self.cache, chunks),
        )
        return self.layout.output(hidden[torch.from_numpy(np.concatenate(rows)).to(device)]).float()

    def _draw(
        self, batch: list[Active], chunks: list[Chunk], logits_RV: torch.Tensor
    ) -> list[tuple[Active, StopReason]]:
        """Draw after each place that there are logits of; keep what is drawn up to the first that the draft missed.

        That one is right, too: the tokens before it are those that were drawn. Returns the requests that end.
        """
        places = [
            (active, place) for active, chunk in zip(batch, chunks, strict=True) for place in range(1 + chunk.drafted)
        ]
        positions = [len(active.sampled) + place for active, place in places]
        drawn = iter(draw([active.request for active, _ in places], positions, logits_RV))
        finished: list[tuple[Active, StopReason]] = []
        for active, chunk in zip(batch, chunks, strict=True):
            known, end = self._known[chunk.slot], chunk.start + chunk.length - chunk.drafted
            draft = known[end : end + chunk.drafted].tolist()
            kept = 0
            for (token, log_prob), guess in zip(list(islice(drawn, 1 + chunk.drafted)), [*draft, -1], strict=True):
                active.add(token, log_prob)
                known[end + kept] = token
                kept += 1
                self.tokens_accepted += token == guess
                if reason := stop_reason(active, self.tokenizer, self._end_ids):
                    finished.append((active, reason))
                if reason or token != guess:
                    break
            # The last token's keys and values come with the next step, and lie over those of the draft.
            self._known_length[chunk.slot] = end + kept - 1
            self.drafts.learn(known[: end + kept], kept)
            self.tokens_prefilled += chunk.length - chunk.drafted - 1
            self.tokens_drafted += chunk.drafted
            self.tokens_sampled += kept
        return finished


def _leading(true_SL: np.ndarray) -> np.ndarray:
    """How many values at the start of each row are true."""
    return np.where(true_SL.all(1), true_SL.shape[1], true_SL.argmin(1))


def check_room(request: SamplingRequest, length: int) -> None:
    """See that a request can be continued by a sampler of so many tokens.

    Raises:
        UserError: it has no tokens, or too many, or asks for none.
    """
    if not request.token_ids:
        raise UserError("nothing to continue: the prompt has no tokens")
    if request.max_tokens < 1:
        raise UserError(f"a request asks for {request.max_tokens} tokens: set max_tokens to 1 or more")
    if len(request.token_ids) + request.max_tokens > length:
        raise UserError(
            f"{len(request.token_ids)} tokens and {request.max_tokens} more do not fit into the sampler's "
            f"{length}: shorten the prompt or raise the length"
        )


def stop_reason(active: Active, tokenizer: "PreTrainedTokenizerBase", end_ids: frozenset[int]) -> StopReason | None:
    """Why the request ends with the token that was sampled last, if it does."""
    request = active.request
    if active.sampled[-1] in end_ids:
        return "end"
    if request.stop and active.sampled[-1] in closing_token_ids(tokenizer, request.stop):
        # Each token is at least one byte, so a stop string cannot reach further back than this.
        window = max(len(stop.encode()) for stop in request.stop) + 4
        tail = tokenizer.decode(active.sampled[-window:], clean_up_tokenization_spaces=False)
        if any(stop in tail for stop in request.stop):
            return "stop"
    return "length" if len(active.sampled) >= request.max_tokens else None


def end_token_ids(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """The tokens that end a turn: those of the generation config and the tokenizer's own."""
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = set(configured if isinstance(configured, list) else [configured])
    ids.add(tokenizer.eos_token_id)
    return frozenset(token for token in ids if token is not None)


@lru_cache(maxsize=16)
def closing_token_ids(tokenizer: "PreTrainedTokenizerBase", stop: tuple[str, ...]) -> frozenset[int]:
    """The tokens that may complete one of the strings: those that hold its last character.

    All tokens where that is no visible ASCII character, which vocabularies write as it is or as a byte.
    """
    vocabulary, ends = tokenizer.get_vocab(), {text[-1] for text in stop}
    if not all("!" <= end <= "~" for end in ends):
        return frozenset(vocabulary.values())
    single = {f"<0x{ord(end):02X}>" for end in ends}
    return frozenset(
        token for piece, token in vocabulary.items() if piece in single or any(end in piece for end in ends)
    )
