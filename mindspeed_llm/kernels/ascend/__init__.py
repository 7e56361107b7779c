"""Kernels on Ascend: MindSpore's fused operators, thinly.

`dense.py`      linear, embedding, RMSNorm: primitives whose weight gradients go straight into `main_grad`
`rotary.py`     rotary embedding of plain operators, and SwiGLU, differentiated by MindSpore
`optimizer.py`  AdamW in one operator
`attention.py`  flash attention: differentiated by MindSpore, and as pieces that carry the log-sum-exp
`spans.py`      which rectangles of queries and keys a causal, packed call consists of

Everything else is `reference`, which runs on any device. None of this has run on NPU hardware: tests/ascend checks
every call against the installed MindSpore's signatures and its arithmetic against an emulator of the documented
semantics. The gradients that MindSpore computes itself (SwiGLU, `attention`, `add`) are not covered by these tests.
"""

from functools import partial
from types import SimpleNamespace

from mindspeed_llm.kernels import reference
from mindspeed_llm.kernels.ascend import attention, dense, optimizer, rotary
from mindspeed_llm.kernels.functions import build


def primitives() -> SimpleNamespace:
    """`reference`, with the operators of this package in their places."""
    added = {name: partial(getattr(reference, name), p=dense) for name in ("low_rank_fwd", "low_rank_dgrad")}
    fused = {name: getattr(module, name) for module in (dense, rotary, attention, optimizer)
             for name in module.PRIMITIVES}
    return SimpleNamespace(**{name: getattr(reference, name) for name in reference.__all__} | added | fused)


def api() -> SimpleNamespace:
    """The differentiable API: Functions over `primitives`, and the operators that MindSpore differentiates."""
    return SimpleNamespace(**build(primitives()) | {"swiglu": rotary.swiglu, "attention": attention.attention,
                                                    "add": dense.add})
