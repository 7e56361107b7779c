"""Record the reference numbers of dpo.npz: preference losses on Hugging Face's GlmForCausalLM in PyTorch.

    pip install torch==2.13.0 transformers==5.23 peft==0.21.2 'numpy<2' && python tests/golden/make_dpo.py

The formulas are the papers': DPO (Rafailov et al. 2023, arXiv:2305.18290, eq. 7), its label smoothing (Mitchell 2023,
"A note on DPO with noisy preferences"), hinge (Zhao et al. 2023, SLiC-HF, arXiv:2305.10425, on DPO's rewards), IPO
(Azar et al. 2023, arXiv:2310.12036, eq. 17, on mean log-probabilities), SimPO (Meng et al. 2024, arXiv:2405.14734,
eq. 6), ORPO (Hong et al. 2024, arXiv:2403.07691, eq. 6 and 7). Every sequence is run by itself, so that nothing depends
on padding or packing. Stored: shape, tokens (`ids`), labels and lengths of the pairs (chosen answers first), weights of
the trained and of the reference model in Megatron's names, and per case the settings, the loss, what is reported, and
every gradient. fp32. The case `adapters` trains the adapters of make_lora.py on the trained model's weights, by PEFT; its
reference is the same model with the adapters disabled.
"""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from make_golden import SHAPE as GOLDEN_SHAPE
from make_golden import hf_model, mcore_tensors
from make_lora import LORA, mcore_adapters, with_adapters

SHAPE = {**GOLDEN_SHAPE, "num_layers": 2, "hidden_size": 16, "ffn_hidden_size": 24, "padded_vocab_size": 64}
IGNORE = -100
PROMPTS, CHOSEN, REJECTED = (3, 5, 2, 4), (6, 2, 9, 4), (3, 7, 5, 4)
BETA, GAMMA_BETA_RATIO = 0.5, 1.4
CASES = {"sigmoid": {}, "smooth": {"label_smoothing": 0.2, "pref_ftx": 0.3}, "hinge": {}, "ipo": {}, "simpo": {},
         "orpo": {}}


def pairs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens and labels `(2P, L)`, filled up, and lengths `(2P)`: all chosen answers, then all rejected ones."""
    rng = np.random.default_rng(23)
    # From 1 on: Hugging Face's embedding keeps the gradient of the padding token at 0.
    prompts = [rng.integers(1, SHAPE["padded_vocab_size"], length) for length in PROMPTS]
    rows, labels = [], []
    for answers in (CHOSEN, REJECTED):
        for prompt, length in zip(prompts, answers, strict=True):
            answer = rng.integers(1, SHAPE["padded_vocab_size"], length)
            rows.append(np.concatenate([prompt, answer]))
            labels.append(np.concatenate([np.full(prompt.size, IGNORE), answer]))
    lengths = np.array([row.size for row in rows])
    filled = [np.stack([np.pad(row, (0, lengths.max() - row.size), constant_values=fill) for row in which])
              for which, fill in ((rows, 0), (labels, IGNORE))]
    return *filled, lengths


def logps(model: torch.nn.Module, tokens: np.ndarray, labels: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
    """Sum of the log-probabilities of each sequence's answer, `(2P)`."""
    sums = []
    for row, targets, length in zip(tokens, labels, lengths, strict=True):
        logits = model(input_ids=torch.from_numpy(row[None, :length])).logits[0, :-1]
        targets = torch.from_numpy(targets[1:length])
        counted = targets != IGNORE
        sums.append(torch.log_softmax(logits, -1)[counted].gather(1, targets[counted, None]).sum())
    return torch.stack(sums)


