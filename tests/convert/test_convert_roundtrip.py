"""hf -> mcore -> hf: the same bytes, for every layout, dtype, split and shard layout."""

import filecmp
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from tiny_hf import SIZES, chatglm_config, chatglm_tensors, native_config, native_tensors, qwen3_tensors, write_hf

from mindspeed_llm.checkpoint import open_checkpoint
from mindspeed_llm.checkpoint.dtypes import cast
from mindspeed_llm.checkpoint.safetensors_io import SafetensorsFile
from mindspeed_llm.config.training import ConvertConfig
from mindspeed_llm.core.structure import model_specs
from mindspeed_llm.families import find_layout
from mindspeed_llm.families.hf_directory import HfDirectory
from mindspeed_llm.tasks.convert import parts, run
from mindspeed_llm.tasks.convert.export_plan import Tensor, plan_shards

LAYOUTS = {"chatglm3": (chatglm_config(), chatglm_tensors()),
           "glm": (native_config("glm"), native_tensors(chatglm_tensors(), False)),
           "glm4": (native_config("glm4"), native_tensors(chatglm_tensors(), True)),
           "qwen3": (native_config("qwen3", attention_bias=False), qwen3_tensors(chatglm_tensors()))}


def to_mcore(hf: Path, mcore: Path, **changes: object) -> None:
    run(ConvertConfig(load_dir=str(hf), save_dir=str(mcore), **changes))


def to_hf(mcore: Path, hf: Path, **changes: object) -> None:
    run(ConvertConfig(load_model_type="mg", save_model_type="hf", load_dir=str(mcore), hf_dir=str(hf),
                      **({"save_dir": str(hf / "mg2hf")} | changes)))


def assert_same_directory(hf: Path, export: Path) -> None:
    names = sorted(path.name for path in hf.iterdir() if path.is_file())
    assert names == sorted(path.name for path in export.iterdir())
    assert filecmp.cmpfiles(hf, export, names, shallow=False)[0] == names


@pytest.mark.parametrize("flag", LAYOUTS)
@pytest.mark.parametrize("dtype, shards", [("bf16", 3), ("fp32", 1), ("fp16", 2)])
@pytest.mark.parametrize("tp, pp, split", [(1, 1, None), (2, 2, None), (4, 2, (3, 1)), (8, 4, None)])
def test_round_trip_is_byte_identical(tmp_path, flag: str, dtype: str, shards: int, tp: int, pp: int, split) -> None:
    config, tensors = LAYOUTS[flag]
    hf = write_hf(tmp_path / "hf", config, tensors, dtype, shards)
    to_mcore(hf, tmp_path / "mg", model_type_hf=flag, target_tensor_parallel_size=tp, target_pipeline_parallel_size=pp,
             num_layer_list=split)
    with open_checkpoint(tmp_path / "mg") as checkpoint:
        assert checkpoint.weights_only and checkpoint.iteration == 1 and checkpoint.verify() > 0
    to_hf(tmp_path / "mg", hf, model_type_hf=flag)
    assert_same_directory(hf, hf / "mg2hf")


@pytest.mark.parametrize("flag", LAYOUTS)
def test_large_tensors_are_converted_in_parts(tmp_path, monkeypatch, flag: str) -> None:
    """With parts of a few rows: the bytes are the same both ways, also where rows are reordered or columns are cut."""
    hf = write_hf(tmp_path / "hf", *LAYOUTS[flag], "bf16", 2)
    to_mcore(hf, tmp_path / "whole", model_type_hf=flag, target_tensor_parallel_size=2)
    monkeypatch.setattr(parts, "PART_BYTES", 300)
    to_mcore(hf, tmp_path / "parts", model_type_hf=flag, target_tensor_parallel_size=2)
    files = ["metadata.json", *(f"mp_rank_0{rank}/model.safetensors" for rank in (0, 1))]
    for file in files:
        one, other = (tmp_path / kind / "iter_0000001" / file for kind in ("whole", "parts"))
        assert one.read_bytes() == other.read_bytes()
    to_hf(tmp_path / "parts", hf, model_type_hf=flag)
    assert_same_directory(hf, hf / "mg2hf")


