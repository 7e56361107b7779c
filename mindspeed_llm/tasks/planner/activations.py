"""Bytes that forward passes leave for their backward passes, and what a backward pass needs on top.

What is kept the model's parts say (`Part.kept`); the rest is read off the code of their backward passes. Attention is
flash attention (memory linear in the sequence); `reference` kernels need more. The idea of accounting a transformer layer
tensor by tensor is that of Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models", 2022.

Letters: T tokens of a micro-batch on a rank, H hidden, F one of gate and up, N heads, G groups, D head width, V
vocabulary, all as this rank holds them.
"""

from mindspeed_llm.config.parallel import RING
from mindspeed_llm.core.sharding import LOGITS_ROWS
from mindspeed_llm.core.structure import ChunkParts
from mindspeed_llm.tasks.planner.job import ASCEND, Job
from mindspeed_llm.tasks.planner.schedule import backward_moments

_FP32 = 4
# fp32 copies of the logits that live at once in the composite cross entropy, which is what runs on Ascend.
_COMPOSITE_LOSS_COPIES = 3


def query_bytes(job: Job) -> int:
    """T x N x D: queries, or the attention's output, of one micro-batch."""
    return job.tokens * job.heads.queries * job.model.kv_channels * job.element


def key_value_bytes(job: Job) -> int:
    """T x 2 G x D: keys and values of one micro-batch."""
    return job.tokens * 2 * job.heads.groups * job.model.kv_channels * job.element


def mlp_bytes(job: Job) -> int:
    """T x F: the MLP's inner activation of one micro-batch; gate and up are two of these."""
    return job.tokens * job.model.ffn_hidden_size // job.tp * job.element


def logits_bytes(job: Job) -> int:
    """T x V: a rank's shard of the logits."""
    return job.tokens * job.model.padded_vocab_size // job.tp * job.element


def layer_kept(job: Job) -> int:
    """Bytes that one layer keeps for its backward pass, per micro-batch, without recomputation of the whole layer."""
    return job.layer_parts().kept(job.sizes)


def layer_transient(job: Job) -> int:
    """Bytes that going back through one layer needs beyond what was kept."""
    gathered = job.tokens * job.model.hidden_size * job.element if job.sequence_parallel else 0
    # Of an adapted linear_fc1 the product, the adapter's and their sum live at once, but for the CPU kernel, which adds in
    # place; what is kept is one of the three.
    sums = job.target == ASCEND and job.lora is not None and "linear_fc1" in job.lora.target_modules
    mlp = (4 if sums else 3) * mlp_bytes(job) + gathered
    if job.parallel.recompute_granularity == "selective":
        mlp = max(mlp, query_bytes(job))
    attention = 3 * query_bytes(job) + 2 * key_value_bytes(job)
    if job.cp > 1 and job.parallel.context_parallel_algo == RING:
        # Partial sums of dQ are fp32, a block's dQ is added to them through an fp32 copy; dK and dV travel in fp32.
        wide = _FP32 / job.element
        attention = int(query_bytes(job) * (2 + 2 * wide) + key_value_bytes(job) * (2 + 3 * wide))
    return job.hidden_bytes + max(mlp, attention) + _weight_gradient(job, 2 * job.model.ffn_hidden_size // job.tp)


def logits_chunks(job: Job) -> int:
    """Chunks of tokens in which output layer and loss are computed (core/tensor_parallel/cross_entropy.py)."""
    return -(-job.tokens // LOGITS_ROWS)


def head_kept(job: Job) -> int:
    """Bytes that final norm, output layer and loss keep."""
    return ChunkParts(job.model, (), first=False, last=True, lora=job.lora).kept(job.sizes)


def head_transient(job: Job) -> int:
    """Bytes that the loss and its backward pass need on top: a chunk's logits where they are computed again, their
    gradient, and what leads on from there.
    """
    chunks = logits_chunks(job)
    logits = logits_bytes(job) // chunks
    again = logits if chunks > 1 else 0
    hidden = job.tokens * job.model.hidden_size * job.element
    gathered = hidden if job.sequence_parallel else 0
    leading_on = logits + hidden * (2 if chunks > 1 else 1) + _weight_gradient(job, job.model.padded_vocab_size // job.tp)
    copies = _COMPOSITE_LOSS_COPIES * logits // job.element * _FP32 if job.target == ASCEND else 0
    return gathered + max(leading_on, again + copies + logits + (hidden if chunks > 1 else 0))


def chunk_kept(job: Job, stage: int, chunk: int) -> int:
    """Bytes that one micro-batch in flight keeps in a chunk, with the recomputation asked for."""
    layers = len(job.stage_layers[stage][chunk])
    plain, units = _recompute_units(job, layers)
    kept = plain * layer_kept(job) + units * job.hidden_bytes
    return kept + (head_kept(job) if job.is_last(stage, chunk) else job.hidden_bytes)


def backward_transient(job: Job, stage: int, chunk: int) -> int:
    """Bytes that a chunk's backward pass needs beyond what all micro-batches in flight keep, at its worst moment."""
    layers = len(job.stage_layers[stage][chunk])
    plain, units = _recompute_units(job, layers)
    unit = 1 if job.parallel.recompute_method == "block" else min(job.parallel.recompute_num_layers or 1, layers)
    # A recomputed unit lives again while its turn lasts; by then the plain layers, which come first, are gone.
    again = max(0, unit - plain) * layer_kept(job) if units else 0
    through_layers = again + layer_transient(job) if layers else 0
    if not job.is_last(stage, chunk):
        return through_layers
    return max(head_transient(job), through_layers - (logits_bytes(job) if logits_chunks(job) == 1 else 0))


def peak_activations(job: Job, stage: int) -> int:
    """Bytes of activations and gradients of activations at the worst moment of a step on a pipeline stage."""
    kept = [chunk_kept(job, stage, chunk) for chunk in range(job.chunks)]
    return max(sum(count * size for count, size in zip(flying, kept, strict=True))
               + backward_transient(job, stage, chunk)
               for chunk, flying in backward_moments(stage, job.pp, job.chunks, job.microbatches))


def _recompute_units(job: Job, layers: int) -> tuple[int, int]:
    """(layers whose activations are kept, recomputed units of which the input is kept) of a chunk."""
    parallel, count = job.parallel, job.parallel.recompute_num_layers or 0
    if parallel.recompute_granularity != "full":
        return layers, 0
    if parallel.recompute_method == "block":
        return max(0, layers - count), min(count, layers)
    return 0, -(-layers // count)


def _weight_gradient(job: Job, rows: int) -> int:
    """The product that Ascend adds to `main_grad`; the CPU kernels accumulate in place. A frozen weight has none."""
    return rows * job.model.hidden_size * job.element if job.target == ASCEND and job.lora is None else 0
