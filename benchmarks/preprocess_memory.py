"""Peak resident memory of reading a large file in every format, and of the whole preprocessing of one.

    python benchmarks/preprocess_memory.py --input rows.jsonl [--size-mb 1000] [--column text]
    python benchmarks/preprocess_memory.py --input rows.jsonl --tokenizer DIR [--format .jsonl] [--workers 2]

The rows of the input are repeated to a file of `--size-mb` in each format in turn. Without a tokenizer a process reads
all rows of it, which is where formats differ; with one preprocess_data.py runs over the file of `--format`, and the
resident sets of its processes are added up (what they share counts for each).
"""

import argparse
import csv
import gzip
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from mindspeed_llm.tasks.preprocess.readers import READERS, find_files, iterate_rows  # noqa: E402

GZ = ".gz"


def pieces(rows: list[dict], column: str, ending: str) -> tuple[str, str, str]:
    """(beginning, rows, end) of a text file; the middle may be repeated."""
    if ending == ".txt":
        return "", "".join(row[column].replace("\n", " ") + "\n" for row in rows), ""
    if ending == ".jsonl":
        return "", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), ""
    if ending == ".json":
        text = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        return "[" + text, ",\n" + text, "]"
    head, body = io.StringIO(), io.StringIO()
    csv.writer(head).writerow([column])
    csv.writer(body).writerows([row[column]] for row in rows)
    return head.getvalue(), body.getvalue(), ""


def write(file: Path, rows: list[dict], column: str, ending: str, size: int) -> None:
    """A file of about `size` bytes of text."""
    if ending in (".parquet", ".arrow"):
        import pyarrow as arrow
        from pyarrow import parquet
        table = arrow.Table.from_pylist([{column: row[column]} for row in rows])
        count = -(-size // table.nbytes)
        opened = parquet.ParquetWriter(file, table.schema) if ending == ".parquet" else (
            arrow.ipc.new_stream(str(file), table.schema))
        with opened as writer:
            for _ in range(count):
                writer.write_table(table)
        return
    parts = [part.encode() for part in pieces(rows, column, ending.removesuffix(GZ))]
    count = -(-size // len(parts[1]))
    if ending.endswith(GZ):
        parts = [gzip.compress(part, 1) for part in parts]   # members may follow one another
    with open(file, "wb") as stream:
        stream.write(parts[0])
        for _ in range(count):
            stream.write(parts[1])
        stream.write(parts[2])


def resident(pid: int) -> int:
    """Bytes of a process and its children now."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                total += int(line.split()[1]) * 1024
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return total + sum(resident(int(child)) for child in children)


def peak(words: list[object]) -> tuple[float, float]:
    """(GB, seconds) of a command."""
    start, most = time.monotonic(), 0
    process = subprocess.Popen([str(word) for word in words], cwd=ROOT, stderr=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL)
    while process.poll() is None:
        most = max(most, resident(process.pid))
        time.sleep(0.05)
    if process.returncode:
        sys.exit(f"error: {words} failed")
    return most / 1e9, time.monotonic() - start


def main() -> None:
    """One format after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True)
    parser.add_argument("--column", default="text")
    parser.add_argument("--size-mb", type=int, default=1000)
    parser.add_argument("--tokenizer")
    parser.add_argument("--format", nargs="+", choices=READERS, help="default: all, with a tokenizer .jsonl")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--read", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        for _ in iterate_rows(Path(arguments.input), (arguments.column,)):
            continue
        return
    rows, size = [], 0
    for file in find_files(arguments.input):
        for _, row in iterate_rows(file, (arguments.column,)):
            if size < 20e6:
                rows.append({arguments.column: row[arguments.column]})
                size += len(row[arguments.column])
    for ending in arguments.format or ([".jsonl"] if arguments.tokenizer else READERS):
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/tmp")) as name:
            file = Path(name) / f"rows{ending}"
            write(file, rows, arguments.column, ending, arguments.size_mb * 1_000_000)
            words = [sys.executable, __file__, "--read", "--input", file, "--column", arguments.column]
            if arguments.tokenizer:
                column = "text" if ending.startswith(".txt") else arguments.column
                words = [sys.executable, "preprocess_data.py", "--input", file, "--output-prefix", Path(name) / "out",
                         "--tokenizer-name-or-path", arguments.tokenizer, "--json-keys", column, "--append-eod",
                         "--workers", arguments.workers]
            most, seconds = peak(words)
            print(f"{ending}: {file.stat().st_size / 1e6:.0f} MB on disk, at most {most:.3f} GB resident, {seconds:.0f} s",
                  flush=True)


if __name__ == "__main__":
    main()
