"""Cases of a RankPool for test_behaviour.py: what four ranks see."""

from types import SimpleNamespace
from unittest.mock import patch

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.core import parameters
from mindspeed_llm.core.optimizer import gradients
from mindspeed_llm.core.pipeline_parallel.schedules import forward_only
from mindspeed_llm.runtime import collectives
from mindspeed_llm.runtime.collectives import mccl
from mindspeed_llm.training.checkpointing import require_same_iteration
from tests.golden.reference import Golden
from tests.golden.trial import ADAMW, Trial


def iterations_found() -> list[str]:
    """What is said where all ranks have found iteration 7, where rank 3 has found 5, and where rank 0 has found none."""
    world = collectives.world()
    said = []
    for mine in (7, 5 if world.rank == 3 else 7, None if world.rank == 0 else 7):
        try:
            require_same_iteration(None if mine is None else SimpleNamespace(iteration=mine), world)
            said.append("")
        except UserError as error:
            said.append(str(error))
    return said


def mccl_mismatches() -> list[str]:
    """Operations of the engine between hosts whose result is not the exact one, per dtype; the values are small
    integers.
    """
    world = collectives.world()
    size, rank = world.size, world.rank
    inputs = [np.random.default_rng(r).integers(0, 9, (2 * size, 3)).astype(np.float32) for r in range(size)]
    following, previous = (rank + 1) % size, (rank - 1) % size
    wrong = []
    for dtype in (ms.float32, ms.bfloat16, ms.float16):
        mine = Tensor(inputs[rank]).astype(dtype)
        sends = [(mine, following), (mine[1:3], previous)]
        receives = [(mine.shape, dtype, previous), ((2, 3), dtype, following)]
        exchanged = mccl.finish_exchange(mccl.start_exchange(sends, receives, world))
        pieces = mccl.all_to_all(list(mine.chunk(size, 0)), world)
        own = slice(2 * rank, 2 * rank + 2)
        for name, got, expected in (
                ("sum", mccl.all_reduce(mine, world, "sum"), sum(inputs)),
                ("max", mccl.all_reduce(mine, world, "max"), np.max(inputs, axis=0)),
                ("all_gather", mccl.all_gather(mine, world), np.concatenate(inputs)),
                ("reduce_scatter", mccl.reduce_scatter(mine, world), sum(inputs)[own]),
                ("broadcast", mccl.broadcast(mine, world, 1), inputs[1]),
                ("all_to_all", ms.mint.cat(pieces, dim=0), np.concatenate([array[own] for array in inputs])),
                ("from previous", exchanged[0], inputs[previous]),
                ("from next", exchanged[1], inputs[following][1:3])):
            if got.dtype != dtype or not np.array_equal(got.astype(ms.float32).asnumpy(), expected):
                wrong.append(f"{name} {dtype}")
    return wrong


def bad_gradient() -> dict:
    """One rank of four finds a NaN: every rank names it, and no rank updates."""
    trial = Trial(Golden(), ParallelConfig(tensor_model_parallel_size=2, pipeline_model_parallel_size=2,
                                           sequence_parallel=True))
    trial.load()
    optimizer = trial.optimizer(ADAMW)
    trial.forward_backward()
    if collectives.world().rank == 3:
        for name in ("decoder.layers.3.mlp.linear_fc2.weight", "output_layer.weight"):
            trial.chunks[0].parameters[name].main_grad.asnumpy().reshape(-1)[5] = np.nan
    buffer = trial.chunks[0].parameters.buffer
    before = [view.asnumpy().copy() for view in buffer.views]
    result = optimizer.step(1e-3, trial.grad_scale)
    unchanged = all((view.asnumpy() == values).all() for view, values in zip(buffer.views, before, strict=True))
    return {"updated": result.updated, "unchanged": unchanged, "steps": optimizer.step_count,
            "name": gradients.first_bad_anywhere(trial.chunks, trial.state)}


def some_frozen(parallel: dict, micro_batch: int, trained: list[str]) -> dict:
    """Training of the parameters named: their errors, what moved, what the optimizer updates, and the gradient norm."""
    with patch.object(parameters, "BUCKET_ELEMENTS", 2000):
        trial = Trial(Golden(), ParallelConfig(**parallel), micro_batch,
                      trainable=lambda spec: spec.name in trained)
    grad_errors, parameter_errors = trial.sgd_step()
    sets = [chunk.parameters for chunk in trial.chunks]
    moved = [name for each in sets for name in each.specs
             if np.any(each[name].asnumpy() != trial.golden.local("weight", each.specs[name], each.tp_rank, each.tp_size))]
    optimizer = trial.optimizer(ADAMW)
    pieces = {piece.name for chunk_state in optimizer.chunk_states for piece in chunk_state.pieces}
    return {"gradients": max(grad_errors.values(), default=0.0), "parameters": max(parameter_errors.values(), default=0.0),
            "moved": moved, "updated": sorted(pieces), "norm": trial.adamw(1)[1][0]}


def early_buckets() -> dict:
    """How many gradient buckets are on their way when backward has ended, and how many could be."""
    with patch.object(parameters, "BUCKET_ELEMENTS", 5000):
        trial = Trial(Golden(), ParallelConfig(use_distributed_optimizer=True, overlap_grad_reduce=True))
    trial.load()
    optimizer = trial.optimizer(ADAMW)
    optimizer.expect_gradients(trial.microbatches)
    trial.forward_backward()
    (reducer,) = optimizer._reducers
    started = len(reducer._started)
    optimizer.step(1e-3, trial.grad_scale)
    buckets = trial.chunks[0].parameters.buckets
    return {"started": started, "early": sum(not bucket.late for bucket in buckets)}


def evaluation_losses() -> dict:
    """Forward-only losses of an interleaved pipeline beside those of training."""
    trial = Trial(Golden(), ParallelConfig(pipeline_model_parallel_size=2, num_layers_per_virtual_pipeline_stage=1))
    trial.load()
    passes = trial.passes()
    outputs = forward_only(passes.programs, trial.microbatches, trial.state.pp)
    return {"forward_only": passes.means(outputs, trial.state)[0],
            "training": trial.forward_backward()}
