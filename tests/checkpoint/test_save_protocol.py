"""A save that dies anywhere leaves the previous checkpoint; damaged checkpoints are named."""

import json
import os
import re
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from make_checkpoint import MODEL, global_state, save

from mindspeed_llm.checkpoint import (SaveInfo, StoredTensor, begin_save, commit_save, open_checkpoint, remove_old,
                                      write_model_file)
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.core.structure import chunk_specs, model_specs
from mindspeed_llm.tasks.convert.verify import verify

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
    model, name = replace(MODEL, num_layers=1), "decoder.layers.0.mlp.linear_fc1.weight"
    old, new = global_state(model, 1), global_state(model, 2)
    parallel = ParallelConfig(tensor_model_parallel_size=2)
    step, finished = 0, False
    while not finished:
        step += 1
        root = tmp_path / str(step)
        save(root, model, parallel, old, iteration=7)
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, step)
            try:
                save(root, model, parallel, new, iteration=iteration)
                finished = True
            except Killed:
                finished = False
        with open_checkpoint(root) as checkpoint:
            checkpoint.verify()
            found = checkpoint.read_global(name).array
            is_old, is_new = (np.array_equal(found, state["weight"][name]) for state in (old, new))
            assert is_new if finished else is_old or is_new
            assert checkpoint.iteration == (iteration if is_new else 7)
        # The next save cleans up and succeeds.
        save(root, model, parallel, new, iteration=9)
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


def test_the_last_complete_checkpoint_is_taken_instead(tmp_path) -> None:
    for iteration in (3, 5, 9, 7):  # the tracker ends at 7
        save(tmp_path, MODEL, PARALLEL, global_state(MODEL), iteration=iteration)
    assert open_checkpoint(tmp_path).warning is None
    model = "mp_rank_01_001/model.safetensors"
    (tmp_path / "iter_0000007" / model).write_bytes(b"short")
    with open_checkpoint(tmp_path) as found:
        assert found.iteration == 5 and f"{model} is truncated" in found.warning
    (tmp_path / "iter_0000005" / model).unlink()
    (tmp_path / "iter_0000003/metadata.json").write_text("{")
    assert open_checkpoint(tmp_path).iteration == 9  # nothing before it is complete
    (tmp_path / "iter_0000009" / model).unlink()
    with open_checkpoint(tmp_path) as found:
        assert found.iteration == 7 and found.warning is None  # nothing better: what is missing may not be needed
    assert open_checkpoint(tmp_path, 9).iteration == 9


def test_old_checkpoints_are_removed(tmp_path) -> None:
    for iteration in (1, 2, 3, 4, 12):
        save(tmp_path, MODEL, PARALLEL, global_state(MODEL), iteration=iteration, optimizer=iteration > 1)
    assert remove_old(tmp_path, 2) == [2, 3]
    assert remove_old(tmp_path, 2) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "iter_0000001", "iter_0000004", "iter_0000012", "latest_checkpointed_iteration.txt"]


