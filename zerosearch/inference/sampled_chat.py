"""A sampler in a chat model's clothes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from zerosearch.inference.chat import ChatRequest, Message
from zerosearch.inference.sampler import Sampler, SamplingRequest
from zerosearch.inference.tokens import encode_chat, encode_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prompt_token_ids(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], plain: bool
) -> list[int]:
    """The token ids after which a model is to answer these messages.

    plain: without a chat template; the contents follow each other as one text to be continued, after
        whatever the tokenizer puts before every text.
    """
    if plain:
        text = "".join(message["content"] for message in messages)
        return [*tokenizer.encode(""), *encode_text(tokenizer, text)]
    return encode_chat(tokenizer, messages)


class SampledChat:
    """Answers messages with what a sampler samples after them; see `prompt_token_ids` for `plain`."""

    def __init__(
        self, sampler: Sampler, tokenizer: "PreTrainedTokenizerBase", name: str, plain: bool = False
    ) -> None:
        self.name = name
        self._sampler = sampler
        self._tokenizer = tokenizer
        self._plain = plain

    async def chat(self, request: ChatRequest) -> str:
        sample = await self._sampler.sample(
            SamplingRequest(
                token_ids=prompt_token_ids(self._tokenizer, request.messages, self._plain),
                max_tokens=request.max_tokens,
                stop=request.stop,
                temperature=request.temperature,
                seed=request.seed,
            )
        )
        text = str(
            self._tokenizer.decode(
                list(sample.token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )
        ends = [end for stop in request.stop if (end := text.find(stop)) >= 0]
        return text[: min(ends, default=len(text))]
