"""Record the reference numbers of other families than GLM-4-9B's (golden.npz) from Hugging Face's models on PyTorch.

    pip install torch==2.13.0 transformers==5.24 'numpy<2' && python tests/golden/make_families.py

Every model is tiny and random, and has everything that makes the family itself. Stored as `<family>.npz`: config.json as
transformers writes it, weights and gradients under Hugging Face's names, ids and labels, logits, loss, and the losses and
gradient norms of ten AdamW steps as in make_golden.py. Everything is fp32.
"""

import json
from pathlib import Path

import numpy as np
import torch
from make_golden import STEPS, loss_of
from transformers import Glm4Config, Glm4ForCausalLM, Qwen3Config, Qwen3ForCausalLM

COMMON = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "head_dim": 16,
          "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "tie_word_embeddings": False,
          "attention_bias": False, "attn_implementation": "eager"}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
MODELS = {
    # as GLM-4-32B-0414: post-norms, epsilon 1e-05, no QKV bias, interleaved rope on half of a head
    "glm4": (Glm4ForCausalLM, Glm4Config(num_hidden_layers=3, rms_norm_eps=1e-05, **COMMON,
                                         rope_parameters={**ROPE, "partial_rotary_factor": 0.5})),
    # norms of q and k, rope on halves of the whole head, which is wider than hidden size / heads
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(num_hidden_layers=4, rms_norm_eps=1e-06, **COMMON,
                                            rope_parameters={**ROPE, "rope_theta": 1e6})),
}


def record(name: str) -> None:
    """Make `<name>.npz`."""
    kind, config = MODELS[name]
    torch.manual_seed(7)
    model = kind(config).float()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.2 if parameter.ndim == 1 else 0.1)
                            + (1.0 if "norm" in key else 0.0))
    ids, labels = torch.randint(0, config.vocab_size, (2, 4, 16), generator=torch.Generator().manual_seed(11))
    numbers = {f"weight/{key}": tensor.detach().numpy().copy() for key, tensor in model.named_parameters()}
    logits, loss = loss_of(model, ids, labels)
    loss.backward()
    numbers |= {f"grad/{key}": tensor.grad.numpy().copy() for key, tensor in model.named_parameters()}
    optimizer = torch.optim.AdamW([{"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
                                   {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0}],
                                  lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    losses, norms = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        step_loss = loss_of(model, ids, labels)[1]
        step_loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        optimizer.step()
        losses.append(step_loss.item())
    np.savez_compressed(Path(__file__).with_name(f"{name}.npz"), **numbers, config=json.dumps(config.to_dict()),
                        ids=ids.numpy(), labels=labels.numpy(), logits=logits.detach().numpy(), loss=loss.item(),
                        adamw_losses=np.array(losses), adamw_grad_norms=np.array(norms))
    print(name, "loss", loss.item(), "after", STEPS, "steps", losses[-1])


if __name__ == "__main__":
    for family in MODELS:
        record(family)
