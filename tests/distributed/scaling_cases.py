"""fp16 training on four ranks through the training loop itself, with overflows: forced on one rank, natural ones."""

import hashlib
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
from mindspore import Tensor
from mindspore import dtype as mstype

from mindspeed_llm import training
from mindspeed_llm.config.command_line import parse
from mindspeed_llm.kernels import reference
from mindspeed_llm.runtime import collectives
from mindspeed_llm.training import loss_scale
from mindspeed_llm.training.loop import Trainer
from tests.training.tiny_job import SCHEDULE, SHAPE, write_ramps

GROWTH_INTERVAL = 3
FORCED = (2, 3)  # iterations in which RANK finds infinities
RANK = 3
FIRST_SCALE = 4096
ITERATIONS = 8
TP2, PP2 = "--tensor-model-parallel-size 2 ", "--pipeline-model-parallel-size 2 "
# name -> (flags, whether the overflows are forced). 2**25 overflows by itself until it has been halved a few times.
RUNS = {
    "TP2 PP2": (f"{TP2}{PP2}--sequence-parallel --initial-loss-scale {FIRST_SCALE}", True),
    "TP2 DP2": (f"{TP2}--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather "
                f"--initial-loss-scale {FIRST_SCALE}", True),
    "PP2 DP2, natural": (f"{PP2}--use-distributed-optimizer --initial-loss-scale {2**25}", False),
}


def write_data(folder: Path) -> None:
    """The data set of all runs."""
    write_ramps(folder / "text")


def scaled_run(name: str, folder: str) -> dict:
    """`steps` of a run as this rank saw them, and `final`, a digest of each parameter it holds by name and shard."""
    flags, forced = RUNS[name]
    return _run(Path(folder), flags, forced and collectives.world().rank == RANK)


def _run(folder: Path, flags: str, overflows: bool) -> dict:
    steps, final = [], {}

    def step(trainer: Trainer, rate: float):
        before = digests(trainer)
        with _infinities() if overflows and trainer.progress.iteration + 1 in FORCED else _nothing():
            outcome = original(trainer, rate)
        final.clear()
        final.update(digests(trainer))
        steps.append({"loss": outcome.loss, "updated": outcome.result.updated, "unchanged": final == before,
                      "scale": trainer.scale.value, "skipped": trainer.skipped, "nans": trainer.nans,
                      "optimizer_steps": trainer.optimizer.step_count})
        return outcome

    original = Trainer.step
    configs = parse("pretrain", [*SHAPE, *SCHEDULE, *flags.split(), "--fp16", "--train-iters", str(ITERATIONS),
                                 "--log-interval", "100", "--data-path", str(folder / "text"),
                                 "--tokenizer-name-or-path", str(folder)], lambda _: 320)
    with patch.object(Trainer, "step", step), patch.object(loss_scale, "GROWTH_INTERVAL", GROWTH_INTERVAL):
        training.run(configs)
    return {"steps": steps, "final": dict(final)}


@contextmanager
def _infinities():
    """Every weight gradient of a linear layer on this rank is infinite."""
    def linear_wgrad(grad: Tensor, x: Tensor, *target) -> None:
        infinite(grad * Tensor(np.inf, mstype.float16), x, *target)

    infinite = reference.linear_wgrad
    with patch.object(reference, "linear_wgrad", linear_wgrad):
        yield


@contextmanager
def _nothing():
    yield


def digests(trainer: Trainer) -> dict[str, str]:
    """`{name and part of the whole tensor: digest of its bytes}`."""
    found = {}
    for parameters in (chunk.parameters for chunk in trainer.chunks):
        for name, spec in parameters.specs.items():
            part = spec.segments(parameters.tp_rank, parameters.tp_size)
            found[f"{name} {part}"] = hashlib.sha256(parameters[name].asnumpy().tobytes()).hexdigest()
    return found
