"""Record in generation.npz what Hugging Face's `generate` says with the model of make_golden.py, the matrices of its
layers multiplied by SHARPENED: as it is it repeats one token.

    pip install torch==2.13.0 transformers==5.24.0 'numpy<2' && python tests/golden/make_generation.py

Greedy search, greedy search with a repetition penalty, beam search, beam search with a repetition penalty: the answer's
ids (filled with -1 behind the end, a stop token included) of each prompt, for beam search of each of the best beams,
with its score. A prompt where rounding might decide is left out: the two best next tokens of greedy search must be apart by
MARGIN. Also the probabilities that Hugging Face samples from after some logits, for some settings of temperature,
top-k, top-p and repetition penalty. Everything is fp32.
"""

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from make_golden import hf_model, mcore_tensors
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper
from transformers import TopKLogitsWarper, TopPLogitsWarper

SHARPENED = 3.0
PROMPTS, NEW_TOKENS, LONGEST, MARGIN = 50, 64, 40, 1e-4
BEAMS, BEAM_PROMPTS, BEAM_TOKENS = 4, 8, 24
STOP = [5]
PENALTY = 1.3
SAMPLING = [{"temperature": 0.7, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0},
            {"temperature": 1.3, "top_k": 7, "top_p": 1.0, "repetition_penalty": 1.0},
            {"temperature": 1.0, "top_k": 0, "top_p": 0.6, "repetition_penalty": 1.0},
            {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.4}]


def inputs(prompt: list[int]) -> dict[str, torch.Tensor]:
    """One prompt; without a mask `generate` would take the id of its filling for filling."""
    return {"input_ids": torch.tensor([prompt]), "attention_mask": torch.ones(1, len(prompt), dtype=torch.long)}


def greedy(model, prompt: list[int], penalty: float) -> tuple[list[int], float]:
    """The answer, and by how much its tokens were ahead of the next best at the closest place."""
    found = model.generate(**inputs(prompt), do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=STOP,
                           pad_token_id=0, repetition_penalty=penalty, output_scores=True, return_dict_in_generate=True)
    best = torch.stack([scores[0].topk(2).values for scores in found.scores])
    return found.sequences[0, len(prompt):].tolist(), float((best[:, 0] - best[:, 1]).min())


def beams(model, prompt: list[int], penalty: float) -> tuple[list[list[int]], list[float]]:
    """The best beams, best first, and their scores."""
    found = model.generate(**inputs(prompt), do_sample=False, num_beams=BEAMS, num_return_sequences=BEAMS,
                           max_new_tokens=BEAM_TOKENS, eos_token_id=STOP, pad_token_id=0, repetition_penalty=penalty,
                           length_penalty=1.0, early_stopping=False, output_scores=True, return_dict_in_generate=True)
    ends = [row[len(prompt):].tolist() for row in found.sequences]
    ends = [row[:next((place + 1 for place, token in enumerate(row) if token in STOP), len(row))] for row in ends]
    return ends, found.sequences_scores.tolist()


def filled(rows: list[list[int]], width: int) -> np.ndarray:
    """Rows of one width, -1 behind their ends."""
    return np.array([row + [-1] * (width - len(row)) for row in rows], np.int16)


def probabilities(model, prompt: list[int], how: dict) -> np.ndarray:
    """What Hugging Face draws the token after a prompt from, in its order of processors."""
    with torch.inference_mode():
        scores = model(torch.tensor([prompt])).logits[:, -1]
    steps = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(how["repetition_penalty"]),
                                 TemperatureLogitsWarper(how["temperature"])])
    if how["top_k"]:
        steps.append(TopKLogitsWarper(how["top_k"]))
    steps.append(TopPLogitsWarper(how["top_p"]))
    return steps(torch.tensor([prompt]), scores).softmax(-1)[0].numpy()


def main() -> None:
    transformers.logging.set_verbosity_error()  # that the model was made for 64 positions
    folder = Path(__file__).parent
    model = hf_model().eval()
    with np.load(folder / "golden.npz", allow_pickle=False) as golden:
        for name, tensor in mcore_tensors(dict(model.named_parameters())).items():
            assert np.array_equal(golden[f"weight/{name}"], tensor), name
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(SHARPENED if "layers" in name and parameter.ndim == 2 else 1.0)
    rng = np.random.default_rng(21)
    prompts, answers, penalized = [], [], []
    while len(prompts) < PROMPTS:
        prompt = rng.integers(0, 96, rng.integers(1, LONGEST + 1)).tolist()
        (plain, margin), (other, other_margin) = greedy(model, prompt, 1.0), greedy(model, prompt, PENALTY)
        if min(margin, other_margin) > MARGIN:
            prompts.append(prompt)
            answers.append(plain)
            penalized.append(other)
    record = {"prompts": filled(prompts, LONGEST), "greedy": filled(answers, NEW_TOKENS),
              "penalized": filled(penalized, NEW_TOKENS), "stop": np.array(STOP), "penalty": np.float64(PENALTY),
              "sharpened": np.float64(SHARPENED)}
    for name, penalty in (("beams", 1.0), ("penalized_beams", PENALTY)):
        found = [beams(model, prompt, penalty) for prompt in prompts[:BEAM_PROMPTS]]
        record[name] = np.stack([filled(ends, BEAM_TOKENS) for ends, _ in found])
        record[f"{name}_scores"] = np.array([scores for _, scores in found], np.float32)
    record["sampling"] = np.array(json.dumps(SAMPLING))
    record["probabilities"] = np.stack([probabilities(model, prompts[0], how) for how in SAMPLING])
    path = folder / "generation.npz"
    np.savez_compressed(path, **record)
    print(f"{path.name}: {path.stat().st_size} bytes; mean length {np.mean(record['greedy'] >= 0) * NEW_TOKENS:.1f} "
          f"greedy, {np.mean(record['penalized'] >= 0) * NEW_TOKENS:.1f} penalized; different tokens in an answer "
          f"{np.mean([len(set(answer)) for answer in answers]):.1f}")


if __name__ == "__main__":
    main()