@pytest.mark.parametrize("flag", LAYOUTS)
def test_every_weight_leaves_the_cache_once_after_its_last_reader(tmp_path, monkeypatch, flag: str) -> None:
    """Both ways, with two ranks that read the same tensors, and layouts that cut one mcore tensor into several."""
    touched: list[tuple[str, str, str]] = []
    for action in ("flat", "read", "forget"):
        def note(self, name, *rest, action=action, original=getattr(SafetensorsFile, action)):
            touched.append((action, self.path.parent.name + self.path.name, name))
            return original(self, name, *rest)
        monkeypatch.setattr(SafetensorsFile, action, note)
    hf = write_hf(tmp_path / "hf", *LAYOUTS[flag], "bf16", 2)
    steps = ((to_mcore, (hf, tmp_path / "mg"), {"target_tensor_parallel_size": 2}), (to_hf, (tmp_path / "mg", hf), {}))
    for convert, folders, changes in steps:
        touched.clear()
        convert(*folders, model_type_hf=flag, **changes)
        actions = defaultdict(list)
        for action, *weight in touched:
            if weight[1] not in find_layout(flag).buffers:
                actions[tuple(weight)].append(action)
        assert len(actions) > 10
        assert all(found.index("forget") == len(found) - 1 for found in actions.values())


def test_layouts_give_the_same_mcore_tensors(tmp_path) -> None:
    read = {}
    for flag, (config, tensors) in LAYOUTS.items():
        to_mcore(write_hf(tmp_path / flag, config, tensors), tmp_path / f"mg_{flag}", model_type_hf=flag)
        checkpoint = open_checkpoint(tmp_path / f"mg_{flag}")
        tensors = {name: checkpoint.read_global(name).array for name in checkpoint.names()}
        read[flag] = (checkpoint.model_config, tensors)
    model, tensors = read["chatglm3"]
    assert model == read["glm"][0] and model.rotary_base == 5e6
    assert model.norm_epsilon == 1.5625e-07 and not model.post_norm
    assert read["glm4"][0].norm_epsilon == 1e-05 and read["glm4"][0].post_norm
    for flag in ("glm", "glm4"):
        assert set(read[flag][1]) >= set(tensors)
        assert all(np.array_equal(tensors[name], read[flag][1][name]) for name in tensors)
    extra = set(read["glm4"][1]) - set(tensors)
    assert len(extra) == 2 * SIZES["layers"]
    found = read["glm4"][1]["decoder.layers.2.post_self_attn_layernorm.weight"]
    assert np.array_equal(cast(found, "bf16", "fp32"), np.full(SIZES["hidden"], 3, np.float32))


