"""A save that dies anywhere leaves the previous checkpoint; damaged checkpoints are named."""

import json
import os

import numpy as np
import pytest
from make_checkpoint import MODEL, global_state, save

from mindspeed_llm.checkpoint import SaveInfo, StoredTensor, begin_save, commit_save, open_checkpoint, write_model_file
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.core.structure import chunk_specs, model_specs

PARALLEL = ParallelConfig(tensor_model_parallel_size=2, pipeline_model_parallel_size=2, num_layer_list=(2, 3))
NAME = "decoder.layers.3.mlp.linear_fc1.weight"


class Killed(BaseException):
    """Not an Exception: nothing may catch it as an ordinary error."""


def kill_at(monkeypatch, step: int) -> list[int]:
    """Make the `step`-th system call that changes what is on disk die; returns a counter."""
    count = [0]

    def wrap(name: str):
        original = getattr(os, name)

        def wrapper(*args, **kwargs):
            count[0] += 1
            if count[0] >= step:  # once dead, nothing runs any more: no clean-up either
                raise Killed
            return original(*args, **kwargs)
        monkeypatch.setattr(os, name, wrapper)

    for name in ("rename", "replace", "fsync", "unlink", "mkdir", "rmdir"):
        wrap(name)
    return count


@pytest.mark.parametrize("iteration", [7, 8])
def test_a_kill_at_any_step_leaves_the_previous_checkpoint(tmp_path, iteration: int) -> None:
    """Saving iteration 8 over 7, and iteration 7 anew over itself."""
    old, new = global_state(MODEL, 1), global_state(MODEL, 2)
    parallel = ParallelConfig(tensor_model_parallel_size=2)
    step, finished = 0, False
    while not finished:
        step += 1
        root = tmp_path / str(step)
        save(root, MODEL, parallel, old, iteration=7)
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, step)
            try:
                save(root, MODEL, parallel, new, iteration=iteration)
                finished = True
            except Killed:
                finished = False
        with open_checkpoint(root) as checkpoint:
            checkpoint.verify()
            found = checkpoint.read_global(NAME).array
            is_old, is_new = (np.array_equal(found, state["weight"][NAME]) for state in (old, new))
            assert is_new if finished else is_old or is_new
            assert checkpoint.iteration == (iteration if is_new else 7)
        # The next save cleans up and succeeds.
        save(root, MODEL, parallel, new, iteration=9)
        left = sorted(path.name for path in root.iterdir())
        assert [name for name in left if name.endswith((".tmp", ".old"))] == []
        with open_checkpoint(root) as checkpoint:
            assert checkpoint.iteration == 9 and checkpoint.verify() > 0
    assert step > 30


def test_names_on_disk(tmp_path) -> None:
    save(tmp_path / "a", MODEL, PARALLEL, global_state(MODEL), dp=2)
    assert (tmp_path / "a/latest_checkpointed_iteration.txt").read_text().strip() == "7"
    directory = tmp_path / "a/iter_0000007"
    files = sorted(str(path.relative_to(directory)) for path in directory.rglob("*.*"))
    assert files[:4] == ["metadata.json", "mp_rank_00_000/model.safetensors",
                         "mp_rank_00_000/optimizer_dp_000.safetensors", "mp_rank_00_000/optimizer_dp_001.safetensors"]
    assert len(files) == 13
    save(tmp_path / "b", MODEL, ParallelConfig(tensor_model_parallel_size=2), global_state(MODEL), optimizer=False)
    assert (tmp_path / "b/iter_0000007/mp_rank_01/model.safetensors").is_file()
    metadata = json.loads((tmp_path / "b/iter_0000007/metadata.json").read_text())
    entry = metadata["files"]["mp_rank_01/model.safetensors"]["tensors"][NAME]
    assert entry["segments"] == [[12, 24], [36, 48]] and entry["global_shape"] == [48, 16] and entry["axis"] == 0


