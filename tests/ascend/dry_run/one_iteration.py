"""One iteration of a training command on simulated Ascend, for the rank that RANK_SIZE and RANK_ID name:

    RANK_SIZE=8 RANK_ID=0 python one_iteration.py FLAGS OF pretrain_gpt.py

Prints one line of JSON: peaks of device memory in bytes, `live` (tensors) and `reserved` (MindSpore's pool), from the start
on. Every sequence has the full --seq-length, of pairs both have. Parameters are not drawn and nothing is read or saved, neither
checkpoints nor a reference model: values mean nothing.
"""

import json
import sys
import time
from types import SimpleNamespace

import mindspore as ms
import numpy as np

from mindspeed_llm import training
from mindspeed_llm.config.command_line import parse
from mindspeed_llm.config.configs import Configs
from mindspeed_llm.config.training import TrainConfig
from mindspeed_llm.core.gpt_model import GPTModel
from mindspeed_llm.core.parallel_state import ParallelState
from mindspeed_llm.core.parameters import ParameterSet
from mindspeed_llm.data.pairwise_dataset import ANSWERS
from mindspeed_llm.runtime import device
from mindspeed_llm.training import batches, checkpointing, loop, objectives
from mindspeed_llm.training.micro_batch import MicroBatch
from mindspeed_llm.training.objectives.objective import Objective, TokenBatch
from mindspeed_llm.training.objectives.preference import Preference
from mindspeed_llm.training.reference import ReferenceModel


class FullLength:
    """Stands for `Batches`: micro-batches of the largest size that the flags allow, all tokens 1."""

    has_validation = False

    def __init__(self, objective: Objective, train: TrainConfig, state: ParallelState) -> None:
        self.objective = objective
        self.micro = full_pairs(objective, train) if isinstance(objective, Preference) else full_rows(train)
        self.count = train.num_microbatches(state.dp.size)

    def go_on_after(self, consumed_samples: int) -> None:
        """All micro-batches are alike."""

    def training_step(self) -> list[MicroBatch]:
        """The micro-batches of an optimizer step."""
        return [self.micro] * self.count


def full_rows(train: TrainConfig) -> TokenBatch:
    """Of rows of tokens."""
    shape = (train.seq_length, train.micro_batch_size)
    ids = np.ones(shape, np.int32)
    return TokenBatch(ids, ids, None, np.full(shape, 1 / ids.size, np.float32))


def full_pairs(objective: Preference, train: TrainConfig) -> MicroBatch:
    """Of pairs, with what --precompute-ref would know of them."""
    row = np.ones(train.seq_length, np.int32)
    pair = {f"{answer}_{kind}": row for answer in ANSWERS for kind in ("tokens", "labels")}
    return objective.micro_batch([pair | {"reference": np.zeros(2, np.float32)}] * train.micro_batch_size)


def reference_model(configs: Configs, state: ParallelState) -> ReferenceModel:
    """Stands for `load_reference`."""
    stages = len(configs.parallel.stage_layers(configs.model)[state.pp.rank])
    return ReferenceModel([GPTModel(configs.model, configs.parallel, state, device.dtype(configs.train.params_dtype), virtual,
                                    trainable=False) for virtual in range(stages)])


def one_step(trainer: loop.Trainer) -> None:
    """Stands for `Trainer.train`."""
    trainer.step(1e-6)
    ms.runtime.synchronize()


def read_nothing() -> None:
    """Parameters stay as they are; no checkpoint, no tokenizer and no reference model is looked for."""
    ParameterSet.initialize = lambda self, model, seed, adapters_only=False: None
    checkpointing.find = lambda config: (None, [])
    objectives.load_tokenizer = lambda *names: SimpleNamespace(pad_id=0)
    objectives.load_reference = reference_model


def measure(flags: list[str]) -> dict[str, float]:
    """`{"live": bytes, "reserved": bytes, "seconds": s}` of one iteration."""
    read_nothing()
    batches.Batches, loop.Trainer.train = FullLength, one_step
    configs, started = parse("pretrain", flags), time.perf_counter()
    training.run(configs)
    return {"live": ms.runtime.max_memory_allocated(), "reserved": ms.runtime.max_memory_reserved(),
            "seconds": round(time.perf_counter() - started, 1)}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1:])), flush=True)
