"""The native `Glm*` layout of transformers (`glm-4-9b*-hf`): separate q, k and v projections, gate and up fused."""

import re

from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.families import chatglm
from mindspeed_llm.families.config_fields import entry, require
from mindspeed_llm.families.family import Family
from mindspeed_llm.families.weight_map import HfLayout, SplitQkv, Vocab, Whole


def native_config(config: dict, where: str, *, rotary_percent: float = 0.5, **fixed: bool) -> ModelConfig:
    """ModelConfig of a native config.json. Entries whose default varies between transformers versions must be given.

    `rotary_percent` is the family's where the file says nothing, `fixed` what files do not say.
    """
    require(config, "hidden_act", "silu", where, "silu")
    # transformers 5 keeps theta and partial factor in rope_parameters, earlier ones beside the other entries.
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    require(rope, "rope_type", "default", where, rope.get("type", "default"))
    rotary = {**rope, **{name: config[name] for name in ("rope_theta", "partial_rotary_factor") if name in config}}
    hidden = entry(config, "hidden_size", int, where)
    heads = entry(config, "num_attention_heads", int, where)
    return ModelConfig(
        num_layers=entry(config, "num_hidden_layers", int, where),
        hidden_size=hidden,
        ffn_hidden_size=entry(config, "intermediate_size", int, where),
        num_attention_heads=heads,
        num_query_groups=entry(config, "num_key_value_heads", int, where),
        kv_channels=entry(config, "head_dim", int, where, hidden // heads),
        padded_vocab_size=entry(config, "vocab_size", int, where),
        max_position_embeddings=entry(config, "max_position_embeddings", int, where, 131072),
        norm_epsilon=entry(config, "rms_norm_eps", float, where),
        rotary_base=entry(rotary, "rope_theta", float, where, 10000.0),
        rotary_percent=entry(rotary, "partial_rotary_factor", float, where, rotary_percent),
        add_qkv_bias=entry(config, "attention_bias", bool, where),
        untie_embeddings_and_output_weights=not entry(config, "tie_word_embeddings", bool, where, False),
        **fixed,
    )


def native_updates(config: dict, model: ModelConfig) -> dict:
    """Entries of a native config.json to change for `model`."""
    changes = {}
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" not in config:
        if rope.get("rope_theta", 10000.0) != model.rotary_base:
            changes["rope_parameters"] = {**rope, "rope_theta": model.rotary_base}
    elif config.get("rope_theta", 10000.0) != model.rotary_base:
        changes["rope_theta"] = model.rotary_base
    if config.get("max_position_embeddings", 131072) < model.max_position_embeddings:
        changes["max_position_embeddings"] = model.max_position_embeddings
    return changes


LAYOUT = HfLayout(
    flag="glm",
    description="the native Glm layout (model_type glm, tensors model.layers.*)",
    layer_prefix="model.layers.{layer}.",
    top={
        "embedding.word_embeddings.weight": Vocab("model.embed_tokens.weight"),
        "decoder.final_layernorm.weight": Whole("model.norm.weight"),
        "output_layer.weight": Vocab("lm_head.weight"),
    },
    layer={
        "input_layernorm.weight": Whole("input_layernorm.weight"),
        "self_attention.linear_qkv.weight": SplitQkv("self_attn.q_proj.weight", "self_attn.k_proj.weight",
                                                     "self_attn.v_proj.weight"),
        "self_attention.linear_qkv.bias": SplitQkv("self_attn.q_proj.bias", "self_attn.k_proj.bias",
                                                   "self_attn.v_proj.bias"),
        "self_attention.linear_proj.weight": Whole("self_attn.o_proj.weight"),
        "pre_mlp_layernorm.weight": Whole("post_attention_layernorm.weight"),
        "mlp.linear_fc1.weight": Whole("mlp.gate_up_proj.weight"),
        "mlp.linear_fc2.weight": Whole("mlp.down_proj.weight"),
    },
    ignored=re.compile(r".*rotary_emb\.inv_freq"),
    buffers={},
    matches=lambda config: config.get("model_type") == "glm",
    read_config=native_config,
    updates=native_updates,
)

# What GLM-4 models of both generations have in common.
PROMPT_TYPE, STOP_TOKENS = "glm4", ("<|endoftext|>", "<|user|>", "<|observation|>")
ARGUMENTS = (
    "--use-mcore-models --group-query-attention --num-query-groups 2 --disable-bias-linear --swiglu "
    "--normalization RMSNorm --position-embedding-type rope --use-glm-rope --rotary-percent 0.5 "
    "--untie-embeddings-and-output-weights --attention-dropout 0.0 --hidden-dropout 0.0 --attention-softmax-in-fp32")
SIZE_9B = ("--num-layers 40 --hidden-size 4096 --ffn-hidden-size 13696 --num-attention-heads 32 --kv-channels 128 "
           "--padded-vocab-size 151552 --add-qkv-bias")

FAMILY = Family(
    name="glm-4",
    layouts=(chatglm.LAYOUT, LAYOUT),
    prompt_type=PROMPT_TYPE,
    stop_tokens=STOP_TOKENS,
    arguments=ARGUMENTS + " --norm-epsilon 1.5625e-07",
    models={
        "glm4-9b": SIZE_9B,
        # for a laptop, CI and the quickstart
        "glm4-tiny": "--num-layers 4 --hidden-size 128 --ffn-hidden-size 384 --num-attention-heads 4 --kv-channels 32 "
                     "--padded-vocab-size 1024 --add-qkv-bias",
    },
)
