"""What parallelism costs here: a training step on several ranks against one process, and the pipeline's bubble.

    python benchmarks/parallel_step.py                   # both tables and pipeline_bubble.png: about six minutes
    python benchmarks/parallel_step.py --only ratio --layouts TP2 DP4 --steps 10
    python benchmarks/parallel_step.py --only bubble --microbatches 2 8 --hidden 256

ratio: the same model and global batch on one process with two threads, and on ranks with two threads in all (with four
ranks one each, taking turns on two cores); medians of a step. bubble: two stages with a core each; the share of a
schedule's time in which a stage runs no forward or backward pass, against (p-1)/(vm+p-1) for p stages, m micro-batches
and v chunks a rank. Both times are taken by wrapping the trainer's step, the schedule, and the passes that it calls.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.distributed.launch import run_msrun, worker_environment  # noqa: E402
from tests.training.tiny_job import write_documents  # noqa: E402

THREADS = 2  # in all, where there are fewer ranks than that
WARM_UP = 2  # steps: buffers are made, kernels chosen
TARGET = 1.5  # times the single process
POINTS = 10  # of the bubble's percentage
LAYOUTS = {  # name -> ranks, flags
    "1 process": (1, ""),
    "TP2": (2, "--tensor-model-parallel-size 2 --sequence-parallel"),
    "PP2": (2, "--pipeline-model-parallel-size 2"),
    "TP2xPP2": (4, "--tensor-model-parallel-size 2 --sequence-parallel --pipeline-model-parallel-size 2"),
    "DP4": (4, ""),
}
INTERLEAVED = "--num-layers-per-virtual-pipeline-stage"


@dataclass(frozen=True)
class Step:
    """One step of one rank; times in seconds on the machine's monotonic clock, the same for all ranks.

    processor: seconds that cores worked for this rank. schedule: (start, stop) of all forward and backward passes with
    the messages between them. passes: (kind, start, stop) of each.
    """

    seconds: float
    processor: float
    schedule: tuple[float, float]
    passes: list[tuple[str, float, float]]


class Recorder:
    """Wraps the trainer of this process from the outside and writes down when it does what."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._passes: list[tuple[str, float, float]] = []
        self._schedule = (0.0, 0.0)

    def install(self) -> None:
        """Replace the trainer's step, its schedule, and the backward pass by timed ones."""
        from mindspeed_llm.runtime import autograd
        from mindspeed_llm.training import loop
        step, schedule = loop.Trainer.step, loop.forward_backward

        def timed_step(trainer, rate: float):
            started, worked = time.perf_counter(), time.process_time()
            result = step(trainer, rate)
            self.steps.append(Step(time.perf_counter() - started, time.process_time() - worked, self._schedule,
                                   self._passes))
            self._passes = []
            return result

        def timed_schedule(programs, *others):
            timed = [replace(program, forward=self._timed("forward", program.forward)) for program in programs]
            started = time.perf_counter()
            result = schedule(timed, *others)
            self._schedule = (started, time.perf_counter())
            return result

        loop.Trainer.step, loop.forward_backward = timed_step, timed_schedule
        autograd.backward = self._timed("backward", autograd.backward)

    def _timed(self, kind: str, function):
        def timed(*arguments):
            started = time.perf_counter()
            result = function(*arguments)
            self._passes.append((kind, started, time.perf_counter()))
            return result
        return timed


def worker(folder: str, flags: list[str]) -> None:
    """One rank: train, then write down its steps."""
    from mindspeed_llm.config.command_line import parse
    configs = parse("pretrain", flags)
    from mindspeed_llm import training
    recorder = Recorder()
    recorder.install()
    training.run(configs)
    steps = [[step.seconds, step.processor, step.schedule, step.passes] for step in recorder.steps]
    (Path(folder) / f"steps_{os.environ.get('RANK_ID', '0')}.json").write_text(json.dumps(steps))


