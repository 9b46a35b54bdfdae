"""A model's weights in memory that several processes see."""

import mmap
import os
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ALIGNMENT = 64
"""Bytes at a multiple of which each parameter begins."""


class SharedWeights:
    """The parameters of a model, or of one after the other of the same architecture, in a file that has no name.

    descriptor: of the file. Another process that was given it sees whatever is written here, at once.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, os.fstat(descriptor).st_size)

    @classmethod
    def of_size(cls, model: "PreTrainedModel") -> Self:
        """Memory for the parameters of such a model."""
        descriptor = _nameless_file()
        os.ftruncate(descriptor, sum(map(_room, model.parameters())))
        return cls(descriptor)

    def close(self) -> None:
        """Give the file up; its memory is free when no model lives there any more."""
        os.close(self.descriptor)

    def take(self, model: "PreTrainedModel") -> None:
        """Let the model's parameters live here from now on, with the values that they have."""
        for parameter, place in self._places(model):
            if parameter.data_ptr() != place.data_ptr():
                place.copy_(parameter.data)
                parameter.data = place

    def show(self, model: "PreTrainedModel") -> None:
        """Let the model's parameters be what is here."""
        for parameter, place in self._places(model):
            parameter.data = place

    def _places(self, model: "PreTrainedModel") -> Iterator[tuple[nn.Parameter, Tensor]]:
        start = 0
        for parameter in model.parameters():
            flat = torch.frombuffer(self._memory, dtype=parameter.dtype, count=parameter.numel(), offset=start)
            yield parameter, flat.view(parameter.shape)
            start += _room(parameter)


def _room(parameter: nn.Parameter) -> int:
    return -(-parameter.nbytes // ALIGNMENT) * ALIGNMENT


def _nameless_file() -> int:
    """In memory on Linux (not in /dev/shm, which containers keep small), else in the folder for temporary files."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("weights")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
