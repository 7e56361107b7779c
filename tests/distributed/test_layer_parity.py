"""Each tensor-parallel layer equals the plain one: output, input gradient, every parameter's gradient; 2 and 4 ranks.

On four ranks the model's two query groups are held twice (K/V replicated).
"""

import pytest

CASES = "tests.distributed.layer_cases:"
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


def worst(ranks):
    """{tensor: worst error of all ranks}."""
    return {name: max(rank[name] for rank in ranks) for name in ranks[0]}


@pytest.mark.parametrize("sp", ["plain", "sp"])
@pytest.mark.parametrize("name", COMPARED)
@pytest.mark.parametrize("world", [2, 4])
def test_layer_equals_the_plain_one(world, name, sp, ranks):
    errors = worst(ranks(world).run(f"{CASES}case", name, sp == "sp"))
    assert set(errors) == COMPARED[name] | {"output"}
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize("bug", BUGS)
@pytest.mark.parametrize("world", [2, 4])
def test_tolerance_catches_a_planted_bug(world, bug, ranks):
    errors = worst(ranks(world).run(f"{CASES}case_with_bug", bug))
    assert max(errors.values()) > 100 * TOLERANCE, errors
