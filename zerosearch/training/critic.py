"""PPO's critic: what reward the policy can expect from where it stands."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from zerosearch.errors import UserError
from zerosearch.inference.decoder import ARCHITECTURES, hidden_states, unknown
from zerosearch.inference.packed import Row, Tree

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Critic(nn.Module):
    """The body of a language model with a value head, which says 0 until it has learned.

    The model's output layer is given up; its body is taken, not copied.

    Raises:
        UserError: the model has no fast path.
    """

    def __init__(self, language_model: "PreTrainedModel"):
        super().__init__()
        if part := unknown(language_model.config):
            raise UserError(
                f"a critic does not know {part}; choose another algorithm.type than ppo, or a model of type "
                f"{', '.join(sorted(ARCHITECTURES))}"
            )
        self.model = language_model.model
        self.head = nn.Linear(language_model.config.hidden_size, 1).to(language_model.device, language_model.dtype)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    @property
    def is_gradient_checkpointing(self) -> bool:
        return self.model.is_gradient_checkpointing

    def values(self, trees: Sequence[Tree], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the value before each wanted token, of shape (W,), from the hidden state that predicts the token."""
        row = Row(trees, self.device)
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32):
            hidden = hidden_states(self, row.ids_T, row.positions_T, row.attention)
        return self.head(hidden[row.before_P].to(self.head.weight.dtype))[row.pair_W, 0]
