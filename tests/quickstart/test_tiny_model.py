import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.config.training import ConvertConfig
from mindspeed_llm.data.tokenizer import load_tokenizer
from mindspeed_llm.tasks.convert import run as convert
from mindspeed_llm.tasks.quickstart.corpora import instruction_rows, tokenizer_texts
from mindspeed_llm.tasks.quickstart.tiny_model import tensor_shapes, write_tiny_model
from mindspeed_llm.tasks.quickstart.world import make_world

MODEL = ModelConfig(num_layers=4, hidden_size=64, ffn_hidden_size=96, num_attention_heads=4, num_query_groups=2,
                    kv_channels=16, padded_vocab_size=1024, max_position_embeddings=256)


@pytest.fixture(scope="module")
def texts():
    return tokenizer_texts(make_world(1), 1)


@pytest.fixture(scope="module")
def folder(texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("hf")
    write_tiny_model(path, MODEL, texts, seed=1)
    return path


def _tensors(folder):
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def test_files(folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        "model.safetensors.index.json", "tokenizer.model", "tokenizer_config.json"]


def test_index_and_shards_agree(folder):
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    tensors = _tensors(folder)
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in tensors.values())
    assert set(index["weight_map"]) == set(tensors)
    for name, file in index["weight_map"].items():
        assert name in load_file(folder / file)
    assert {name: array.shape for name, array in tensors.items()} == tensor_shapes(MODEL)


def test_values(folder):
    tensors = _tensors(folder)
    assert np.all(tensors["transformer.encoder.layers.3.post_attention_layernorm.weight"] == 1)
    embedding = tensors["transformer.embedding.word_embeddings.weight"]
    assert abs(embedding.std() - 0.02) < 5e-4 and abs(embedding.mean()) < 5e-4
    assert not np.array_equal(embedding, tensors["transformer.output_layer.weight"])
    bias = tensors["transformer.encoder.layers.0.self_attention.query_key_value.bias"]
    assert bias.shape == (4 * 16 + 2 * 2 * 16,) and np.count_nonzero(bias) == bias.size


def test_config_reads_back_as_the_model(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["layernorm_epsilon"] == 1.5625e-07 and config["rope_ratio"] == 1 and config["add_qkv_bias"] is True
    assert config["multi_query_group_num"] == 2 and config["post_layer_norm"] is True and config["rmsnorm"] is True


def test_seed_decides_the_weights(folder, texts, tmp_path):
    write_tiny_model(tmp_path / "same", MODEL, texts, seed=1)
    write_tiny_model(tmp_path / "other", MODEL, texts, seed=2)
    for path in folder.iterdir():
        same = path.read_bytes() == (tmp_path / "same" / path.name).read_bytes()
        other = path.read_bytes() == (tmp_path / "other" / path.name).read_bytes()
        assert same and other == (path.suffix != ".safetensors")


def test_tokenizer_of_the_model(folder):
    tokenizer = load_tokenizer(str(folder))
    world = make_world(1)
    assert tokenizer.vocab_size < MODEL.padded_vocab_size
    assert all(len(tokenizer.encode(" " + thing.name)) == 1 for thing in world.things)
    longest = max(len(tokenizer.encode(row["instruction"], add_special=True)) for row in instruction_rows(world, 1))
    assert longest + 7 <= 64  # role marks, newlines, answer and end mark
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == tokenizer.stop_ids
    text = "A Velmaru, naïve: 漢字 12345\n\nAnswer:"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_conversion_there_and_back_is_byte_identical(folder, tmp_path):
    convert(ConvertConfig(load_model_type="hf", save_model_type="mg", load_dir=str(folder),
                          save_dir=str(tmp_path / "mg"),
                          model_type_hf="chatglm3", target_tensor_parallel_size=2, target_pipeline_parallel_size=2))
    convert(ConvertConfig(load_model_type="mg", save_model_type="hf", load_dir=str(tmp_path / "mg"), hf_dir=str(folder),
                          save_dir=str(tmp_path / "hf"), model_type_hf="chatglm3"))
    before, after = _tensors(folder), _tensors(tmp_path / "hf")
    assert before.keys() == after.keys()
    assert [name for name in before if before[name].tobytes() != after[name].tobytes()] == []


@pytest.mark.parametrize("change, message", [
    ({"padded_vocab_size": 256}, r"--padded-vocab-size \(256\) must be at least 270"),
    ({"post_norm": True}, "--post-norm"),
    ({"rotary_percent": 1.0}, r"--rotary-percent \(1.0\)"),
    ({"untie_embeddings_and_output_weights": False}, "--untie-embeddings-and-output-weights"),
])
def test_shapes_that_the_layout_cannot_say(change, message, texts, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_tiny_model(tmp_path / "hf", replace(MODEL, **change), texts, seed=1)
    assert not (tmp_path / "hf").exists()
