"""Speed and memory of a GLM step against Hugging Face's GlmForCausalLM on PyTorch, same weights, same batch, in one run.

    python benchmarks/train_step.py --peer-python path/to/venv/bin/python --dtype fp32 --seq 512

The peer's environment needs torch and transformers (pip install torch==2.13.0 transformers==5.23 'numpy<2'). Two worker
processes take turns, ours, theirs, ours, ...; medians and their ratio are printed, and the peak of resident memory beyond what
import took. A step is forward, backward and AdamW (the peer's fused); --forward-only leaves the last two out.

--isa avx2 (or base, avx512, avx512_bf16) shows what both sides do on a processor that has nothing newer: it limits our
kernels, PyTorch's own, its oneDNN and its MKL. What a side does not know it ignores.

In bf16 the peer keeps parameters, gradients and AdamW's moments in bf16, ours gradients, moments and a master copy of the
parameters in fp32. --peer-masters gives the peer the same: fp32 parameters and state, bf16 arithmetic by autocast.

--limit is for a peer that may not end: PyTorch has no fast bf16 product below AVX-512. A side that has not done its turn
after so many seconds is given up, and the other goes on alone.
"""

import argparse
import json
import os
import resource
import select
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
BENCH = {"num_layers": 4, "hidden_size": 1024, "ffn_hidden_size": 3424, "num_attention_heads": 8, "num_query_groups": 2,
         "kv_channels": 128, "padded_vocab_size": 8192, "max_position_embeddings": 32768, "add_qkv_bias": True}


# What limits both sides to an instruction set: (ONEDNN_MAX_CPU_ISA, ATEN_CPU_CAPABILITY, MKL_ENABLE_INSTRUCTIONS).
LIMITS = {"base": ("SSE41", "default", "SSE4_2"), "avx2": ("AVX2", "avx2", "AVX2"),
          "avx512": ("AVX512_CORE", "avx512", "AVX512"), "avx512_bf16": ("AVX512_CORE_BF16", "avx512", "AVX512")}


def resident_mb(field: str) -> float:
    """VmRSS or VmHWM of this process in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write_inputs(path: Path, batch: int, seq: int) -> None:
    """Random weights in Megatron's names and one batch."""
    sys.path.insert(0, str(ROOT))
    from mindspeed_llm.config.model import ModelConfig
    from mindspeed_llm.core.structure import model_specs
    rng = np.random.default_rng(0)
    arrays = {spec.name: (np.ones(spec.shape, np.float32) if spec.init == "ones" else
                          rng.standard_normal(spec.shape, np.float32) * np.float32(0.02))
              for spec in model_specs(ModelConfig(**BENCH))}
    ids = rng.integers(0, BENCH["padded_vocab_size"], (2, batch, seq))
    np.savez(path, ids=ids[0], labels=ids[1], **arrays)


def read_inputs(path: Path) -> dict[str, np.ndarray]:
    """What `write_inputs` wrote."""
    with np.load(path) as loaded:
        return {key: loaded[key] for key in loaded.files}


