"""Adapters between mcore and PEFT: the same files back, the bits of PEFT's merge, adapters that share nothing, bad input."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_hf import write_hf

from mindspeed_llm.checkpoint import open_checkpoint
from mindspeed_llm.checkpoint.safetensors_io import SafetensorsFile, SafetensorsWriter
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.training import ConvertConfig
from mindspeed_llm.families import find_layout
from mindspeed_llm.families.weight_map import hf_shapes, mapped_tensors
from mindspeed_llm.tasks.convert import run
from tests.golden import reference
from tests.golden.reference import Golden

PEFT = Path(reference.__file__).with_name("peft_adapter")
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture(scope="module")
def golden():
    return Golden.of_lora()


@pytest.fixture(scope="module")
def hf(golden, tmp_path_factory):
    """The golden model as a native Hugging Face directory in bf16."""
    model = golden.model
    config = {"model_type": "glm", "num_hidden_layers": model.num_layers, "hidden_size": model.hidden_size,
              "intermediate_size": model.ffn_hidden_size, "num_attention_heads": model.num_attention_heads,
              "num_key_value_heads": model.num_query_groups, "head_dim": model.kv_channels,
              "vocab_size": model.padded_vocab_size, "rms_norm_eps": model.norm_epsilon, "attention_bias": True,
              "hidden_act": "silu", "rope_theta": model.rotary_base, "max_position_embeddings": 64,
              "torch_dtype": "bfloat16", "tie_word_embeddings": False}
    mapped = list(mapped_tensors(find_layout("glm"), model, (), model.padded_vocab_size))
    tensors = {name: np.empty(shape, np.float32) for name, shape in hf_shapes(mapped).items()}
    for tensor in mapped:
        row = 0
        for piece in tensor.pieces:
            count = piece.stop - piece.start
            tensors[piece.name][piece.start:piece.stop] = golden[f"weight/{tensor.spec.name}"][row:row + count]
            row += count
    return write_hf(tmp_path_factory.mktemp("hf") / "glm", config, tensors, "bf16")


@pytest.fixture(scope="module")
def base(hf, tmp_path_factory):
    """The mcore checkpoint of `hf`."""
    path = tmp_path_factory.mktemp("mcore") / "base"
    run(ConvertConfig(load_dir=str(hf), save_dir=str(path), model_type_hf="glm"))
    return path


def from_peft(hf, peft, target, **changes):
    run(ConvertConfig(load_dir=str(hf), lora_load=str(peft), save_dir=str(target), model_type_hf="glm", **changes))
    return target


def to_hf(hf, base, adapters, target, **changes):
    run(ConvertConfig(load_model_type="mg", save_model_type="hf", load_dir=str(base), lora_load=str(adapters), hf_dir=str(hf),
                      save_dir=str(target), model_type_hf="glm", **changes))
    return target


def tensors_of(path):
    with SafetensorsFile(path) as file:
        return {name: np.array(file.flat(name)).reshape(entry.shape) for name, entry in file.tensors.items()}


def equal(first, second):
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def test_a_peft_directory_becomes_the_adapters_that_are_trained_and_comes_back(golden, hf, base, tmp_path):
    adapters = from_peft(hf, PEFT, tmp_path / "mg", target_tensor_parallel_size=4, target_pipeline_parallel_size=2)
    with open_checkpoint(adapters) as saved:
        assert (saved.lora, saved.adapters_only, saved.weights_only) == (golden.lora, True, True) and saved.verify() > 0
        for name in saved.names():
            assert np.array_equal(saved.read_global(name).array, golden[f"weight/{name}"]), name
    back = to_hf(hf, base, adapters, tmp_path / "peft", save_lora_to_hf=True)
    assert sorted(path.name for path in back.iterdir()) == [CONFIG, WEIGHTS]
    assert equal(tensors_of(back / WEIGHTS), tensors_of(PEFT / WEIGHTS))
    written, original = (json.loads((path / CONFIG).read_text()) for path in (back, PEFT))
    assert written.pop("base_model_name_or_path") == str(hf)
    original["target_modules"].sort()
    assert written == {key: original[key] for key in written}


def test_merged_weights_are_those_of_peft_in_bf16(golden, hf, base, tmp_path):
    export = to_hf(hf, base, from_peft(hf, PEFT, tmp_path / "mg"), tmp_path / "merged")
    merged = {name: tensor for path in export.glob("*.safetensors") for name, tensor in tensors_of(path).items()}
    recorded = [key for key in golden.names("merged")]
    assert len(recorded) == 6 * golden.model.num_layers
    for key in recorded:
        assert np.array_equal(merged[key.removeprefix("merged/")], golden[key]), key


def test_modules_of_one_layer_may_have_adapters_of_their_own(hf, base, tmp_path):
    """Only k and v have adapters, which share nothing: what is merged is the same."""
    peft = tmp_path / "peft"
    peft.mkdir()
    draw, config = np.random.default_rng(3), json.loads((PEFT / CONFIG).read_text())
    (peft / CONFIG).write_text(json.dumps(config | {"target_modules": ["k_proj", "v_proj", "down_proj"]}))
    chosen = {name: draw.standard_normal(tensor.shape, np.float32) for name, tensor in tensors_of(PEFT / WEIGHTS).items()
              if any(module in name for module in ("k_proj", "v_proj", "down_proj"))}
    with SafetensorsWriter(peft / WEIGHTS, [(name, "F32", tensor.shape) for name, tensor in chosen.items()]) as writer:
        for tensor in chosen.values():
            writer.write(tensor)
    adapters = from_peft(hf, peft, tmp_path / "mg")
    with open_checkpoint(adapters) as saved:
        assert (saved.lora.r, saved.lora.alpha, saved.lora.target_modules) == (8, 16, ("linear_qkv", "linear_fc2"))
    export = to_hf(hf, base, adapters, tmp_path / "merged", params_dtype="fp32")
    merged, plain = ({name: tensor for path in place.glob("*.safetensors") for name, tensor in tensors_of(path).items()}
                     for place in (export, to_hf(hf, base, "", tmp_path / "plain", params_dtype="fp32")))
    for name, tensor in plain.items():
        a, b = (chosen.get(f"base_model.model.{name.removesuffix('.weight')}.lora_{letter}.weight") for letter in "AB")
        update = 0 if a is None else 2 * b @ a
        assert np.abs(merged[name] - tensor - update).max() <= 2**-8 * np.abs(tensor + update).max(), name


def test_bad_input(hf, base, tmp_path):
    def refused(*arguments, **changes):
        with pytest.raises((UserError, FileNotFoundError)) as error:
            from_peft(*arguments, **changes)
        assert "\n" not in str(error.value)
        return str(error.value)

    def changed(name, **entries):
        path = tmp_path / name
        path.mkdir()
        (path / CONFIG).write_text(json.dumps(json.loads((PEFT / CONFIG).read_text()) | entries))
        (path / WEIGHTS).write_bytes((PEFT / WEIGHTS).read_bytes())
        return path

    assert "has no adapter_config.json" in refused(hf, tmp_path, tmp_path / "mg")
    assert "use_dora True cannot be converted" in refused(hf, changed("dora", use_dora=True), tmp_path / "mg")
    assert "has not A and B of rank 8" in refused(hf, changed("rank", r=8), tmp_path / "mg")
    assert "no whole number" in refused(hf, changed("alpha", lora_alpha=9.5), tmp_path / "mg")
    other = tmp_path / "other"
    other.mkdir()
    config = json.loads((hf / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    assert "has shapes [[4, 32], [96, 4]], the model gives [[4, 32], [80, 4]]" in refused(other, PEFT, tmp_path / "mg")
    (other / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    assert "model.layers.3." in refused(other, PEFT, tmp_path / "mg")
    assert not (tmp_path / "mg").exists()
    with pytest.raises(UserError, match="is a PEFT adapter directory: convert it"):
        to_hf(hf, base, PEFT, tmp_path / "merged")
    with pytest.raises(UserError, match="has none: give --lora-load"):
        to_hf(hf, base, "", tmp_path / "merged", save_lora_to_hf=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    adapters = from_peft(hf, PEFT, tmp_path / "mg")
    with pytest.raises(UserError, match="holds something else"):
        to_hf(hf, base, adapters, tmp_path / "full", save_lora_to_hf=True)
