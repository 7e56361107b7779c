"""A Hugging Face directory gives a job what its conversion gives, without one."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from mindspeed_llm.checkpoint import boxes, open_checkpoint
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.core.structure import model_specs
from mindspeed_llm.families.hf_checkpoint import HfCheckpoint
from mindspeed_llm.tasks.inference import run
from mindspeed_llm.tasks.inference.loading import load
from tests.convert.test_convert_roundtrip import LAYOUTS, to_mcore
from tests.convert.tiny_hf import chatglm_config, chatglm_tensors, write_hf
from tests.inference.tiny_job import configs, write_job


@pytest.mark.parametrize("flag", LAYOUTS)
@pytest.mark.parametrize("size", [1, 2])
def test_weights_are_those_of_the_conversion(tmp_path, monkeypatch, flag, size):
    monkeypatch.setattr(boxes, "_READ", 4)  # large tensors' way, for the conversion too
    hf = write_hf(tmp_path / "hf", *LAYOUTS[flag])
    to_mcore(hf, tmp_path / "mg", model_type_hf=flag)
    found = HfCheckpoint(hf, size, "--load")
    with open_checkpoint(tmp_path / "mg") as expected:
        assert (found.model_config, found.noop_layers, found.iteration, found.lora) == (
            expected.model_config, expected.noop_layers, expected.iteration, expected.lora)
        for spec in model_specs(found.model_config):
            for rank in range(size):
                ours, theirs = (source.read(spec, rank, size, "fp32") for source in (found, expected))
                assert ours.dtype == "fp32" and np.array_equal(ours.array, theirs.array)
    found.close()


def test_vocabulary_is_padded_for_tensor_parallelism(tmp_path):
    found = HfCheckpoint(write_hf(tmp_path / "hf", chatglm_config(padded_vocab_size=61), chatglm_tensors(vocab=61)), 4,
                         "--load")
    spec = model_specs(found.model_config)[0]
    assert spec.shape[0] == 64
    last = found.read(spec, 3, 4, "fp32").array
    assert last[:13].any(axis=1).all() and not last[13:].any()
    with pytest.raises(UserError, match="does not hold"):
        found.read(SimpleNamespace(name="decoder.layers.9.x", shape=(1,)), 0, 1)


def test_generation_from_a_hugging_face_directory(tmp_path, capsys):
    write_job(tmp_path / "job")
    hf = write_hf(tmp_path / "hf", chatglm_config(padded_vocab_size=352), chatglm_tensors(vocab=352))
    to_mcore(hf, tmp_path / "mg")
    said = []
    for source in ("hf", "mg"):
        flags = ("--load", str(tmp_path / source), "--bf16", "--prompt", "A. one", "--max-new-tokens", "8", "--output",
                 str(tmp_path / "answers.jsonl"))
        run(configs("inference", tmp_path / "job", *flags))
        assert f"successfully loaded checkpoint from {tmp_path / source} at iteration 1 (" in capsys.readouterr().out
        said.append(json.loads((tmp_path / "answers.jsonl").read_text()))
    assert said[0] == said[1] and len(said[0]["ids"]) == 8


@pytest.mark.parametrize(("config", "words"), [
    ({"model_type": "llama"}, "model_type 'llama', which is no model of this project"),
    (chatglm_config(num_layers=3), "tensors that config.json and --model-type-hf chatglm3 do not account for")])
def test_directories_that_are_refused(tmp_path, config, words):
    write_job(tmp_path / "job")
    hf = write_hf(tmp_path / "hf", config, chatglm_tensors())
    with pytest.raises(UserError, match=words):
        load(configs("inference", tmp_path / "job", "--load", str(hf)))
