"""Record the reference numbers of golden.npz from Hugging Face's GlmForCausalLM on PyTorch.

    pip install torch==2.13.0 transformers==5.23 'numpy<2' && python tests/golden/make_golden.py

The model is tiny and random, and has everything that makes GLM4 itself: grouped-query attention, a QKV bias,
interleaved rope on half of each head, epsilon 1.5625e-07, untied output. Stored: config, ids and labels, weights in
Megatron's names and row order, logits, loss, every gradient, and the losses of ten AdamW steps (constant lr 1e-3, decay
0.1, clip 1.0). Everything is fp32.
"""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import GlmConfig, GlmForCausalLM

SHAPE = {"num_layers": 4, "hidden_size": 32, "ffn_hidden_size": 48, "num_attention_heads": 4, "num_query_groups": 2,
         "kv_channels": 8, "padded_vocab_size": 96, "max_position_embeddings": 64, "norm_epsilon": 1.5625e-07,
         "rotary_base": 10000.0, "rotary_percent": 0.5, "add_qkv_bias": True,
         "untie_embeddings_and_output_weights": True}
BATCH, SEQ, STEPS = 4, 16, 10


def hf_model(shape: dict = SHAPE, seed: int = 7) -> GlmForCausalLM:
    """A random GLM of `shape`; weights, biases and norm weights are all far from their trivial values."""
    config = GlmConfig(
        vocab_size=shape["padded_vocab_size"], hidden_size=shape["hidden_size"],
        intermediate_size=shape["ffn_hidden_size"], num_hidden_layers=shape["num_layers"],
        num_attention_heads=shape["num_attention_heads"], num_key_value_heads=shape["num_query_groups"],
        head_dim=shape["kv_channels"], rms_norm_eps=shape["norm_epsilon"], attention_bias=True,
        max_position_embeddings=shape["max_position_embeddings"], tie_word_embeddings=False, pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": shape["rotary_base"], "partial_rotary_factor": 0.5},
        attn_implementation="eager")
    torch.manual_seed(seed)
    model = GlmForCausalLM(config).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.2 if parameter.ndim == 1 else 0.1)
                            + (1.0 if "norm" in name else 0.0))
    return model


def mcore_tensors(named: dict[str, torch.Tensor], shape: dict = SHAPE) -> dict[str, np.ndarray]:
    """Hugging Face names and layout -> Megatron's (used for weights and gradients alike)."""
    dim, groups = shape["kv_channels"], shape["num_query_groups"]

    def grouped(q, k, v):
        parts = [t.reshape(groups, -1, *t.shape[1:]) for t in (q, k, v)]
        return torch.cat(parts, dim=1).reshape(-1, *q.shape[1:])

    out = {"embedding.word_embeddings.weight": named["model.embed_tokens.weight"],
           "decoder.final_layernorm.weight": named["model.norm.weight"], "output_layer.weight": named["lm_head.weight"]}
    for i in range(shape["num_layers"]):
        hf, mc = f"model.layers.{i}.", f"decoder.layers.{i}."
        for kind in ("weight", "bias"):
            out[f"{mc}self_attention.linear_qkv.{kind}"] = grouped(
                *(named[f"{hf}self_attn.{x}_proj.{kind}"] for x in "qkv"))
        out[mc + "self_attention.linear_proj.weight"] = named[hf + "self_attn.o_proj.weight"]
        out[mc + "input_layernorm.weight"] = named[hf + "input_layernorm.weight"]
        out[mc + "pre_mlp_layernorm.weight"] = named[hf + "post_attention_layernorm.weight"]
        out[mc + "mlp.linear_fc1.weight"] = named[hf + "mlp.gate_up_proj.weight"]
        out[mc + "mlp.linear_fc2.weight"] = named[hf + "mlp.down_proj.weight"]
    assert all(t.shape[0] % dim == 0 for n, t in out.items() if "linear_qkv" in n)
    return {name: tensor.detach().numpy().copy() for name, tensor in out.items()}


def loss_of(model, ids, labels):
    """Logits `(B, S, V)` and mean cross entropy over all positions; labels are already shifted."""
    logits = model(input_ids=ids).logits
    return logits, torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))


def main() -> None:
    model = hf_model()
    rng = np.random.default_rng(11)
    ids, labels = (torch.from_numpy(rng.integers(0, SHAPE["padded_vocab_size"], (BATCH, SEQ))) for _ in range(2))
    record = {f"weight/{k}": v for k, v in mcore_tensors(dict(model.named_parameters())).items()}
    logits, loss = loss_of(model, ids, labels)
    loss.backward()
    record |= {f"grad/{k}": v for k, v in mcore_tensors({n: p.grad for n, p in model.named_parameters()}).items()}
    record["logits"], record["loss"] = logits.detach().numpy(), np.float64(loss.item())

    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
                                  lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    losses, norms = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        _, loss = loss_of(model, ids, labels)
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        optimizer.step()
        losses.append(loss.item())
    record |= {"adamw_losses": np.array(losses), "adamw_grad_norms": np.array(norms), "ids": ids.numpy(),
               "labels": labels.numpy(), "shape": np.array(json.dumps(SHAPE))}
    path = Path(__file__).with_name("golden.npz")
    np.savez_compressed(path, **record)
    print(f"{path.name}: {path.stat().st_size} bytes, loss {record['loss']:.6f}, after {STEPS} steps {losses[-1]:.6f}")


if __name__ == "__main__":
    main()
