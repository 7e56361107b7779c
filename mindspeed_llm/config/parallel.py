"""How the model and the batch are spread over ranks."""

from dataclasses import dataclass

from mindspeed_llm.config import flag_kinds as kind
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.config.option import MODEL, RUN, TRAIN, Flag, option

RING, ULYSSES = "megatron_cp_algo", "ulysses_cp_algo"


def ulysses_divides(heads: int, groups: int, size: int) -> bool:
    """Whether `size` context-parallel ranks can share `heads` heads in `groups` query groups: as many heads for each, and
    whole groups or an equal part of one.
    """
    per_rank, per_group = heads // size, heads // groups
    return heads % size == 0 and (per_rank % per_group == 0 or per_group % per_rank == 0)


@dataclass(frozen=True)
class ParallelConfig:
    """Sizes and options of every parallel mode. Sizes are counts of ranks; the data-parallel size is what remains."""

    tensor_model_parallel_size: int = option(1, Flag(kind.integer(1), RUN, "ranks that share each layer's matrices"))
    pipeline_model_parallel_size: int = option(1, Flag(kind.integer(1), RUN, "stages the layers are split into"))
    context_parallel_size: int = option(1, Flag(kind.integer(1), TRAIN, "ranks that share each sequence"))
    context_parallel_algo: str = option(RING, Flag(
        kind.choice(RING, ULYSSES), TRAIN, "ring attention, or Ulysses (all-to-all over heads)"))
    sequence_parallel: bool = option(False, Flag(
        kind.switch(), RUN, "between tensor-parallel regions each rank holds a part of the sequence; ignored at "
        "--tensor-model-parallel-size 1"))
    num_layers_per_virtual_pipeline_stage: int | None = option(None, Flag(
        kind.integer(1), TRAIN, "interleaved schedule with chunks of so many layers"))
    num_layer_list: tuple[int, ...] | None = option(None, Flag(
        kind.integers(), MODEL, "layers of each pipeline stage, such as 22,18; they add up to --num-layers",
        fields=("parallel.num_layer_list", "convert.num_layer_list"), default="equal stages"))
    noop_layers: tuple[int, ...] = option((), Flag(
        kind.integers(), MODEL, "layers (counted from 0) that keep their place in the split but do nothing, such as "
        "6,7,15", fields=("parallel.noop_layers", "convert.noop_layers")))
    use_distributed_optimizer: bool = option(False, Flag(
        kind.switch(), TRAIN, "optimizer state is sharded over the data-parallel ranks"))
    overlap_grad_reduce: bool = option(False, Flag(
        kind.switch(), TRAIN, "gradients are reduced while the backward pass runs"))
    overlap_param_gather: bool = option(False, Flag(
        kind.switch(), TRAIN, "updated parameters are gathered while the next forward pass runs; needs "
        "--use-distributed-optimizer and --overlap-grad-reduce"))
    recompute_granularity: str | None = option(None, Flag(
        kind.choice("full", "selective"), TRAIN, "save memory by recomputing whole layers, or attention only, in "
        "the backward pass"))
    recompute_method: str | None = option(None, Flag(
        kind.choice("block", "uniform"), TRAIN, "with full: recompute the first --recompute-num-layers of a stage, "
        "or all in groups of so many"))
    recompute_num_layers: int | None = option(None, Flag(kind.integer(1), TRAIN, "layers, as --recompute-method says"))
    no_shared_storage: bool = option(False, Flag(
        kind.switch(), TRAIN, "nodes do not share a file system: each builds its own data caches"))

    @property
    def model_parallel_size(self) -> int:
        """Ranks that hold one replica of the model."""
        return (self.tensor_model_parallel_size * self.pipeline_model_parallel_size * self.context_parallel_size)

    def data_parallel_size(self, world_size: int) -> int:
        """Replicas in `world_size` ranks. Raises UserError when the product does not fit."""
        if world_size % self.model_parallel_size:
            raise UserError(
                f"world size ({world_size}) must be a multiple of --tensor-model-parallel-size "
                f"({self.tensor_model_parallel_size}) x --pipeline-model-parallel-size "
                f"({self.pipeline_model_parallel_size}) x --context-parallel-size ({self.context_parallel_size}) = "
                f"{self.model_parallel_size}: change NPUS_PER_NODE/NNODES, TP, PP or CP")
        return world_size // self.model_parallel_size

    def stage_layers(self, model: ModelConfig) -> list[list[tuple[int, ...]]]:
        """Global layer numbers of every model chunk: `[pp_rank][virtual_stage] -> (layer, ...)`.

        No-op layers keep their number and place but are left out, as in MindSpeed-LLM: they only shift the split.
        `validation.check_parallel` says whether the layers can be split as asked.
        """
        pp, counts = self.pipeline_model_parallel_size, self.num_layer_list
        if counts is None:
            per_chunk = self.num_layers_per_virtual_pipeline_stage or model.num_layers // pp
            counts = (per_chunk,) * (model.num_layers // per_chunk)
        chunks, first = [], 0
        for count in counts:
            chunks.append(tuple(i for i in range(first, first + count) if i not in self.noop_layers))
            first += count
        return [chunks[rank::pp] for rank in range(pp)]
