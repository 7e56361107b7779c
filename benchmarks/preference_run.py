"""Preference tuning of a tiny model on a file of ShareGPT-style pairs, and a picture of how it went.

    python benchmarks/preference_run.py dpo_en_demo.json work docs/images/dpo_curves.png

Trains a tokenizer on the file's text, pre-trains a model of glm4-tiny's size on it (300 iterations), then runs
dpo_glm4_9b_8k_ms.sh for 200 iterations with the pre-trained model as reference: 9 of 10 pairs for training, the rest
for validation. What is done already in the work folder is not done again.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mindspeed_llm.data.tokenizer_training import train_tiktoken_bpe, write_chatglm_tokenizer  # noqa: E402
from mindspeed_llm.report.logs import Run, find_runs  # noqa: E402

SCRIPTS = ROOT / "examples" / "mindspore" / "glm4"
LENGTH, PAIR_LENGTH, RANKS = 512, 256, 1500
MEAN = 10   # iterations that a point of a curve is the mean of
MODEL = f"--padded-vocab-size 1536 --max-position-embeddings {LENGTH} --seq-length {LENGTH} --eval-interval 100".split()
PICTURES = (("lm loss", "preference loss"), ("rewards/accuracies", "reward accuracy"), ("rewards/chosen", "rewards"),
            ("rewards/rejected", "rewards"), ("logps/chosen", "log-probabilities"),
            ("logps/rejected", "log-probabilities"))


def prepare(pairs: list[dict], work: Path) -> None:
    """The tokenizer, and every text of the pairs once for pre-training."""
    texts = dict.fromkeys(turn["value"] for pair in pairs
                          for turn in (*pair["conversations"], pair["chosen"], pair["rejected"]))
    write_chatglm_tokenizer(work / "tokenizer", train_tiktoken_bpe(texts, RANKS))
    (work / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def call(*command: object, **environment: object) -> None:
    """Run a command from the repository."""
    subprocess.run([str(word) for word in command], check=True, cwd=ROOT,
                   env={**os.environ, **{name: str(value) for name, value in environment.items()}})


def tune(source: Path, work: Path) -> None:
    """Data, pre-training, preference tuning."""
    python, tokenizer = [sys.executable, "preprocess_data.py"], work / "tokenizer"
    call(*python, "--input", work / "text.jsonl", "--output-prefix", work / "text", "--append-eod",
         "--tokenizer-name-or-path", tokenizer)
    call(*python, "--input", source, "--output-prefix", work / "pairs", "--tokenizer-name-or-path", tokenizer,
         "--handler-name", "SharegptStylePairwiseHandler", "--prompt-type", "glm4", "--seq-length", PAIR_LENGTH)
    common = {"MODEL": "glm4-tiny", "DTYPE": "fp32", "TP": 1, "PP": 1, "NPUS_PER_NODE": 1, "TOKENIZER_PATH": tokenizer,
              "DEVICE_TARGET": "CPU"}
    call("bash", SCRIPTS / "pretrain_glm4_8k_ms.sh", *MODEL, "--train-iters", 300, "--global-batch-size", 8,
         "--micro-batch-size", 4, "--lr", "2e-3", "--min-lr", "2e-4", **common, CKPT_LOAD_DIR="",
         CKPT_SAVE_DIR=work / "pretrained", DATA_PATH=work / "text_text_document", LOG_ROOT=work / "logs")
    call("bash", SCRIPTS / "dpo_glm4_9b_8k_ms.sh", *MODEL, "--seq-length", PAIR_LENGTH, "--train-iters", 200,
         "--global-batch-size", 4, "--micro-batch-size", 4, "--lr", "2e-4", "--min-lr", "2e-5",
         "--recompute-num-layers", 1, "--split", "90,10,0", "--eval-iters", 4, "--tensorboard-dir", work / "tensorboard",
         **common, CKPT_LOAD_DIR=work / "pretrained", CKPT_SAVE_DIR=work / "tuned", DATA_PATH=work / "pairs",
         LOG_ROOT=work / "logs")


def draw(run: Run, figure: Path) -> None:
    """Curves of training."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    titles = list(dict.fromkeys(title for _, title in PICTURES))
    _, axes = pyplot.subplots(1, len(titles), figsize=(16, 3.6), layout="constrained")
    for name, title in PICTURES:
        axis = axes[titles.index(title)]
        numbers, values = run.series(name)
        axis.plot(numbers[MEAN - 1:], np.convolve(values, np.full(MEAN, 1 / MEAN), "valid"), label=name)
        axis.set(title=f"{title}, mean of {MEAN}", xlabel="iteration")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.parent.mkdir(parents=True, exist_ok=True)
    pyplot.savefig(figure, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pairs", type=Path, help="JSON list of objects with conversations, chosen, rejected")
    parser.add_argument("work", type=Path, help="folder for everything that is made")
    parser.add_argument("figure", type=Path, help="PNG file to write")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    prepare(json.loads(options.pairs.read_text(encoding="utf-8")), work)
    tune(options.pairs.resolve(), work)
    (run,) = (run for run in find_runs([work / "logs"]) if run.name.startswith("dpo"))
    draw(run, options.figure)


if __name__ == "__main__":
    main()
