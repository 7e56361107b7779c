"""What the planner predicts against what training takes, on CPU: peak resident memory beyond what import took.

    python benchmarks/planner_check.py                  all settings, about ten minutes on two cores
    python benchmarks/planner_check.py tp2 pp2          some of them; --list shows the names

Every rank of a job is measured by itself; a row is a pipeline stage, its measured value the mean of its ranks. Exit
status 1 if a prediction is off by more than 15 %.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from planner_settings import chosen, header, row, verdict

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
TOLERANCE = 0.15

MODEL = ("--group-query-attention --num-query-groups 2 --kv-channels 64 --add-qkv-bias --disable-bias-linear --swiglu "
         "--normalization RMSNorm --untie-embeddings-and-output-weights --train-iters 2 --lr 1e-4 --eval-iters 0 "
         "--micro-batch-size 1").split()
WIDE = "--num-layers 4 --hidden-size 1024 --ffn-hidden-size 3072 --num-attention-heads 16 --padded-vocab-size 8192"
DEEP = "--num-layers 8 --hidden-size 512 --ffn-hidden-size 1536 --num-attention-heads 8 --padded-vocab-size 4096"
LORA = "--lora-target-modules linear_qkv linear_proj linear_fc1 linear_fc2"
FULL = "--recompute-granularity full --recompute-method"

# name: (ranks, sequence length, flags)
SETTINGS = {
    "wide-fp32": (1, 512, f"{WIDE} --global-batch-size 1"),
    "wide-bf16": (1, 1024, f"{WIDE} --bf16 --global-batch-size 1"),
    "deep-fp32": (1, 2048, f"{DEEP} --global-batch-size 1"),
    "deep-bf16": (1, 2048, f"{DEEP} --bf16 --global-batch-size 2 --micro-batch-size 2"),
    "uniform": (1, 2048, f"{DEEP} {FULL} uniform --recompute-num-layers 1 --global-batch-size 2"),
    "block": (1, 2048, f"{DEEP} {FULL} block --recompute-num-layers 4 --global-batch-size 1"),
    "lora-fp32": (1, 2048, f"{DEEP} {LORA} --global-batch-size 1"),
    "lora-bf16": (1, 2048, f"{DEEP} {LORA} --bf16 --global-batch-size 2 --micro-batch-size 2"),
    "tp2": (2, 2048, f"{DEEP} --tensor-model-parallel-size 2 --sequence-parallel --global-batch-size 1"),
    "tp2-plain": (2, 1024, f"{WIDE} --bf16 --tensor-model-parallel-size 2 --global-batch-size 1"),
    "pp2": (2, 1024, f"{DEEP} --pipeline-model-parallel-size 2 --global-batch-size 4"),
    "pp2-virtual": (2, 1024, f"{DEEP} --pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 2 "
                             "--global-batch-size 4"),
    "dp2": (2, 512, f"{WIDE} --bf16 --global-batch-size 2"),
    "dp2-sharded": (2, 512, f"{WIDE} --bf16 --use-distributed-optimizer --overlap-grad-reduce --global-batch-size 4"),
    "cp2-ring": (2, 4096, f"{DEEP} --bf16 --context-parallel-size 2 --use-distributed-optimizer --global-batch-size 1"),
    "cp2-ulysses": (2, 4096, f"{DEEP} --context-parallel-size 2 --context-parallel-algo ulysses_cp_algo "
                             "--global-batch-size 1"),
    "tp2-pp2": (4, 1024, f"{DEEP} --tensor-model-parallel-size 2 --sequence-parallel --pipeline-model-parallel-size 2 "
                         "--global-batch-size 4"),
}


def flags_of(name: str, data: str) -> list[str]:
    """The command line of a setting."""
    _, length, flags = SETTINGS[name]
    return [*MODEL, *flags.split(), "--seq-length", str(length), "--max-position-embeddings", str(length),
            "--data-path", data]


def predicted(name: str) -> list[tuple[str, float]]:
    """(row, MB) of each pipeline stage."""
    from mindspeed_llm.config.command_line import parse
    from mindspeed_llm.tasks.planner.job import CPU, Job
    from mindspeed_llm.tasks.planner.memory import MIB, stage_memory
    configs = parse("pretrain", flags_of(name, "unread"))
    job = Job(configs, SETTINGS[name][0], CPU)
    return [(name if job.pp == 1 else f"{name}, stage {stage}", stage_memory(job, stage).peak / MIB)
            for stage in range(job.pp)]


def measured(name: str, data: str) -> list[float]:
    """Peak in MB of every rank, from a real run."""
    ranks = SETTINGS[name][0]
    with tempfile.TemporaryDirectory(prefix="planner_check_") as folder:
        work = [str(Path(__file__).resolve()), "worker", folder, *flags_of(name, data)]
        if ranks == 1:
            command = [sys.executable, *work]
        else:
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                port = listener.getsockname()[1]
            command = [str(Path(sys.executable).parent / "msrun"), "--worker_num", str(ranks), "--local_worker_num",
                       str(ranks), "--master_port", str(port), "--log_dir", folder, "--join", "True", *work]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False,
                              env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "DEVICE_TARGET": "CPU",
                                   "OMP_NUM_THREADS": "1", "GLOG_v": "3"})
        if done.returncode:
            logs = "".join(log.read_text(errors="replace")[-3000:] for log in Path(folder).glob("worker_*.log"))
            raise SystemExit(f"{name} failed:\n{done.stdout}{done.stderr}{logs}")
        return [json.loads((Path(folder) / f"peak_{rank}.json").read_text()) for rank in range(ranks)]


def worker(folder: str, flags: list[str]) -> None:
    """One rank: train, then note its peak."""
    from mindspeed_llm.config.command_line import parse
    configs = parse("pretrain", flags)
    from mindspeed_llm import training
    from mindspeed_llm.runtime import device
    training.run(configs)
    (Path(folder) / f"peak_{os.environ.get('RANK_ID', '0')}.json").write_text(json.dumps(device.peak_memory_mb()))


def main() -> None:
    """Run the settings named on the command line, or all, and print the table."""
    from mindspeed_llm.data.indexed_dataset import IndexedDatasetBuilder
    names, ratios = chosen(__doc__, SETTINGS), []
    with tempfile.TemporaryDirectory(prefix="planner_check_data_") as folder:
        data = str(Path(folder) / "text_document")
        with IndexedDatasetBuilder(data, np.int32) as builder:
            for _ in range(4):
                builder.add_item(np.random.default_rng(0).integers(0, 4096, 20000))
                builder.end_document()
            builder.finalize()
        header("setting", "ranks", "predicted (MB)", "measured (MB)", "ratio")
        for name in names:
            peaks, rows = measured(name, data), predicted(name)
            share = len(peaks) // len(rows)  # pipeline places are slowest in the ranks' order
            for stage, (label, prediction) in enumerate(rows):
                peak = sum(peaks[stage * share:(stage + 1) * share]) / share
                ratios.append(prediction / peak)
                row(label, len(peaks), f"{prediction:.0f}", f"{peak:.0f}", f"{ratios[-1]:.3f}")
    verdict(ratios, TOLERANCE)


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(sys.argv[2], sys.argv[3:])
    else:
        main()
