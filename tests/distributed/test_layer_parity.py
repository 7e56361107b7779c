"""Each tensor-parallel layer equals the plain one: output, input gradient, every parameter's gradient; 2 and 4 ranks.

On four ranks the model's two query groups are held twice (K/V replicated).
"""

import json
from pathlib import Path

import pytest

from tests.distributed.launch import run_msrun

TOLERANCE = 2e-5
LAYER = "decoder.layers.0."
ATTENTION = {f"{LAYER}self_attention.{name}" for name in ("linear_qkv.weight", "linear_qkv.bias", "linear_proj.weight")}
MLP = {LAYER + "mlp.linear_fc1.weight", LAYER + "mlp.linear_fc2.weight"}
NORMS = {LAYER + name + "_layernorm.weight" for name in ("input", "post_self_attn", "pre_mlp", "post_mlp")}
COMPARED = {
    "column": {"input", "weight", "bias"},
    "row": {"input", "weight"},
    "embedding": {"weight"},
    "cross entropy": {"input", "weight"},
    "attention": {"input"} | ATTENTION,
    "mlp": {"input"} | MLP,
    "layer": {"input"} | ATTENTION | MLP | NORMS,
    "head": {"input", "decoder.final_layernorm.weight", "output_layer.weight"},
}
BUGS = ("all-reduce dropped in f", "partial gradients of norms not summed", "sequence gathered in the wrong order",
        "every rank counts its vocabulary from 0")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """`measured(world)`: {case: {tensor: worst error of all ranks}}; one launch per size."""
    folder, seen = tmp_path_factory.mktemp("layers"), {}

    def measure(world):
        if world not in seen:
            seen[world] = None
            job = run_msrun(Path(__file__).with_name("layer_cases.py"), world, folder, timeout=200)
            assert job.returncode == 0, job.stdout[-3000:] + job.stderr
            ranks = [json.loads((folder / f"{world}_{rank}.json").read_text()) for rank in range(world)]
            seen[world] = {case: {name: max(rank[case][name] for rank in ranks) for name in ranks[0][case]}
                           for case in ranks[0]}
        assert seen[world] is not None, f"the launch of {world} ranks failed: see the first test of that size"
        return seen[world]
    return measure


@pytest.mark.parametrize("sp", ["plain", "sp"])
@pytest.mark.parametrize("name", COMPARED)
@pytest.mark.parametrize("world", [2, 4])
def test_layer_equals_the_plain_one(world, name, sp, measured):
    errors = measured(world)[f"{name}, {sp}"]
    assert set(errors) == COMPARED[name] | {"output"}
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize("bug", BUGS)
@pytest.mark.parametrize("world", [2, 4])
def test_tolerance_catches_a_planted_bug(world, bug, measured):
    errors = measured(world)[bug]
    assert max(errors.values()) > 100 * TOLERANCE, errors
