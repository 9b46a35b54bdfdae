"""A sampler in a chat model's clothes."""

from typing import TYPE_CHECKING

from zerosearch.errors import RunError, UserError
from zerosearch.inference.chat import ChatRequest
from zerosearch.inference.sampler import Sampler, SamplingRequest
from zerosearch.inference.tokens import encode_chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class SampledChat:
    """Answers messages with what a sampler samples after them, in the model's chat template.

    Messages that are too long for the sampler are a failed call, as they would be for a server.
    """

    def __init__(self, sampler: Sampler, tokenizer: "PreTrainedTokenizerBase", name: str) -> None:
        self.name = name
        self._sampler = sampler
        self._tokenizer = tokenizer

    async def chat(self, request: ChatRequest) -> str:
        sampling = SamplingRequest(
            token_ids=encode_chat(self._tokenizer, request.messages),
            max_tokens=request.max_tokens,
            stop=request.stop,
            temperature=request.temperature,
            seed=request.seed,
        )
        try:
            sample = await self._sampler.sample(sampling)
        except UserError as error:
            raise RunError(f"The chat model '{self.name}' cannot answer: {error}") from error
        text = str(
            self._tokenizer.decode(list(sample.token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )
        ends = [end for stop in request.stop if (end := text.find(stop)) >= 0]
        mark = request.cut_mark if sample.stop_reason == "length" else ""
        return f"{text[: min(ends, default=len(text))]}{mark}"