def step_options(description: str, steps: int) -> argparse.ArgumentParser:
    """A parser with the options that say what a step is, and how many are timed."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seq", type=int, default=512)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--forward-only", action="store_true")
    parser.add_argument("--isa", choices=LIMITS, help="as on a processor with no newer instructions (default: all it has)")
    return parser


def settings(options: argparse.Namespace) -> dict[str, str]:
    """Environment variables of a worker."""
    chosen = {"OMP_NUM_THREADS": str(options.threads), "DEVICE_TARGET": "CPU", "GLOG_v": "3"}
    if options.isa:
        names = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS")
        chosen |= {"MINDSPEED_LLM_ISA": options.isa, **dict(zip(names, LIMITS[options.isa]))}
    return chosen


def ours(data, options, lora=None):
    """Returns (step function giving the loss, description). `lora`: the adapters that are trained (LoraConfig), or None."""
    sys.path.insert(0, str(ROOT))
    from mindspore import Tensor

    from mindspeed_llm import kernels
    from mindspeed_llm.checkpoint.dtypes import cast
    from mindspeed_llm.config.model import ModelConfig
    from mindspeed_llm.config.parallel import ParallelConfig
    from mindspeed_llm.config.training import OptimizerConfig
    from mindspeed_llm.core import parallel_state
    from mindspeed_llm.core.gpt_model import GPTModel
    from mindspeed_llm.core.optimizer.optimizer import Optimizer
    from mindspeed_llm.runtime import autograd, device
    device.setup()
    kernels.setup(options.dtype)
    yield  # imports are done: memory is measured from here
    model, parallel = ModelConfig(**BENCH), ParallelConfig()
    state = parallel_state.build(model, parallel)
    chunk = GPTModel(model, parallel, state, device.dtype(options.dtype), lora=lora,
                     trainable=not options.forward_only)
    chunk.parameters.initialize(model, 1234, adapters_only=True)
    for name in data.keys() & chunk.parameters.specs.keys():
        chunk.parameters.load(name, cast(data[name], "fp32", options.dtype))
    ids, labels = (Tensor(np.ascontiguousarray(data[key].T.astype(np.int32))) for key in ("ids", "labels"))
    weights = Tensor(np.full(ids.shape, 1 / ids.size, np.float32))
    one = Tensor(np.float32(1))
    optimizer = None if options.forward_only else Optimizer([chunk], OptimizerConfig(), state, False)

    def forward():
        hidden = chunk.hidden_states(ids, chunk.training_context(ids.shape[0]))
        return (chunk.token_losses(hidden, labels) * weights).sum()

    def step():
        if options.forward_only:
            with autograd.no_grad():
                return float(forward())
        optimizer.zero_grad()
        loss = forward()
        autograd.backward((loss,), (one,))
        optimizer.step(1e-4, 1.0)
        return float(loss)
    yield step


def peer_model(data, dtype: str):
    """Hugging Face's model with these weights, in fp32 or bf16."""
    import torch
    from transformers import GlmConfig, GlmForCausalLM
    dim, groups = BENCH["kv_channels"], BENCH["num_query_groups"]
    config = GlmConfig(
        vocab_size=BENCH["padded_vocab_size"], hidden_size=BENCH["hidden_size"],
        intermediate_size=BENCH["ffn_hidden_size"], num_hidden_layers=BENCH["num_layers"],
        num_attention_heads=BENCH["num_attention_heads"], num_key_value_heads=groups, head_dim=dim,
        rms_norm_eps=1.5625e-07, attention_bias=True, max_position_embeddings=BENCH["max_position_embeddings"],
        tie_word_embeddings=False, pad_token_id=0, attn_implementation="sdpa",
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5})
    with torch.device("meta"):
        model = GlmForCausalLM(config)
    model = model.to(torch.bfloat16 if dtype == "bf16" else torch.float32).to_empty(device="cpu")
    inverse = 10000.0 ** -(torch.arange(0, dim // 2, 2).float() / (dim // 2))
    model.model.rotary_emb.inv_freq = inverse
    model.model.rotary_emb.original_inv_freq = inverse
    named = {"model.embed_tokens.weight": data["embedding.word_embeddings.weight"],
             "model.norm.weight": data["decoder.final_layernorm.weight"], "lm_head.weight": data["output_layer.weight"]}
    for i in range(BENCH["num_layers"]):
        hf, mc = f"model.layers.{i}.", f"decoder.layers.{i}."
        for kind in ("weight", "bias"):
            whole = data[f"{mc}self_attention.linear_qkv.{kind}"]
            per_group = whole.reshape(groups, -1, *whole.shape[1:])
            for name, part in zip("qkv", np.split(per_group, [per_group.shape[1] - 2 * dim, per_group.shape[1] - dim], 1)):
                named[f"{hf}self_attn.{name}_proj.{kind}"] = part.reshape(-1, *whole.shape[1:])
        for hf_name, mc_name in (("self_attn.o_proj", "self_attention.linear_proj"), ("input_layernorm",) * 2,
                                 ("post_attention_layernorm", "pre_mlp_layernorm"),
                                 ("mlp.gate_up_proj", "mlp.linear_fc1"), ("mlp.down_proj", "mlp.linear_fc2")):
            named[f"{hf}{hf_name}.weight"] = data[f"{mc}{mc_name}.weight"]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(named.pop(name))))
    return model


def peer(data, options, adapt=lambda model: model):
    """The same with PyTorch. `adapt` puts adapters into the model and freezes the rest."""
    import torch
    import transformers  # noqa: F401  an import, as the memory that is measured begins after it
    torch.set_num_threads(options.threads)
    yield
    model = adapt(peer_model(data, "fp32" if options.peer_masters else options.dtype))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ids, labels = torch.from_numpy(data["ids"]), torch.from_numpy(data["labels"])
    optimizer = None if options.forward_only else torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1,
                                                                    fused=True)

    def forward():
        with torch.autocast("cpu", torch.bfloat16, enabled=options.peer_masters):
            logits = model(input_ids=ids, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.float().view(-1, logits.shape[-1]), labels.view(-1))

    def step():
        if options.forward_only:
            with torch.no_grad():
                return float(forward())
        optimizer.zero_grad()
        loss = forward()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return float(loss)
    yield step


