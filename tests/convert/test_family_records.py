"""Hugging Face's own tiny models, as files, through conversion and back; `tests/core/test_families.py` trains them."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_hf import write_hf

from mindspeed_llm.checkpoint import open_checkpoint
from mindspeed_llm.checkpoint.safetensors_io import SafetensorsFile
from mindspeed_llm.config.training import ConvertConfig
from mindspeed_llm.tasks.convert import run
from tests.golden import reference
from tests.golden.reference import Golden


@pytest.mark.parametrize("flag, noop_layers, tp, pp", [("glm4", (1,), 2, 2), ("qwen3", (), 2, 2), ("qwen3", (), 4, 1)])
def test_files_become_the_tensors_that_are_trained_and_come_back(tmp_path, flag, noop_layers, tp, pp):
    with np.load(Path(reference.__file__).with_name(f"{flag}.npz"), allow_pickle=False) as stored:
        config = json.loads(str(stored["config"]))
        tensors = {name.removeprefix("weight/"): stored[name] for name in stored if name.startswith("weight/")}
    hf = write_hf(tmp_path / "hf", config, tensors, "fp32")
    run(ConvertConfig(load_dir=str(hf), save_dir=str(tmp_path / "mg"), model_type_hf=flag, noop_layers=noop_layers,
                      target_tensor_parallel_size=tp, target_pipeline_parallel_size=pp))
    golden = Golden.of_family(flag, noop_layers)
    with open_checkpoint(tmp_path / "mg") as checkpoint:
        assert checkpoint.model_config == golden.model
        for name in checkpoint.names():
            assert np.array_equal(checkpoint.read_global(name).array, golden[f"weight/{name}"]), name
    run(ConvertConfig(load_model_type="mg", save_model_type="hf", load_dir=str(tmp_path / "mg"), hf_dir=str(hf),
                      save_dir=str(hf / "mg2hf"), model_type_hf=flag, noop_layers=noop_layers))
    back = {}
    for path in (hf / "mg2hf").glob("*.safetensors"):
        with SafetensorsFile(path) as file:
            back |= {name: np.array(file.flat(name)) for name in file.tensors}
    assert back.keys() == tensors.keys()
    assert all(np.array_equal(back[name], tensor.reshape(-1)) for name, tensor in tensors.items())
    assert json.loads((hf / "mg2hf" / "config.json").read_text()) == config