def test_verify_names_files_and_tensors(tmp_path, capsys) -> None:
    for iteration in (3, 5):
        save(tmp_path, MODEL, PARALLEL, global_state(MODEL), iteration=iteration)
    verify(str(tmp_path))
    verify(str(tmp_path / "iter_0000003"))
    assert capsys.readouterr().out.count("complete and undamaged") == 3
    first, second = (tmp_path / "iter_0000003" / f"mp_rank_0{rank}_001/model.safetensors" for rank in (0, 1))
    first.write_bytes(first.read_bytes()[:-3])
    content = bytearray(second.read_bytes())
    content[-1] ^= 1
    second.write_bytes(content)
    with pytest.raises(UserError) as caught:
        verify(str(tmp_path))
    text = str(caught.value)
    assert f"{first} is truncated" in text and f"{second}: checksum of tensor output_layer.weight is wrong" in text
    assert "iter_0000005" not in text and "iter_0000003: 2 problems" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="holds no mcore checkpoint"):
        verify(str(tmp_path / "nothing"))


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """One damage: bytes changed, a piece cut out or doubled, a number, a word or a whole value replaced."""
    text = content
    place = int(rng.integers(len(text)))
    kind = int(rng.integers(5))
    if kind == 0:
        changed = bytearray(text)
        for _ in range(int(rng.integers(1, 4))):
            changed[int(rng.integers(len(text)))] = int(rng.integers(256))
        return bytes(changed)
    if kind == 1:
        return text[:place] + text[place + int(rng.integers(1, 30)):]
    if kind == 2:
        return text[:place] + text[place:place + 30] + text[place:]
    found = list(re.finditer(rb"\d+|\[[^\[\]]*\]|\"[^\"]{1,40}\"|true|false|null", text))
    if not found:
        return text[:place]
    match = found[int(rng.integers(len(found)))]
    values = (b"0", b"-1", b"1e400", b"99999999999", b"9" * 30, b"null", b"[]", b"{}", b'"x"', b"[" * 2000, b"true", b"1.5",
              b'"../../../etc/passwd"', b"[0, 4000000000]")
    return text[:match.start()] + values[int(rng.integers(len(values)))] + text[match.end():]


@pytest.mark.parametrize("runs", [150, pytest.param(10_000, marks=pytest.mark.full)])
def test_whatever_the_bytes_nothing_crashes_or_grows(tmp_path, runs: int) -> None:
    """Mutated headers, metadata and trackers: an error that names something in the directory, or a checkpoint of the
    model's size."""
    save(tmp_path / "c", MODEL, ParallelConfig(), global_state(MODEL), optimizer=False)
    targets = [tmp_path / "c" / name for name in ("iter_0000007/metadata.json", "iter_0000007/mp_rank_00/model.safetensors",
                                                  "latest_checkpointed_iteration.txt")]
    good = {path: path.read_bytes() for path in targets}
    header = 8 + int.from_bytes(good[targets[1]][:8], "little")
    size = sum(len(content) for content in good.values())
    rng, refused = np.random.default_rng(11), 0
    tracemalloc.start()
    for number in range(runs):
        path = targets[(0, 0, 1, 1, 2)[number % 5]]
        head = header if path == targets[1] else None
        path.write_bytes(mutate(good[path][:head], rng) + (good[path][head:] if head else b""))
        tracemalloc.reset_peak()
        try:
            with open_checkpoint(tmp_path / "c") as found:
                for spec in model_specs(found.model_config, found.noop_layers):
                    found.read(spec, 0, 1)
        except (UserError, FileNotFoundError) as error:
            assert str(tmp_path) in str(error) or "checkpoint" in str(error), error
            refused += 1
        assert tracemalloc.get_traced_memory()[1] < 20 * size
        path.write_bytes(good[path])
    tracemalloc.stop()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["c"] and refused > runs / 4


def test_damaged_tracker_and_metadata_are_named(tmp_path) -> None:
    assert open_checkpoint(tmp_path / "nothing") is None
    save(tmp_path, MODEL, PARALLEL, global_state(MODEL))
    tracker = tmp_path / "latest_checkpointed_iteration.txt"
    tracker.write_text("12")
    with pytest.raises(FileNotFoundError, match="iteration 12 was asked for.*iter_0000012 does not exist"):
        open_checkpoint(tmp_path, 12)
    assert open_checkpoint(tmp_path, 7).iteration == 7
    for text, message in (("12", "names iteration 12, but .*iter_0000012 does not exist"), ("\u00b2", "holds"),
                          ("release", "'release', an iteration number expected"), ("9" * 5000, "999"), ("", "''")):
        tracker.write_text(text)
        with open_checkpoint(tmp_path) as found:
            assert found.iteration == 7 and re.search(f"{message}.*FALLING BACK TO ITERATION 7", found.warning)
    tracker.unlink()
    assert f"{tracker} is missing. FALLING BACK TO ITERATION 7" in open_checkpoint(tmp_path).warning
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