def work(options, sides) -> None:
    """A worker: one step per line on stdin, its result as JSON on stdout. `sides`: what each of the workers does."""
    data = read_inputs(options.data)
    maker = sides[options.worker](data, options)
    next(maker)
    imported = resident_mb("VmRSS")
    step = next(maker)
    for _ in sys.stdin:
        started = time.perf_counter()
        loss = step()
        print(json.dumps({"seconds": time.perf_counter() - started, "loss": loss,
                          "peak_mb": resident_mb("VmHWM") - imported}), flush=True)


def side_options(parser: argparse.ArgumentParser, work) -> argparse.Namespace:
    """The command line, with what two sides need. In one of the workers of `alternate`: do `work(options)` and end."""
    parser.add_argument("--peer-python", required="--worker" not in sys.argv, help="Python with torch and transformers")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--data", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        sys.exit()
    return options


def alternate(program: Path, options: argparse.Namespace, sides=("ours", "peer"),
              limit: float | None = None) -> dict[str, list[dict]]:
    """Run `program --worker ours` and so on and let them take turns: every worker's results, in order.

    The first two turns warm up. `peer` runs in its own environment. A worker whose turn takes over `limit` seconds is
    given up, and has no results.
    """
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "inputs.npz"
        write_inputs(data, options.batch, options.seq)
        return _take_turns(program, options, data, sides, limit)


def compared(results: dict[str, list[dict]]) -> tuple[dict[str, float], str]:
    """Median seconds of both sides after the warm-up, and our speed in the peer's, if neither was given up."""
    seconds = {name: [result["seconds"] for result in found[2:]] for name, found in results.items() if found}
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    if len(medians) < len(results):
        return medians, "nothing to compare"
    ratios = [theirs / mine for mine, theirs in zip(seconds["ours"], seconds["peer"])]
    return medians, (f"ours is {medians['peer'] / medians['ours']:.2f}x the peer's speed (pairs "
                     f"{min(ratios):.2f}-{max(ratios):.2f})")


def _take_turns(program: Path, options: argparse.Namespace, data: Path, sides, limit) -> dict[str, list[dict]]:
    environment = {**os.environ, **settings(options)}
    jobs = {name: subprocess.Popen([python, program, *sys.argv[1:], "--worker", name, "--data", str(data)],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
            for name in sides for python in [options.peer_python if name == "peer" else sys.executable]}
    results = {name: [] for name in jobs}
    for _ in range(options.steps + 2):
        for name, job in list(jobs.items()):
            job.stdin.write("step\n")
            job.stdin.flush()
            if limit and not select.select([job.stdout], [], [], limit)[0]:
                jobs.pop(name).kill()
                results[name].clear()
                print(f"{name}: over {limit:g} s, its start included: given up")
                continue
            line = job.stdout.readline()
            if not line:
                sys.exit(f"{name}: the worker ended with exit code {job.wait()}, its message is above")
            results[name].append(json.loads(line))
    for job in jobs.values():
        job.stdin.close()
        job.wait()
    return results


def main() -> None:
    parser = step_options(__doc__, steps=8)
    parser.add_argument("--peer-masters", action="store_true", help="bf16: fp32 parameters and autocast for the peer")
    parser.add_argument("--limit", type=float, help="seconds after which a side that has not done its turn is given up")
    options = side_options(parser, lambda options: work(options, {"ours": ours, "peer": peer}))
    if options.peer_masters and options.dtype != "bf16":
        parser.error("--peer-masters needs --dtype bf16: in fp32 there is no other copy of the parameters")
    results = alternate(Path(__file__), options, limit=options.limit)
    medians, speed = compared(results)
    tokens = options.batch * options.seq
    for name, median in medians.items():
        found = results[name]
        print(f"{name}: median {median * 1000:.1f} ms, {tokens / median:.0f} tokens/s, peak {found[-1]['peak_mb']:.0f} MB, "
              f"first loss {found[0]['loss']:.6f}, last {found[-1]['loss']:.6f}")
    memory = [found[-1]["peak_mb"] for found in results.values() if found]
    print(f"{options.isa or 'all instructions'}, {options.dtype} {options.batch} x {options.seq}"
          f"{' forward' if options.forward_only else ''}: {speed}"
          f"{f', memory {memory[0] / memory[1]:.2f}x' if len(memory) == 2 else ''}")


if __name__ == "__main__":
    main()
