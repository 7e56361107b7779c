"""Everything that one command line says, as one object."""

from dataclasses import dataclass, field
from typing import Any

from mindspeed_llm.config.data import DataConfig
from mindspeed_llm.config.lora import LoraConfig
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.config.preference import PreferenceConfig
from mindspeed_llm.config.serving import ServeConfig
from mindspeed_llm.config.training import (CheckpointConfig, ConvertConfig, EvaluationConfig, InferenceConfig,
                                           OptimizerConfig, ProfileConfig, TrainConfig)


@dataclass(frozen=True)
class Configs:
    """Everything one command line says. A part that the entrypoint does not use is None.

    `model` is None when generating or evaluating without a full set of model flags: the checkpoint gives the shape
    (`shape.resolve`). `lora` is what the flags say; `lora.resolve` makes it the adapters of the run, or None.
    `stated_model` are the model fields that the command line fixed, to be checked against a checkpoint, `vocab_size` is
    what --vocab-size said. `explicit` are the names of fields given on the command line. `notes` are lines for rank 0 to
    print once.
    """

    entrypoint: str
    model: ModelConfig | None = None
    parallel: ParallelConfig | None = None
    optimizer: OptimizerConfig | None = None
    lora: LoraConfig | None = None
    train: TrainConfig | None = None
    data: DataConfig | None = None
    preference: PreferenceConfig | None = None
    checkpoint: CheckpointConfig | None = None
    profile: ProfileConfig | None = None
    inference: InferenceConfig | None = None
    serve: ServeConfig | None = None
    evaluation: EvaluationConfig | None = None
    convert: ConvertConfig | None = None
    stated_model: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    explicit: frozenset[str] = frozenset()
    vocab_size: int | None = None
