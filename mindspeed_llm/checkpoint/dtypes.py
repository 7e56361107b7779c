"""Tensors as numpy can carry them: an array plus a dtype tag, because numpy has no bfloat16.

Tags are the project's: fp32, bf16, fp16. A bf16 tensor is an array of uint16 that holds the upper half of the fp32
bits.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from mindspeed_llm.config.errors import UserError

NUMPY_DTYPES = {"fp32": np.dtype("<f4"), "bf16": np.dtype("<u2"), "fp16": np.dtype("<f2")}
SAFETENSORS_DTYPES = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}
TAGS = {name: tag for tag, name in SAFETENSORS_DTYPES.items()}
_CHUNK = 1 << 22  # elements cast at a time: bounds the temporaries of a cast


@dataclass(frozen=True)
class LazyTensor:
    """A tensor known by tag and shape whose elements are made only when they are written: `parts()` gives arrays that,
    one after the other, hold them in C order.
    """

    dtype: str
    shape: tuple[int, ...]
    parts: Callable[[], Iterable[np.ndarray]]


@dataclass(frozen=True)
class StoredTensor:
    """An array with its dtype tag; `array` is uint16 for bf16. Raises ValueError when the two do not go together."""

    array: np.ndarray
    dtype: str

    def __post_init__(self) -> None:
        if self.array.dtype != NUMPY_DTYPES[self.dtype]:
            raise ValueError(f"a {self.dtype} tensor is carried as {NUMPY_DTYPES[self.dtype]}, got {self.array.dtype}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.array.shape

    def parts(self) -> Iterable[np.ndarray]:
        """The array (so that eager and lazy tensors are written alike)."""
        return (self.array,)

    def to(self, dtype: str) -> "StoredTensor":
        """The tensor in another dtype (itself when it has it already)."""
        return self if dtype == self.dtype else StoredTensor(cast(self.array, self.dtype, dtype), dtype)


def check_tag(dtype: str | None, flag: str) -> None:
    """Raise UserError when `dtype` is given and is not a tag."""
    if dtype is not None and dtype not in NUMPY_DTYPES:
        raise UserError(f"{flag} ({dtype}) must be one of {', '.join(NUMPY_DTYPES)}")


def cast(array: np.ndarray, source: str, target: str, out: np.ndarray | None = None) -> np.ndarray:
    """`array` of tag `source` as an array of tag `target`, same shape: a new one, unless the tags are the same, or the
    memory of the flat `out`.

    Rounds to nearest, ties to even, as IEEE 754 and PyTorch do; NaNs stay NaNs. Raises UserError when a finite value
    does not fit fp16.
    """
    if source == target and out is None:
        return array
    flat = np.ascontiguousarray(array).reshape(-1)
    out = np.empty(flat.shape, NUMPY_DTYPES[target]) if out is None else out
    if source == target:
        out[...] = flat
        return out.reshape(array.shape)
    for start in range(0, flat.size, _CHUNK):
        part = _to_fp32(flat[start:start + _CHUNK], source)
        out[start:start + _CHUNK] = _from_fp32(part, target)
    return out.reshape(array.shape)


def read_as(stored: str, wanted: str, shape: tuple[int, ...], out: np.ndarray | None,
            fill: Callable[[np.ndarray], None]) -> StoredTensor:
    """A tensor of tag `stored` that `fill` copies into a flat array, as one of tag `wanted`; in the memory of `out`, if
    given. Raises as `cast`.
    """
    if stored == wanted and out is not None:
        fill(out)
        return StoredTensor(out.reshape(shape), wanted)
    flat = np.empty(math.prod(shape), NUMPY_DTYPES[stored])
    fill(flat)
    return StoredTensor(cast(flat, stored, wanted, out).reshape(shape), wanted)


def _to_fp32(array: np.ndarray, source: str) -> np.ndarray:
    if source == "bf16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32, copy=False)


def _from_fp32(array: np.ndarray, target: str) -> np.ndarray:
    if target == "fp32":
        return array
    if target == "fp16":
        with np.errstate(over="ignore", under="ignore"):
            half = array.astype(np.float16)
        if (np.isinf(half) & np.isfinite(array)).any():
            raise UserError(f"a value of {np.abs(array).max():.4g} does not fit fp16 (at most 65504): use bf16 or fp32")
        return half
    bits = np.ascontiguousarray(array).view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    nan = np.isnan(array)
    if nan.any():
        # Adding the rounding constant could carry a NaN's payload into the exponent or sign: keep it quiet instead.
        rounded[nan] = ((bits[nan] >> 16) | 0x40).astype(np.uint16)
    return rounded
