"""A training step of low-rank adapters against a step of all weights, and against PEFT on PyTorch, in one run.

    python benchmarks/lora_step.py --peer-python path/to/venv/bin/python --dtype fp32 --seq 512

The peer's environment needs torch, transformers and peft (pip install torch==2.13.0 transformers==5.24 peft==0.21.2
'numpy<2'). Three worker processes take turns: our full step, our step of adapters (rank 16 on all linear layers), the
peer's. Model, batch and what is printed are those of train_step.py.
"""

import sys
from pathlib import Path

from train_step import BENCH, ROOT, alternate, compared, ours, peer, side_options, step_options, work

RANK, ALPHA = 16, 32


def lora(data, options):
    """Our step of adapters."""
    return ours(data, options, adapters())


def adapters():
    """Those of the benchmark, as a LoraConfig."""
    sys.path.insert(0, str(ROOT))
    from mindspeed_llm.config.lora import TARGETS, LoraConfig
    return LoraConfig(TARGETS, RANK, ALPHA)


def peft(data, options):
    """PEFT's."""
    from peft import LoraConfig, get_peft_model
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"]
    return peer(data, options, lambda model: get_peft_model(
        model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=modules, task_type="CAUSAL_LM")))


def main() -> None:
    parser = step_options(__doc__, steps=8)
    parser.set_defaults(peer_masters=False)
    options = side_options(parser, lambda options: work(options, {"full": ours, "ours": lora, "peer": peft}))
    results = alternate(Path(__file__), options, ("full", "ours", "peer"))
    medians, speed = compared(results)
    for name, found in results.items():
        print(f"{name}: median {medians[name] * 1000:.1f} ms, peak {found[-1]['peak_mb']:.0f} MB, first loss "
              f"{found[0]['loss']:.6f}, last {found[-1]['loss']:.6f}")
    print(f"{options.isa or 'all instructions'}, {options.dtype} {options.batch} x {options.seq}, {BENCH['num_layers']} "
          f"layers: adapters take {medians['ours'] / medians['full']:.2f}x the time of a full step; {speed}")


if __name__ == "__main__":
    main()
