"""32K sequences through the scripts: equal losses however they are cut, memory that grows linearly with the sequence.

    python benchmarks/long_sequence.py                  # both scripts, 8K to 32K, CP 1, 2, 4 and TP2 x CP2: ten minutes
    python benchmarks/long_sequence.py --stages tune --dtype fp32 --sequences 8192 16384

Makes a tiny GLM4 (MODEL=glm4-tiny), long documents and packed conversations, then runs one iteration of
pretrain_glm4_9b_32k_ms.sh and tune_glm4_9b_32k_full_ms.sh for every sequence length and way to cut it, their flags
unchanged but for the length, the batch and the number of iterations. Two Markdown tables are printed. The exit status
is 1 when a loss or gradient norm differs from that of one process, or memory grows faster than the sequence.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "examples" / "mindspore" / "glm4"
sys.path.insert(0, str(ROOT))

from mindspeed_llm.tasks.quickstart.world import World, documents, make_world  # noqa: E402
from tests.distributed.launch import free_port, script_environment  # noqa: E402

STAGES = {"pretrain": ("pretrain_glm4_9b_32k_ms.sh", 1), "tune": ("tune_glm4_9b_32k_full_ms.sh", 2)}  # micro-batch size
# Relative, of the loss and of the gradient norm, of which the log has three decimals. fp32: the order of sums. bf16: an
# activation is rounded to 8 bits, and the partial sums of TP and CP are so before they are added.
TOLERANCES = {"fp32": (1e-6, 5e-4), "bf16": (2e-5, 1e-3)}
GROWTH = 1.15  # of memory over that of the sequence, where an S x S part makes it 2 in a doubling
WAYS = {"CP1": (1, 1), "CP2": (1, 2), "CP4": (1, 4), "TP2xCP2": (2, 2)}  # TP, CP
LINE = re.compile(r"elapsed time per iteration \(ms\): (\S+) \|.* lm loss: (\S+) \|.* grad norm: (\S+) \|"
                  r".* peak memory \(MB\): (\S+) \|")
SENTENCE_TOKENS = 8


@dataclass(frozen=True)
class Outcome:
    """One iteration: seconds, loss, gradient norm, peak memory of rank 0 beyond what import took (MB)."""

    seconds: float
    loss: float
    grad_norm: float
    peak_mb: float


def bash(command: list[object], folder: Path, **variables: object) -> str:
    """Output of a script run in `folder` for the tiny model on CPU; its failure ends the benchmark."""
    done = subprocess.run(["bash", *map(str, command)], cwd=folder, env=script_environment(**variables), text=True,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout[-4000:]}")
    return done.stdout


def make_model(folder: Path) -> None:
    """A tiny GLM4 and its tokenizer in `hf`, the same as a checkpoint in `mcore`."""
    make = ('source "$0/common.sh"; source "$0/model_args.sh"; python -m mindspeed_llm.tasks.quickstart make-model '
            '--save-dir hf "${MODEL_ARGS[@]}" --seq-length 256 --max-position-embeddings 256')
    bash(["-c", make, SCRIPTS], folder)
    bash([SCRIPTS / "ckpt_convert_glm4_hf2mcore.sh"], folder, HF_DIR="hf", MCORE_DIR="mcore", DTYPE="fp32", TP=1, PP=1)


def make_texts(folder: Path, world: World) -> str:
    """Documents of about 16K tokens as pre-training data; returns its prefix."""
    texts = documents(world, seed=1, count=8, sentences=16384 // SENTENCE_TOKENS)
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    bash([SCRIPTS / "data_convert_glm4_pretrain.sh"], folder, INPUT="texts.jsonl", OUTPUT_PREFIX="texts",
         TOKENIZER_PATH="hf", WORKERS=1)
    return "texts_text_document"


def make_conversations(folder: Path, world: World, length: int) -> str:
    """Conversations of an eighth to a half of `length`, packed into rows of it; returns the data's prefix."""
    rows = [{"instruction": "Tell what is known.", "input": "", "output": text}
            for part in (2, 4, 8, 8) for text in documents(world, part, 4, sentences=length // part // SENTENCE_TOKENS)]
    (folder / f"told_{length}.json").write_text(json.dumps(rows), encoding="utf-8")
    bash([SCRIPTS / "data_convert_glm4_tune.sh", "--seq-length", length], folder,
         INPUT=f"told_{length}.json", OUTPUT_PREFIX=f"told_{length}", TOKENIZER_PATH="hf", WORKERS=1)
    return f"told_{length}"


def iterate(folder: Path, stage: str, data: str, length: int, tp: int, cp: int, dtype: str) -> Outcome:
    """One iteration of a stage's script on tp * cp ranks."""
    script, batch = STAGES[stage]
    with tempfile.TemporaryDirectory(prefix="saved_", dir=folder) as saved:
        output = bash([SCRIPTS / script, "--seq-length", length, "--max-position-embeddings", length,
                       "--global-batch-size", batch, "--train-iters", 1], folder, NPUS_PER_NODE=tp * cp, TP=tp, PP=1,
                      CP=cp, MASTER_PORT=free_port(), CKPT_LOAD_DIR="mcore", CKPT_SAVE_DIR=saved, DATA_PATH=data,
                      TOKENIZER_PATH="hf", DTYPE=dtype)
    found = LINE.search(output)
    if found is None:
        raise SystemExit(f"{script} printed no iteration line:\n{output[-4000:]}")
    milliseconds, loss, norm, peak = map(float, found.groups())
    return Outcome(milliseconds / 1000, loss, norm, peak)


def same(outcome: Outcome, reference: Outcome, dtype: str) -> bool:
    """Whether loss and gradient norm are those of one process."""
    return all(abs(mine / theirs - 1) <= most for mine, theirs, most in zip(
        (outcome.loss, outcome.grad_norm), (reference.loss, reference.grad_norm), TOLERANCES[dtype], strict=True))


def print_growth(peaks: dict[str, dict[int, float]]) -> bool:
    """The table of peak memory by sequence length, one row per stage and way; returns whether all grow linearly."""
    lengths = sorted({length for row in peaks.values() for length in row})
    heads = " | ".join(f"{length} (MB)" for length in lengths)
    print(f"\n| | {heads} | KB per further token | growth / sequence's |")
    print("|" + "---|" * (len(lengths) + 3))
    linear = True
    for name, row in peaks.items():
        steps = list(zip(sorted(row), sorted(row)[1:]))
        slopes = ", ".join(f"{(row[high] - row[low]) * 1024 / (high - low):.1f}" for low, high in steps)
        growths = [row[high] / row[low] * low / high for low, high in steps]
        linear &= all(growth <= GROWTH for growth in growths)
        print(f"| {name} | " + " | ".join(f"{row[length]:.0f}" if length in row else "" for length in lengths)
              + f" | {slopes} | {', '.join(f'{growth:.2f}' for growth in growths)} |")
    return linear


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--sequences", type=int, nargs="+", default=[8192, 16384, 32768], help="tokens")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS),
                        help="of cutting the work; the others are compared with the first")
    parser.add_argument("--dtype", choices=TOLERANCES, default="fp32")
    options = parser.parse_args()
    world, equal, peaks = make_world(1), True, {}
    with tempfile.TemporaryDirectory(prefix="long_sequence_") as name:
        folder = Path(name)
        make_model(folder)
        print(f"{options.dtype}, one iteration, MODEL=glm4-tiny\n\n| script | sequence | ranks | s | loss | grad norm "
              f"| as {options.ways[0]} | peak of rank 0 (MB) |\n|---|---|---|---|---|---|---|---|", flush=True)
        for stage in options.stages:
            texts = make_texts(folder, world) if stage == "pretrain" else None
            for length in options.sequences:
                data = texts or make_conversations(folder, world, length)
                reference = None
                for way in options.ways:
                    outcome = iterate(folder, stage, data, length, *WAYS[way], options.dtype)
                    reference = reference or outcome
                    matches = same(outcome, reference, options.dtype)
                    equal &= matches
                    peaks.setdefault(f"{stage} {way}", {})[length] = outcome.peak_mb
                    print(f"| {stage} | {length} | {way} | {outcome.seconds:.1f} | {outcome.loss:.6f} | "
                          f"{outcome.grad_norm:.3f} | {'yes' if matches else 'NO'} | {outcome.peak_mb:.0f} |",
                          flush=True)
    linear = print_growth(peaks)
    loss, norm = TOLERANCES[options.dtype]
    print(f"\nlosses within {loss:g} and gradient norms within {norm:g} of {options.ways[0]}: "
          f"{'yes' if equal else 'NO'}; memory grows at most {GROWTH} times as fast as the sequence: "
          f"{'yes' if linear else 'NO'}")
    sys.exit(not (equal and linear))


if __name__ == "__main__":
    main()
