"""Record the reference numbers of LoRA from PEFT on Hugging Face's GlmForCausalLM: lora.npz, and an adapter directory.

    pip install torch==2.13.0 transformers==5.24 peft==0.21.2 'numpy<2' && python tests/golden/make_lora.py

The model and the batch are those of golden.npz, under adapters of all four kinds of layers. Megatron's linear_qkv is one
layer, so q_proj, k_proj and v_proj share one matrix A here. Stored, in Megatron's names and row order: the adapters, their
gradients, the loss, and losses and gradient norms of ten AdamW steps as in make_golden.py. Also the logits with the adapters,
and the weights of Hugging Face's names that PEFT merges in bf16 from bf16 base weights. Everything else is fp32.
"""

import json
from pathlib import Path

import numpy as np
import torch
from make_golden import SHAPE, STEPS, hf_model, loss_of
from peft import LoraConfig, PeftModel, get_peft_model

LORA = {"target_modules": ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"], "r": 4, "alpha": 8, "dropout": 0.0}
HF_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"]
DIRECTORY = Path(__file__).with_name("peft_adapter")


def with_adapters(model) -> PeftModel:
    """The model under adapters whose matrices are all random."""
    adapted = get_peft_model(model, LoraConfig(r=LORA["r"], lora_alpha=LORA["alpha"], lora_dropout=LORA["dropout"],
                                               target_modules=HF_TARGETS, task_type="CAUSAL_LM"))
    torch.manual_seed(19)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    for layer in adapted.base_model.model.model.layers:
        attention = layer.self_attn
        for projection in (attention.k_proj, attention.v_proj):
            projection.lora_A["default"].weight = attention.q_proj.lora_A["default"].weight
    return adapted


def mcore_adapters(adapted: PeftModel, of=lambda parameter: parameter) -> dict[str, np.ndarray]:
    """Adapters, or what `of` makes of each, in Megatron's names and row order."""
    groups, out = SHAPE["num_query_groups"], {}

    def matrix(linear, letter: str) -> torch.Tensor:
        return of(getattr(linear, f"lora_{letter}")["default"].weight)

    for i, layer in enumerate(adapted.base_model.model.model.layers):
        name, attention, mlp = f"decoder.layers.{i}.", layer.self_attn, layer.mlp
        parts = [matrix(projection, "B").reshape(groups, -1, LORA["r"])
                 for projection in (attention.q_proj, attention.k_proj, attention.v_proj)]
        out[f"{name}self_attention.linear_qkv.lora_A.weight"] = matrix(attention.q_proj, "A")
        out[f"{name}self_attention.linear_qkv.lora_B.weight"] = torch.cat(parts, dim=1).reshape(-1, LORA["r"])
        for ours, linear in (("self_attention.linear_proj", attention.o_proj), ("mlp.linear_fc1", mlp.gate_up_proj),
                             ("mlp.linear_fc2", mlp.down_proj)):
            for letter in "AB":
                out[f"{name}{ours}.lora_{letter}.weight"] = matrix(linear, letter)
    return {key: tensor.detach().numpy().copy() for key, tensor in out.items()}


def merged_bf16() -> dict[str, np.ndarray]:
    """PEFT's merge of the adapter directory into bf16 base weights, as 16-bit words under Hugging Face's names."""
    merged = PeftModel.from_pretrained(hf_model().to(torch.bfloat16), DIRECTORY).merge_and_unload()
    return {f"merged/{name}": tensor.view(torch.int16).numpy().view(np.uint16)
            for name, tensor in merged.state_dict().items() if name.endswith("proj.weight")}


def main() -> None:
    adapted = with_adapters(hf_model())
    adapted.save_pretrained(DIRECTORY)
    (DIRECTORY / "README.md").unlink()
    with np.load(Path(__file__).with_name("golden.npz"), allow_pickle=False) as golden:
        ids, labels = (torch.from_numpy(golden[key]) for key in ("ids", "labels"))
    record = {f"weight/{key}": array for key, array in mcore_adapters(adapted).items()}
    logits, loss = loss_of(adapted, ids, labels)
    loss.backward()
    record |= {f"grad/{key}": array for key, array in mcore_adapters(adapted, lambda tensor: tensor.grad).items()}
    record |= {"logits": logits.detach().numpy(), "loss": np.float64(loss.item()), **merged_bf16()}
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    losses, norms = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        _, step_loss = loss_of(adapted, ids, labels)
        step_loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, 1.0)))
        optimizer.step()
        losses.append(step_loss.item())
    path = Path(__file__).with_name("lora.npz")
    np.savez_compressed(path, **record, adapters=json.dumps(LORA), adamw_losses=np.array(losses),
                        adamw_grad_norms=np.array(norms))
    print(f"{path.name}: {path.stat().st_size} bytes, loss {record['loss']:.6f}, after {STEPS} steps {losses[-1]:.6f}")


if __name__ == "__main__":
    main()
