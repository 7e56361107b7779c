"""GLM4-9B at full size on this machine: loading a Hugging Face directory in bf16, decoding, and what memory allows.

    python benchmarks/full_size.py --folder path/to/glm4_9b --write    # random weights, 18.8 GB; once
    python benchmarks/full_size.py --folder path/to/glm4_9b

Without --write the directory's weights are loaded as `inference.py --load` does, and --batch sequences are decoded
greedily. A decode step reads every weight but the embedding once: `limit` is how often a second this machine's memory
brings them in, read by all threads with nothing else to do. Resident memory is told as the kernel counts it: VmHWM with
mapped pages of files, RssAnon without. The kernel also tells how much came from the disk (/proc/self/io): no more than
the files have if they are read once.
"""

import argparse
import ctypes
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from train_step import ROOT

SHARD = 5 * 10**9   # bytes of a file


def write(folder: Path, layers: int) -> None:
    """Random weights in the layout of `glm-4-9b-hf`; all matrices repeat one stretch of noise, at different places."""
    from mindspeed_llm.checkpoint.safetensors_io import SafetensorsWriter
    from mindspeed_llm.families.glm import LAYOUT
    from mindspeed_llm.families.weight_map import hf_shapes, mapped_tensors
    folder.mkdir(parents=True)
    config = {"model_type": "glm", "architectures": ["GlmForCausalLM"], "hidden_size": 4096, "head_dim": 128,
              "num_hidden_layers": layers, "intermediate_size": 13696, "num_attention_heads": 32,
              "num_key_value_heads": 2, "vocab_size": 151552, "rms_norm_eps": 1.5625e-07, "attention_bias": True,
              "tie_word_embeddings": False, "max_position_embeddings": 131072, "rope_theta": 10000.0,
              "partial_rotary_factor": 0.5, "hidden_act": "silu"}
    model = LAYOUT.read_config(config, "config")
    shapes = hf_shapes(list(mapped_tensors(LAYOUT, model, (), model.padded_vocab_size)))
    files, size = [[]], 0
    for name, shape in shapes.items():
        if size > SHARD:
            files, size = [*files, []], 0
        files[-1].append(name)
        size += 2 * int(np.prod(shape))
    noise = (np.random.default_rng(0).standard_normal(1 << 24, np.float32) * np.float32(0.02)).view(np.uint32)
    noise, place, where = (noise >> 16).astype(np.uint16), 0, {}
    for number, names in enumerate(files, start=1):
        file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        with SafetensorsWriter(folder / file, [(name, "BF16", shapes[name]) for name in names]) as writer:
            for name in names:
                where[name], count = file, int(np.prod(shapes[name]))
                if len(shapes[name]) == 1:
                    writer.write(np.full(count, 0 if name.endswith("bias") else 0x3F80, np.uint16))
                    continue
                place = (place + 7919 * 4096) % noise.size
                turned = np.roll(noise, place)
                writer.write_parts(turned[:min(noise.size, count - start)] for start in range(0, count, noise.size))
        print(f"{file} is written", flush=True)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (folder / "config.json").write_text(json.dumps(config))


def numbers(file: str, *names: str) -> list[int]:
    """Entries of a file below /proc/self."""
    entries = dict(line.split(":") for line in Path("/proc/self", file).read_text().splitlines())
    return [int(entries[name].split()[0]) for name in names]


def say_memory(when: str) -> None:
    """Resident memory so far and now."""
    peak, now, own = (value * 1024 / 1e9 for value in numbers("status", "VmHWM", "VmRSS", "RssAnon"))
    print(f"{when}: resident {now:.2f} GB, of it not of files {own:.2f} GB, most so far {peak:.2f} GB", flush=True)


def bandwidth(threads: int) -> float:
    """Bytes/s of so many threads that compare halves of their memory (memcmp), which are equal: the fastest of five."""
    memory = np.ones(1 << 29, np.uint8)
    compare, part = ctypes.CDLL(None).memcmp, memory.size // threads // 2
    compare.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    starts, times = [memory.ctypes.data + 2 * number * part for number in range(threads)], []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            started = time.perf_counter()
            list(pool.map(lambda start: compare(start, start + part, part), starts))
            times.append(time.perf_counter() - started)
    return 2 * part * threads / min(times)


def decode(folder: Path, options: argparse.Namespace) -> None:
    """Load and generate."""
    from mindspeed_llm.config.command_line import parse
    from mindspeed_llm.data.tokenizer_training import train_tiktoken_bpe, write_chatglm_tokenizer
    from mindspeed_llm.generation.sampling import greedy
    from mindspeed_llm.tasks.inference.loading import load
    threads = int(os.environ.get("OMP_NUM_THREADS", 0)) or os.cpu_count()
    speed = bandwidth(threads)
    with tempfile.TemporaryDirectory() as tokenizer:
        write_chatglm_tokenizer(Path(tokenizer), train_tiktoken_bpe(["some text to learn from"] * 4, 300))
        started, read = time.perf_counter(), numbers("io", "rchar", "read_bytes")   # imports are done
        loaded = load(parse("inference", ["--load", str(folder), "--tokenizer-name-or-path", tokenizer, "--bf16",
                                          "--seq-length", "4096"]))
    seconds, (copied, fetched) = time.perf_counter() - started, np.subtract(numbers("io", "rchar", "read_bytes"), read)
    parameters = loaded.model.parameters
    size = 2 * parameters.numel()
    print(f"loaded {size / 1e9:.2f} GB in {seconds:.1f} s, {size / seconds / 1e9:.2f} GB/s: {fetched / 1e9:.2f} GB came "
          f"from the disk, {copied / 1e9:.2f} GB through read calls", flush=True)
    say_memory("loaded")
    generator = loaded.generator()
    prompt = np.random.default_rng(1).integers(0, generator.vocab_size, options.prompt).tolist()
    for batch in options.batch:
        started = time.perf_counter()
        caches, logits = generator.prefill([prompt] * batch)
        prefill, times = time.perf_counter() - started, []
        for _ in range(options.tokens):
            started = time.perf_counter()
            logits = generator.decode(caches, greedy(logits, range(batch)))
            times.append(time.perf_counter() - started)
        step = float(np.median(times))
        print(f"{batch} x {options.prompt} tokens of prompts in {prefill:.2f} s; a decode step: median "
              f"{step * 1000:.0f} ms ({min(times) * 1000:.0f}-{max(times) * 1000:.0f}), {batch / step:.2f} tokens/s",
              flush=True)
        del caches, logits
    say_memory("decoded")
    wanted = size - 2 * int(np.prod(parameters.specs["embedding.word_embeddings.weight"].shape))
    speed = max(speed, bandwidth(threads))
    print(f"{threads} threads read {speed / 1e9:.1f} GB/s: limit {speed / wanted:.2f} steps/s of {wanted / 1e9:.2f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--write", action="store_true", help="write random weights into the folder, a new one")
    parser.add_argument("--layers", type=int, default=40, help="with --write: fewer, to try this program")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=12, help="decoded after it")
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if options.write:
        write(options.folder, options.layers)
    else:
        decode(options.folder, options)


if __name__ == "__main__":
    main()
