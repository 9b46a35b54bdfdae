"""Text to token ids, where the text is data: nothing in it can become a special token."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from zerosearch.errors import UserError
from zerosearch.inference.chat import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_text(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Return the ids of `text`; strings that name special tokens are spelled out as ordinary text."""
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


def encode_chat(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]) -> list[int]:
    """Return the ids of a conversation in the model's chat template, up to where the assistant's turn begins.

    Contents are encoded apart from the template, so that no content can close a turn or open another; where the
    template trims them, so they are.

    Raises:
        UserError: the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise UserError('the model has no chat template: set model.prompt = "completion"')
    space = "\u2003"  # is trimmed with other white space, and in no template
    marks = [f"{space}\u2983{index}\u2984{space}" for index in range(len(messages))]
    marked = [{"role": message["role"], "content": mark} for message, mark in zip(messages, marks, strict=True)]
    rest = tokenizer.apply_chat_template(marked, tokenize=False, add_generation_prompt=True)
    ids: list[int] = []
    for message, mark in zip(messages, marks, strict=True):
        trims = mark not in rest
        frame, found, rest = rest.partition(mark.strip() if trims else mark)
        if not found:
            raise UserError(f"the model's chat template leaves out the {message['role']} message")
        ids += tokenizer.encode(frame, add_special_tokens=False)
        ids += encode_text(tokenizer, message["content"].strip() if trims else message["content"])
    return ids + tokenizer.encode(rest, add_special_tokens=False)
