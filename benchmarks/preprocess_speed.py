"""MB/s of preprocess_data.py against Megatron's way of doing it, same ranks, same rows, in one run.

    python benchmarks/preprocess_speed.py --input corpus.jsonl [--column text] [--workers 2] [--repeats 3]
    python benchmarks/preprocess_speed.py --input alpaca.json --handler-name AlpacaStyleInstructionHandler

The peer is the loop of Megatron's tools/preprocess_data.py: `Pool.imap` over lines in chunks of 32, in a worker
`json.loads` and one `encode` per text that gives a list, in the parent one `add_item` per list. It runs with the
`tokenizers` library on the same ranks (what a tokenizer.json gives) and with tiktoken. All sides take turns; medians,
their ratio, and the processor time per MB of text are printed. The ids of all must be the same.

Without --tokenizer one is trained on the beginning of the input (GLM-4's split pattern, --vocab-size ranks).
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from mindspeed_llm.config.data import DataConfig  # noqa: E402
from mindspeed_llm.data.indexed_dataset import IndexedDatasetBuilder, best_dtype  # noqa: E402
from mindspeed_llm.data.tokenizer import GLM4_SPECIAL_TOKENS, load_tokenizer, read_tiktoken_file  # noqa: E402
from mindspeed_llm.data.tokenizer_training import train_tiktoken_bpe, write_chatglm_tokenizer  # noqa: E402
from mindspeed_llm.tasks.preprocess.handlers import Handler, SkipRow, build_handler  # noqa: E402
from mindspeed_llm.tasks.preprocess.readers import find_files, iterate_rows  # noqa: E402
from tests.data.rank_bpe import bpe_from_ranks  # noqa: E402

TRAINING_BYTES = 6_000_000


class Encoder:
    """What a worker of Megatron's does with a line."""

    def __init__(self, config: DataConfig):
        self.config = config

    def initializer(self) -> None:
        """Once in every worker."""
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        Encoder.handler = build_handler(self.config, load_tokenizer(self.config.tokenizer_name_or_path))

    def encode(self, line: str) -> list[list[int]] | None:
        """A list of ids per field."""
        row = json.loads(line)
        if Encoder.handler.instruction:
            try:
                return [list(ids) for ids in Encoder.handler.encode(row)]
            except SkipRow:
                return None
        ids = Encoder.handler.tokenizer.encode(row[self.config.json_keys[0]])
        if not ids:
            return None
        if self.config.append_eod:
            ids.append(Encoder.handler.tokenizer.eos_id)
        return [ids]


def peer(config: DataConfig, handler: Handler, lines: Path) -> None:
    """The loop over documents."""
    encoder = Encoder(config)
    dtype = np.int32 if handler.instruction else best_dtype(handler.tokenizer.vocab_size)
    builders = [IndexedDatasetBuilder(f"{config.output_prefix}{handler.infix}_{name}_document", dtype)
                for name in handler.fields]
    with open(lines, encoding="utf-8") as stream, \
            multiprocessing.Pool(config.workers, initializer=encoder.initializer) as pool:
        for sequences in pool.imap(encoder.encode, stream, 32):
            for builder, ids in zip(builders, sequences or ()):
                builder.add_item(np.array(ids, dtype))
                builder.end_document()
    for builder in builders:
        builder.finalize()


def child(arguments: argparse.Namespace) -> None:
    """A run of the peer in a process of its own."""
    config = DataConfig(input=arguments.input, output_prefix=arguments.output, workers=arguments.workers,
                        tokenizer_name_or_path=arguments.tokenizer, handler_name=arguments.handler_name,
                        prompt_type="glm4", json_keys=(arguments.column,), append_eod=True, seq_length=32768)
    peer(config, build_handler(config, load_tokenizer(arguments.tokenizer)), Path(arguments.input))


def timed(arguments: argparse.Namespace, side: str, tokenizer: Path, lines: Path, output: Path) -> tuple[float, float]:
    """(seconds, processor seconds of all its processes) of one run."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    words = ["--input", lines, "--workers", str(arguments.workers), "--handler-name", arguments.handler_name]
    if side == "ours":
        words = [ROOT / "preprocess_data.py", *words, "--output-prefix", output, "--tokenizer-name-or-path", tokenizer,
                 "--json-keys", arguments.column, "--append-eod", "--prompt-type", "glm4", "--seq-length", "32768",
                 "--log-interval", str(1 << 30)]
    else:
        words = [__file__, *words, "--side", side, "--output", output, "--tokenizer", tokenizer, "--column",
                 arguments.column]
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = time.monotonic() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def texts_of(row: dict) -> Iterator[str]:
    """All texts in a row."""
    yield from (value for value in row.values() if isinstance(value, str))


def main() -> None:
    """Prepare the same rows and ranks for all, let them take turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True)
    parser.add_argument("--column", default="text")
    parser.add_argument("--handler-name", default="GeneralPretrainHandler")
    parser.add_argument("--tokenizer", help="directory with a tokenizer.model")
    parser.add_argument("--vocab-size", type=int, default=60000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--output", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        child(arguments)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines, size, sample = folder / "rows.jsonl", 0, []
        with open(lines, "w", encoding="utf-8") as stream:
            for file in find_files(arguments.input):
                for _, row in iterate_rows(file, ()):
                    stream.write(json.dumps(row, ensure_ascii=False) + "\n")
                    for text in texts_of(row):
                        if size < TRAINING_BYTES:
                            sample.append(text)
                        size += len(text.encode("utf-8", "replace"))
        tokenizers = {"tiktoken": Path(arguments.tokenizer or folder / "ranks"), "tokenizers": folder / "json"}
        if not arguments.tokenizer:
            write_chatglm_tokenizer(tokenizers["tiktoken"], train_tiktoken_bpe(sample, arguments.vocab_size))
        tokenizers["tokenizers"].mkdir()
        backend = bpe_from_ranks(read_tiktoken_file(tokenizers["tiktoken"] / "tokenizer.model"))
        backend.add_special_tokens(list(GLM4_SPECIAL_TOKENS))
        backend.save(str(tokenizers["tokenizers"] / "tokenizer.json"))
        sides = {"ours": ("ours", "tiktoken"), "Megatron's loop, tokenizers": ("peer", "tokenizers"),
                 "Megatron's loop, tiktoken": ("peer", "tiktoken")}
        results: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
        written = {}
        for _ in range(arguments.repeats):
            for side, (program, engine) in sides.items():
                output = folder / side.replace(" ", "_")
                results[side].append(timed(arguments, program, tokenizers[engine], lines, output))
                written[side] = {file.name.removeprefix(output.name): hashlib.sha256(file.read_bytes()).hexdigest()
                                 for file in folder.glob(f"{output.name}*.bin")}
        if any(files != written["ours"] for files in written.values()):
            sys.exit("error: the sides do not give the same ids")
        ours = statistics.median(seconds for seconds, _ in results["ours"])
        print(f"{size / 1e6:.1f} MB of text, {arguments.workers} workers, medians of {arguments.repeats}\n")
        print("| side | s | MB/s | times ours | processor s per 100 MB |\n|---|---|---|---|---|")
        for side, runs in results.items():
            seconds, processor = (statistics.median(values) for values in zip(*runs))
            print(f"| {side} | {seconds:.1f} | {size / seconds / 1e6:.1f} | {seconds / ours:.2f} | "
                  f"{1e8 * processor / size:.1f} |")


if __name__ == "__main__":
    main()
