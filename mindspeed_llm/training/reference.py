"""The reference model of preference tuning: a second model beside the one that is trained, which stays as it is."""

from collections.abc import Sequence

from mindspore import Tensor

from mindspeed_llm.checkpoint import Checkpoint, open_checkpoint
from mindspeed_llm.config.configs import Configs
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.model import SHAPE_FIELDS, ModelConfig
from mindspeed_llm.config.option import flag_name
from mindspeed_llm.config.shape import merge_model, require_noop_layers
from mindspeed_llm.core.gpt_model import GPTModel
from mindspeed_llm.core.parallel_state import ParallelState
from mindspeed_llm.core.pipeline_parallel.schedules import forward_only
from mindspeed_llm.core.transformer.lora import ADAPTERS_OFF
from mindspeed_llm.runtime import device
from mindspeed_llm.session.weights import load_weights
from mindspeed_llm.training.micro_batch import MicroBatch
from mindspeed_llm.training.passes import Output, stage_programs


class ReferenceModel:
    """Chunks of a model, spread over the ranks as the trained one is, that only run forward; adapters take no part."""

    def __init__(self, chunks: list[GPTModel]) -> None:
        self._chunks = chunks

    def outputs(self, output: Output, micro_batches: Sequence[MicroBatch]) -> list[Tensor]:
        """What `output` makes of each micro-batch, on the last stage (elsewhere nothing). Collective."""
        programs = stage_programs(output, self._chunks, micro_batches, ADAPTERS_OFF)
        return forward_only(programs, len(micro_batches), self._chunks[0].state.pp)


def load_reference(configs: Configs, state: ParallelState) -> ReferenceModel:
    """The model of `open_reference`, without adapters, gradients, optimizer state or masters.

    Raises UserError when there is no checkpoint, or when its model is not of the trained one's shape.
    """
    parallel, dtype = configs.parallel, configs.train.params_dtype
    with open_reference(configs) as source:
        model = reference_config(configs, source.model_config)
        require_noop_layers(parallel.noop_layers, source.noop_layers, str(source.directory))
        chunks = [GPTModel(model, parallel, state, device.dtype(dtype), virtual, trainable=False)
                  for virtual in range(len(parallel.stage_layers(model)[state.pp.rank]))]
        load_weights(chunks, source, dtype)
    return ReferenceModel(chunks)


def open_reference(configs: Configs) -> Checkpoint:
    """The checkpoint of --ref-model, or that of --load for a model with adapters, whose base is the reference.

    Raises UserError when there is none, or when --ref-model is not a whole model and nothing else.
    """
    directory = configs.preference.ref_model
    source = open_checkpoint(directory or configs.checkpoint.load)
    if source is None:
        raise UserError(f"--ref-model {directory} holds no checkpoint: name the directory with "
                        "latest_checkpointed_iteration.txt, usually that of --load")
    if directory and source.lora is not None:
        raise UserError(f"--ref-model {directory} holds adapters: a reference model has none; leave the flag out to "
                        "compare with the base of the trained adapters, or merge them with convert_ckpt.py --lora-load")
    return source


def reference_config(configs: Configs, stored: ModelConfig) -> ModelConfig:
    """The reference model, with what the command line says of both models. Raises UserError as `load_reference`."""
    directory = configs.preference.ref_model or configs.checkpoint.load
    for name in SHAPE_FIELDS:
        ours, theirs = getattr(configs.model, name), getattr(stored, name)
        if ours != theirs:
            raise UserError(f"--ref-model {directory} has {flag_name(name)} {theirs}, the model that is trained has "
                            f"{ours}: a reference model has the shape and vocabulary of the trained one, usually it is "
                            "the checkpoint of --load")
    return merge_model(configs.stated_model, stored, directory)[0]
