"""Qwen3, dense: norms of queries and keys, no bias, and rope over whole heads whose pairs are (i, i + half the head).

Rows of q and k, and the norms' weights, are put into the order of interleaved pairs (2i, 2i + 1), in which everything here
rotates; scores do not change when both are reordered alike.
"""

from dataclasses import replace

from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.families import glm
from mindspeed_llm.families.config_fields import require
from mindspeed_llm.families.family import Family
from mindspeed_llm.families.weight_map import HeadVector, SplitQkv, Stacked


def _read_config(config: dict, where: str) -> ModelConfig:
    require(config, "use_sliding_window", False, where, False)
    return glm.native_config(config, where, rotary_percent=1.0, qk_layernorm=True)


LAYOUT = replace(
    glm.LAYOUT,
    flag="qwen3",
    description="the native Qwen3 layout (model_type qwen3, tensors model.layers.*.self_attn.q_norm)",
    layer={**glm.LAYOUT.layer,
           "self_attention.linear_qkv.weight": SplitQkv("self_attn.q_proj.weight", "self_attn.k_proj.weight",
                                                        "self_attn.v_proj.weight", halves=True),
           "self_attention.linear_qkv.bias": SplitQkv("self_attn.q_proj.bias", "self_attn.k_proj.bias",
                                                      "self_attn.v_proj.bias", halves=True),
           "self_attention.q_layernorm.weight": HeadVector("self_attn.q_norm.weight"),
           "self_attention.k_layernorm.weight": HeadVector("self_attn.k_norm.weight"),
           "mlp.linear_fc1.weight": Stacked(("mlp.gate_proj.weight", "mlp.up_proj.weight"))},
    matches=lambda config: config.get("model_type") == "qwen3",
    read_config=_read_config,
)

FAMILY = Family(
    name="qwen3",
    layouts=(LAYOUT,),
    prompt_type="qwen3",
    stop_tokens=("<|im_end|>", "<|endoftext|>"),
    arguments="--use-mcore-models --group-query-attention --qk-layernorm --disable-bias-linear --swiglu "
              "--normalization RMSNorm --norm-epsilon 1e-06 --position-embedding-type rope --rotary-percent 1.0 "
              "--rotary-base 1000000 --attention-dropout 0.0 --hidden-dropout 0.0 --attention-softmax-in-fp32",
    models={
        "qwen3-8b": "--num-layers 36 --hidden-size 4096 --ffn-hidden-size 12288 --num-attention-heads 32 "
                    "--num-query-groups 8 --kv-channels 128 --padded-vocab-size 151936 "
                    "--untie-embeddings-and-output-weights",
    },
)
