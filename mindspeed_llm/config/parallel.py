"""How the model and the batch are spread over ranks."""

from dataclasses import dataclass

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.model import ModelConfig

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

    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    context_parallel_size: int = 1
    context_parallel_algo: str = RING
    sequence_parallel: bool = False
    num_layers_per_virtual_pipeline_stage: int | None = None
    num_layer_list: tuple[int, ...] | None = None
    noop_layers: tuple[int, ...] = ()
    use_distributed_optimizer: bool = False
    overlap_grad_reduce: bool = False
    overlap_param_gather: bool = False
    recompute_granularity: str | None = None
    recompute_method: str | None = None
    recompute_num_layers: int | None = None
    no_shared_storage: bool = False

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

    @property
    def virtual_stages_declared(self) -> bool:
        """True when the interleaved schedule is asked for."""
        return self.num_layers_per_virtual_pipeline_stage is not None

    def stage_layers(self, model: ModelConfig) -> list[list[tuple[int, ...]]]:
        """Global layer numbers of every model chunk: `[pp_rank][virtual_stage] -> (layer, ...)`.

        No-op layers keep their number and place but are left out, as in MindSpeed-LLM: they only shift the split.
        Raises UserError when the layers cannot be split as asked.
        """
        pp, layers = self.pipeline_model_parallel_size, model.num_layers
        if self.num_layer_list is not None:
            counts = self.num_layer_list
            if len(counts) != pp or sum(counts) != layers or min(counts) < 1:
                raise UserError(f"--num-layer-list ({','.join(map(str, counts))}) must have "
                                f"{pp} positive entries (--pipeline-model-parallel-size) that add up to "
                                f"--num-layers ({layers})")
            if self.virtual_stages_declared:
                raise UserError("--num-layer-list and --num-layers-per-virtual-pipeline-stage exclude each other: "
                                "use one")
            virtual = 1
        elif self.virtual_stages_declared:
            per_chunk = self.num_layers_per_virtual_pipeline_stage
            if pp < 2:
                raise UserError("--num-layers-per-virtual-pipeline-stage needs --pipeline-model-parallel-size of at "
                                "least 2")
            if per_chunk < 1 or layers % (pp * per_chunk):
                raise UserError(f"--num-layers ({layers}) must be divisible by --pipeline-model-parallel-size ({pp}) x "
                                f"--num-layers-per-virtual-pipeline-stage ({per_chunk})")
            virtual = layers // (pp * per_chunk)
            counts = (per_chunk,) * (pp * virtual)
        else:
            if layers % pp:
                raise UserError(f"--num-layers ({layers}) must be divisible by --pipeline-model-parallel-size ({pp}): "
                                "use a divisor, or --num-layer-list")
            virtual, counts = 1, (layers // pp,) * pp
        for layer in self.noop_layers:
            if not 0 <= layer < layers:
                raise UserError(f"--noop-layers ({layer}) must lie in 0..{layers - 1}")
        chunks, first = [], 0
        for count in counts:
            chunks.append(tuple(i for i in range(first, first + count) if i not in self.noop_layers))
            first += count
        return [[chunks[v * pp + rank] for v in range(virtual)] for rank in range(pp)]

    def validate(self, model: ModelConfig) -> None:
        """Check the sizes against the model's shape. Raises UserError naming the flags."""
        tp, cp = self.tensor_model_parallel_size, self.context_parallel_size
        for size, flag in ((tp, "--tensor-model-parallel-size"), (cp, "--context-parallel-size"),
                           (self.pipeline_model_parallel_size, "--pipeline-model-parallel-size")):
            if size < 1:
                raise UserError(f"{flag} ({size}) must be at least 1")
        for value, flag in ((model.num_attention_heads, "--num-attention-heads"),
                            (model.ffn_hidden_size, "--ffn-hidden-size"),
                            (model.padded_vocab_size, "--padded-vocab-size")):
            if value % tp:
                raise UserError(f"{flag} ({value}) must be divisible by --tensor-model-parallel-size ({tp}): "
                                f"use {_divisors(value, 8)}")
        groups = model.num_query_groups
        if groups % tp and tp % groups:
            raise UserError(f"--num-query-groups ({groups}) must divide, or be divisible by, "
                            f"--tensor-model-parallel-size ({tp})")
        self.stage_layers(model)


def _divisors(value: int, most: int) -> str:
    found = [str(d) for d in range(1, most + 1) if value % d == 0]
    return " or ".join(found)
