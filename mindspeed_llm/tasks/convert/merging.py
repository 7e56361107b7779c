"""A checkpoint with its adapters merged in: `W + alpha / r * B A` in place of W."""

import functools

import numpy as np

from mindspeed_llm.checkpoint.boxes import Box, Source, fill, shard_boxes
from mindspeed_llm.checkpoint.dtypes import cast
from mindspeed_llm.checkpoint.load import Checkpoint


class MergedCheckpoint:
    """What a conversion reads of a checkpoint, with merged weights; `adapters` may be the base itself.

    The update is made in fp32 and added to the weight in fp32; the sum is rounded once to the weight's dtype. So does PEFT's
    `merge_and_unload`, whose adapters are fp32 over any base.
    """

    def __init__(self, base: Checkpoint, adapters: Checkpoint) -> None:
        self._base, self._adapters = base, adapters
        self.directory, self.noop_layers, self.dtype = base.directory, base.noop_layers, base.dtype
        self.iteration, self.model_config = adapters.iteration, adapters.model_config
        self._adapted = {name.replace(".lora_A.", ".") for name in adapters.names() if ".lora_A." in name}

    def fill(self, name: str, boxes: tuple[Box, ...], out: np.ndarray) -> None:
        """See `Checkpoint`."""
        if name not in self._adapted:
            self._base.fill(name, boxes, out)
            return
        merged = self._merged(name)
        left = fill(out, boxes, [Source(shard_boxes(merged.shape, None, ((0, merged.shape[0]),)),
                                        lambda: merged.reshape(-1))])
        if left:
            raise ValueError(f"{name} of shape {merged.shape} leaves {left} unfilled")

    def forget(self, name: str) -> None:
        """See `Checkpoint`; adapters are small."""
        self._base.forget(name)

    @functools.lru_cache(maxsize=1)  # q, k and v are asked for one after another
    def _merged(self, name: str) -> np.ndarray:
        weight = self._base.read_global(name)
        a, b = (self._adapters.read_global(name.replace(".weight", f".lora_{letter}.weight"), "fp32").array
                for letter in "AB")
        merged = cast(weight.array, weight.dtype, "fp32") + (b @ a) * np.float32(self._adapters.lora.scale)
        return cast(merged, "fp32", weight.dtype)
