"""The CPU backend: the primitives of `mindspeed_llm.kernels` in C++ (sources in `src/`, built by `build.py`).

`load()` fills this module with the primitives; their contract is the docstrings of `mindspeed_llm.kernels.reference`.
They accept float32 and bfloat16 (`adamw` and `embedding_fwd` float16 too), raise TypeError for another
dtype and ValueError for a shape that does not fit, and read non-contiguous inputs through a contiguous copy; targets
written in place must be contiguous. All arithmetic is in fp32, sums of squares in fp64. Products of bf16 are summed in
fp32; AMX and AVX-512 BF16 take subnormal numbers for zero in them. With AMX an fp32 product is the sum of six products of
bf16 parts, measured as close to fp64 as fp32 units or closer (`src/amx_gemm.inc`); an infinite operand gives NaN there.

The inner loops exist once per instruction set (base, avx2, avx512, avx512_bf16, amx); the best one that the processor has
is used, or the one that MINDSPEED_LLM_ISA names. On each of them results are the same bits for any number of threads. A row
of a product of up to 15 rows, and a sequence's new token in `attention_cached`, has the same bits whatever is beside it in
the batch. Two instruction sets differ in the order of their sums, and so in the last bits.
"""

import os
import sys

import numpy as np
from mindspore import Tensor

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.kernels.reference import low_rank
from mindspeed_llm.runtime import device

PRIMITIVES = (
    "linear_fwd", "linear_dgrad", "linear_wgrad", "bias_grad", "rms_norm_fwd", "add_rms_norm_fwd", "rms_norm_bwd", "swiglu_fwd",
    "swiglu_bwd", "rope", "qkv_rope_fwd", "qkv_rope_bwd", "cross_entropy_stats", "cross_entropy_grad",
    "embedding_fwd", "embedding_wgrad", "adamw", "add", "attention_cached",
)

# Of a higher rank the products repay being packed, and on AMX the tiles are faster than vectors.
_MOST_RANK = 32

_module = None


def load() -> str | None:
    """Build (once per machine) and load the kernels. Returns None, or in one line why they cannot be used here.

    Raises UserError when MINDSPEED_LLM_ISA names an instruction set that the processor has not got.
    """
    global _module
    if _module is not None:
        return None
    from mindspeed_llm.kernels.cpu import build
    module, reason = build.load()
    if module is None:
        return reason
    asked = os.environ.get("MINDSPEED_LLM_ISA")
    if asked and asked not in module.isa_names():
        raise UserError(f"MINDSPEED_LLM_ISA ({asked}) must be one of {', '.join(module.isa_names())} on this processor")
    if asked:
        module.select_isa(asked)
    device.run_operators_in_caller()  # few operators are left to MindSpore
    count = default_threads()
    module.set_num_threads(count)
    # A thread that sleeps takes ~50 us to wake, one that spins takes a core from whoever else wants it. Python takes up to
    # 150 us from one kernel to the next: a thread that spins longer is still awake then.
    module.set_spin_us(200 if count * _local_ranks() <= _cores() else 0)
    for name in PRIMITIVES:
        globals()[name] = getattr(module, name)
    _module = module
    return None


def default_threads() -> int:
    """Threads of a kernel: OMP_NUM_THREADS if set, else the visible cores shared among the ranks of this machine.

    Read from `os.environ`, not by the C++ code: MindSpore sets OMP_NUM_THREADS=1 for C code when it is imported.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(asked) if asked.isdigit() and int(asked) > 0 else max(1, _cores() // _local_ranks())


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _local_ranks() -> int:
    ranks = os.environ.get("MINDSPEED_LLM_LOCAL_RANKS") or os.environ.get("MS_WORKER_NUM") or "1"
    return int(ranks) if ranks.isdigit() and int(ranks) > 0 else 1


def attention_fwd(q: Tensor, k: Tensor, v: Tensor, scale: float, q_start: int, k_start: int,
                  cu_seqlens=None) -> tuple[Tensor, Tensor]:
    """Causal attention, FlashAttention-2 (arXiv:2307.08691): see `reference.attention_fwd`. Memory is linear in S."""
    return _module.attention_fwd(q, k, v, scale, q_start, k_start, _borders(cu_seqlens))


def attention_bwd(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, q_start: int,
                  k_start: int, cu_seqlens=None) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `attention_fwd` for q, k and v; probabilities are computed again from `lse`."""
    return _module.attention_bwd(grad, q, k, v, out, lse, scale, q_start, k_start, _borders(cu_seqlens))


def low_rank_fwd(x: Tensor, a: Tensor, b: Tensor, scale: float, total: Tensor | None) -> tuple[Tensor | None, Tensor]:
    """See `reference.low_rank_fwd`. Up to rank 32 in one kernel, which adds to `total` in place."""
    if a.shape[0] > _MOST_RANK:
        return low_rank.low_rank_fwd(x, a, b, scale, total, sys.modules[__name__])
    return total, _module.low_rank_fwd(x, a, b, scale, total)


def low_rank_dgrad(grad: Tensor, a: Tensor, b: Tensor, scale: float, total: Tensor | None) -> tuple[Tensor | None, Tensor]:
    """See `reference.low_rank_dgrad`."""
    if a.shape[0] > _MOST_RANK:
        return low_rank.low_rank_dgrad(grad, a, b, scale, total, sys.modules[__name__])
    return total, _module.low_rank_dgrad(grad, a, b, scale, total)


def sum_squares(tensors: list[Tensor]) -> Tensor:
    """See `reference.sum_squares`. Accumulated in fp64, of which the two words hold 48 bits."""
    total = sum(float(_module.sum_squares(x).asnumpy()[0]) for x in tensors)
    with np.errstate(over="ignore"):
        head = np.float32(total)
    tail = np.float32(total - float(head)) if np.isfinite(head) else np.float32(0)
    return Tensor.from_numpy(np.array([head, tail], np.float32))


def instruction_sets() -> list[str]:
    """Those of base, avx2, avx512, avx512_bf16, amx that this processor has, the best one last."""
    return _module.isa_names()


def instruction_set(name: str | None = None) -> str:
    """The instruction set in use, after choosing `name`. ValueError if the processor has not got it."""
    if name is not None:
        _module.select_isa(name)
    return _module.isa()


def threads(count: int | None = None) -> int:
    """Threads of a kernel, after setting them to `count` if given; `default_threads()` until then."""
    if count is not None:
        _module.set_num_threads(count)
    return _module.num_threads()


def _borders(cu_seqlens) -> list[int] | None:
    if cu_seqlens is None:
        return None
    values = cu_seqlens.asnumpy() if isinstance(cu_seqlens, Tensor) else np.asarray(cu_seqlens)
    return values.reshape(-1).tolist()
