"""The norm of a gradient, and its limit."""

from collections.abc import Iterable

from torch.nn import Parameter
from torch.nn.utils import clip_grads_with_norm_, get_total_norm


def limit_gradient(parameters: Iterable[Parameter], most: float) -> float:
    """Scale the gradients so that the norm of all together is at most `most`, and return what it was before.

    PyTorch's `clip_grad_norm_` gives the same bits, and passes over all gradients once more where nothing is to be
    scaled.
    """
    given = [parameter for parameter in parameters if parameter.grad is not None]
    norm = get_total_norm([parameter.grad for parameter in given if parameter.grad is not None])
    if not norm <= most:
        clip_grads_with_norm_(given, most, norm)
    return norm.item()
