"""What a plan is made for: a model, its spread over ranks, a batch, and the device it runs on."""

from dataclasses import dataclass, replace
from functools import cached_property

from mindspeed_llm.checkpoint.dtypes import NUMPY_DTYPES
from mindspeed_llm.config.command_line import Configs
from mindspeed_llm.config.data import DataConfig
from mindspeed_llm.config.lora import LoraConfig
from mindspeed_llm.config.model import LocalHeads, ModelConfig
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.config.preference import PreferenceConfig
from mindspeed_llm.config.training import TrainConfig
from mindspeed_llm.config.validation import check
from mindspeed_llm.core.sharding import TensorSpec
from mindspeed_llm.core.structure import ChunkParts
from mindspeed_llm.core.transformer.layer import TransformerLayer
from mindspeed_llm.core.transformer.parts import ActivationSizes

ASCEND, CPU = "Ascend", "CPU"
TARGETS = (ASCEND, CPU)


@dataclass(frozen=True)
class Job:
    """One training job. `world_size` is the number of ranks, `target` the device (`Ascend` or `CPU`).

    Making one raises UserError when the sizes do not fit together, as the job itself would.
    """

    configs: Configs
    world_size: int
    target: str = ASCEND

    def __post_init__(self) -> None:
        check(self.configs)
        self.train.num_microbatches(self.parallel.data_parallel_size(self.world_size))

    @property
    def model(self) -> ModelConfig:
        """The model's shape."""
        return self.configs.model

    @property
    def parallel(self) -> ParallelConfig:
        """How it is spread over ranks."""
        return self.configs.parallel

    @property
    def train(self) -> TrainConfig:
        """Batch, sequence length, dtype."""
        return self.configs.train

    @property
    def lora(self) -> LoraConfig | None:
        """The adapters that are trained instead of the model, or None."""
        lora: LoraConfig | None = self.configs.lora
        return lora if lora is not None and lora.target_modules else None

    @property
    def pairs(self) -> bool:
        """Whether a sample is a pair of sequences, all of a micro-batch's in one packed row."""
        data: DataConfig = self.configs.data
        return data.is_pairwise_dataset

    @property
    def compares(self) -> bool:
        """Whether every micro-batch has a forward pass of a reference model too."""
        preference: PreferenceConfig = self.configs.preference
        return self.pairs and preference.needs_reference and not preference.precompute_ref

    @property
    def second_model(self) -> bool:
        """Whether that model is another than the trained one without its adapters."""
        preference: PreferenceConfig = self.configs.preference
        return self.compares and preference.ref_model is not None

    @property
    def tp(self) -> int:
        """Tensor-parallel size."""
        return self.parallel.tensor_model_parallel_size

    @property
    def pp(self) -> int:
        """Pipeline-parallel size."""
        return self.parallel.pipeline_model_parallel_size

    @property
    def cp(self) -> int:
        """Context-parallel size."""
        return self.parallel.context_parallel_size

    @property
    def dp(self) -> int:
        """Data-parallel size."""
        return self.parallel.data_parallel_size(self.world_size)

    @property
    def replicas(self) -> int:
        """Ranks that hold the same parameters: data times context parallel."""
        return self.dp * self.cp

    @property
    def sharded_optimizer(self) -> bool:
        """Whether the distributed optimizer has ranks to spread over."""
        return self.parallel.use_distributed_optimizer and self.replicas > 1

    @property
    def sequence_parallel(self) -> bool:
        """Whether activations between tensor-parallel regions are cut along the sequence."""
        return self.parallel.sequence_parallel and self.tp > 1

    @property
    def microbatches(self) -> int:
        """Forward passes of one replica in one optimizer step."""
        return self.train.num_microbatches(self.dp)

    @property
    def element(self) -> int:
        """Bytes of a parameter or activation element."""
        return NUMPY_DTYPES[self.train.params_dtype].itemsize

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch on one context-parallel rank."""
        return self.rows * self.positions // self.cp

    @property
    def rows(self) -> int:
        """Rows of a micro-batch."""
        return 1 if self.pairs else self.train.micro_batch_size

    @property
    def positions(self) -> int:
        """Length of a row."""
        return self.train.seq_length * (2 * self.train.micro_batch_size if self.pairs else 1)

    @property
    def residual_tokens(self) -> int:
        """Tokens of the residual stream that one rank holds: `tokens`, or its part under sequence parallelism."""
        return self.tokens // self.tp if self.sequence_parallel else self.tokens

    @property
    def hidden_bytes(self) -> int:
        """Bytes of a micro-batch's residual stream on one rank; also of a message between pipeline stages."""
        return self.residual_tokens * self.model.hidden_size * self.element

    @property
    def heads(self) -> LocalHeads:
        """Attention heads of a rank."""
        return self.model.local_heads(self.tp)

    @property
    def sizes(self) -> ActivationSizes:
        """What the activations of a rank are made of.

        FlashAttentionScore gives the rows' maximum and sum, each eight times; our own kernels give one log-sum-exp.
        """
        fused = self.target == ASCEND and self.element == 2 and self.cp == 1
        statistics = 0 if self.parallel.recompute_granularity == "selective" else 16 if fused else 1
        return ActivationSizes(self.tokens, self.residual_tokens, self.element, self.tp, statistics)

    @cached_property
    def stage_layers(self) -> list[list[tuple[int, ...]]]:
        """`[pp_rank][chunk] -> global layer numbers`."""
        return self.parallel.stage_layers(self.model)

    @property
    def chunks(self) -> int:
        """Model chunks of a rank (virtual stages)."""
        return len(self.stage_layers[0])

    def is_first(self, stage: int, chunk: int) -> bool:
        """Whether this chunk holds the embedding."""
        return stage == 0 and chunk == 0

    def is_last(self, stage: int, chunk: int) -> bool:
        """Whether this chunk holds the output layer."""
        return stage == self.pp - 1 and chunk == self.chunks - 1

    def chunk_parts(self, stage: int, chunk: int) -> ChunkParts:
        """The parts of a chunk."""
        return ChunkParts(self.model, self.stage_layers[stage][chunk], first=self.is_first(stage, chunk),
                          last=self.is_last(stage, chunk), lora=self.lora)

    def layer_parts(self) -> TransformerLayer:
        """The parts of a layer."""
        return ChunkParts(self.model, (0,), first=False, last=False, lora=self.lora).layers[0]

    def tensors(self, stage: int) -> list[TensorSpec]:
        """The parameters of a stage, over its chunks."""
        return [spec for chunk in range(self.chunks) for spec in self.chunk_parts(stage, chunk).specs()]

    def trained(self, stage: int) -> list[TensorSpec]:
        """Those of them that are trained."""
        return [spec for spec in self.tensors(stage) if spec.trainable]

    def local_numel(self, spec: TensorSpec) -> int:
        """Elements of a parameter on one rank; the same on each tensor-parallel rank."""
        return spec.local_numel(0, self.tp)

    def with_parallel(self, **changes: object) -> "Job":
        """The same job spread differently. Raises UserError when that does not fit."""
        return replace(self, configs=replace(self.configs, parallel=replace(self.parallel, **changes)))

    def with_micro_batch(self, size: int) -> "Job":
        """The same job with another micro-batch size. Raises UserError when that does not fit."""
        return replace(self, configs=replace(self.configs, train=replace(self.train, micro_batch_size=size)))

    def with_precomputed_reference(self) -> "Job":
        """The same job without the reference model in memory."""
        return replace(self, configs=replace(self.configs, preference=replace(self.configs.preference,
                                                                               precompute_ref=True)))
