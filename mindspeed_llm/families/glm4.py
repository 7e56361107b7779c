"""The native `Glm4*` layout: GLM-4-0414 and GLM-Z1-0414, the `glm` layout with norms after attention and MLP.

`post_attention_layernorm` stays the norm before the MLP; the two added ones are `post_self_attn_layernorm` and
`post_mlp_layernorm`. Epsilon (1e-05 in the released models) comes from config.json.
"""

from dataclasses import replace

from mindspeed_llm.families import glm
from mindspeed_llm.families.family import Family
from mindspeed_llm.families.weight_map import Whole

LAYOUT = replace(
    glm.LAYOUT,
    flag="glm4",
    description="the native Glm4 (0414) layout (model_type glm4, tensors model.layers.*.post_mlp_layernorm)",
    layer={**glm.LAYOUT.layer,
           "post_self_attn_layernorm.weight": Whole("post_self_attn_layernorm.weight"),
           "post_mlp_layernorm.weight": Whole("post_mlp_layernorm.weight")},
    matches=lambda config: config.get("model_type") == "glm4",
    read_config=lambda config, where: glm.native_config(config, where, post_norm=True),
)

FAMILY = Family(
    name="glm-4-0414",
    layouts=(LAYOUT,),
    prompt_type=glm.PROMPT_TYPE,
    stop_tokens=glm.STOP_TOKENS,
    arguments=glm.ARGUMENTS + " --norm-epsilon 1e-05 --post-norm",
    models={
        "glm4-9b-0414": glm.SIZE_9B,    # also GLM-Z1-9B-0414
        # 61 layers, as 64 of which three hold nothing: 8 pipeline stages share them, the first two have less to do
        "glm4-32b": "--num-layers 64 --noop-layers 6,7,15 --hidden-size 6144 --ffn-hidden-size 23040 "
                    "--num-attention-heads 48 --kv-channels 128 --padded-vocab-size 151552",
    },
)
