"""Floating-point operations of a training step, and how many the machine can do (`--log-throughput`)."""

import math
import time
from collections.abc import Sequence

import numpy as np

from mindspeed_llm import kernels
from mindspeed_llm.core.gpt_model import GPTModel
from mindspeed_llm.core.optimizer.gradients import global_sum
from mindspeed_llm.core.parallel_state import ParallelState
from mindspeed_llm.runtime import autograd
from mindspeed_llm.runtime.collectives import barrier
from mindspeed_llm.runtime.memory import from_numpy
from mindspeed_llm.training.micro_batch import MicroBatch

_SIDE = 2048   # of the matrices whose product is timed
_TRIES = 3


class Throughput:
    """Model FLOPs of a step: what its mathematics needs, without recomputation (Narayanan et al., "Efficient Large-Scale
    Language Model Training on GPU Clusters Using Megatron-LM", 2021, appendix; attention counts the pairs that the causal
    mask leaves). A frozen weight has no gradient product.

    `limit`: FLOP/s of a rank in a large product, measured while all ranks compute one.
    """

    def __init__(self, chunks: Sequence[GPTModel], state: ParallelState) -> None:
        model = chunks[0].model
        here = np.array([sum(_products(chunk) for chunk in chunks), sum(len(chunk.parts.layers) for chunk in chunks)])
        self._per_token, layers = global_sum(here, state.pp).tolist()
        # a forward product of queries and keys, one of probabilities and values; two backward products for each
        self._per_pair = 3 * 2 * 2 * model.num_attention_heads * model.kv_channels * layers
        self._replicas, self._ranks = state.dp.size, state.world.size
        self.limit = _product_rate(chunks[0].parameters.dtype)

    def flops(self, micro_batches: Sequence[MicroBatch]) -> float:
        """Of a rank in a step of this replica's micro-batches, other replicas' taken to be as many."""
        tokens = sum(micro.tokens.size for micro in micro_batches)
        pairs = sum(_pairs(micro) for micro in micro_batches)
        return (tokens * self._per_token + pairs * self._per_pair) * self._replicas / self._ranks


def _products(chunk: GPTModel) -> int:
    """FLOPs of a token in the linear layers of a chunk, forward and backward."""
    embedding, output = chunk.parts.embedding, chunk.parts.output_layer
    looked_up = {embedding.weight.name} if embedding is not None else set()
    if output is not None:
        looked_up -= {output.weight.name}   # tied: a product too
    specs = [spec for name, spec in chunk.parameters.specs.items() if len(spec.shape) == 2 and name not in looked_up]
    return sum(2 * math.prod(spec.shape) * (3 if spec.trainable else 2) for spec in specs)


def _pairs(micro: MicroBatch) -> int:
    """Pairs of a query and a key that it sees."""
    lengths = [micro.seq_length] * micro.batch if micro.cu_seqlens is None else np.diff(micro.cu_seqlens).tolist()
    return sum(length * (length + 1) // 2 for length in lengths)


def _product_rate(dtype) -> float:
    square = from_numpy(np.random.default_rng(0).standard_normal((_SIDE, _SIDE), np.float32)).astype(dtype)
    seconds = []
    with autograd.no_grad():
        for _ in range(_TRIES):
            barrier()
            started = time.perf_counter()
            kernels.linear(square, square)[:1].asnumpy()    # waits for it
            seconds.append(time.perf_counter() - started)
    return 2 * _SIDE**3 / min(seconds)