def measure(options: argparse.Namespace, data: str, ranks: int, flags: str, batch: int) -> list[list[Step]]:
    """`[rank][step]` of a run of its own, without the warm-up."""
    hidden, threads = options.hidden, max(1, THREADS // ranks)
    words = (f"--num-layers {options.layers} --hidden-size {hidden} --ffn-hidden-size {hidden * 10 // 3 // 16 * 16} "
             f"--num-attention-heads {hidden // 64} --kv-channels 64 --group-query-attention --num-query-groups 2 "
             f"--padded-vocab-size 512 --add-qkv-bias --untie-embeddings-and-output-weights --seq-length {options.seq} "
             f"--max-position-embeddings {options.seq} --micro-batch-size 1 --global-batch-size {batch} "
             f"--train-iters {WARM_UP + options.steps} --lr 1e-4 --use-distributed-optimizer --data-path {data} "
             f"{'' if options.dtype == 'fp32' else '--' + options.dtype} {flags}").split()
    with tempfile.TemporaryDirectory(prefix="parallel_step_") as folder:
        arguments = [str(Path(__file__).resolve()), "worker", folder, *words]
        environment = {"OMP_NUM_THREADS": str(threads), "GLOG_v": "3", "MS_NODE_TIMEOUT": "120"}
        if ranks == 1:
            done = subprocess.run([sys.executable, *arguments], env=worker_environment(environment), text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        else:
            done = run_msrun(arguments[0], ranks, *arguments[1:], env=environment, timeout=600)
        if done.returncode:
            raise SystemExit(f"{' '.join(words)} failed:\n{done.stdout[-3000:]}\n{done.stderr or ''}")
        loaded = [json.loads((Path(folder) / f"steps_{rank}.json").read_text()) for rank in range(ranks)]
    return [[Step(*step) for step in steps[WARM_UP:]] for steps in loaded]


def busy(step: Step) -> float:
    """Seconds that a step's passes take."""
    return sum(stop - start for _, start, stop in step.passes)


def idle_shares(ranks: list[list[Step]]) -> list[float]:
    """Per rank, the median over steps of the share of the schedule's time, first start to last end, without a pass."""
    shares = [[] for _ in ranks]
    for step in zip(*ranks, strict=True):
        span = max(rank.schedule[1] for rank in step) - min(rank.schedule[0] for rank in step)
        for found, rank in zip(shares, step, strict=True):
            found.append(1 - busy(rank) / span)
    return [statistics.median(found) for found in shares]


def ratio_table(options: argparse.Namespace, data: str) -> bool:
    """Times of a step by layout; returns whether four ranks' medians stay within the target.

    The single process runs before and after the others, because a machine's speed drifts. Its processor time is
    nearly twice its step's, or something else took the cores, which the fastest steps show least.
    """
    print("\n| layout | ranks x threads | ms per step | times 1 process | fastest (ms) | times 1 process | passes (ms) "
          "| between passes (ms) | rest (ms) | processor, all ranks (ms) |\n" + "|---" * 10 + "|", flush=True)
    names = [name for name in LAYOUTS if name != "1 process" and (not options.layouts or name in options.layouts)]
    results = {name: measure(options, data, *LAYOUTS[name], options.batch) for name in ["1 process", *names]}
    again = measure(options, data, *LAYOUTS["1 process"], options.batch)
    alone = [step.seconds for step in results["1 process"][0] + again[0]]
    single, fastest_single = statistics.median(alone), min(alone)
    within = True
    for name, ranks in results.items():
        count = LAYOUTS[name][0]
        steps = results[name][0] + again[0] if count == 1 else [step for rank in ranks for step in rank]
        seconds = single if count == 1 else statistics.median(step.seconds for step in ranks[0])
        fastest = fastest_single if count == 1 else min(step.seconds for step in ranks[0])
        passes = statistics.median(busy(step) for step in steps)
        schedule = statistics.median(step.schedule[1] - step.schedule[0] for step in steps)
        processor = statistics.median(step.processor for step in steps) * count
        within &= count < 4 or seconds <= TARGET * single
        print(f"| {name} | {count} x {max(1, THREADS // count)} | {seconds * 1e3:.0f} | {seconds / single:.2f} | "
              f"{fastest * 1e3:.0f} | {fastest / fastest_single:.2f} | {passes * 1e3:.0f} | "
              f"{(schedule - passes) * 1e3:.0f} | {(seconds - schedule) * 1e3:.0f} | {processor * 1e3:.0f} |",
              flush=True)
    if any(LAYOUTS[name][0] >= 4 for name in results):
        print(f"\nmedians of 4 ranks within {TARGET} times the single process: {'yes' if within else 'NO'}")
    return within


def bubble_table(options: argparse.Namespace, data: str) -> bool:
    """Measured and predicted idle shares; draws the picture; returns whether they agree."""
    print("\n| schedule | micro-batches | idle, stage by stage | mean | (p-1)/(vm+p-1) | difference (points) "
          "|\n|---|---|---|---|---|---|", flush=True)
    agree, drawn = True, {}
    chunk = options.layers // 4
    for name, chunks, flags in (("1F1B", 1, ""), (f"interleaved, {chunk} layers a chunk", 2, f"{INTERLEAVED} {chunk}")):
        # Fewer micro-batches than ranks leave gaps in the interleaved order, which the formula does not count.
        for microbatches in (count for count in options.microbatches if chunks == 1 or count >= 2):
            ranks = measure(options, data, 2, f"--pipeline-model-parallel-size 2 {flags}", microbatches)
            shares, predicted = idle_shares(ranks), 1 / (chunks * microbatches + 1)
            mean = statistics.mean(shares)
            agree &= abs(mean - predicted) * 100 <= POINTS
            drawn[f"{name}, {microbatches} micro-batches: {mean:.0%} idle, {predicted:.0%} predicted"] = ranks
            print(f"| {name} | {microbatches} | {', '.join(f'{share:.1%}' for share in shares)} | {mean:.1%} | "
                  f"{predicted:.1%} | {(mean - predicted) * 100:+.1f} |", flush=True)
    if options.picture:
        draw(drawn, options.picture)
        print(f"\npicture: {options.picture}")
    print(f"\nbubble within {POINTS} points: {'yes' if agree else 'NO'}")
    return agree


def draw(runs: dict[str, list[list[Step]]], path: Path) -> None:
    """One band per run, one row per stage: when the passes of its fastest step ran."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, bands = pyplot.subplots(len(runs), 1, figsize=(10, 1.3 * len(runs) + 0.6), squeeze=False)
    colours = {"forward": "#4c78a8", "backward": "#f58518"}
    for (title, ranks), (band,) in zip(runs.items(), bands, strict=True):
        step = min(zip(*ranks, strict=True), key=lambda ranks: max(rank.seconds for rank in ranks))
        start = min(rank.schedule[0] for rank in step)
        for stage, rank in enumerate(step):
            for kind, colour in colours.items():
                spans = [((low - start) * 1e3, (high - low) * 1e3)
                         for name, low, high in rank.passes if name == kind]
                band.broken_barh(spans, (-stage - 0.4, 0.8), facecolor=colour, edgecolor="white", label=kind)
        band.set_title(title, fontsize=9)
        band.set_yticks([-stage for stage in range(len(ranks))], [f"stage {stage}" for stage in range(len(ranks))])
        band.set_xlim(0, (max(rank.schedule[1] for rank in step) - start) * 1e3)
    bands[-1][0].set_xlabel("ms")
    handles, labels = bands[0][0].get_legend_handles_labels()
    figure.legend(handles[:2], labels[:2], loc="upper right", ncols=2, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def write_data(prefix: Path) -> str:
    """Documents of random ids; returns the data's prefix."""
    draws = np.random.default_rng(0)
    write_documents(str(prefix), [draws.integers(0, 512, 20000) for _ in range(4)])
    return str(prefix)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("ratio", "bubble"), help="one of the two tables")
    parser.add_argument("--layouts", nargs="+", choices=[name for name in LAYOUTS if name != "1 process"])
    parser.add_argument("--microbatches", type=int, nargs="+", default=[1, 2, 4, 8], help="of the bubble's runs")
    parser.add_argument("--batch", type=int, default=8, help="sequences of the ratio's runs")
    parser.add_argument("--hidden", type=int, default=512, help="a multiple of 128")
    parser.add_argument("--layers", type=int, default=8, help="a multiple of 4")
    parser.add_argument("--seq", type=int, default=512)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--picture", type=Path, default=Path("pipeline_bubble.png"))
    options = parser.parse_args()
    if options.hidden % 128 or options.layers % 4:
        parser.error("--hidden must be a multiple of 128 and --layers of 4")
    print(f"{options.dtype}, {options.layers} layers, hidden {options.hidden}, sequence {options.seq}, global batch "
          f"{options.batch} of 1; {len(os.sched_getaffinity(0))} cores; median of {options.steps} steps")
    good = True
    with tempfile.TemporaryDirectory(prefix="parallel_step_data_") as folder:
        data = write_data(Path(folder) / "text_document")
        if options.only != "bubble":
            good &= ratio_table(options, data)
        if options.only != "ratio":
            good &= bubble_table(options, data)
    sys.exit(not good)


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(sys.argv[2], sys.argv[3:])
    else:
        main()