def test_a_rank_that_did_not_write_stops_the_commit(tmp_path) -> None:
    staging = begin_save(tmp_path, 3)
    state = global_state(MODEL)["weight"]
    specs = chunk_specs(MODEL, (0, 1, 2, 3, 4), first=True, last=True)
    write_model_file(staging, [(spec, StoredTensor(np.ascontiguousarray(state[spec.name][:spec.local_shape(0, 2)[0]])
                                                   .reshape(-1)[:np.prod(spec.local_shape(0, 2))]
                                                   .reshape(spec.local_shape(0, 2)), "fp32")) for spec in specs],
                     tp_rank=0, tp_size=2, pp_rank=0, pp_size=1)
    with pytest.raises(UserError, match="320 of 640 elements of the weight embedding"):
        commit_save(tmp_path, SaveInfo(MODEL, ParallelConfig(tensor_model_parallel_size=2), 3))
    assert open_checkpoint(tmp_path) is None
    with pytest.raises(ValueError, match="shape"):
        wrong = StoredTensor(np.zeros((3, 16), np.float32), "fp32")
        write_model_file(staging, [(specs[0], wrong)], tp_rank=0, tp_size=2, pp_rank=0, pp_size=1)


def test_damage_is_named(tmp_path) -> None:
    save(tmp_path, MODEL, PARALLEL, global_state(MODEL))
    spec = next(spec for spec in model_specs(MODEL) if spec.name == NAME)
    target = tmp_path / "iter_0000007/mp_rank_01_001/model.safetensors"
    content = target.read_bytes()

    def failure(read) -> str:
        with open_checkpoint(tmp_path) as checkpoint, pytest.raises((UserError, FileNotFoundError)) as caught:
            read(checkpoint)
        return str(caught.value)

    target.write_bytes(content[:-5])
    text = failure(lambda checkpoint: checkpoint.read(spec, 0, 1))
    assert str(target) in text and f"{len(content) - 5} bytes, {len(content)} expected" in text and "truncated" in text
    with open_checkpoint(tmp_path) as checkpoint:  # the other rank's tensor does not need the damaged file
        assert checkpoint.read(spec, 0, 2).shape == (24, 16)
    target.write_bytes(b"")
    assert "is empty" in failure(lambda checkpoint: checkpoint.read(spec, 1, 2))
    target.unlink()
    assert f"{target} is missing" in failure(lambda checkpoint: checkpoint.verify())
    target.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    assert "checksum of tensor" in failure(lambda checkpoint: checkpoint.verify())
    target.write_bytes(content)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.verify() > 0


def test_damaged_tracker_and_metadata_are_named(tmp_path) -> None:
    assert open_checkpoint(tmp_path / "nothing") is None
    save(tmp_path, MODEL, PARALLEL, global_state(MODEL))
    tracker = tmp_path / "latest_checkpointed_iteration.txt"
    tracker.write_text("12")
    with pytest.raises(FileNotFoundError, match="names iteration 12.*iter_0000012 does not exist.*iter_0000007"):
        open_checkpoint(tmp_path)
    assert open_checkpoint(tmp_path, 7).iteration == 7
    tracker.write_text("release")
    with pytest.raises(UserError, match="'release', an iteration number expected"):
        open_checkpoint(tmp_path)
    tracker.write_text("7")
    metadata = tmp_path / "iter_0000007/metadata.json"
    good = json.loads(metadata.read_text())
    for text, message in ((metadata.read_text()[:100], "is not JSON"), ("{}", "not the metadata"),
                          (json.dumps(good | {"format_version": 9}), "format version 9"),
                          (json.dumps({key: good[key] for key in good if key != "files"}), "'files'")):
        metadata.write_text(text)
        with pytest.raises(UserError, match=message):
            open_checkpoint(tmp_path)
    metadata.unlink()
    with pytest.raises(FileNotFoundError, match="metadata.json is missing"):
        open_checkpoint(tmp_path)
