"""Operations for CPU, compiled for this processor: what lies between the products of a model, in one pass each.

They are compiled when they are first wanted, in a second or two, and kept in the cache folder. Where there is no C++
compiler, PyTorch's operations do the same in several passes.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zerosearch.inference.embedded import cache_folder

_log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros")
WIDE = "-mprefer-vector-width=512"
"""For processors with AVX-512, of which compilers use half unless they are told."""
COMPILE_SECONDS = 60
BLOCK = 16
"""A head's width is a multiple of this."""
NUMBERS = {torch.float32: "float", torch.bfloat16: "bfloat16"}


class Kernels:
    """The functions of one compiled library; all tensors are on CPU, and a row is contiguous."""

    def __init__(self, library: Path, width: int, share: int, dtype: torch.dtype):
        self._loaded = ctypes.CDLL(str(library))
        self.width, self.share, self.dtype = width, share, dtype

    def call(self, name: str, *given: Tensor | int | float | None) -> None:
        """Tensors are handed on by their addresses."""
        values: list[object] = []
        for each in given:
            if isinstance(each, Tensor):
                values.append(ctypes.c_void_p(each.data_ptr()))
            elif isinstance(each, float):
                values.append(ctypes.c_float(each))
            else:
                values.append(ctypes.c_void_p(None) if each is None else ctypes.c_int64(each))
        getattr(self._loaded, name)(*values)

    def add_normalise(self, x_TI: Tensor, y_TI: Tensor | None, epsilon: float) -> Tensor:
        """Add y to x, which is fp32, in place; return x by the root of its mean square, in the kernels' dtype."""
        found = torch.empty(x_TI.shape, dtype=self.dtype)
        self.call("add_normalise", x_TI, y_TI, None, x_TI, found, None, *x_TI.shape, epsilon)
        return found

    def gate(self, gates_ups_TF: Tensor) -> Tensor:
        """Return silu(gates) * ups, of shape (T, F / 2)."""
        tokens, both = gates_ups_TF.shape
        found = torch.empty(tokens, both // 2, dtype=self.dtype)
        self.call("gate", gates_ups_TF, gates_ups_TF[:, both // 2 :], found, tokens, both // 2, both)
        return found

    def rotate(self, x_TND: Tensor, turned: int, cos_TC: Tensor, sin_TC: Tensor) -> None:
        """Rotate the first heads of each row in place; cos and sin are fp32, of half a head's width."""
        tokens, heads, _ = x_TND.shape
        self.call("rotate", x_TND, cos_TC, sin_TC, tokens, heads, turned)

    def attend(
        self,
        queries_THD: Tensor,
        keys_TGD: Tensor,
        values_TGD: Tensor,
        key_slots_SGLD: Tensor,
        value_slots_SGLD: Tensor,
        chunks_C4: Tensor,
    ) -> Tensor:
        """Put the tokens' keys and values into the slots; return what their queries mix of those, of shape (T, H, D).

        chunks_C4: of each chunk its slot, its first row, its first place in the slot and its tokens; int64.
        """
        _, groups, room, width = key_slots_SGLD.shape
        assert (width, queries_THD.shape[1:]) == (self.width, (groups * self.share, width)), "of another shape"
        assert {each.dtype for each in (queries_THD, key_slots_SGLD)} == {self.dtype}
        found = torch.empty(queries_THD.shape, dtype=self.dtype)
        rows = (queries_THD, keys_TGD, values_TGD)
        strides = [each.stride(0) for each in rows]
        memory = (key_slots_SGLD, value_slots_SGLD)
        self.call("attend", *rows, *strides, *memory, found, chunks_C4, len(chunks_C4), groups, room)
        return found

    def normalised_sum(
        self, x_TI: Tensor, y_TI: Tensor | None, weight_I: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        """Return x + y (fp32), and that by the root of its mean square, times weight, in the kernels' dtype.

        x is fp32. With gradients.
        """
        y_TI = None if y_TI is None else y_TI.to(self.dtype)
        return NormalisedSum.apply(x_TI, y_TI, weight_I, epsilon, self)

    def gated(self, gates_TF: Tensor, ups_TF: Tensor) -> Tensor:
        """Return silu(gates) * ups, with gradients."""
        return Gated.apply(gates_TF.to(self.dtype), ups_TF.to(self.dtype), self)

    def rotated(self, x_THD: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
        """Return the heads rotated, with gradients; cos and sin are fp32, of half a head's width."""
        return Rotated.apply(x_THD.to(self.dtype), cos_TC, sin_TC, self)


class NormalisedSum(torch.autograd.Function):
    """Root mean square norm (Zhang & Sennrich 2019) of a residual and what is added to it."""

    @staticmethod
    def forward(
        ctx: Any, x_TI: Tensor, y_TI: Tensor | None, weight_I: Tensor, epsilon: float, kernels: Kernels
    ) -> tuple[Tensor, Tensor]:
        tokens, width = x_TI.shape
        sum_TI = x_TI if y_TI is None else torch.empty_like(x_TI)
        found_TI, scales_T = torch.empty(x_TI.shape, dtype=kernels.dtype), torch.empty(tokens)
        weight_I = weight_I.float()
        kernels.call("add_normalise", x_TI, y_TI, weight_I, sum_TI, found_TI, scales_T, tokens, width, epsilon)
        ctx.kernels, ctx.added = kernels, y_TI is not None
        ctx.save_for_backward(sum_TI, scales_T, weight_I)
        return (sum_TI if ctx.added else x_TI.view_as(x_TI)), found_TI

    @staticmethod
    def backward(ctx: Any, slope_TI: Tensor, found_slope_TI: Tensor) -> tuple[Tensor | None, ...]:
        sum_TI, scales_T, weight_I = ctx.saved_tensors
        slope_TI, found_slope_TI = slope_TI.contiguous(), found_slope_TI.contiguous()
        x_slope_TI, weight_slope_I = torch.empty_like(sum_TI), torch.empty_like(weight_I)
        y_slope_TI = torch.empty_like(found_slope_TI) if ctx.added else None
        slopes = (slope_TI, found_slope_TI, x_slope_TI, y_slope_TI, weight_slope_I)
        ctx.kernels.call("add_normalise_backward", sum_TI, scales_T, weight_I, *slopes, *sum_TI.shape)
        return x_slope_TI, y_slope_TI, weight_slope_I, None, None


class Gated(torch.autograd.Function):
    """silu(gates) * ups."""

    @staticmethod
    def forward(ctx: Any, gates_TF: Tensor, ups_TF: Tensor, kernels: Kernels) -> Tensor:
        gates_TF, ups_TF = gates_TF.contiguous(), ups_TF.contiguous()
        found_TF = torch.empty_like(gates_TF)
        tokens, width = gates_TF.shape
        kernels.call("gate", gates_TF, ups_TF, found_TF, tokens, width, width)
        ctx.kernels = kernels
        ctx.save_for_backward(gates_TF, ups_TF)
        return found_TF

    @staticmethod
    def backward(ctx: Any, slope_TF: Tensor) -> tuple[Tensor | None, ...]:
        gates_TF, ups_TF = ctx.saved_tensors
        slopes = torch.empty_like(gates_TF), torch.empty_like(ups_TF)
        ctx.kernels.call("gate_backward", gates_TF, ups_TF, slope_TF.contiguous(), *slopes, *gates_TF.shape)
        return *slopes, None


class Rotated(torch.autograd.Function):
    """Rotary position embedding (Su et al. 2021), halves layout."""

    @staticmethod
    def forward(ctx: Any, x_THD: Tensor, cos_TC: Tensor, sin_TC: Tensor, kernels: Kernels) -> Tensor:
        ctx.kernels = kernels
        ctx.save_for_backward(cos_TC, sin_TC)
        found_THD = x_THD.clone(memory_format=torch.contiguous_format)
        kernels.rotate(found_THD, found_THD.shape[1], cos_TC, sin_TC)
        return found_THD

    @staticmethod
    def backward(ctx: Any, slope_THD: Tensor) -> tuple[Tensor | None, ...]:
        cos_TC, sin_TC = ctx.saved_tensors
        found_THD = slope_THD.clone(memory_format=torch.contiguous_format)
        ctx.kernels.rotate(found_THD, found_THD.shape[1], cos_TC, -sin_TC)
        return found_THD, None, None, None


@lru_cache
def kernels(width: int, share: int, dtype: torch.dtype, device: str) -> Kernels | None:
    """The kernels for heads of a width of which so many share their keys; None where there are none.

    They are for CPU, float32 and bfloat16, and need a C++ compiler with OpenMP: the one that CXX names, or c++. The
    environment variable ZEROSEARCH_KERNELS=0 does without.
    """
    if device != "cpu" or dtype not in NUMBERS or width % BLOCK or os.environ.get("ZEROSEARCH_KERNELS") == "0":
        return None
    try:
        return _made(width, share, dtype)
    except (OSError, subprocess.SubprocessError) as error:
        _log.warning("there are no compiled kernels, without which sampling takes twice as long: %s", _reason(error))
        return None


def lacking() -> str:
    """Why kernels cannot be compiled on this machine; empty where they can."""
    try:
        _made(BLOCK, 1, torch.float32)
    except (OSError, subprocess.SubprocessError) as error:
        return _reason(error)
    return ""


def _made(width: int, share: int, dtype: torch.dtype) -> Kernels:
    library = _compiled(f"-DWIDTH={width}", f"-DSHARE={share}", f"-DNUMBER={NUMBERS[dtype]}")
    return Kernels(library, width, share, dtype)


def _reason(error: Exception) -> str:
    return (getattr(error, "stderr", "") or str(error)).strip()[-300:]


def _compiled(*defined: str) -> Path:
    """The library for these definitions, compiled unless it is there.

    Raises:
        OSError: there is no compiler, or the folder cannot be written. subprocess.SubprocessError: it failed, or took
            too long.
    """
    compiler = shutil.which(os.environ.get("CXX") or "c++")
    if compiler is None:
        raise FileNotFoundError("install a C++ compiler, such as g++, or name one in CXX")
    text, processor = SOURCE.read_text(), _processor()
    flags = [*FLAGS, *([WIDE] if "avx512f" in processor else []), *defined]
    key = hashlib.sha256("\n".join([text, compiler, processor, *flags]).encode()).hexdigest()[:16]
    folder = cache_folder() / "kernels"
    library = folder / f"{key}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as made:
            fresh = Path(made) / "kernels.so"
            command = [compiler, *flags, "-shared", "-fPIC", "-o", str(fresh), str(SOURCE)]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMPILE_SECONDS)
            fresh.replace(library)
    return library


def _processor() -> str:
    """What this processor is and can do: a library that was compiled for another one may not run on it."""
    described = Path("/proc/cpuinfo")
    if not described.exists():
        return f"{platform.platform()} {platform.processor()}"
    lines = described.read_text().splitlines()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
