"""The recorded tiny GLM4 of tests/golden as a generator, and what it should say."""

import functools

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindspeed_llm import kernels
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.core import parallel_state
from mindspeed_llm.core.gpt_model import GPTModel
from mindspeed_llm.generation.generator import Generator
from mindspeed_llm.runtime import autograd, device
from tests.golden.reference import Golden


@functools.cache
def golden() -> Golden:
    """The recorded numbers."""
    return Golden()


@functools.cache
def golden_generator() -> Generator:
    """A single process' generator over the recorded weights; sequences of up to 64 tokens."""
    device.setup()
    kernels.setup()
    parallel = ParallelConfig()
    state = parallel_state.build(golden().model, parallel)
    model = GPTModel(golden().model, parallel, state, ms.float32, trainable=False)
    for name, spec in model.parameters.specs.items():
        model.parameters.load(name, golden().local("weight", spec))
    return Generator([model], golden().model.padded_vocab_size, golden().model.max_position_embeddings)


def full_logits(ids: list[int]) -> np.ndarray:
    """Logits `(len(ids), V)` of one whole pass, as training runs it, without any cache."""
    model = golden_generator().chunks[0]
    with autograd.no_grad():
        column = Tensor(np.array(ids, np.int32).reshape(-1, 1))
        hidden = model.hidden_states(column, model.training_context(len(ids)))
        return model.logits(hidden).asnumpy()[:, 0]


def log_probs(ids: list[int]) -> np.ndarray:
    """Log-probabilities fp64 `(V,)` of the token after `ids`."""
    logits = full_logits(ids)[-1].astype(np.float64)
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
