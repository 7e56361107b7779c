"""Writes a small GLM4 with random weights as a directory in the ChatGLM layout, as a download from the Hub would be.

The tensors (`families/chatglm.py`) and the entries of config.json are those of glm-4-9b's own repository.
"""

import json
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mindspeed_llm.checkpoint.files import write_text
from mindspeed_llm.checkpoint.safetensors_io import SafetensorsWriter
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.data.tokenizer import GLM4_SPECIAL_TOKENS
from mindspeed_llm.data.tokenizer_training import train_tiktoken_bpe, write_chatglm_tokenizer
from mindspeed_llm.families.chatglm import LAYOUT
from mindspeed_llm.families.weight_map import hf_shapes, mapped_tensors

_ROPE_BASE = 10000.0  # at rope_ratio 1


def tensor_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the ChatGLM layout."""
    mapped = mapped_tensors(LAYOUT, model, (), model.padded_vocab_size)
    return hf_shapes(list(mapped)) | {name: make(model, "fp32").shape for name, make in LAYOUT.buffers.items()}


def initial_tensor(name: str, shape: tuple[int, ...], model: ModelConfig, seed: int) -> np.ndarray:
    """The fp32 values of one tensor: ones for norms, N(0, init_method_std) for matrices and biases.

    Every tensor has a random stream of its own, made from the seed and its name. Biases are random too (training code
    would start them at zero), so that a converter that mixes up their rows changes the model.
    """
    if name in LAYOUT.buffers:
        return LAYOUT.buffers[name](model, "fp32").array
    if "layernorm" in name:
        return np.ones(shape, np.float32)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return rng.standard_normal(shape, np.float32) * np.float32(model.init_method_std)


def chatglm_config(model: ModelConfig, eos_ids: list[int], pad_id: int) -> dict:
    """config.json of the ChatGLM layout for a model of this shape.

    Raises:
        ValueError: for a shape that the layout cannot say (extra norms, another rotated part than one half).
    """
    if model.post_norm:
        raise ValueError("--post-norm: the ChatGLM layout has no post-attention and post-MLP norms; leave it out")
    if model.rotary_percent != 0.5:
        raise ValueError(f"--rotary-percent ({model.rotary_percent}): the ChatGLM layout rotates one half of a head; "
                         "use 0.5")
    if not model.untie_embeddings_and_output_weights:
        raise ValueError("a model with tied embeddings has no output_layer of its own: add "
                         "--untie-embeddings-and-output-weights")
    ratio = model.rotary_base / _ROPE_BASE
    return {
        "architectures": ["ChatGLMModel"],
        "model_type": "chatglm",
        "add_bias_linear": False,
        "add_qkv_bias": model.add_qkv_bias,
        "apply_query_key_layer_scaling": True,
        "apply_residual_connection_post_layernorm": False,
        "attention_dropout": 0.0,
        "attention_softmax_in_fp32": True,
        "bias_dropout_fusion": True,
        "eos_token_id": eos_ids,
        "ffn_hidden_size": model.ffn_hidden_size,
        "fp32_residual_connection": False,
        "hidden_dropout": 0.0,
        "hidden_size": model.hidden_size,
        "kv_channels": model.kv_channels,
        "layernorm_epsilon": model.norm_epsilon,
        "multi_query_attention": True,
        "multi_query_group_num": model.num_query_groups,
        "num_attention_heads": model.num_attention_heads,
        "num_hidden_layers": model.num_layers,
        "num_layers": model.num_layers,
        "original_rope": True,
        "pad_token_id": pad_id,
        "padded_vocab_size": model.padded_vocab_size,
        "post_layer_norm": True,
        "rmsnorm": True,
        "rope_ratio": int(ratio) if ratio == int(ratio) else ratio,
        "seq_length": model.max_position_embeddings,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": model.padded_vocab_size,
    }


def write_tiny_model(directory: str | Path, model: ModelConfig, texts: Iterable[str], seed: int,
                     shards: int = 2) -> int:
    """Writes config.json, tokenizer.model, tokenizer_config.json, fp32 safetensors shards and their index.

    Args:
        model: the shape; the tokenizer may fill `padded_vocab_size` but for its special tokens.
        texts: what the tokenizer is trained on.
        shards: number of safetensors files, at least 2 to be like a real checkpoint.

    Returns:
        the number of ids that the tokenizer uses; the model's other vocabulary rows are padding.

    Raises:
        ValueError: when the vocabulary is too small for the 256 bytes and the special tokens, or as `chatglm_config`.
    """
    directory = Path(directory)
    room = model.padded_vocab_size - len(GLM4_SPECIAL_TOKENS)
    if room < 256:
        raise ValueError(f"--padded-vocab-size ({model.padded_vocab_size}) must be at least "
                         f"{256 + len(GLM4_SPECIAL_TOKENS)}: 256 bytes and {len(GLM4_SPECIAL_TOKENS)} special tokens")
    ranks = train_tiktoken_bpe(texts, room)
    special = {name: len(ranks) + offset for offset, name in enumerate(GLM4_SPECIAL_TOKENS)}
    end = special["<|endoftext|>"]
    config = chatglm_config(model, [end, special["<|user|>"], special["<|observation|>"]], end)
    directory.mkdir(parents=True, exist_ok=True)
    write_chatglm_tokenizer(directory, ranks)
    _write_weights(directory, model, seed, shards)
    # last, because a directory with a config.json is taken for a complete model
    write_text(directory / "config.json", json.dumps(config, indent=2) + "\n")
    return len(ranks) + len(special)


def _write_weights(directory: Path, model: ModelConfig, seed: int, shards: int) -> None:
    shapes = tensor_shapes(model)
    names = list(shapes)
    if not 1 <= shards <= len(names):
        raise ValueError(f"the number of shards ({shards}) must lie between 1 and {len(names)}, the number of tensors")
    bounds = [round(index * len(names) / shards) for index in range(shards + 1)]
    weight_map, total = {}, 0
    for index in range(shards):
        part = names[bounds[index]:bounds[index + 1]]
        file_name = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        entries = [(name, "F32", shapes[name]) for name in part]
        with SafetensorsWriter(directory / file_name, entries, {"format": "pt"}) as writer:
            for name in part:
                array = initial_tensor(name, shapes[name], model, seed)
                writer.write(array)
                total += array.nbytes
        weight_map.update(dict.fromkeys(part, file_name))
    index_text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
    write_text(directory / "model.safetensors.index.json", index_text + "\n")
