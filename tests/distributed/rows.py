"""The long parity table's rows: one combination of parallel modes each, by name, with the world size it runs in."""

from dataclasses import asdict, dataclass, field

from mindspeed_llm.config.parallel import ParallelConfig


@dataclass(frozen=True)
class Row:
    """A combination: `parallel` on `world` ranks, micro-batches of `micro_batch` sequences, which record it is held to,
    and the dtype of parameters and activations.
    """

    name: str
    world: int
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    micro_batch: int = 1
    record: str = "golden"
    dtype: str = "fp32"

    def to_json(self) -> dict:
        """As a RankPool sends it."""
        return asdict(self)

    @classmethod
    def from_json(cls, sent: dict) -> "Row":
        """The row of `to_json`."""
        parallel = {name: tuple(value) if isinstance(value, list) else value
                    for name, value in sent["parallel"].items()}
        return cls(**{**sent, "parallel": ParallelConfig(**parallel)})


def combine(name: str, world: int, micro_batch: int = 1, record: str = "golden", dtype: str = "fp32", *, tp: int = 1,
            pp: int = 1, cp: int = 1, sp: bool = False, zero: bool = False, layers: tuple[int, ...] | None = None,
            **options) -> Row:
    """A row from short names: tp, pp, cp sizes, sp sequence parallelism, zero distributed optimizer, layers per
    stage.
    """
    parallel = ParallelConfig(tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, context_parallel_size=cp,
                              sequence_parallel=sp, use_distributed_optimizer=zero, num_layer_list=layers, **options)
    return Row(name, world, parallel, micro_batch, record, dtype)


_OVERLAP = {"overlap_grad_reduce": True}
_OVERLAP_ALL = {"zero": True, "overlap_grad_reduce": True, "overlap_param_gather": True}
_BLOCK = {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 1}
_UNIFORM = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 2}
_SELECTIVE = {"recompute_granularity": "selective"}
_ULYSSES = {"context_parallel_algo": "ulysses_cp_algo"}
_VIRTUAL = {"num_layers_per_virtual_pipeline_stage": 1}

ROWS = [
    combine("tp2", 2, tp=2),
    combine("tp2_sp", 2, tp=2, sp=True),
    combine("pp2", 2, pp=2),
    combine("pp2_one_microbatch", 2, 4, pp=2),
    combine("pp2_layers_3_1", 2, pp=2, layers=(3, 1)),
    combine("dp2", 2),
    combine("dp2_zero", 2, zero=True),
    combine("tp2_tied", 2, record="tied", tp=2),
    combine("pp2_tied", 2, record="tied", pp=2),
    combine("dp2_zero_tied", 2, record="tied", zero=True),
    combine("tp2_post_norm", 2, record="post_norm", tp=2, sp=True),
    combine("cp2", 2, 2, cp=2),
    combine("cp2_packed", 2, record="packed", cp=2),
    combine("cp2_ulysses", 2, 2, cp=2, **_ULYSSES),
    combine("cp2_ulysses_packed", 2, 2, record="packed", cp=2, **_ULYSSES),
    combine("cp2_zero_block_recompute", 2, 2, cp=2, zero=True, **_BLOCK),
    combine("cp2_selective_recompute", 2, 4, cp=2, **_SELECTIVE),
    combine("pp2_virtual", 2, pp=2, **_VIRTUAL),
    combine("pp2_virtual_one_microbatch", 2, 4, pp=2, **_VIRTUAL),
    combine("pp2_virtual_uniform_recompute_tied", 2, record="tied", pp=2, **_UNIFORM,
            num_layers_per_virtual_pipeline_stage=2),
    combine("pp2_lengths", 2, record="lengths", pp=2),
    combine("pp2_virtual_lengths", 2, record="lengths", pp=2, **_VIRTUAL),
    combine("pp2_noop", 2, record="noop", pp=2, noop_layers=(2, 3, 6)),
    combine("tp2_sp_uniform_recompute", 2, 2, tp=2, sp=True, **_UNIFORM),
    combine("dp2_overlap", 2, **_OVERLAP),
    combine("dp2_overlap_zero", 2, **_OVERLAP_ALL),
    combine("dp2_overlap_zero_tied", 2, record="tied", **_OVERLAP_ALL),
    combine("cp4", 4, 4, cp=4),
    combine("cp4_ulysses", 4, 4, cp=4, **_ULYSSES),
    combine("cp2_pp2_lengths", 4, record="lengths", cp=2, pp=2),
    combine("tp2_cp2_sp_packed", 4, 2, record="packed", tp=2, cp=2, sp=True),
    combine("tp2_cp2_ulysses_sp", 4, 2, tp=2, cp=2, sp=True, **_ULYSSES),
    combine("cp2_dp2_overlap_zero", 4, cp=2, **_OVERLAP_ALL),
    combine("pp4_virtual_deep", 4, record="deep", pp=4, **_VIRTUAL),
    combine("pp4_noop", 4, record="noop", pp=4, noop_layers=(2, 3, 6)),
    combine("tp2_pp2_virtual_sp_selective", 4, 2, tp=2, pp=2, sp=True, **_VIRTUAL, **_SELECTIVE),
    combine("tp2_pp2_sp_block_recompute_layers_3_1", 4, 2, tp=2, pp=2, sp=True, layers=(3, 1), **_BLOCK),
    combine("pp2_dp2_virtual_overlap_zero_tied", 4, record="tied", pp=2, **_VIRTUAL, **_OVERLAP_ALL),
    combine("tp2_dp2_sp_overlap_zero", 4, 2, tp=2, sp=True, **_OVERLAP_ALL),
    combine("tp2_pp2_sp", 4, tp=2, pp=2, sp=True),
    combine("tp2_pp2", 4, 2, tp=2, pp=2),
    combine("tp4", 4, 4, tp=4),
    combine("tp4_sp", 4, 4, tp=4, sp=True),

    combine("pp4", 4, pp=4),
    combine("tp2_dp2", 4, tp=2),
    combine("tp2_dp2_zero_sp", 4, tp=2, sp=True, zero=True),
    combine("pp2_dp2_zero", 4, pp=2, zero=True),
    combine("pp2_dp2_zero_tied", 4, record="tied", pp=2, zero=True),
    combine("tp2_pp2_sp_tied", 4, record="tied", tp=2, pp=2, sp=True),
    combine("tp2_pp2_layers_1_3", 4, tp=2, pp=2, layers=(1, 3)),
    combine("dp4_zero", 4, zero=True),
    combine("tp2_cp2_pp2_sp", 8, 2, tp=2, cp=2, pp=2, sp=True),
    combine("tp2_cp2_dp2_overlap_zero_block", 8, tp=2, cp=2, **_OVERLAP_ALL, **_BLOCK),
    combine("cp2_pp2_dp2_virtual_zero_tied", 8, record="tied", cp=2, pp=2, zero=True, **_VIRTUAL),
    combine("tp4_cp2_sp", 8, 4, tp=4, cp=2, sp=True),
    combine("pp4_dp2_virtual_deep_overlap", 8, record="deep", pp=4, **_VIRTUAL, **_OVERLAP),
    combine("tp2_pp2_dp2_zero_sp", 8, tp=2, pp=2, sp=True, zero=True),
    combine("tp4_pp2_sp", 8, 2, tp=4, pp=2, sp=True),
    combine("tp2_pp4", 8, tp=2, pp=4),
    combine("tp4_dp2_zero_sp_tied", 8, 2, record="tied", tp=4, sp=True, zero=True),
]

