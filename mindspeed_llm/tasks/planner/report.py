"""The plan as text."""

from mindspeed_llm.tasks.planner.activations import peak_activations
from mindspeed_llm.tasks.planner.advice import Change
from mindspeed_llm.tasks.planner.communication import volumes
from mindspeed_llm.tasks.planner.job import Job
from mindspeed_llm.tasks.planner.memory import GIB, StageMemory
from mindspeed_llm.tasks.planner.schedule import bubble_fraction, most_in_flight

TIGHT = 0.85  # of the usable memory: MindSpore's pool takes up to a fifth more than what is in it


def lines(job: Job, stages: list[StageMemory]) -> list[str]:
    """The tables: sizes, memory per stage, activations by recompute setting, communication, bubble."""
    sizes = f"tensor {job.tp} x context {job.cp} x data {job.dp} x pipeline {job.pp}"
    virtual = f" x {job.chunks} chunks" if job.chunks > 1 else ""
    switches = ", sequence parallel" * job.sequence_parallel + ", distributed optimizer" * job.sharded_optimizer
    train = job.train
    head = [f"plan for {job.world_size} rank{'s' * (job.world_size > 1)} on {job.target} = {sizes}{virtual}{switches}",
            f"{train.params_dtype}, sequence {train.seq_length}, micro-batch {train.micro_batch_size}, global batch "
            f"{train.global_batch_size} = {job.microbatches} micro-batches x {job.dp} replicas; "
            f"recompute: {_recompute_text(job)}"]
    return [*head, "", *_memory_table(job, stages), "", *_recompute_table(job), "", *_communication_table(job), "",
            _bubble_line(job)]


def verdict(job: Job, peak: int, limit_gib: float, change: Change | None, change_peak: int) -> str:
    """One line: whether it fits, and if not, what would."""
    need = f"{peak / GIB:.{1 if peak > GIB else 3}f} of {limit_gib:g} GiB"
    if peak <= limit_gib * GIB:
        tight = f"; tight: above {TIGHT:.0%}, fragmentation may decide" if peak > TIGHT * limit_gib * GIB else ""
        return f"verdict: fits, {need}{tight}"
    if change is None:
        return (f"verdict: does not fit, {need}; no mix of recomputation, --tensor-model-parallel-size, "
                "--pipeline-model-parallel-size, --context-parallel-size and --micro-batch-size on "
                f"{job.world_size} rank{'s' * (job.world_size > 1)} does: use more ranks")
    return (f"verdict: does not fit, {need}; smallest change that does ({change_peak / GIB:.1f} GiB): "
            + " ".join(change.flags))


def _memory_table(job: Job, stages: list[StageMemory]) -> list[str]:
    rows = [["memory per rank (GiB)", *[f"stage {memory.stage}" for memory in stages]],
            ["layers", *[str(sum(map(len, job.stage_layers[memory.stage]))) for memory in stages]],
            ["parameters (millions)", *[f"{memory.numel / 1e6:.1f}" for memory in stages]],
            *([["of them trained", *[f"{memory.trained / 1e6:.1f}" for memory in stages]]] if job.lora is not None else []),
            ["micro-batches in flight", *[_in_flight(job, memory.stage) for memory in stages]]]
    reference = [("reference model", "reference")] if job.second_model else []
    for title, field in (("parameters", "parameters"), *reference, ("gradients (fp32)", "gradients"),
                         ("optimizer state (fp32)", "optimizer"), ("buffers", "overhead"),
                         ("activations, peak", "activations"), ("optimizer step, peak", "step"),
                         ("peak estimate", "peak")):
        rows.append([title, *[_gib(getattr(memory, field)) for memory in stages]])
    return _aligned(rows)


def _recompute_table(job: Job) -> list[str]:
    half = max(1, max(len(layers) for chunks in job.stage_layers for layers in chunks) // 2)
    variants = {
        "none": {}, "selective": {"recompute_granularity": "selective"},
        f"full, block {half}": {"recompute_granularity": "full", "recompute_method": "block",
                                "recompute_num_layers": half},
        "full, uniform 1": {"recompute_granularity": "full", "recompute_method": "uniform",
                            "recompute_num_layers": 1}}
    absent = dict.fromkeys(("recompute_granularity", "recompute_method", "recompute_num_layers"))
    rows = [["activations by recompute (GiB)", *[f"stage {stage}" for stage in range(job.pp)]]]
    for title, changes in variants.items():
        other = job.with_parallel(**{**absent, **changes})
        rows.append([title, *[_gib(peak_activations(other, stage)) for stage in range(job.pp)]])
    return _aligned(rows)


def _communication_table(job: Job) -> list[str]:
    sent = [volumes(job, stage) for stage in range(job.pp)]
    rows = [["sent per rank and step (GiB)", *[f"stage {stage}" for stage in range(job.pp)]]]
    rows += [[f"{group} ({size})", *[_gib(stage[group]) for stage in sent]]
             for group, size in (("tp", job.tp), ("cp", job.cp), ("pp", job.pp), ("dp", job.replicas))]
    rows[-1][0] = f"dp x cp ({job.replicas})"
    return _aligned(rows)


def _bubble_line(job: Job) -> str:
    fraction = bubble_fraction(job.pp, job.chunks, job.microbatches)
    plain = f" (plain 1F1B: {bubble_fraction(job.pp, 1, job.microbatches):.1%})" if job.chunks > 1 else ""
    return f"pipeline bubble: {fraction:.1%} of a step{plain}"


def _in_flight(job: Job, stage: int) -> str:
    count = most_in_flight(stage, job.pp, job.chunks, job.microbatches)
    return str(count) if job.chunks == 1 else f"{count} of a chunk"


def _recompute_text(job: Job) -> str:
    parallel = job.parallel
    if parallel.recompute_granularity == "full":
        return f"full, {parallel.recompute_method} {parallel.recompute_num_layers}"
    return parallel.recompute_granularity or "none"


def _gib(count: int) -> str:
    return f"{count / GIB:.2f}" if count == 0 or count >= GIB / 100 else f"{count / GIB:.4f}"


def _aligned(rows: list[list[str]]) -> list[str]:
    """Columns of equal width, the first one left-aligned, a rule under the first row."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    text = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return [text[0], "-" * len(text[0]), *text[1:]]
