"""Bytes of a rank by purpose, and their peak."""

from dataclasses import dataclass

from mindspeed_llm.config.parallel import RING
from mindspeed_llm.core.sharding import UNDER_WAY, bucket_contents
from mindspeed_llm.tasks.planner import activations
from mindspeed_llm.tasks.planner.job import ASCEND, Job

MIB, GIB = 2**20, 2**30
_FP32 = 4
ASCEND_POOL = 60 / 64            # of a device's memory: the rest is the driver's and the runtime's
HCCL_BUFFERS = 2 * 200 * MIB    # per communicator: CANN's documentation of HCCL_BUFFSIZE, default 200 MB
# Measured on CPU with a model of 0.1 M parameters: code, oneDNN, MindSpore's caches, thread stacks.
CPU_PROCESS = 29 * MIB
CPU_RANK = 6 * MIB              # more of it in a job of several ranks
CPU_BLOCK_BUFFERS = 512 * 1024  # of the shared-memory collectives, per rank of the job
_ADAM_TEMPORARIES = 4           # fp32 copies of the largest piece that AdamW makes at once, at most


@dataclass(frozen=True)
class StageMemory:
    """Bytes on each rank of a pipeline stage.

    parameters, reference (those of a second model, which is not trained), gradients (fp32 main_grad), optimizer (fp32
    master and two moments): what the names say, once. activations: peak of a step's forward and backward passes. step:
    what the optimizer step needs when the activations are gone, or, on CPU, where the pool does not give them back,
    beside them. overhead: buffers of communication and kernels, and the process itself.
    """

    stage: int
    numel: int
    trained: int
    parameters: int
    reference: int
    gradients: int
    optimizer: int
    activations: int
    step: int
    overhead: int
    together: bool  # whether `activations` and `step` take memory at the same time

    @property
    def static(self) -> int:
        """What is held from start to end."""
        return self.parameters + self.reference + self.gradients + self.optimizer + self.overhead

    @property
    def peak(self) -> int:
        """Estimate of the most that is held at one time."""
        if self.together:
            return self.static + self.activations + self.step
        return self.static + max(self.activations, self.step)


def stage_memory(job: Job, stage: int) -> StageMemory:
    """The memory of a rank of `stage`; ranks that differ only in tensor, context or data place need the same."""
    numel, trained = (sum(map(job.local_numel, specs)) for specs in (job.tensors(stage), job.trained(stage)))
    updated = -(-trained // job.replicas) if job.sharded_optimizer else trained
    parameters, gradients = numel * job.element, trained * _FP32
    reference = sum(job.local_numel(spec) for spec in job.tensors(stage) if not spec.adapter) if job.second_model else 0
    on_ascend = job.target == ASCEND
    states = 3 if job.element < _FP32 else 2    # fp32 parameters are their own masters (core/optimizer/optimizer.py)
    return StageMemory(
        stage=stage, numel=numel, trained=trained, parameters=parameters, reference=reference * job.element,
        gradients=gradients, optimizer=states * _FP32 * updated,
        activations=activations.peak_activations(job, stage), step=_step(job, stage, updated),
        overhead=_overhead(job, stage), together=not on_ascend)


def _step(job: Job, stage: int, updated: int) -> int:
    """The largest of: buckets of reduced gradients before they are stored, buckets of gathered parameters, and what the
    composite AdamW of Ascend makes. With --overlap-param-gather all buckets are gathered at once.
    """
    buckets = []
    for chunk in range(job.chunks):
        specs = [spec for spec in job.chunk_parts(stage, chunk).specs() if spec.trainable]
        buckets += [sum(map(job.local_numel, content)) for content in bucket_contents(specs, 0, job.tp)]
    several = sum(sorted(buckets)[-UNDER_WAY:])
    shards = job.replicas if job.sharded_optimizer else 1
    reduced = several // shards * _FP32 if job.replicas > 1 else 0
    at_once = sum(buckets) if job.parallel.overlap_param_gather else several
    gathered = at_once * job.element if job.sharded_optimizer else 0
    if job.target != ASCEND:
        return max(reduced, gathered)
    largest = max((job.local_numel(spec) for spec in job.trained(stage)), default=0)
    return max(reduced, gathered, min(largest, updated) * _FP32 * _ADAM_TEMPORARIES)


def usable(job: Job) -> float:
    """GiB of a device (--device-memory-gb) that tensors and communication buffers share."""
    given = job.train.device_memory_gb
    return given * ASCEND_POOL if job.target == ASCEND else given


def communicators(job: Job) -> int:
    """Groups of more than one rank that a rank belongs to: tp, cp, dp, pp, dp x cp, tp x pp and the like, once each."""
    shapes = {("tp", job.tp), ("cp", job.cp), ("dp", job.dp), ("pp", job.pp), ("world", job.world_size),
              ("kv_replica", job.heads.replicas)}
    if job.dp > 1 and job.cp > 1:
        shapes.add(("dp_cp", job.replicas))
    if job.tp > 1 and job.pp > 1:
        shapes.add(("model", job.tp * job.pp))
    if job.pp > 2:
        shapes.add(("embedding", 2))
    sizes = [size for name, size in shapes if size > 1 and not (name != "world" and size == job.world_size)]
    return len(sizes)


def _overhead(job: Job, stage: int) -> int:
    if job.target == ASCEND:
        return communicators(job) * HCCL_BUFFERS
    ranks = job.world_size
    return CPU_PROCESS + _attention_scratch(job) + _messages(job, stage) + (
        CPU_RANK + ranks * CPU_BLOCK_BUFFERS if ranks > 1 else 0)


def _attention_scratch(job: Job) -> int:
    """The CPU kernel's copies of keys and values and accumulators of dK and dV (kernels/cpu/src/attention.cc).

    Counted in fp32. With AMX the copies are tiles: 1.5 times as large for fp32, half for bf16.
    """
    batch, groups, heads = job.rows, job.heads.groups, job.heads.queries
    length = job.positions
    if job.parallel.context_parallel_algo == RING:
        length //= job.cp
    else:
        heads, groups = heads // job.cp, max(1, groups // job.cp)
    per_group = heads // groups
    wanted = max(1, min(per_group, -(-16 // (batch * groups))))
    split = -(-per_group // -(-per_group // wanted))
    return batch * groups * length * job.model.kv_channels * _FP32 * (3 + 2 * split)


def _messages(job: Job, stage: int) -> int:
    """Messages to and from pipeline neighbours and around the ring lie in memory shared by sender and receiver."""
    neighbours = (stage > 0 or job.chunks > 1) + (stage < job.pp - 1 or job.chunks > 1) if job.pp > 1 else 0
    ring = 0
    if job.cp > 1 and job.parallel.context_parallel_algo == RING:
        ring = 2 * (1 + _FP32 // job.element) * activations.key_value_bytes(job)
    return 2 * neighbours * job.hidden_bytes + ring
