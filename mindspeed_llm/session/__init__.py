"""What every job on ranks needs before it starts: device, kernels, groups, and the lines that say what was chosen.

`weights` fills the model from a checkpoint.
"""

import os
from dataclasses import dataclass

from mindspeed_llm import kernels
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.config.training import TrainConfig
from mindspeed_llm.core import parallel_state
from mindspeed_llm.core.parallel_state import ParallelState
from mindspeed_llm.runtime import collectives, device


@dataclass(frozen=True)
class Session:
    """A rank that has joined its job."""

    state: ParallelState
    params_dtype: str

    @property
    def is_main(self) -> bool:
        """True on rank 0, which prints and writes reports."""
        return self.state.world.rank == 0

    def say(self, *lines: str) -> None:
        """Print lines once, on rank 0."""
        if self.is_main:
            for line in lines:
                print(line, flush=True)


def join_job(train: TrainConfig, parallel: ParallelConfig) -> None:
    """Choose the device, seed it and join the job; before any group is made.

    Raises UserError, before any rank waits for another, when the number of ranks does not fit.
    """
    parallel.data_parallel_size(collectives.launched_ranks())
    device.setup(train.seed)
    if train.npu_deterministic:
        device.make_deterministic()
    if collectives.launched_ranks() > 1:
        # msrun reports a rank that dies without a word by its process only; the launcher looks the rank up in this line.
        print(f"rank {os.environ.get('RANK_ID')} is process {os.getpid()}", flush=True)
    collectives.init()


def start_session(model: ModelConfig, parallel: ParallelConfig, params_dtype: str, notes: list[str]) -> Session:
    """Build the groups, choose the kernels, print `notes` and what was chosen. Call `join_job` first."""
    session = Session(parallel_state.build(model, parallel), params_dtype)
    state = session.state
    session.say(*notes, *device.notes(), *kernels.setup(params_dtype),
                f"ranks: {state.world.size} = tensor {state.tp.size} x context {state.cp.size} x data {state.dp.size} x "
                f"pipeline {state.pp.size}{', sequence parallel' if state.sequence_parallel else ''}")
    return session
