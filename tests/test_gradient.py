"""The limit of a gradient's norm, against PyTorch's own."""

import pytest
import torch
from torch.nn import Parameter
from torch.nn.utils import clip_grad_norm_

from zerosearch.inference.gradient import limit_gradient


def parameters(scale: float) -> list[Parameter]:
    torch.manual_seed(0)
    made = [Parameter(torch.zeros(shape)) for shape in ((3, 5), (7,), (2,))]
    for parameter in made[:2]:  # the last one learned nothing
        parameter.grad = torch.randn_like(parameter) * scale
    return made


@pytest.mark.parametrize("scale", [0.0, 0.01, 1.0, 1e4, float("nan"), float("inf")])
def test_the_limit_is_that_of_pytorch_to_the_bit(scale: float) -> None:
    ours, theirs = parameters(scale), parameters(scale)
    norm, wanted = limit_gradient(ours, 1.0), clip_grad_norm_(theirs, 1.0).item()
    assert norm == pytest.approx(wanted, nan_ok=True)
    for one, other in zip(ours, theirs, strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None and other.grad is not None:
            assert torch.equal(one.grad.nan_to_num(), other.grad.nan_to_num())


def test_a_short_gradient_stays_and_a_long_one_gets_the_length() -> None:
    short, long = parameters(0.01), parameters(1e4)
    before = short[0].grad.clone()
    assert limit_gradient(short, 1.0) < 1 and torch.equal(short[0].grad, before)
    assert limit_gradient(long, 1.0) > 1e3 and limit_gradient(long, 2.0) == pytest.approx(1.0, abs=1e-4)