# Other families, held to Hugging Face's numbers as golden.npz is.
FAMILY_ROWS = [
    combine("glm4_tp2_pp2_sp_noop", 4, record="glm4", tp=2, pp=2, sp=True, noop_layers=(1,)),
    combine("qwen3_tp2_pp2", 4, record="qwen3", tp=2, pp=2),
    combine("qwen3_tp4_sp_uniform_recompute", 4, 2, record="qwen3", tp=4, sp=True, **_UNIFORM),
    combine("qwen3_tp2_cp2_selective", 4, 2, record="qwen3", tp=2, cp=2, **_SELECTIVE),
]

# Low-rank adapters, held to PEFT's numbers; and packed ones.
LORA_ROWS = [
    combine("lora_tp2_sp_uniform_recompute", 2, record="lora", tp=2, sp=True, **_UNIFORM),
    combine("lora_pp2_virtual", 2, record="lora", pp=2, **_VIRTUAL),
    combine("lora_cp2_zero_packed", 2, 2, record="lora_packed", cp=2, zero=True),
    combine("lora_tp2_pp2", 4, record="lora", tp=2, pp=2),
    combine("lora_tp4_sp", 4, 4, record="lora", tp=4, sp=True),
    combine("lora_tp2_dp2_sp_overlap_zero", 4, 2, record="lora", tp=2, sp=True, **_OVERLAP_ALL),
]
MORE_LORA_ROWS = [
    combine("lora_tp2", 2, record="lora", tp=2),
    combine("lora_pp2", 2, record="lora", pp=2),
    combine("lora_cp2", 2, 2, record="lora", cp=2),
    combine("lora_dp2_zero", 2, record="lora", zero=True),
    combine("lora_cp2_ulysses_selective", 2, 2, record="lora", cp=2, **_ULYSSES, **_SELECTIVE),
    combine("lora_tp2_cp2_sp_block_recompute", 4, 2, record="lora", tp=2, cp=2, sp=True, **_BLOCK),
    combine("lora_pp2_dp2_virtual_overlap_zero", 4, record="lora", pp=2, **_VIRTUAL, **_OVERLAP_ALL),
]

LONG_RUNS = ("tp2_sp", "cp2_ulysses", "pp2_virtual", "dp2_overlap_zero_tied", "tp2_pp2_sp")


def _half(dtype: str, name: str, *arguments, **options) -> Row:
    return combine(f"{name}_{dtype}", *arguments, record=dtype, dtype=dtype, **options)


HALF_PRECISION_ROWS = [
    _half("bf16", "pp2", 2, pp=2),
    _half("bf16", "dp2_overlap_zero", 2, **_OVERLAP_ALL),
    _half("bf16", "pp2_virtual_uniform_recompute", 2, pp=2, **_UNIFORM, num_layers_per_virtual_pipeline_stage=2),
    _half("bf16", "tp2", 2, 2, tp=2),
    _half("bf16", "tp2_sp", 2, 2, tp=2, sp=True),
    _half("bf16", "cp2", 2, 2, cp=2),
    _half("bf16", "cp2_ulysses", 2, 2, cp=2, **_ULYSSES),
    _half("fp16", "dp2_overlap_zero", 2, 2, **_OVERLAP_ALL),
    _half("fp16", "tp2_sp", 2, 2, tp=2, sp=True),
    _half("bf16", "tp2_pp2_sp", 4, 2, tp=2, pp=2, sp=True),
    _half("bf16", "tp2_dp2_sp_overlap_zero", 4, 2, tp=2, sp=True, **_OVERLAP_ALL),
    _half("bf16", "tp4_sp", 4, 4, tp=4, sp=True),
    _half("bf16", "tp2_cp2_sp", 4, 2, tp=2, cp=2, sp=True),
    _half("bf16", "pp2_dp2_zero", 4, 2, pp=2, zero=True),
    _half("fp16", "tp2_pp2", 4, 2, tp=2, pp=2),
]
