"""Tiny random Hugging Face directories in the three layouts, written with numpy alone."""

import json
from pathlib import Path

import numpy as np

from mindspeed_llm.checkpoint.dtypes import SAFETENSORS_DTYPES, cast
from mindspeed_llm.checkpoint.safetensors_io import SafetensorsWriter

SIZES = {"layers": 4, "hidden": 32, "ffn": 48, "heads": 8, "groups": 2, "dim": 4, "vocab": 64}


def chatglm_config(**changes: object) -> dict:
    """config.json of a tiny model in the ChatGLM layout."""
    return {"model_type": "chatglm", "architectures": ["ChatGLMModel"], "num_layers": SIZES["layers"],
            "hidden_size": SIZES["hidden"], "ffn_hidden_size": SIZES["ffn"], "num_attention_heads": SIZES["heads"],
            "multi_query_attention": True, "multi_query_group_num": SIZES["groups"], "kv_channels": SIZES["dim"],
            "padded_vocab_size": SIZES["vocab"], "layernorm_epsilon": 1.5625e-07, "rope_ratio": 500,
            "add_qkv_bias": True, "add_bias_linear": False, "rmsnorm": True, "post_layer_norm": True,
            "seq_length": 8192, "torch_dtype": "bfloat16", "tie_word_embeddings": False} | changes


def native_config(model_type: str, **changes: object) -> dict:
    """config.json of the same model in a native layout ("glm" or "glm4")."""
    return {"model_type": model_type, "num_hidden_layers": SIZES["layers"], "hidden_size": SIZES["hidden"],
            "intermediate_size": SIZES["ffn"], "num_attention_heads": SIZES["heads"],
            "num_key_value_heads": SIZES["groups"], "head_dim": SIZES["dim"], "vocab_size": SIZES["vocab"],
            "rms_norm_eps": 1.5625e-07 if model_type == "glm" else 1e-05, "attention_bias": True, "hidden_act": "silu",
            "rope_theta": 5e6, "max_position_embeddings": 8192, "torch_dtype": "bfloat16",
            "tie_word_embeddings": False} | changes


def chatglm_tensors(seed: int = 0, vocab: int = SIZES["vocab"], layers: int = SIZES["layers"]) -> dict[str, np.ndarray]:
    """fp32 tensors of the ChatGLM layout under their names."""
    rng = np.random.default_rng(seed)
    hidden, ffn, dim = SIZES["hidden"], SIZES["ffn"], SIZES["dim"]
    q, qkv = SIZES["heads"] * dim, (SIZES["heads"] + 2 * SIZES["groups"]) * dim
    shapes = {"transformer.embedding.word_embeddings.weight": (vocab, hidden)}
    for i in range(layers):
        prefix = f"transformer.encoder.layers.{i}."
        shapes |= {prefix + "input_layernorm.weight": (hidden,),
                   prefix + "self_attention.query_key_value.weight": (qkv, hidden),
                   prefix + "self_attention.query_key_value.bias": (qkv,),
                   prefix + "self_attention.dense.weight": (hidden, q),
                   prefix + "post_attention_layernorm.weight": (hidden,),
                   prefix + "mlp.dense_h_to_4h.weight": (2 * ffn, hidden),
                   prefix + "mlp.dense_4h_to_h.weight": (hidden, ffn)}
    shapes |= {"transformer.encoder.final_layernorm.weight": (hidden,),
               "transformer.output_layer.weight": (vocab, hidden)}
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def native_tensors(chatglm: dict[str, np.ndarray], post_norms: bool) -> dict[str, np.ndarray]:
    """The same weights under the native names, split by hand; post norms are filled with their layer's number."""
    q, kv = SIZES["heads"] * SIZES["dim"], SIZES["groups"] * SIZES["dim"]
    out = {"model.embed_tokens.weight": chatglm["transformer.embedding.word_embeddings.weight"],
           "model.norm.weight": chatglm["transformer.encoder.final_layernorm.weight"],
           "lm_head.weight": chatglm["transformer.output_layer.weight"]}
    renamed = {"input_layernorm.weight": "input_layernorm.weight",
               "self_attention.dense.weight": "self_attn.o_proj.weight",
               "post_attention_layernorm.weight": "post_attention_layernorm.weight",
               "mlp.dense_h_to_4h.weight": "mlp.gate_up_proj.weight",
               "mlp.dense_4h_to_h.weight": "mlp.down_proj.weight"}
    for i in range(SIZES["layers"]):
        source, target = f"transformer.encoder.layers.{i}.", f"model.layers.{i}."
        out |= {target + new: chatglm[source + old] for old, new in renamed.items()}
        for kind in ("weight", "bias"):
            fused = chatglm[f"{source}self_attention.query_key_value.{kind}"]
            for letter, part in zip("qkv", np.split(fused, [q, q + kv])):
                out[f"{target}self_attn.{letter}_proj.{kind}"] = part
        if post_norms:
            for name in ("post_self_attn_layernorm.weight", "post_mlp_layernorm.weight"):
                out[target + name] = np.full(SIZES["hidden"], i + 1, np.float32)
    return out


def qwen3_tensors(chatglm: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As `native_tensors`, for Qwen3: no biases, gate and up apart, norms of q and k."""
    out = {}
    for name, tensor in native_tensors(chatglm, False).items():
        if name.endswith("gate_up_proj.weight"):
            for part, half in zip(("gate", "up"), np.split(tensor, 2)):
                out[name.replace("gate_up", part)] = half
        elif not name.endswith("bias"):
            out[name] = tensor
    for i in range(SIZES["layers"]):
        out |= {f"model.layers.{i}.self_attn.{letter}_norm.weight": np.arange(SIZES["dim"], dtype=np.float32) + i
                for letter in "qk"}
    return out


def write_hf(path: Path, config: dict, tensors: dict[str, np.ndarray], dtype: str = "bf16", shards: int = 2) -> Path:
    """Write a directory: config.json, shards with index (one plain file when `shards` is 1), tokenizer-like files."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config, indent=2))
    (path / "tokenizer.model").write_bytes(b"IQ== 0\n")
    (path / "generation_config.json").write_text("{}")
    (path / "tokenizer_config.json").write_text('{"a": 1}')
    (path / "modeling_chatglm.py").write_text("raise SystemExit('executed')\n")
    names = list(tensors)
    cut = -(-len(names) // shards)
    weight_map = {}
    for number in range(shards):
        part = sorted(names[number * cut:(number + 1) * cut])
        file = "model.safetensors" if shards == 1 else f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        heads = [(name, SAFETENSORS_DTYPES[dtype], tensors[name].shape) for name in part]
        with SafetensorsWriter(path / file, heads, {"format": "pt"}) as writer:
            for name in part:
                writer.write(cast(tensors[name], "fp32", dtype))
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        total = sum(tensor.size for tensor in tensors.values()) * (4 if dtype == "fp32" else 2)
        (path / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n")
    return path
