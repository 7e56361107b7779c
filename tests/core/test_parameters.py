"""Parameters start alike under every layout, and their buffers divide evenly."""

from dataclasses import replace

import numpy as np
import pytest

from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.core import parameters
from mindspeed_llm.core.parameters import ParameterSet
from mindspeed_llm.core.structure import chunk_specs, model_specs
from mindspeed_llm.runtime import device

MODEL = ModelConfig(num_layers=2, hidden_size=16, ffn_hidden_size=24, num_attention_heads=8, num_query_groups=2,
                    kv_channels=4, padded_vocab_size=32)


@pytest.fixture(autouse=True)
def on_device():
    device.setup()


def whole_model() -> ParameterSet:
    made = ParameterSet(model_specs(MODEL), 0, 1, device.dtype("fp32"))
    made.initialize(MODEL, seed=5)
    return made


@pytest.mark.parametrize("size", [2, 4])
def test_any_layout_starts_from_the_same_model(size):
    whole = whole_model()
    for rank in range(size):
        # One layer, as a pipeline stage would hold it.
        part = ParameterSet(chunk_specs(MODEL, (1,), first=False, last=True), rank, size, device.dtype("fp32"))
        part.initialize(MODEL, seed=5)
        for name, spec in part.specs.items():
            segments = [whole[name].asnumpy().take(range(start, stop), spec.partition_dim or 0)
                        for start, stop in spec.segments(rank, size)]
            assert (part[name].asnumpy() == np.concatenate(segments, spec.partition_dim or 0)).all(), name


def test_initial_values():
    whole = whole_model()
    embedding = whole["embedding.word_embeddings.weight"].asnumpy()
    output = whole["decoder.layers.0.mlp.linear_fc2.weight"].asnumpy()
    assert embedding.std() == pytest.approx(MODEL.init_method_std, rel=0.15)
    assert output.std() == pytest.approx(MODEL.init_method_std / 2, rel=0.15)  # 1 / sqrt(2 * 2 layers)
    assert (whole["decoder.final_layernorm.weight"].asnumpy() == 1).all()
    assert (whole["decoder.layers.1.self_attention.linear_qkv.bias"].asnumpy() == 0).all()
    other = ParameterSet(model_specs(MODEL), 0, 1, device.dtype("fp32"))
    other.initialize(MODEL, seed=6)
    assert (other["embedding.word_embeddings.weight"].asnumpy() != embedding).all()


def test_buckets_divide_evenly_and_cover_everything(monkeypatch):
    monkeypatch.setattr(parameters, "BUCKET_ELEMENTS", 700)
    late = {spec.name for spec in model_specs(MODEL) if spec.partition_dim is None}
    made = ParameterSet(model_specs(MODEL), 0, 1, device.dtype("fp32"), multiple_of=7)
    assert len(made.buckets) > 3
    assert [bucket.start for bucket in made.buckets[1:]] == [bucket.stop for bucket in made.buckets[:-1]]
    assert made.buckets[-1].stop == made.buffer.numel
    for bucket in made.buckets:
        assert (bucket.stop - bucket.start) % 7 == 0
        assert bucket.late == (set(bucket.names) <= late)
        for name in bucket.names:
            start, stop = made.ranges[name]
            assert bucket.start <= start <= stop <= bucket.stop
            assert stop - start == made[name].size
    assert sorted(name for bucket in made.buckets for name in bucket.names) == sorted(made.specs)


def test_frozen_parameters_lie_behind_the_others_and_have_no_gradient(monkeypatch):
    monkeypatch.setattr(parameters, "BUCKET_ELEMENTS", 700)
    specs = [replace(spec, trainable="linear_qkv" in spec.name or "layernorm" in spec.name) for spec in model_specs(MODEL)]
    made = ParameterSet(specs, 0, 1, device.dtype("fp32"), multiple_of=7)
    assert set(made.trainable) == {spec.name for spec in specs if spec.trainable}
    assert sorted(name for bucket in made.buckets for name in bucket.names) == sorted(made.trainable)
    assert made.grads.numel == made.buckets[-1].stop < made.buffer.numel
    for name, tensor in made.tensors.items():
        assert hasattr(tensor, "main_grad") == made.specs[name].trainable, name
        assert (made.ranges[name][0] < made.grads.numel) == made.specs[name].trainable, name
    made.initialize(MODEL, seed=5)
    assert all((made[name].asnumpy() == tensor.asnumpy()).all() for name, tensor in whole_model().tensors.items())


def test_a_stage_without_layers_has_nothing():
    made = ParameterSet([], 0, 1, device.dtype("fp32"), multiple_of=4)
    assert made.buckets == [] and made.numel() == made.buffer.numel == 0


def test_parameters_wait_for_what_is_on_its_way():
    """A layer waits for its own values only; taking a tensor waits for all."""
    made, order = whole_model(), []
    names = list(made.specs)
    made.arriving(tuple(names[:2]), lambda: order.append("first"))
    made.arriving(tuple(names[2:]), lambda: order.append("second"))
    made.settle(names[0])
    assert order == ["first"]
    made.settle(names[0])
    assert order == ["first"]
    made[names[0]].asnumpy()
    assert order == ["first", "second"]


def test_wrong_size_is_refused():
    with pytest.raises(ValueError, match=r"decoder.final_layernorm.weight: expected 16 elements, got shape \(4,\)"):
        whole_model().load("decoder.final_layernorm.weight", np.zeros(4, np.float32))
