"""One iteration of a training command on simulated Ascend, for the rank that RANK_SIZE and RANK_ID name:

    RANK_SIZE=8 RANK_ID=0 python one_iteration.py FLAGS OF pretrain_gpt.py

Prints one line of JSON: peaks of device memory in bytes, `live` (tensors) and `reserved` (MindSpore's pool), from the start
on. Every sequence has the full --seq-length. Parameters are not drawn and nothing is read or saved: values mean nothing.
"""

import json
import sys
import time

import mindspore as ms
import numpy as np

from mindspeed_llm import training
from mindspeed_llm.config.command_line import parse
from mindspeed_llm.config.training import TrainConfig
from mindspeed_llm.core.parallel_state import ParallelState
from mindspeed_llm.core.parameters import ParameterSet
from mindspeed_llm.training import batches, loop
from mindspeed_llm.training.objectives.objective import Objective, TokenBatch


class FullLength:
    """Stands for `Batches`: micro-batches of the largest size that the flags allow, all tokens 1."""

    has_validation = False

    def __init__(self, objective: Objective, train: TrainConfig, state: ParallelState) -> None:
        self.objective = objective
        shape = (train.seq_length, train.micro_batch_size)
        ids = np.ones(shape, np.int32)
        self.micro = TokenBatch(ids, ids, None, np.full(shape, 1 / ids.size, np.float32))
        self.count = train.num_microbatches(state.dp.size)

    def go_on_after(self, consumed_samples: int) -> None:
        """All micro-batches are alike."""

    def training_step(self) -> list[TokenBatch]:
        """The micro-batches of an optimizer step."""
        return [self.micro] * self.count


def one_step(trainer: loop.Trainer) -> None:
    """Stands for `Trainer.train`."""
    trainer.step(1e-6)
    ms.runtime.synchronize()


def measure(flags: list[str]) -> dict[str, float]:
    """`{"live": bytes, "reserved": bytes, "seconds": s}` of one iteration."""
    ParameterSet.initialize = lambda self, model, seed: None
    batches.Batches, loop.Trainer.train = FullLength, one_step
    configs, started = parse("pretrain", flags), time.perf_counter()
    training.run(configs)
    return {"live": ms.runtime.max_memory_allocated(), "reserved": ms.runtime.max_memory_reserved(),
            "seconds": round(time.perf_counter() - started, 1)}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1:])), flush=True)
