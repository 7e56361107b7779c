"""The ChatGLM layout (`transformer.encoder.layers...`, remote code on the Hub): glm-4-9b, glm-4-9b-chat.

`post_layer_norm` in its config.json only says that the final norm exists; it is not GLM-4-0414's post-norm.
"""

import re

import numpy as np

from mindspeed_llm.checkpoint.dtypes import StoredTensor, cast
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.families.config_fields import entry, require
from mindspeed_llm.families.weight_map import FusedQkv, HfLayout, Vocab, Whole

_BASE = 10000.0  # RoPE's base at rope_ratio 1

_TOP = {
    "embedding.word_embeddings.weight": Vocab("transformer.embedding.word_embeddings.weight"),
    "decoder.final_layernorm.weight": Whole("transformer.encoder.final_layernorm.weight"),
    "output_layer.weight": Vocab("transformer.output_layer.weight"),
}
_LAYER = {
    "input_layernorm.weight": Whole("input_layernorm.weight"),
    "self_attention.linear_qkv.weight": FusedQkv("self_attention.query_key_value.weight"),
    "self_attention.linear_qkv.bias": FusedQkv("self_attention.query_key_value.bias"),
    "self_attention.linear_proj.weight": Whole("self_attention.dense.weight"),
    "pre_mlp_layernorm.weight": Whole("post_attention_layernorm.weight"),
    "mlp.linear_fc1.weight": Whole("mlp.dense_h_to_4h.weight"),
    "mlp.linear_fc2.weight": Whole("mlp.dense_4h_to_h.weight"),
}


def _read_config(config: dict, where: str) -> ModelConfig:
    for name, wanted, default in (("rmsnorm", True, True), ("post_layer_norm", True, True),
                                  ("add_bias_linear", False, False),
                                  ("apply_residual_connection_post_layernorm", False, False)):
        require(config, name, wanted, where, default)
    heads = entry(config, "num_attention_heads", int, where)
    grouped = entry(config, "multi_query_attention", bool, where, True)
    return ModelConfig(
        num_layers=entry(config, "num_layers", int, where),
        hidden_size=entry(config, "hidden_size", int, where),
        ffn_hidden_size=entry(config, "ffn_hidden_size", int, where),
        num_attention_heads=heads,
        num_query_groups=entry(config, "multi_query_group_num", int, where) if grouped else heads,
        kv_channels=entry(config, "kv_channels", int, where),
        padded_vocab_size=entry(config, "padded_vocab_size", int, where),
        max_position_embeddings=entry(config, "seq_length", int, where, 8192),
        norm_epsilon=entry(config, "layernorm_epsilon", float, where),
        rotary_base=_BASE * entry(config, "rope_ratio", float, where, 1.0),
        add_qkv_bias=entry(config, "add_qkv_bias", bool, where),
        untie_embeddings_and_output_weights=not entry(config, "tie_word_embeddings", bool, where, False),
    )


def _updates(config: dict, model: ModelConfig) -> dict:
    ratio = model.rotary_base / _BASE
    changes = {}
    if config.get("rope_ratio", 1) != ratio:
        changes["rope_ratio"] = int(ratio) if ratio == int(ratio) else ratio
    if config.get("seq_length", 8192) < model.max_position_embeddings:
        changes["seq_length"] = model.max_position_embeddings
    return changes


def _inv_freq(model: ModelConfig, dtype: str) -> StoredTensor:
    """The rotary buffer that ChatGLM repositories hold: 1 / 10000^(2i/d), each step rounded to `dtype`."""
    exponent = np.arange(0, model.rotary_dim, 2, dtype=np.float32) / model.rotary_dim
    power = cast(cast(_BASE**exponent.astype(np.float32), "fp32", dtype), dtype, "fp32")
    return StoredTensor(cast((1.0 / power).astype(np.float32), "fp32", dtype), dtype)


LAYOUT = HfLayout(
    flag="chatglm3",
    description="the ChatGLM layout (config.json with multi_query_group_num, tensors transformer.encoder.*)",
    layer_prefix="transformer.encoder.layers.{layer}.",
    top=_TOP,
    layer=_LAYER,
    ignored=re.compile(r".*rotary_pos_emb\.inv_freq"),
    buffers={"transformer.rotary_pos_emb.inv_freq": _inv_freq},
    matches=lambda config: config.get("model_type") == "chatglm" or "multi_query_group_num" in config,
    read_config=_read_config,
    updates=_updates,
)
