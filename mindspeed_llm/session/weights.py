"""A checkpoint's weights into the chunks of a model."""

from mindspeed_llm.checkpoint import Checkpoint
from mindspeed_llm.core.gpt_model import GPTModel


def load_weights(chunks: list[GPTModel], source: Checkpoint, params_dtype: str) -> None:
    """Fill the chunks' parameters from a checkpoint saved under any parallel layout, cast to `params_dtype`."""
    for chunk in chunks:
        parameters = chunk.parameters
        for name, spec in parameters.specs.items():
            parameters.load(name, source.read(spec, parameters.tp_rank, parameters.tp_size, params_dtype).array)


def loaded_line(load_dir: str, saved: int, start: int) -> str:
    """The line that tools for Megatron look for: the directory of `--load` and the iteration at which this job starts.

    Where that is not the iteration that was `saved` (weights only, --finetune), the line names both.
    """
    line = f"successfully loaded checkpoint from {load_dir} at iteration {start}"
    return line if start == saved else f"{line} (weights of iteration {saved})"
