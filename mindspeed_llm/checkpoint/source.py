"""What a job that runs a model asks of the place its weights come from."""

from pathlib import Path
from typing import Protocol

import numpy as np

from mindspeed_llm.checkpoint.dtypes import StoredTensor
from mindspeed_llm.config.lora import LoraConfig
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.core.sharding import TensorSpec


class WeightSource(Protocol):
    """A `Checkpoint`, or what can be read like one. `lora` describes adapters among the weights, if there are any."""

    directory: Path
    model_config: ModelConfig
    noop_layers: tuple[int, ...]
    iteration: int
    lora: LoraConfig | None
    adapters_only: bool
    warning: str | None

    def read(self, spec: TensorSpec, rank: int, size: int, dtype: str | None = None,
             out: np.ndarray | None = None) -> StoredTensor:
        """The weight of `spec` as tensor-parallel `rank` of `size` holds it, cast to `dtype` if given; in the memory of
        the flat `out` of that dtype, if given: nothing else of its size is in memory then, unless it has to be cast.
        """

    def close(self) -> None:
        """Close the files."""
