"""A checkpoint's weights into the chunks of a model."""

import math
from concurrent.futures import ThreadPoolExecutor

from mindspeed_llm.checkpoint import Checkpoint, WeightSource
from mindspeed_llm.config import lora, shape
from mindspeed_llm.config.configs import Configs
from mindspeed_llm.config.lora import LoraConfig
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.core.gpt_model import GPTModel
from mindspeed_llm.core.parameters import ParameterSet
from mindspeed_llm.core.sharding import TensorSpec
from mindspeed_llm.core.structure import model_specs
from mindspeed_llm.kernels.cpu import default_threads
from mindspeed_llm.runtime import device


def resolve(configs: Configs, base: WeightSource | None, adapters: Checkpoint | None) -> Configs:
    """`configs` for a run from the checkpoint `base`, with its model's shape and the adapters of `find_adapters`.

    Raises UserError when the command line contradicts either.
    """
    place = configs.checkpoint
    configs = lora.resolve(configs, adapters and adapters.lora, place.lora_load or place.load)
    described = adapters or base    # adapters know how the model was changed for them: its rotary base
    if described is None:
        return configs
    return shape.resolve(configs, described.model_config, str(described.directory), described.noop_layers)


def load_weights(chunks: list[GPTModel], source: WeightSource, params_dtype: str,
                 adapters: Checkpoint | None = None) -> None:
    """Fill the chunks' parameters from checkpoints of any parallel layout, or from Hugging Face's files, cast to
    `params_dtype`.

    `adapters` holds those of low-rank adapters; None leaves them as they are. The largest tensors come first: what has to
    be cut or cast takes memory beside its place, and memory is fullest at the end.
    """
    for chunk in chunks:
        parameters = chunk.parameters

        def fill(spec: TensorSpec, parameters: ParameterSet = parameters) -> None:
            memory = parameters.memory(spec.name)
            read = (adapters if spec.adapter else source).read(spec, parameters.tp_rank, parameters.tp_size,
                                                               params_dtype, memory)
            if memory is None:
                parameters.load(spec.name, read.array)
        specs = sorted((spec for spec in parameters.specs.values() if not spec.adapter or adapters is not None),
                       key=lambda spec: -math.prod(spec.shape))
        # a single thread does not keep a disk busy; a device's memory is the framework's to fill
        with ThreadPoolExecutor(default_threads() if device.on_cpu() else 1) as pool:
            for _ in pool.map(fill, specs):
                pass


def loaded_line(load_dir: str, saved: int, start: int) -> str:
    """The line that tools for Megatron look for: the directory of `--load` and the iteration at which this job starts.

    Where that is not the iteration that was `saved` (weights only, --finetune), the line names both.
    """
    line = f"successfully loaded checkpoint from {load_dir} at iteration {start}"
    return line if start == saved else f"{line} (weights of iteration {saved})"


def parameters_line(model: ModelConfig, noop_layers: tuple[int, ...], adapters: LoraConfig) -> str:
    """How many parameters of a model with adapters are trained, in the form of PEFT's line."""
    sizes = [(spec.trainable, math.prod(spec.shape)) for spec in model_specs(model, noop_layers, adapters)]
    trained, total = sum(size for trainable, size in sizes if trainable), sum(size for _, size in sizes)
    return f"trainable params: {trained:,} || all params: {total:,} || trainable%: {100 * trained / total:.4f}"
