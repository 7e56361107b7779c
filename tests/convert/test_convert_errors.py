"""Bad input to the converter: one clear line, nothing left behind; and the documented log lines."""

import json
import logging
import re
from pathlib import Path

import pytest
from tiny_hf import chatglm_config, chatglm_tensors, native_config, native_tensors, write_hf

from mindspeed_llm.checkpoint import open_checkpoint
from mindspeed_llm.checkpoint.files import write_text
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.training import ConvertConfig
from mindspeed_llm.tasks.convert import hf_to_mcore, mcore_to_hf, run

INDEX = "model.safetensors.index.json"


@pytest.fixture
def hf(tmp_path) -> Path:
    return write_hf(tmp_path / "hf", chatglm_config(), chatglm_tensors())


def failure(hf: Path, **changes: object) -> str:
    """The message of a failing hf -> mg conversion; checks that it left nothing."""
    target = hf.parent / "new" / "mg"
    with pytest.raises((UserError, FileNotFoundError)) as caught:
        run(ConvertConfig(load_dir=str(hf), save_dir=str(target), **changes))
    assert not target.parent.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_log_lines(hf, tmp_path, capsys, caplog) -> None:
    with caplog.at_level(logging.INFO):
        run(ConvertConfig(load_dir=str(hf), save_dir=str(tmp_path) + "/mg/"))
    assert f"successfully saved checkpoint from iteration 1 to {tmp_path}/mg/\n" in capsys.readouterr().out
    assert [(record.name, record.levelname, record.message) for record in caplog.records] == [("root", "INFO", "Done!")]


def test_missing_directory_and_config(hf, tmp_path) -> None:
    assert "nowhere is not a directory" in failure(tmp_path / "nowhere")
    (hf / "config.json").unlink()
    assert f"{hf} has no config.json" in failure(hf)


def test_missing_truncated_and_empty_shards(hf) -> None:
    shard = hf / "model-00002-of-00002.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-10])
    text = failure(hf)
    assert str(shard) in text and f"it has {len(content) - 10} bytes, its header asks for {len(content)}" in text
    shard.write_bytes(b"")
    assert f"{shard} is empty" in failure(hf)
    shard.unlink()
    assert f"{shard} is missing" in failure(hf)


def test_no_weights_and_pickled_weights(hf) -> None:
    for path in [*hf.glob("*.safetensors"), hf / INDEX]:
        path.unlink()
    assert f"has neither {INDEX} nor model.safetensors" in failure(hf)
    (hf / "pytorch_model-00001-of-00002.bin").write_bytes(b"x")
    assert "pickled" in failure(hf)


def test_tensors_missing_in_and_unknown_to_the_index(hf) -> None:
    index = json.loads((hf / INDEX).read_text())
    name = "transformer.encoder.layers.2.mlp.dense_h_to_4h.weight"
    file = index["weight_map"].pop(name)
    (hf / INDEX).write_text(json.dumps(index))
    text = failure(hf)
    assert INDEX in text and name in text and "lacks 1 of" in text
    index["weight_map"] |= {name: file, "transformer.encoder.layers.9.mlp.dense_h_to_4h.weight": file}
    (hf / INDEX).write_text(json.dumps(index))
    assert "layers.9.mlp" in failure(hf)
    (hf / INDEX).write_text('{"weight_map": {"a": "../x"}}')
    assert "'weight_map'" in failure(hf)
    (hf / INDEX).write_text("{")
    assert "is not JSON" in failure(hf)


def test_wrong_layout_names_what_it_looks_like_and_the_flag(hf, tmp_path) -> None:
    native = write_hf(tmp_path / "native", native_config("glm4"), native_tensors(chatglm_tensors(), True))
    text = failure(native)
    assert "model_type 'glm4'" in text and "--model-type-hf chatglm3: use --model-type-hf glm4" in text
    assert "use --model-type-hf chatglm3" in failure(hf, model_type_hf="glm")
    assert "--model-type-hf (llama2) must be one of chatglm3, glm, glm4" in failure(hf, model_type_hf="llama2")
    (hf / "config.json").write_text('{"model_type": "llama"}')
    assert "model_type 'llama' is no model that can be converted" in failure(hf)


@pytest.mark.parametrize("change, message", [
    ({"hidden_size": None}, "has no entry 'hidden_size'"),
    ({"hidden_size": "32"}, "entry 'hidden_size' is '32', int expected"),
    ({"hidden_size": 64}, r"has shape \[64, 32\], config.json gives \[64, 64\]"),
    ({"num_layers": 5}, "lacks 7 of"),
    ({"num_layers": 3}, "has 7 tensors that config.json"),
    ({"add_bias_linear": True}, "add_bias_linear is True, only False"),
])
def test_config_that_does_not_fit(hf, change: dict, message: str) -> None:
    (hf / "config.json").write_text(json.dumps(chatglm_config(**change)))
    assert re.search(message, failure(hf))