def test_tied_embeddings_have_no_output_layer(tmp_path) -> None:
    config, tensors = LAYOUTS["qwen3"]
    tensors = {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
    hf = write_hf(tmp_path / "hf", config | {"tie_word_embeddings": True}, tensors, "bf16")
    to_mcore(hf, tmp_path / "mg", model_type_hf="qwen3", target_tensor_parallel_size=2, target_pipeline_parallel_size=2)
    with open_checkpoint(tmp_path / "mg") as checkpoint:
        assert not checkpoint.model_config.untie_embeddings_and_output_weights
        assert "output_layer.weight" not in checkpoint.names()
    to_hf(tmp_path / "mg", hf, model_type_hf="qwen3")
    assert_same_directory(hf, hf / "mg2hf")


def test_pairs_of_qwen3_become_neighbours(tmp_path) -> None:
    """Rows 0..3 of a head, of which (0, 2) and (1, 3) are pairs, become 0, 2, 1, 3; those of v stay."""
    config, tensors = LAYOUTS["qwen3"]
    to_mcore(write_hf(tmp_path / "hf", config, tensors, "fp32"), tmp_path / "mg", model_type_hf="qwen3")
    with open_checkpoint(tmp_path / "mg") as checkpoint:
        assert checkpoint.model_config.qk_layernorm and checkpoint.model_config.rotary_percent == 1.0
        qkv = checkpoint.read_global("decoder.layers.1.self_attention.linear_qkv.weight").array
        norm = checkpoint.read_global("decoder.layers.1.self_attention.k_layernorm.weight").array
    q, k, v = (tensors[f"model.layers.1.self_attn.{letter}_proj.weight"] for letter in "qkv")
    order, dim, heads = [0, 2, 1, 3], SIZES["dim"], SIZES["heads"] // SIZES["groups"]
    second = qkv[(heads + 2) * dim:]
    assert np.array_equal(second[dim:2 * dim], q[(heads + 1) * dim:(heads + 2) * dim][order])
    assert np.array_equal(second[heads * dim:(heads + 1) * dim], k[dim:][order])
    assert np.array_equal(second[(heads + 1) * dim:], v[dim:])
    assert norm.tolist() == [1, 3, 2, 4]


def test_row_order_is_megatrons(tmp_path) -> None:
    """linear_qkv is [q.. k v] per group; a rank's linear_fc1 is its gate rows, then its up rows (by hand)."""
    tensors = chatglm_tensors()
    hf = write_hf(tmp_path / "hf", chatglm_config(), tensors, "fp32")
    to_mcore(hf, tmp_path / "mg", target_tensor_parallel_size=2)
    fused = tensors["transformer.encoder.layers.1.self_attention.query_key_value.weight"]
    dim, heads, q_rows = SIZES["dim"], 4, 32
    group1 = [fused[heads * dim:2 * heads * dim], fused[q_rows + dim:q_rows + 2 * dim],
              fused[q_rows + 3 * dim:q_rows + 4 * dim]]
    gate_up = tensors["transformer.encoder.layers.1.mlp.dense_h_to_4h.weight"]
    with SafetensorsFile(tmp_path / "mg/iter_0000001/mp_rank_01/model.safetensors") as file:
        qkv = file.flat("decoder.layers.1.self_attention.linear_qkv.weight").reshape(-1, 32)
        assert np.array_equal(qkv, np.concatenate(group1))
        fc1 = file.flat("decoder.layers.1.mlp.linear_fc1.weight").reshape(-1, 32)
        assert np.array_equal(fc1, np.concatenate([gate_up[24:48], gate_up[72:96]]))


def test_vocabulary_padding_does_not_leak_into_the_export(tmp_path, capsys) -> None:
    hf = write_hf(tmp_path / "hf", chatglm_config(padded_vocab_size=61), chatglm_tensors(vocab=61))
    to_mcore(hf, tmp_path / "mg", target_tensor_parallel_size=4)
    assert "from 61 to 64" in capsys.readouterr().out
    with open_checkpoint(tmp_path / "mg") as checkpoint:
        spec = model_specs(checkpoint.model_config)[0]
        assert spec.shape[0] == 64 and not checkpoint.read(spec, 3, 4).array[-3:].any()
    to_hf(tmp_path / "mg", hf)
    assert_same_directory(hf, hf / "mg2hf")


def test_noop_layers_only_shift_the_split(tmp_path) -> None:
    hf = write_hf(tmp_path / "hf", chatglm_config(), chatglm_tensors())
    to_mcore(hf, tmp_path / "mg", target_pipeline_parallel_size=2, noop_layers=(1, 5))
    with open_checkpoint(tmp_path / "mg") as checkpoint:
        assert checkpoint.model_config.num_layers == 6 and checkpoint.noop_layers == (1, 5)
        assert checkpoint.parallel["layers"] == [[[0, 2]], [[3, 4]]]
    to_hf(tmp_path / "mg", hf)
    assert_same_directory(hf, hf / "mg2hf")


def test_params_dtype_casts_and_the_export_returns_to_the_originals_dtype(tmp_path) -> None:
    tensors = chatglm_tensors()
    hf = write_hf(tmp_path / "hf", chatglm_config(), tensors, "bf16")
    to_mcore(hf, tmp_path / "mg", params_dtype="fp32")
    name = "decoder.layers.0.mlp.linear_fc2.weight"
    with open_checkpoint(tmp_path / "mg") as checkpoint:
        wanted = cast(tensors["transformer.encoder.layers.0.mlp.dense_4h_to_h.weight"], "fp32", "bf16")
        assert np.array_equal(checkpoint.read_global(name).array, cast(wanted, "bf16", "fp32"))
    to_hf(tmp_path / "mg", hf)
    assert_same_directory(hf, hf / "mg2hf")
    to_hf(tmp_path / "mg", hf, save_dir=str(tmp_path / "half"), params_dtype="fp16")
    assert json.loads((tmp_path / "half/config.json").read_text())["torch_dtype"] == "float16"
    with SafetensorsFile(tmp_path / "half/model-00001-of-00002.safetensors") as file:
        assert {entry.dtype for entry in file.tensors.values()} == {"F16"}


def test_the_rotary_buffer_is_ignored_and_comes_back(tmp_path) -> None:
    buffer = "transformer.rotary_pos_emb.inv_freq"
    inv_freq = np.array([1.0], np.float32)  # rotary_dim 2: one frequency
    hf = write_hf(tmp_path / "hf", chatglm_config(), chatglm_tensors() | {buffer: inv_freq})
    to_mcore(hf, tmp_path / "mg")
    to_hf(tmp_path / "mg", hf)
    assert_same_directory(hf, hf / "mg2hf")
    for shard in hf.glob("*.safetensors"):  # with the original's weights gone it is computed
        shard.rename(tmp_path / shard.name)
    to_hf(tmp_path / "mg", hf, save_dir=str(tmp_path / "out"))
    for shard in tmp_path.glob("*.safetensors"):
        assert filecmp.cmp(shard, tmp_path / "out" / shard.name, shallow=False)


def test_the_exports_config_says_what_the_model_was_trained_with(tmp_path) -> None:
    for flag, entry in (("chatglm3", ("rope_ratio", 1)), ("glm", ("rope_theta", 10000.0))):
        config, tensors = LAYOUTS[flag]
        hf = write_hf(tmp_path / flag, config | dict([entry]), tensors)
        to_mcore(hf, tmp_path / f"mg_{flag}", model_type_hf=flag, stated_model={"rotary_base": 2.5e6})
        to_hf(tmp_path / f"mg_{flag}", hf, model_type_hf=flag)
        value = json.loads((hf / "mg2hf/config.json").read_text())[entry[0]]
        assert value == (250 if flag == "chatglm3" else 2.5e6)


def test_without_weights_in_the_original_files_stay_below_the_limit(tmp_path) -> None:
    hf = write_hf(tmp_path / "hf", chatglm_config(), chatglm_tensors())
    to_mcore(hf, tmp_path / "mg")
    for path in [*hf.glob("*.safetensors"), hf / "model.safetensors.index.json"]:
        path.unlink()
    with HfDirectory(hf, find_layout("chatglm3"), "--hf-dir") as original:
        shards = plan_shards(original, {f"t{i}": Tensor("bf16", (100,)) for i in range(5)}, max_bytes=450)
    assert [shard.names for shard in shards] == [("t0", "t1"), ("t2", "t3"), ("t4",)]
    assert shards[1].file == "model-00002-of-00003.safetensors"
    to_hf(tmp_path / "mg", hf)
    with SafetensorsFile(hf / "mg2hf/model.safetensors") as file:
        assert {entry.dtype for entry in file.tensors.values()} == {"BF16"}
        assert set(chatglm_tensors()) < set(file.tensors)
