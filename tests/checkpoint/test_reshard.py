"""Weights and optimizer state read under another TP, PP, DP and layer list than they were saved with."""

import dataclasses

import numpy as np
import pytest
from make_checkpoint import MODEL, cuts, global_state, save, shard

from mindspeed_llm.checkpoint import boxes as checkpoint_boxes
from mindspeed_llm.checkpoint import open_checkpoint
from mindspeed_llm.checkpoint.boxes import Box, Source, fill, shard_boxes
from mindspeed_llm.checkpoint.dtypes import cast
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.core.structure import model_specs

TIED = dataclasses.replace(MODEL, untie_embeddings_and_output_weights=False, add_qkv_bias=False, post_norm=True)
LAYOUTS = [(MODEL, ParallelConfig(tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, num_layer_list=split,
                                  noop_layers=noops), dp)
           for tp, pp, split, noops, dp in [
               (1, 1, None, (), 1), (2, 2, (2, 3), (), 2), (4, 1, None, (), 3), (8, 3, (1, 3, 1), (), 2),
               (2, 5, None, (), 4), (4, 2, (4, 1), (0, 2), 2), (1, 2, (1, 4), (4,), 5)]]
LAYOUTS.append((TIED, ParallelConfig(tensor_model_parallel_size=2, pipeline_model_parallel_size=2,
                                     num_layer_list=(2, 3)), 2))
LAYOUTS.append((dataclasses.replace(MODEL, num_layers=8),
                ParallelConfig(tensor_model_parallel_size=4, pipeline_model_parallel_size=2,
                               num_layers_per_virtual_pipeline_stage=2), 2))


# fp32 is read as bf16 is, but for the cast: two layouts by default
@pytest.mark.parametrize(("dtype", "case"), [
    pytest.param(dtype, case, marks=[pytest.mark.full] if dtype == "fp32" and case not in (1, 7) else [])
    for dtype in ("fp32", "bf16") for case in range(len(LAYOUTS))])
def test_every_split_reads_back_under_every_other(tmp_path, case: int, dtype: str) -> None:
    model, parallel, dp = LAYOUTS[case]
    state = global_state(model, case, parallel.noop_layers)
    save(tmp_path, model, parallel, state, dp=dp, dtype=dtype, seed=case)
    rng = np.random.default_rng(case)
    with open_checkpoint(tmp_path) as checkpoint:
        specs = model_specs(model, parallel.noop_layers)
        assert checkpoint.verify() >= 4 * len(specs)
        assert sorted(checkpoint.names()) == sorted(spec.name for spec in specs)
        for size in (1, 2, 4, 8):
            for spec in specs:
                whole = cast(state["weight"][spec.name], "fp32", dtype)
                for rank in range(size):
                    tensor = checkpoint.read(spec, rank, size)
                    assert tensor.dtype == dtype and np.array_equal(tensor.array, shard(whole, spec, rank, size))
                    count = tensor.array.size
                    for start, stop in cuts(count, 3 if size < 4 else 1, rng):
                        found = checkpoint.read_optimizer(spec, rank, size, start, stop)
                        for kind, array in found.items():
                            wanted = shard(state[kind][spec.name], spec, rank, size).reshape(-1)[start:stop]
                            assert array.dtype == np.float32 and np.array_equal(array, wanted)
        for spec in specs:
            whole = cast(state["weight"][spec.name], "fp32", dtype)
            assert np.array_equal(checkpoint.read_global(spec.name).array, whole)


def test_a_missing_master_is_the_weight(tmp_path) -> None:
    state = global_state(MODEL)
    save(tmp_path, MODEL, ParallelConfig(tensor_model_parallel_size=4), state, master=False)
    spec = model_specs(MODEL)[2]
    with open_checkpoint(tmp_path) as checkpoint:
        found = checkpoint.read_optimizer(spec, 1, 2, 5, 77)
    assert np.array_equal(found["master"], shard(state["weight"][spec.name], spec, 1, 2).reshape(-1)[5:77])


def test_flat_ranges_are_read_exactly_by_random_boxes() -> None:
    """The box algebra against numpy indexing, for row cuts and column cuts with several segments."""
    rng = np.random.default_rng(3)
    for _ in range(200):
        shape = tuple(int(n) for n in rng.integers(2, 9, 2))
        axis = int(rng.integers(0, 2))
        edges = sorted(rng.choice(shape[axis] + 1, min(4, shape[axis] + 1), replace=False).tolist())
        segments = list(zip(edges[::2], edges[1::2]))
        whole = rng.standard_normal(shape)
        local = np.concatenate([np.take(whole, np.arange(a, b), axis) for a, b in segments], axis).reshape(-1)
        start, stop = sorted(rng.integers(0, local.size + 1, 2).tolist())
        out = np.full(stop - start, np.nan)
        boxes = shard_boxes(shape, axis, segments, start, stop)
        source = Source((Box(0, 0, *shape, 0, shape[1]),), lambda whole=whole: whole.reshape(-1))
        assert fill(out, boxes, [source]) == [] and np.array_equal(out, local[start:stop])


@pytest.mark.parametrize("axis", [0, 1])
def test_what_lies_in_a_row_is_read_and_not_looked_at(monkeypatch, axis) -> None:
    """Rows are, columns are not, as every second piece of them belongs to somebody else."""
    whole, reads = np.arange(48.0).reshape(6, 8), []
    monkeypatch.setattr(checkpoint_boxes, "_READ", 8)

    def read(offset: int, out: np.ndarray) -> None:
        reads.append(out.size)
        out[...] = whole.reshape(-1)[offset:offset + out.size]

    def flat() -> np.ndarray:
        assert axis == 1
        return whole.reshape(-1)
    out = np.empty(whole.size // 2)
    assert fill(out, shard_boxes(whole.shape, axis, [(0, whole.shape[axis] // 2)]),
                [Source((Box(0, 0, *whole.shape, 0, whole.shape[1]),), flat, read)]) == []
    assert np.array_equal(out.reshape(3, -1) if axis == 0 else out.reshape(6, -1),
                          whole[:3] if axis == 0 else whole[:, :4])
    assert reads == ([24] if axis == 0 else [])


def test_what_no_file_holds_is_reported() -> None:
    out = np.zeros(16)
    left = fill(out, [Box(0, 0, 4, 4, 0, 4)], [Source((Box(1, 1, 2, 2, 0, 2),), lambda: np.ones(4))])
    assert sum(box.rows * box.cols for box in left) == 12 and out.sum() == 4


def test_what_a_checkpoint_lacks_is_named_with_the_remedy(tmp_path) -> None:
    save(tmp_path, MODEL, ParallelConfig(), global_state(MODEL), optimizer=False)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.weights_only and not checkpoint.has_optimizer and checkpoint.consumed_samples == 448
        wider = model_specs(dataclasses.replace(MODEL, padded_vocab_size=48))[0]
        with pytest.raises(UserError, match=r"shape \[40, 16\]"):
            checkpoint.read(wider, 0, 1)
        with pytest.raises(UserError, match="no optimizer state.*--no-load-optim"):
            checkpoint.read_optimizer(model_specs(MODEL)[0], 0, 1, 0, 4)
