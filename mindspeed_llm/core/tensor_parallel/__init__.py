"""Layers whose weights are cut over tensor-parallel ranks, as functions."""

from mindspeed_llm.core.tensor_parallel.cross_entropy import output_cross_entropy
from mindspeed_llm.core.tensor_parallel.layers import (
    column_parallel_linear,
    row_parallel_linear,
    vocab_parallel_embedding,
)
from mindspeed_llm.core.tensor_parallel.low_rank import Dropout, LowRank

__all__ = ["Dropout", "LowRank", "column_parallel_linear", "output_cross_entropy", "row_parallel_linear",
           "vocab_parallel_embedding"]
