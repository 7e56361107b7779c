"""Saving a checkpoint together with all ranks, at once or in the background (`--async-save`)."""

import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mindspeed_llm import checkpoint
from mindspeed_llm.checkpoint import OptimizerShard, SaveInfo, StoredTensor
from mindspeed_llm.config.configs import Configs
from mindspeed_llm.core.optimizer.optimizer import Optimizer
from mindspeed_llm.core.parallel_state import ParallelState
from mindspeed_llm.core.sharding import OPTIMIZER_STATES, TensorSpec
from mindspeed_llm.data.gpt_dataset import SAMPLE_ORDER
from mindspeed_llm.runtime import collectives
from mindspeed_llm.runtime.collectives import Group
from mindspeed_llm.runtime.memory import from_numpy
from mindspeed_llm.training.checkpointing import Progress
from mindspeed_llm.training.loss_scale import LossScale

Weights = list[tuple[TensorSpec, StoredTensor]]


@dataclass
class _Pending:
    """A save on its way: first every rank writes its files, then the leaders commit."""

    info: SaveInfo
    step: Future
    committing: bool = False


class Saver:
    """Writes checkpoints of a running job; a kill at any instant leaves the previous one loadable.

    With `--async-save`, `save` copies this rank's tensors and returns; a thread writes the copy. Collectives stay with
    the caller's thread: `poll`, once an iteration, finds out whether all ranks have written, and has the commit made,
    in the background too. A save waits for the one before it. What goes wrong in the background is raised by the next
    call.

    Without shared storage (`--no-shared-storage`) every node keeps the files of its own ranks under the same metadata.
    """

    def __init__(self, configs: Configs, optimizer: Optimizer, scale: LossScale, state: ParallelState,
                 params_dtype: str) -> None:
        self._configs, self._optimizer, self._scale, self._state = configs, optimizer, scale, state
        self._params_dtype = params_dtype
        # One rank leads and one of each set of replicas writes: in the job, or on every node.
        first_rank = collectives.first_rank_on_node() if configs.parallel.no_shared_storage else 0
        self._leads = state.world.rank == first_rank
        self._writes = state.world.rank == min(rank for rank in state.dp_cp.ranks if rank >= first_rank)
        self._place = {"tp_rank": state.tp.rank, "tp_size": state.tp.size, "pp_rank": state.pp.rank,
                       "pp_size": state.pp.size}
        self._pending: _Pending | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._copies: dict[tuple, np.ndarray] = {}
        if configs.checkpoint.save and configs.checkpoint.async_save:
            self._thread = ThreadPoolExecutor(1, "checkpoint")
            self._snapshot(self._weights(), self._shards())  # the memory is there, and touched, before the first save

    def save(self, progress: Progress) -> None:
        """Save the state of now as the checkpoint of `progress.iteration`."""
        self.finish()
        directory = self._configs.checkpoint.save
        if self._leads:
            checkpoint.begin_save(directory, progress.iteration)
        collectives.barrier()
        weights, shards = self._weights(), self._shards()
        if self._thread is not None:
            weights, shards = self._snapshot(weights, shards)
        info = SaveInfo(
            self._configs.model, self._configs.parallel, progress.iteration, progress.consumed_samples,
            weights_only=False, data_parallel_size=self._state.dp.size, lora=self._optimizer.chunks[0].lora,
            adapters_only=self._configs.checkpoint.lora_ckpt_filter, rng={"seed": self._configs.train.seed},
            extra={"optimizer_steps": self._optimizer.step_count, "loss_scale": self._scale.state(),
                   "sample_order": SAMPLE_ORDER})
        self._pending = _Pending(info, self._start(self._write, progress.iteration, weights, shards))
        if self._thread is None:
            self.finish()

    def poll(self) -> None:
        """Take a save in the background one step further if all ranks are ready for it. Collective while there is one.

        Raises what went wrong in this rank's background.
        """
        pending = self._pending
        if pending is None:
            return
        busy = not pending.step.done()
        if not busy:
            pending.step.result()
        flag = from_numpy(np.array([busy], np.float32))
        if collectives.all_reduce(flag, self._state.world, "max").asnumpy()[0]:
            return
        if not pending.committing:
            entries = _gather_entries(pending.step.result(), self._state.world)
            self._pending = replace(pending, step=self._start(self._commit, pending.info, entries), committing=True)
            return
        self._pending = None
        if self._state.world.rank == 0:
            print(f"successfully saved checkpoint from iteration {pending.info.iteration} to "
                  f"{self._configs.checkpoint.save}", flush=True)

    def finish(self) -> None:
        """Wait until nothing is left to be written. Collective."""
        while self._pending is not None:
            self._pending.step.exception()  # waits
            self.poll()

    def _start(self, work: Callable, *arguments: Any) -> Future:
        if self._thread is not None:
            return self._thread.submit(work, *arguments)
        done: Future = Future()
        done.set_result(work(*arguments))
        return done

    def _weights(self) -> Weights:
        if not self._writes:
            return []
        return [(spec, stored(chunk.parameters[name].asnumpy(), self._params_dtype))
                for chunk in self._optimizer.chunks for name, spec in chunk.parameters.specs.items()
                if spec.adapter or not self._configs.checkpoint.lora_ckpt_filter]

    def _shards(self) -> list[OptimizerShard] | None:
        """This rank's optimizer state, or None where another rank writes it, or nobody."""
        if self._configs.checkpoint.no_save_optim or not (self._optimizer.distributed or self._writes):
            return None
        names = [name for name in OPTIMIZER_STATES if not (name == "master" and self._params_dtype == "fp32")]
        return [OptimizerShard(chunk_state.chunk.parameters.specs[piece.name], piece.start, piece.stop,
                               {name: chunk_state.states[name][index].asnumpy() for name in names})
                for chunk_state in self._optimizer.chunk_states for index, piece in enumerate(chunk_state.pieces)]

    def _snapshot(self, weights: Weights, shards: list[OptimizerShard] | None
                  ) -> tuple[Weights, list[OptimizerShard] | None]:
        """The same in memory of its own, which all saves share."""
        copied = [(spec, replace(tensor, array=self._copy(("weight", number), tensor.array)))
                  for number, (spec, tensor) in enumerate(weights)]
        if shards is None:
            return copied, None
        return copied, [replace(shard, states={name: self._copy((name, number), array)
                                               for name, array in shard.states.items()})
                        for number, shard in enumerate(shards)]

    def _copy(self, key: tuple, array: np.ndarray) -> np.ndarray:
        if key not in self._copies:
            self._copies[key] = np.empty_like(array)
        np.copyto(self._copies[key], array)
        return self._copies[key]

    def _write(self, iteration: int, weights: Weights, shards: list[OptimizerShard] | None) -> dict:
        """This rank's files; returns their metadata entries."""
        staging = checkpoint.staging_directory(self._configs.checkpoint.save, iteration)
        entries = checkpoint.write_model_file(staging, weights, **self._place) if self._writes else {}
        if shards is not None:
            entries |= checkpoint.write_optimizer_file(
                staging, shards, dp_rank=self._state.dp_cp.rank if self._optimizer.distributed else 0, **self._place)
        return entries

    def _commit(self, info: SaveInfo, entries: dict) -> None:
        if not self._leads:
            return
        config = self._configs.checkpoint
        checkpoint.commit_save(config.save, info, entries)
        if config.save_total_limit is not None:
            checkpoint.remove_old(config.save, config.save_total_limit)


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
