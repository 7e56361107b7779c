"""The reference kernels: MindSpore operations and formulas, slow and obvious. The oracle of the tests, and what runs on CPU
when there is no compiler. The docstrings of the functions here are the contract of the primitives, for every backend.

MindSpore's CPU operators have no bf16 matmul or softmax, so on CPU these kernels compute in fp32 and round the result to the
input's dtype.
"""

from mindspeed_llm.kernels.reference.attention import attention_bwd, attention_cached, attention_fwd
from mindspeed_llm.kernels.reference.dense import (
    add,
    add_rms_norm_fwd,
    bias_grad,
    embedding_fwd,
    embedding_wgrad,
    linear_dgrad,
    linear_fwd,
    linear_wgrad,
    rms_norm_bwd,
    rms_norm_fwd,
    swiglu_bwd,
    swiglu_fwd,
)
from mindspeed_llm.kernels.reference.loss import cross_entropy_grad, cross_entropy_stats
from mindspeed_llm.kernels.reference.low_rank import low_rank_dgrad, low_rank_fwd
from mindspeed_llm.kernels.reference.optimizer import adamw, sum_squares
from mindspeed_llm.kernels.reference.rotary import qkv_rope_bwd, qkv_rope_fwd, rope

__all__ = [
    "adamw", "add", "add_rms_norm_fwd", "attention_bwd", "attention_cached", "attention_fwd", "bias_grad",
    "cross_entropy_grad", "cross_entropy_stats", "embedding_fwd", "embedding_wgrad", "linear_dgrad", "linear_fwd", "linear_wgrad",
    "low_rank_dgrad", "low_rank_fwd", "qkv_rope_bwd", "qkv_rope_fwd", "rms_norm_bwd", "rms_norm_fwd", "rope", "sum_squares", "swiglu_bwd",
    "swiglu_fwd",
]
