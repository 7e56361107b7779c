"""A Hugging Face model directory read as if it had been converted: nothing is written."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from mindspeed_llm.checkpoint.dtypes import StoredTensor
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.core.sharding import TensorSpec
from mindspeed_llm.families import LAYOUTS
from mindspeed_llm.families.hf_directory import HfDirectory, read_json_object
from mindspeed_llm.families.weight_map import hf_shapes, mapped_tensors


class HfCheckpoint:
    """The weights in a Hugging Face directory, with what a job that generates asks of a `checkpoint.Checkpoint`.

    The layout is the one that config.json is of. The vocabulary is padded with zero rows as tensor parallelism of
    `size` needs it. Raises UserError or FileNotFoundError naming `flag` or the file for what is damaged or unknown.
    """

    iteration, noop_layers, lora, adapters_only, warning = 1, (), None, False, None

    def __init__(self, directory: str | Path, size: int, flag: str) -> None:
        self.directory = Path(directory)
        file = self.directory / "config.json"
        config = read_json_object(file)
        layout = next((layout for layout in LAYOUTS.values() if layout.matches(config)), None)
        if layout is None:
            raise UserError(f"{flag} {directory}: {file} is of model_type {config.get('model_type')!r}, which is no "
                            f"model of this project: known are the layouts of --model-type-hf {', '.join(LAYOUTS)}")
        self._source = HfDirectory(directory, layout, flag)
        vocab = self._source.model.padded_vocab_size
        self.model_config = replace(self._source.model, padded_vocab_size=math.ceil(vocab / size) * size)
        self._mapped = {mapped.spec.name: mapped for mapped in mapped_tensors(layout, self.model_config, (), vocab)}
        self._source.open_weights(hf_shapes(list(self._mapped.values())))

    def read(self, spec: TensorSpec, rank: int, size: int, dtype: str | None = None,
             out: np.ndarray | None = None) -> StoredTensor:
        """See `WeightSource.read`."""
        if spec.name not in self._mapped or self._mapped[spec.name].spec.shape != spec.shape:
            raise UserError(f"{self.directory} does not hold {spec.name} of shape {list(spec.shape)}: do the model "
                            "flags describe this model?")
        return self._source.read(self._mapped[spec.name], rank, size, dtype, out)

    def close(self) -> None:
        """Close the files."""
        self._source.close()
