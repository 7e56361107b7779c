"""From a checkpoint on disk to a rank's training state."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_llm import checkpoint
from mindspeed_llm.checkpoint import Checkpoint
from mindspeed_llm.config.configs import Configs
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.training import CheckpointConfig
from mindspeed_llm.core.optimizer.optimizer import Optimizer
from mindspeed_llm.core.sharding import OPTIMIZER_STATES
from mindspeed_llm.data.gpt_dataset import SAMPLE_ORDER
from mindspeed_llm.runtime import collectives
from mindspeed_llm.runtime.collectives import Group
from mindspeed_llm.runtime.memory import from_numpy
from mindspeed_llm.training.loss_scale import LossScale


@dataclass
class Progress:
    """How far training has come: optimizer steps done, and samples that they consumed."""

    iteration: int = 0
    consumed_samples: int = 0


def find(config: CheckpointConfig) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint to start from, or None for random initialisation, and what to say about it.

    Raises UserError for a missing one under --exit-on-missing-checkpoint, or under --finetune, which takes its weights.
    """
    if not config.load:
        return None, ["no --load: starting from random initialisation"]
    found = checkpoint.open_checkpoint(config.load, config.ckpt_step)
    if found is not None:
        return found, [found.warning] if found.warning else []
    why = "holds no checkpoint" if Path(config.load).is_dir() else "does not exist"
    name = "name the directory with latest_checkpointed_iteration.txt"
    for given, flag in ((config.exit_on_missing_checkpoint, "--exit-on-missing-checkpoint"),
                        (config.finetune, "--finetune")):
        if given:
            raise UserError(f"--load {config.load} {why} and {flag} is given: {name}, or leave --load empty to start "
                            "from random initialisation")
    return None, [f"WARNING: --load {config.load} {why}: STARTING FROM RANDOM INITIALISATION. If that is not meant, "
                  f"stop now and {name}"]


def require_same_iteration(source: Checkpoint | None, world: Group) -> None:
    """Raise UserError where nodes without shared storage have found different iterations (one may have fallen back)."""
    own = -1 if source is None else source.iteration
    bounds = collectives.all_reduce(from_numpy(np.array([own, -own], np.float32)), world, "max").asnumpy()
    if bounds[0] != -bounds[1]:
        raise UserError(f"rank {world.rank} has found iteration {own} in --load, others {-bounds[1]:.0f} to "
                        f"{bounds[0]:.0f} (-1: none): give the one that all nodes have with --ckpt-step")


def restore_seed(configs: Configs, source: Checkpoint | None) -> Configs:
    """`configs` with the seed of the checkpoint that a run resumes, so that the data go on in the same order; with a
    note where they cannot, because the order that follows from a seed is another one today.

    With --no-load-rng, and where training starts at iteration 0, the seed stays that of the command line. Raises UserError
    for a --seed that contradicts the checkpoint's.
    """
    if source is None or source.weights_only or configs.checkpoint.finetune or configs.checkpoint.no_load_rng:
        return configs
    tuning = configs.data.is_instruction_dataset or configs.data.is_pairwise_dataset
    if not tuning and source.extra.get("sample_order") != SAMPLE_ORDER:
        configs = replace(configs, notes=[*configs.notes, (
            f"WARNING: {source.directory} comes from a version that read pre-training samples IN ANOTHER ORDER: this run "
            f"goes on after {source.consumed_samples} samples of today's order, so some of them will be read again and "
            "others not in this epoch. Finish the run with the version that began it if that matters")])
    stored, asked = _saved(source, source.rng, "seed", int), configs.train.seed
    if stored == asked:
        return configs
    if "seed" in configs.explicit:
        raise UserError(f"--seed ({asked}) contradicts the checkpoint {source.directory}, whose data order comes from "
                        f"{stored}: leave the flag out to go on with it, or add --no-load-rng to draw a new order")
    return replace(configs, train=replace(configs.train, seed=stored),
                   notes=[*configs.notes, f"seed {stored} of {source.directory}: the data go on in its order"])


def load_training_state(source: Checkpoint | None, config: CheckpointConfig, optimizer: Optimizer, scale: LossScale) -> Progress:
    """Take up a training checkpoint: optimizer state, loss scale, progress, as far as the flags ask for it.

    Without one, with a weights-only checkpoint, or under `--finetune`, training starts at iteration 0 with a fresh
    optimizer.
    """
    optimizer.reset_masters()
    if source is None or source.weights_only or config.finetune:
        return Progress()
    if not config.no_load_optim:
        if not source.has_optimizer:
            raise UserError(f"{source.directory} has no optimizer state: add --no-load-optim to continue with a fresh "
                            "optimizer, or --finetune to start again at iteration 0")
        for chunk_state in optimizer.chunk_states:
            parameters = chunk_state.chunk.parameters
            for index, piece in enumerate(chunk_state.pieces):
                saved = source.read_optimizer(parameters.specs[piece.name], parameters.tp_rank, parameters.tp_size,
                                              piece.start, piece.stop)
                for name in OPTIMIZER_STATES:
                    chunk_state.states[name][index].copy_(from_numpy(saved[name]))
        optimizer.step_count = _saved(source, source.extra, "optimizer_steps", int)
        scale.load_state(_saved(source, source.extra, "loss_scale", dict))
    return Progress(source.iteration, source.consumed_samples)


def _saved(source: Checkpoint, holder: dict, name: str, kind: type) -> Any:
    """An entry that training wrote into the checkpoint. Raises UserError when it is not there or of another kind."""
    value = holder.get(name)
    if type(value) is not kind:
        raise UserError(f"{source.directory}: entry {name!r} of its metadata is {str(value)[:40]}, damaged: load "
                        "another iteration with --ckpt-step")
    return value
