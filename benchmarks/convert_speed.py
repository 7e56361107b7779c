"""Conversion of a full-size GLM4-9B against `cp -r` and `sync` of the same directory, from a cold cache, taking turns.

    python benchmarks/convert_speed.py --folder /somewhere --way make
    python benchmarks/convert_speed.py --folder /somewhere --way there [--repeats 2] [--tp 1] [--pp 1]
    python benchmarks/convert_speed.py --folder /somewhere --way back [--tight]

"make" writes `FOLDER/hf`: the ChatGLM layout, `--layers` layers, random bf16 bytes, 10 shards (18.8 GB with 40 layers).
"there" is hf -> mcore and leaves `FOLDER/mcore`, "back" is mcore -> hf and compares every file with the original's digest.
Each run begins with `sync` and an empty page cache (/proc/sys/vm/drop_caches, so as root) and ends with `sync`, which
counts; copies and conversions are removed in between, outside of the time. Printed are seconds, GB/s, the largest
resident set of the conversion, medians and ratio.

There must be room for three times the model; `--tight` removes the original's shards before the way back, which then
takes the split from the index alone, so that twice suffices.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from mindspeed_llm.checkpoint.safetensors_io import SafetensorsWriter  # noqa: E402
from mindspeed_llm.families import find_layout  # noqa: E402
from mindspeed_llm.families.weight_map import hf_shapes, mapped_tensors  # noqa: E402
from mindspeed_llm.tasks.convert.export_plan import Tensor, library_order  # noqa: E402
from mindspeed_llm.tasks.convert.parts import row_ranges  # noqa: E402

SHARDS = 10
DIGESTS = "digests.json"
CONFIG = {"model_type": "chatglm", "architectures": ["ChatGLMModel"], "hidden_size": 4096, "ffn_hidden_size": 13696,
          "num_attention_heads": 32, "multi_query_attention": True, "multi_query_group_num": 2, "kv_channels": 128,
          "padded_vocab_size": 151552, "layernorm_epsilon": 1.5625e-07, "rope_ratio": 1, "add_qkv_bias": True,
          "add_bias_linear": False, "rmsnorm": True, "post_layer_norm": True, "seq_length": 8192,
          "torch_dtype": "bfloat16", "tie_word_embeddings": False}


def make(folder: Path, layers: int) -> None:
    """`FOLDER/hf` and the digests of its files."""
    hf = folder / "hf"
    hf.mkdir(parents=True)
    config = CONFIG | {"num_layers": layers}
    (hf / "config.json").write_text(json.dumps(config, indent=2))
    layout = find_layout("chatglm3")
    model = layout.read_config(config, "config.json")
    shapes = hf_shapes(list(mapped_tensors(layout, model, (), model.padded_vocab_size)))
    tensors = {name: Tensor("bf16", shape) for name, shape in shapes.items()}
    total = sum(tensor.nbytes for tensor in tensors.values())
    shards: list[list[str]] = [[] for _ in range(SHARDS)]
    position = 0
    for name, tensor in tensors.items():
        shards[(position + tensor.nbytes // 2) * SHARDS // total].append(name)
        position += tensor.nbytes
    if not all(shards):
        sys.exit(f"error: {layers} layers do not fill {SHARDS} shards: give --layers 20 or more")
    random = np.random.Generator(np.random.SFC64(1))
    weight_map = {}
    for number, held in enumerate(shards, start=1):
        file, names = f"model-{number:05d}-of-{SHARDS:05d}.safetensors", library_order(held, tensors)
        with SafetensorsWriter(hf / file, [(name, "BF16", shapes[name]) for name in names], {"format": "pt"}) as writer:
            writer.write_all((np.frombuffer(random.bytes(2 * (stop - start)), np.uint16)
                              for start, stop in row_ranges(shapes[name], 2)) for name in names)
        weight_map |= dict.fromkeys(names, file)
    (hf / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n")
    (folder / DIGESTS).write_text(json.dumps(digests(hf)))
    print(f"{hf}: {layers} layers, {total / 1e9:.2f} GB in {SHARDS} shards")


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file."""
    found = {}
    for path in sorted(folder.iterdir()):
        with open(path, "rb") as stream:
            found[path.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def timed(words: list[str | Path]) -> tuple[float, float]:
    """(seconds, largest resident set in GB) of a command and the `sync` after it, from a cold cache."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    start = time.monotonic()
    process = subprocess.Popen([str(word) for word in words], stdout=subprocess.DEVNULL, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    os.sync()
    seconds = time.monotonic() - start
    if status:
        sys.exit(f"error: {words} failed")
    return seconds, usage.ru_maxrss / 1e6


def compare(arguments: argparse.Namespace) -> None:
    """Copies and conversions take turns."""
    folder, hf, mcore = arguments.folder, arguments.folder / "hf", arguments.folder / "mcore"
    common = [sys.executable, ROOT / "convert_ckpt.py", "--model-type-hf", "chatglm3"]
    if arguments.way == "there":
        source, target = hf, mcore
        convert = [*common, "--load-model-type", "hf", "--save-model-type", "mg", "--load-dir", hf, "--save-dir", mcore,
                   "--target-tensor-parallel-size", arguments.tp, "--target-pipeline-parallel-size", arguments.pp]
    else:
        source, target = mcore, folder / "hf-again"
        convert = [*common, "--load-model-type", "mg", "--save-model-type", "hf", "--load-dir", mcore, "--hf-dir", hf,
                   "--save-dir", target]
        for shard in hf.glob("*.safetensors") if arguments.tight else ():
            shard.unlink()
    size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    results: dict[str, list[float]] = {"cp": [], "convert": []}
    for _ in range(arguments.repeats):
        shutil.rmtree(target, ignore_errors=True)
        for side, words in (("cp", ["cp", "-r", source, folder / "copy"]), ("convert", convert)):
            seconds, resident = timed(words)
            shutil.rmtree(folder / "copy", ignore_errors=True)
            results[side].append(seconds)
            print(f"{side}: {seconds:.1f} s, {size / seconds / 1e9:.3f} GB/s"
                  + (f", at most {resident:.2f} GB resident" if side == "convert" else ""), flush=True)
    copy, conversion = (statistics.median(values) for values in results.values())
    print(f"{arguments.way}: {size / 1e9:.2f} GB, medians of {arguments.repeats}: cp {copy:.1f} s, convert {conversion:.1f} "
          f"s, convert / cp {conversion / copy:.2f}")
    if arguments.way == "back":
        wanted, found = json.loads((folder / DIGESTS).read_text()), digests(target)
        different = sorted(name for name in wanted if found.get(name) != wanted[name])
        if different:
            sys.exit(f"error: {', '.join(different)} differ from the original")
        print(f"all {len(wanted)} files are the original's, byte for byte")


def main() -> None:
    """Read the command line and go."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--way", choices=("make", "there", "back"), required=True)
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--pp", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--tight", action="store_true")
    arguments = parser.parse_args()
    if arguments.way == "make":
        make(arguments.folder, arguments.layers)
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