@pytest.mark.parametrize("change, message", [
    ({"target_tensor_parallel_size": 3}, "heads (8) must be divisible by --target-tensor-parallel-size (3)"),
    ({"target_tensor_parallel_size": 0}, "--target-tensor-parallel-size (0) must be at least 1"),
    ({"target_pipeline_parallel_size": 3}, "--num-layers (4) must be divisible by --target-pipeline-parallel-size (3)"),
    ({"target_pipeline_parallel_size": 2, "num_layer_list": (3, 2)}, "--num-layer-list (3,2)"),
    ({"params_dtype": "int8"}, "--params-dtype (int8) must be one of fp32, bf16, fp16"),
    ({"stated_model": {"hidden_size": 64}}, "--hidden-size (64) contradicts"),
])
def test_flags_that_do_not_fit(hf, change: dict, message: str) -> None:
    assert message in failure(hf, **change)


def test_a_failure_half_way_leaves_nothing_and_keeps_an_earlier_conversion(hf, tmp_path, monkeypatch) -> None:
    target = tmp_path / "mg"
    run(ConvertConfig(load_dir=str(hf), save_dir=str(target)))

    def fail(*args: object, **kwargs: object) -> None:
        raise UserError("no more")
    monkeypatch.setattr(hf_to_mcore, "commit_save", fail)
    failure(hf, target_tensor_parallel_size=2)
    with pytest.raises(UserError, match="no more"):
        run(ConvertConfig(load_dir=str(hf), save_dir=str(target), target_tensor_parallel_size=2))
    assert sorted(path.name for path in target.iterdir()) == ["iter_0000001", "latest_checkpointed_iteration.txt"]
    with open_checkpoint(target) as checkpoint:
        assert checkpoint.parallel["tensor_model_parallel_size"] == 1 and checkpoint.verify() > 0
    monkeypatch.undo()
    run(ConvertConfig(load_dir=str(hf), save_dir=str(target), target_tensor_parallel_size=2))
    with open_checkpoint(target) as checkpoint:
        assert checkpoint.parallel["tensor_model_parallel_size"] == 2


def test_a_training_checkpoint_is_not_hidden(hf, tmp_path) -> None:
    target = tmp_path / "mg"
    run(ConvertConfig(load_dir=str(hf), save_dir=str(target)))
    path = target / "iter_0000001/metadata.json"
    write_text(path, json.dumps(json.loads(path.read_text()) | {"weights_only": False}))
    with pytest.raises(UserError, match="holds a training checkpoint of iteration 1"):
        run(ConvertConfig(load_dir=str(hf), save_dir=str(target)))


def export_config(mcore: Path, hf: Path, **changes: object) -> ConvertConfig:
    return ConvertConfig(load_model_type="mg", save_model_type="hf", load_dir=str(mcore), hf_dir=str(hf),
                         **({"save_dir": str(hf / "mg2hf")} | changes))


def export_failure(mcore: Path, hf: Path, **changes: object) -> str:
    before = sorted(hf.rglob("*"))
    with pytest.raises((UserError, FileNotFoundError)) as caught:
        run(export_config(mcore, hf, **changes))
    assert sorted(hf.rglob("*")) == before
    return str(caught.value)


def test_bad_exports(hf, tmp_path) -> None:
    mcore = tmp_path / "mg"
    assert "holds no checkpoint" in export_failure(tmp_path / "none", hf)
    run(ConvertConfig(load_dir=str(hf), save_dir=str(mcore), target_tensor_parallel_size=2))
    assert "is the original Hugging Face directory" in export_failure(mcore, hf, save_dir=str(hf))
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.tex").write_text("x")
    assert "thesis.tex" in export_failure(mcore, hf, save_dir=str(other))
    shard = mcore / "iter_0000001/mp_rank_01/model.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:100])
    assert f"{shard} is truncated: it has 100 bytes, {len(content)} expected" in export_failure(mcore, hf)
    shard.write_bytes(content)
    (hf / "config.json").write_text(json.dumps(chatglm_config(kv_channels=8)))
    assert "has kv_channels 4" in export_failure(mcore, hf)


def test_exporting_again_replaces_the_earlier_export(hf, tmp_path) -> None:
    run(ConvertConfig(load_dir=str(hf), save_dir=str(tmp_path / "mg")))
    for _ in range(2):
        run(export_config(tmp_path / "mg", hf))
    assert sorted(path.name for path in hf.iterdir() if path.is_dir()) == ["mg2hf"]


def test_a_failing_export_keeps_the_earlier_one_even_after_a_kill(hf, tmp_path, monkeypatch) -> None:
    run(ConvertConfig(load_dir=str(hf), save_dir=str(tmp_path / "mg")))
    export = export_config(tmp_path / "mg", hf)
    run(export)
    (hf / "mg2hf").rename(hf / "mg2hf.old")  # as a kill between the two renames leaves it
    (hf / "mg2hf.tmp").mkdir()

    def fail(*args: object) -> None:
        raise UserError("no more")
    monkeypatch.setattr(mcore_to_hf, "index_text", fail)
    with pytest.raises(UserError, match="no more"):
        run(export)
    assert sorted(path.name for path in hf.iterdir() if path.is_dir()) == ["mg2hf"]
    assert (hf / "mg2hf" / INDEX).is_file()
