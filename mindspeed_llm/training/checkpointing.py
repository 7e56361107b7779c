"""Between a rank's tensors in memory and the checkpoint on disk."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mindspeed_llm import checkpoint
from mindspeed_llm.checkpoint import Checkpoint, OptimizerShard, SaveInfo, StoredTensor
from mindspeed_llm.config.configs import Configs
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.config.training import CheckpointConfig
from mindspeed_llm.core.optimizer.optimizer import Optimizer
from mindspeed_llm.core.parallel_state import ParallelState
from mindspeed_llm.core.sharding import OPTIMIZER_STATES
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
    found = checkpoint.open_checkpoint(config.load)
    if found is not None:
        return found, []
    why = "holds no checkpoint" if Path(config.load).is_dir() else "does not exist"
    name = "name the directory with latest_checkpointed_iteration.txt"
    for given, flag in ((config.exit_on_missing_checkpoint, "--exit-on-missing-checkpoint"),
                        (config.finetune, "--finetune")):
        if given:
            raise UserError(f"--load {config.load} {why} and {flag} is given: {name}, or leave --load empty to start "
                            "from random initialisation")
    return None, [f"WARNING: --load {config.load} {why}: STARTING FROM RANDOM INITIALISATION. If that is not meant, "
                  f"stop now and {name}"]


def restore_seed(configs: Configs, source: Checkpoint | None) -> Configs:
    """`configs` with the seed of the checkpoint that a run resumes, so that the data go on in the same order.

    With --no-load-rng, and where training starts at iteration 0, the seed stays that of the command line. Raises UserError
    for a --seed that contradicts the checkpoint's.
    """
    if source is None or source.weights_only or configs.checkpoint.finetune or configs.checkpoint.no_load_rng:
        return configs
    stored, asked = source.rng["seed"], configs.train.seed
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
        optimizer.step_count = source.extra["optimizer_steps"]
        scale.load_state(source.extra["loss_scale"])
    return Progress(source.iteration, source.consumed_samples)


def save(directory: str, progress: Progress, model: ModelConfig, parallel: ParallelConfig, optimizer: Optimizer,
         scale: LossScale, state: ParallelState, params_dtype: str, seed: int, *, with_optimizer: bool, adapters_only: bool) -> None:
    """Write a checkpoint together with all ranks; a kill at any instant leaves the previous one loadable.

    `adapters_only` leaves out the frozen base of a model with adapters.

    Without shared storage (`--no-shared-storage`) every node keeps the files of its own ranks under the same metadata.
    """
    # One rank leads and one of each set of replicas writes: in the job, or on every node.
    first_rank = collectives.first_rank_on_node() if parallel.no_shared_storage else 0
    leads = state.world.rank == first_rank
    writes = state.world.rank == min(rank for rank in state.dp_cp.ranks if rank >= first_rank)
    if leads:
        checkpoint.begin_save(directory, progress.iteration)
    collectives.barrier()
    staging = checkpoint.staging_directory(directory, progress.iteration)
    place = {"tp_rank": state.tp.rank, "tp_size": state.tp.size, "pp_rank": state.pp.rank, "pp_size": state.pp.size}
    entries = {}
    if writes:
        entries |= checkpoint.write_model_file(staging, [
            (spec, stored(chunk.parameters[name].asnumpy(), params_dtype))
            for chunk in optimizer.chunks for name, spec in chunk.parameters.specs.items()
            if spec.adapter or not adapters_only], **place)
    if with_optimizer and (optimizer.distributed or writes):
        entries |= checkpoint.write_optimizer_file(staging, [
            OptimizerShard(chunk_state.chunk.parameters.specs[piece.name], piece.start, piece.stop,
                           {name: chunk_state.states[name][index].asnumpy() for name in OPTIMIZER_STATES
                            if not (name == "master" and params_dtype == "fp32")})
            for chunk_state in optimizer.chunk_states for index, piece in enumerate(chunk_state.pieces)],
            dp_rank=state.dp_cp.rank if optimizer.distributed else 0, **place)
    everyones = _gather_entries(entries, state.world)  # also the barrier before the commit
    if leads:
        checkpoint.commit_save(directory, SaveInfo(
            model, parallel, progress.iteration, progress.consumed_samples, weights_only=False,
            data_parallel_size=state.dp.size, lora=optimizer.chunks[0].lora, adapters_only=adapters_only,
            rng={"seed": seed},
            extra={"optimizer_steps": optimizer.step_count, "loss_scale": scale.state()}), everyones)
    collectives.barrier()
    if state.world.rank == 0:
        print(f"successfully saved checkpoint from iteration {progress.iteration} to {directory}", flush=True)


def _gather_entries(entries: dict, world: Group) -> dict:
    """The union of every rank's metadata entries, on every rank."""
    text = np.frombuffer(json.dumps(entries).encode(), np.uint8)
    longest = int(collectives.all_reduce(from_numpy(np.array([text.size], np.float32)), world, "max").asnumpy()[0])
    padded = np.full(longest, ord(" "), np.int32)
    padded[:text.size] = text
    rows = collectives.all_gather(from_numpy(padded), world).asnumpy().reshape(world.size, longest)
    return {name: entry for row in rows for name, entry in json.loads(row.astype(np.uint8).tobytes()).items()}


def stored(array: np.ndarray, params_dtype: str) -> StoredTensor:
    """A parameter's memory as the checkpoint carries it (bf16 as its 16 bits)."""
    return StoredTensor(array.view(np.uint16) if params_dtype == "bf16" else array, params_dtype)
