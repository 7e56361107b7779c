"""Bytes that a rank sends in one optimizer step, by group.

A ring algorithm is assumed: of a tensor of `s` bytes in a group of `n`, all-gather and reduce-scatter make a rank send
`s (n - 1) / n`, all-reduce twice that. Single numbers (loss, gradient norm) are left out.
"""

import math

from mindspeed_llm.config.parallel import RING
from mindspeed_llm.core.sharding import TensorSpec
from mindspeed_llm.core.transformer.parts import ColumnParallelLinear
from mindspeed_llm.tasks.planner.activations import key_value_bytes, query_bytes
from mindspeed_llm.tasks.planner.job import Job

_FP32 = 4


def volumes(job: Job, stage: int) -> dict[str, int]:
    """Bytes sent per step by a rank of `stage`: {"tp": ..., "cp": ..., "pp": ..., "dp": ...}."""
    return {"tp": _tensor(job, stage), "cp": _context(job, stage), "pp": _pipeline(job, stage), "dp": _data(job, stage)}


def _passes(job: Job, stage: int) -> tuple[int, int]:
    """Layers of a stage, each a forward pass per micro-batch, and those whose forward pass backward makes again."""
    parallel = job.parallel
    chunks = [len(layers) for layers in job.stage_layers[stage]]
    total = sum(chunks)
    if parallel.recompute_granularity != "full":
        return total, 0
    if parallel.recompute_method == "block":
        return total, sum(min(parallel.recompute_num_layers, count) for count in chunks)
    return total, total


def _tensor(job: Job, stage: int) -> int:
    """Activations around the parallel layers; sums of gradients that several ranks saw parts of."""
    if job.tp == 1:
        return 0
    share = (job.tp - 1) / job.tp
    whole = job.tokens * job.model.hidden_size * job.element
    layers, again = _passes(job, stage)
    # In units of `whole x share`. With sequence parallelism a column-parallel layer gathers forward, gathers again and
    # scatters backward, a row-parallel one scatters and gathers; without it each pair sums once each way. A layer has
    # two pairs. What nothing learns from is not gathered again, and a frozen embedding has no way back.
    again_gathered = sum(part.learns for part in job.layer_parts().find(ColumnParallelLinear))
    units = (8 + again_gathered) * layers + 4 * again if job.sequence_parallel else 8 * layers + 4 * again
    if stage == 0:
        units += 2 if job.lora is None else 1
    statistics = 0
    if stage == job.pp - 1:
        units += 3 if job.sequence_parallel else 2
        statistics = (job.tp - 1) * 3 * job.tokens * _FP32 * (1 + job.compares)
    if job.compares:    # forward only
        units += 4 * layers + (stage == 0) + (stage == job.pp - 1 and job.sequence_parallel)
    partial = sum(_summed(job, spec) for spec in job.trained(stage))
    if job.sharded_optimizer:
        partial /= job.replicas
    return int(job.microbatches * (units * share * whole + statistics) + partial)


def _summed(job: Job, spec: TensorSpec) -> float:
    """Of a parameter: what summing the gradients of tensor-parallel ranks sends that saw parts of it."""
    sizes = {"tp": job.tp, "kv_replica": job.heads.replicas}
    if spec.shared is None or spec.shared.across_stages or (spec.shared.by_sequence and not job.sequence_parallel):
        return 0
    size, shape = sizes[spec.shared.group], spec.local_shape(0, job.tp)
    numel = math.prod((spec.shared.rows or shape[0], *shape[1:]))
    return 2 * (size - 1) / size * _FP32 * numel


def _context(job: Job, stage: int) -> int:
    """Keys and values around the ring and their gradients, or Ulysses' exchanges of heads for sequence."""
    if job.cp == 1:
        return 0
    layers, again = _passes(job, stage)
    if job.parallel.recompute_granularity == "selective":
        again = layers
    steps, keys = job.cp - 1, key_value_bytes(job)
    if job.parallel.context_parallel_algo == RING:
        forward, backward = steps * keys, steps * keys + job.cp * keys // job.element * _FP32
    else:
        per_rank, per_group = job.heads.queries // job.cp, job.heads.per_group
        groups = max(1, per_rank // per_group)  # of each destination; several get the same when ranks share a group
        message = query_bytes(job) // job.cp + keys // job.heads.groups * groups
        forward = steps * (message + query_bytes(job) // job.cp)
        backward = forward
    return job.microbatches * ((layers * (1 + job.compares) + again) * forward + layers * backward)


def _pipeline(job: Job, stage: int) -> int:
    """Activations to the next stage, their gradients to the previous one; a tied embedding's gradient to its twin."""
    if job.pp == 1:
        return 0
    sent = sum((not job.is_last(stage, chunk)) * (1 + job.compares) + (not job.is_first(stage, chunk))
               for chunk in range(job.chunks))
    tied = 0
    if not job.model.untie_embeddings_and_output_weights and stage in (0, job.pp - 1) and job.lora is None:
        tied = job.model.padded_vocab_size // job.tp * job.model.hidden_size * _FP32
    return job.microbatches * sent * job.hidden_bytes + tied


def _data(job: Job, stage: int) -> int:
    """fp32 gradients summed over the replicas, and with the distributed optimizer the updated parameters gathered."""
    if job.replicas == 1:
        return 0
    numel = sum(map(job.local_numel, job.trained(stage)))
    share = (job.replicas - 1) / job.replicas
    if job.sharded_optimizer:
        return int(share * numel * (_FP32 + job.element))
    return int(2 * share * numel * _FP32)