def preference(case: str, policy: torch.Tensor, reference: torch.Tensor, sizes: torch.Tensor,
               label_smoothing: float = 0.0, pref_ftx: float = 0.0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and what is reported, from log-probabilities of sequences and the numbers of their answers' tokens."""
    means = policy / sizes
    (nll, _), weight = (-means).chunk(2), pref_ftx
    if case in ("simpo", "orpo"):
        scores, shown = means, means
        chosen, rejected = means.chunk(2)
        if case == "simpo":
            losses = -F.logsigmoid(BETA * (chosen - rejected - GAMMA_BETA_RATIO))
        else:
            log_odds = [each - torch.log1p(-torch.exp(each)) for each in (chosen, rejected)]
            losses = -BETA * F.logsigmoid(log_odds[0] - log_odds[1]) + nll
    else:
        shown = means if case == "ipo" else policy
        scores = shown - (reference / sizes if case == "ipo" else reference)
        margin = scores.chunk(2)[0] - scores.chunk(2)[1]
        if case == "hinge":
            losses = torch.relu(1 - BETA * margin)
        elif case == "ipo":
            losses = (margin - 1 / (2 * BETA)) ** 2
        else:
            losses = (-(1 - label_smoothing) * F.logsigmoid(BETA * margin)
                      - label_smoothing * F.logsigmoid(-BETA * margin))
    rewards = [BETA * half for half in scores.chunk(2)]
    reported = {"rewards/chosen": rewards[0], "rewards/rejected": rewards[1],
                "rewards/accuracies": (rewards[0] > rewards[1]).float(), "rewards/margins": rewards[0] - rewards[1],
                "logps/chosen": shown.chunk(2)[0], "logps/rejected": shown.chunk(2)[1]}
    return (losses + weight * nll).mean(), {name: values.mean() for name, values in reported.items()}


def case(name: str, what: dict, loss: torch.Tensor, reported: dict[str, torch.Tensor],
         grads: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Entries of a case; `what` says what it is."""
    reported = {key: value.item() for key, value in reported.items()}
    print(f"{name}: loss {loss.item():.6f}, {reported}")
    return {f"{name}/case": np.array(json.dumps({**what, "loss": loss.item(), "metrics": reported})),
            **{f"{name}/grad/{key}": grad for key, grad in grads.items()}}


def main() -> None:
    policy, reference = hf_model(SHAPE), hf_model(SHAPE)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    tokens, labels, lengths = pairs()
    record = {"shape": np.array(json.dumps(SHAPE)), "ids": tokens, "labels": labels, "lengths": lengths}
    for kind, model in (("weight", policy), ("reference", reference)):
        named = mcore_tensors(dict(model.named_parameters()), SHAPE)
        record |= {f"{kind}/{name}": tensor for name, tensor in named.items()}
    with torch.no_grad():
        frozen = logps(reference, tokens, labels, lengths)
    record["reference_logps"] = frozen.numpy()
    sizes = torch.from_numpy((labels[:, 1:] != IGNORE).sum(1)).float()
    for name, settings in CASES.items():
        policy.zero_grad()
        kind = "sigmoid" if name == "smooth" else name
        loss, reported = preference(kind, logps(policy, tokens, labels, lengths), frozen, sizes, **settings)
        loss.backward()
        grads = mcore_tensors({key: parameter.grad for key, parameter in policy.named_parameters()}, SHAPE)
        settings = {"loss_type": kind, "beta": BETA, "gamma_beta_ratio": GAMMA_BETA_RATIO, **settings}
        record |= case(name, {"settings": settings}, loss, reported, grads)
    adapted = with_adapters(policy)
    record |= {f"adapters/weight/{key}": array for key, array in mcore_adapters(adapted).items()}
    with torch.no_grad(), adapted.disable_adapter():
        frozen = logps(adapted, tokens, labels, lengths)
    loss, reported = preference("sigmoid", logps(adapted, tokens, labels, lengths), frozen, sizes)
    loss.backward()
    record |= case("adapters", {"settings": {"loss_type": "sigmoid", "beta": BETA}, "lora": LORA}, loss, reported,
                   mcore_adapters(adapted, lambda tensor: tensor.grad))
    path = Path(__file__).with_name("dpo.npz")
    np.savez_compressed(path, **record)
    print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
