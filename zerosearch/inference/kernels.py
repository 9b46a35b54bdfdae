"""The sampler's own operations for CPU, compiled for this processor: what lies between its products, in one pass each.

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
        loaded = ctypes.CDLL(str(library))
        address, number = ctypes.c_void_p, ctypes.c_int64
        self._add_normalise = loaded.add_normalise
        self._add_normalise.argtypes = [*[address] * 3, *[number] * 2, ctypes.c_float]
        self._gate = loaded.gate
        self._gate.argtypes = [*[address] * 2, *[number] * 2]
        self._rotate = loaded.rotate
        self._rotate.argtypes = [*[address] * 3, *[number] * 3]
        self._attend = loaded.attend
        self._attend.argtypes = [*[address] * 3, *[number] * 3, *[address] * 4, *[number] * 3]
        for function in (self._add_normalise, self._gate, self._rotate, self._attend):
            function.restype = None
        self.width, self.share, self.dtype = width, share, dtype

    def add_normalise(self, x_TI: Tensor, y_TI: Tensor | None, epsilon: float) -> Tensor:
        """Add y to x, which is fp32, in place; return x by the root of its mean square, in the kernels' dtype."""
        found = torch.empty(x_TI.shape, dtype=self.dtype)
        y = None if y_TI is None else y_TI.contiguous().data_ptr()
        self._add_normalise(x_TI.data_ptr(), y, found.data_ptr(), *x_TI.shape, epsilon)
        return found

    def gate(self, gates_ups_TF: Tensor) -> Tensor:
        """Return silu(gates) * ups, of shape (T, F / 2)."""
        tokens, both = gates_ups_TF.shape
        found = torch.empty(tokens, both // 2, dtype=self.dtype)
        self._gate(gates_ups_TF.data_ptr(), found.data_ptr(), tokens, both // 2)
        return found

    def rotate(self, x_TND: Tensor, turned: int, cos_TC: Tensor, sin_TC: Tensor) -> None:
        """Rotate the first heads of each row in place; cos and sin are fp32, of half a head's width."""
        tokens, heads, _ = x_TND.shape
        self._rotate(x_TND.data_ptr(), cos_TC.data_ptr(), sin_TC.data_ptr(), tokens, heads, turned)

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
        self._attend(
            queries_THD.data_ptr(),
            keys_TGD.data_ptr(),
            values_TGD.data_ptr(),
            queries_THD.stride(0),
            keys_TGD.stride(0),
            values_TGD.stride(0),
            key_slots_SGLD.data_ptr(),
            value_slots_SGLD.data_ptr(),
            found.data_ptr(),
            chunks_C4.data_ptr(),
            len(chunks_C4),
            groups,
            room,
        )
        return found


@lru_cache
def kernels(width: int, share: int, dtype: torch.dtype, device: str) -> Kernels | None:
    """The kernels for heads of a width of which so many share their keys; None where there are none.

    They are for CPU, float32 and bfloat16, and need a C++ compiler with OpenMP: the one that CXX names, or c++. The
    environment variable ZEROSEARCH_KERNELS=0 does without.
    """
    if device != "cpu" or dtype not in NUMBERS or width % BLOCK or os.environ.get("ZEROSEARCH_KERNELS") == "0":
        return None
    try:
        return Kernels(
            _compiled(f"-DWIDTH={width}", f"-DSHARE={share}", f"-DNUMBER={NUMBERS[dtype]}"), width, share, dtype
        )
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", "") or str(error)
        _log.info("sampling without compiled kernels, which takes about twice as long: %s", reason.strip()[-300:])
        return None


def _compiled(*defined: str) -> Path:
    """The library for these definitions, compiled unless it is there.

    Raises:
        OSError: there is no compiler, or the folder cannot be written. subprocess.SubprocessError: it failed, or took
            too long.
    """
    compiler = shutil.which(os.environ.get("CXX") or "c++")
    if compiler is None:
        raise FileNotFoundError("there is no C++ compiler")
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
