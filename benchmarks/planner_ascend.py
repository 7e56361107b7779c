"""What the planner predicts for Ascend against MindSpore's own memory pool, simulated: every stage of GLM4-9B.

    python benchmarks/planner_ascend.py                 all settings, some minutes
    python benchmarks/planner_ascend.py 8k tune-32k     some of them; --list shows the names

Runs one iteration of every pipeline stage on a simulated NPU (docs/ascend.md) and prints the peak of live tensors, that of the
pool, and the prediction (without HCCL's buffers, which are not in the pool). Two rounds of micro-batches fill a
pipeline; more do not change the peak. Exit status 1 if a prediction is off by more than 5 %.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from planner_settings import chosen, header, row, verdict

ROOT = Path(__file__).parents[1]
DRY_RUN = ROOT / "tests" / "ascend" / "dry_run"
sys.path[:0] = [str(ROOT), str(DRY_RUN)]
TOLERANCE = 0.05
GIB = 2**30

MODEL = ("--num-layers 40 --hidden-size 4096 --ffn-hidden-size 13696 --num-attention-heads 32 --group-query-attention "
         "--num-query-groups 2 --kv-channels 128 --padded-vocab-size 151552 --add-qkv-bias --disable-bias-linear --swiglu "
         "--untie-embeddings-and-output-weights --norm-epsilon 1.5625e-07 --bf16 --use-distributed-optimizer "
         "--train-iters 1 --lr 1e-6 --eval-iters 0 --data-path unread --micro-batch-size 1").split()
LORA = "--lora-target-modules linear_qkv linear_proj linear_fc1 linear_fc2"
DPO = "--stage dpo --is-pairwise-dataset --no-pad-to-seq-lengths --tokenizer-name-or-path unread"
TP, PP, CP, LAYERS = "--tensor-model-parallel-size", "--pipeline-model-parallel-size", "--context-parallel-size", \
    "--recompute-granularity full --recompute-method block --recompute-num-layers"
SP = "--sequence-parallel"

# name: (ranks, sequence length, flags)
SETTINGS = {
    "4k": (8, 4096, f"{TP} 2 {SP} {PP} 2"),
    "4k-no-sp": (8, 4096, f"{TP} 2 {PP} 2"),
    "4k-tp4": (8, 4096, f"{TP} 4 {SP} {PP} 2"),
    "4k-pp4": (8, 4096, f"{TP} 2 {SP} {PP} 4"),
    "4k-vpp": (8, 4096, f"{TP} 2 {SP} {PP} 2 --num-layers-per-virtual-pipeline-stage 10"),
    "8k": (8, 8192, f"{TP} 2 {SP} {PP} 2"),
    "8k-tp8": (8, 8192, f"{TP} 8 {SP}"),
    "8k-recompute": (8, 8192, f"{TP} 2 {SP} {PP} 2 {LAYERS} 10"),
    "8k-overlap": (8, 8192, f"{TP} 2 {SP} {PP} 2 {LAYERS} 5 --overlap-grad-reduce --overlap-param-gather"),
    "8k-cp2": (8, 8192, f"{TP} 2 {SP} {PP} 2 {CP} 2"),
    "32k": (8, 32768, f"{TP} 2 {SP} {PP} 2 {CP} 2 {LAYERS} 12"),
    "32k-2-nodes": (16, 32768, f"{TP} 2 {SP} {PP} 2 {CP} 2 {LAYERS} 12"),
    "32k-cp4": (16, 32768, f"{TP} 2 {SP} {PP} 2 {CP} 4"),
    "tune-32k": (8, 32768, f"{TP} 2 {SP} {PP} 2 --num-layer-list 22,18 --micro-batch-size 2 {LAYERS} 22"),
    "lora-4k": (8, 4096, f"{LORA} {TP} 2 {SP}"),
    "lora-8k": (8, 8192, f"{LORA} {TP} 2 {SP}"),
    "lora-8k-1-npu": (1, 8192, f"{LORA} {LAYERS} 40"),
    "lora-8k-2-npus": (2, 8192, f"{LORA} {TP} 2 {SP} {LAYERS} 40"),
    "lora-32k": (8, 32768, f"{LORA} {TP} 4 {SP} {LAYERS} 20"),
    "lora-32k-1-npu": (1, 32768, f"{LORA} {LAYERS} 40"),
    "lora-32k-2-npus": (2, 32768, f"{LORA} {TP} 2 {SP} {LAYERS} 40"),
    "dpo-8k": (8, 8192, f"{DPO} {TP} 2 {SP} {PP} 2 --num-layer-list 22,18 {LAYERS} 22 --ref-model unread "
                        "--precompute-ref"),
    "dpo-8k-two-models": (8, 8192, f"{DPO} {TP} 2 {SP} {PP} 2 --num-layer-list 22,18 {LAYERS} 22 --ref-model unread"),
    "dpo-8k-lora": (8, 8192, f"{DPO} {LORA} --load unread {TP} 2 {SP} {PP} 2 --num-layer-list 22,18 {LAYERS} 22"),
    "dpo-8k-lora-1-npu": (1, 8192, f"{DPO} {LORA} --load unread {LAYERS} 40"),
}


def flags_of(name: str) -> list[str]:
    """The command line of a setting, with two micro-batches per pipeline stage and replica."""
    from mindspeed_llm.config.command_line import parse
    ranks, length, flags = SETTINGS[name]
    words = [*MODEL, "--seq-length", str(length), "--max-position-embeddings", str(length), *flags.split()]
    configs = parse("pretrain", [*words, "--global-batch-size", "64"])
    batch = (2 * configs.parallel.pipeline_model_parallel_size * configs.train.micro_batch_size
             * configs.parallel.data_parallel_size(ranks))
    return [*words, "--global-batch-size", str(batch)]


def predicted(name: str) -> list[float]:
    """Bytes of live tensors at the worst moment, of each stage."""
    from mindspeed_llm.config.command_line import parse
    from mindspeed_llm.tasks.planner.job import Job
    from mindspeed_llm.tasks.planner.memory import stage_memory
    job = Job(parse("pretrain", flags_of(name)), SETTINGS[name][0])
    stages = [stage_memory(job, stage) for stage in range(job.pp)]
    return [memory.peak - memory.overhead for memory in stages]


def simulated(name: str, stage: int, stages: int, variables: dict[str, str]) -> dict[str, float]:
    """`one_iteration.measure` on the first rank of a stage."""
    ranks = SETTINGS[name][0]
    place = {"RANK_SIZE": str(ranks), "RANK_ID": str(stage * ranks // stages)}
    path = os.pathsep.join(filter(None, [variables.get("PYTHONPATH", os.environ.get("PYTHONPATH", "")), str(ROOT)]))
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, DRY_RUN / "one_iteration.py", *flags_of(name)], cwd=folder, text=True,
                              env={**os.environ, **variables, **place, "PYTHONPATH": path}, capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}, stage {stage} failed:\n{done.stdout[-2000:]}{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Run the settings named on the command line, or all, and print the table."""
    import stubs
    names, ratios = chosen(__doc__, SETTINGS), []
    with tempfile.TemporaryDirectory() as folder:
        variables = stubs.environment(Path(folder))
        header("setting", "stage", "predicted (GiB)", "live (GiB)", "ratio", "reserved (GiB)")
        for name in names:
            predictions = predicted(name)
            for stage, prediction in enumerate(predictions):
                peak = simulated(name, stage, len(predictions), variables)
                ratios.append(prediction / peak["live"])
                row(name, stage, f"{prediction / GIB:.2f}", f"{peak['live'] / GIB:.2f}", f"{ratios[-1]:.3f}",
                    f"{peak['reserved'] / GIB:.1f}")
    verdict(ratios, TOLERANCE)


if __name__ == "__main__":
    main()
