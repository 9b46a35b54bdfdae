"""Text to token ids, where the text is data: nothing in it can become a special token."""

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from zerosearch.errors import UserError
from zerosearch.inference.chat import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SURROGATE = re.compile("[\ud800-\udfff]")
_TAG = re.compile(r"</?[A-Za-z_]+>")


def encode_text(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Return the ids of `text`; strings that name special tokens are spelled out as ordinary text.

    So are those that open a turn though the tokenizer does not mark them as special (DeepSeek's `<｜User｜>`); tags of
    letters alone (`<think>`) stay what they are to the tokenizer. Half a character (a lone surrogate, as JSON may hold)
    becomes the sign for one that is not known.
    """
    ids: list[int] = []
    for piece in _pieces(tokenizer, text):
        ids += tokenizer.encode(piece, add_special_tokens=False, split_special_tokens=True)
    return ids


def tokens_within(tokenizer: "PreTrainedTokenizerBase", text: str, places: Sequence[tuple[int, int]]) -> list[bool]:
    """Which of the tokens that `encode_text` gives hold a character of one of the places (start, end) in the text.

    Raises:
        UserError: the tokenizer does not say where its tokens are.
    """
    if not tokenizer.is_fast:
        raise UserError("the model's tokenizer does not say where a text's tokens are: take one with a tokenizer.json")
    within: list[bool] = []
    start = 0
    for piece in _pieces(tokenizer, text):
        encoded = tokenizer(piece, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
        within += [
            any(start + first < end and begin < start + last for begin, end in places)
            for first, last in encoded["offset_mapping"]
        ]
        start += len(piece)
    return within


def _pieces(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[str]:
    """The text in parts of which none holds an added token's name, nor half a character."""
    pattern, text = _unmarked(tokenizer), _SURROGATE.sub("\ufffd", text)
    if pattern is None:
        return [text]
    cuts = [0, *(match.start() + 1 for match in pattern.finditer(text)), len(text)]
    return [text[start:end] for start, end in pairwise(cuts)]


@lru_cache(maxsize=16)
def _unmarked(tokenizer: "PreTrainedTokenizerBase") -> re.Pattern[str] | None:
    """What finds the names of added tokens that are neither marked as special nor plain tags."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if not token.special]
    names = [name for name in added if len(name) > 1 and not _TAG.fullmatch(name) and not name.isspace()]
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True)))) if names else None


def encode_chat(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]) -> list[int]:
    """Return the ids of a conversation in the model's chat template, up to where the assistant's turn begins.

    Contents are encoded apart from the template, so that no content can close a turn or open another; where the
    template trims them, so they are.

    Raises:
        UserError: the tokenizer has no chat template, or one that refuses such a conversation.
    """
    if not tokenizer.chat_template:
        raise UserError('the model has no chat template: set model.prompt = "completion"')
    space = "\u2003"  # is trimmed with other white space, and in no template
    marks = [f"{space}\u2983{index}\u2984{space}" for index in range(len(messages))]
    marked = [{"role": message["role"], "content": mark} for message, mark in zip(messages, marks, strict=True)]
    try:
        rest = tokenizer.apply_chat_template(marked, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        roles = " and ".join(dict.fromkeys(message["role"] for message in messages))
        raise UserError(
            f"the model's chat template refuses a conversation of {roles} ({error}): take another model, or set "
            'model.prompt = "completion"'
        ) from error
    ids: list[int] = []
    for message, mark in zip(messages, marks, strict=True):
        trims = mark not in rest
        frame, found, rest = rest.partition(mark.strip() if trims else mark)
        if not found:
            raise UserError(f"the model's chat template leaves out the {message['role']} message")
        ids += tokenizer.encode(frame, add_special_tokens=False)
        ids += encode_text(tokenizer, message["content"].strip() if trims else message["content"])
    return ids + tokenizer.encode(rest, add_special_tokens=False)
