"""Reading, encoding in parallel, writing in order: the work of `preprocess_data.py`."""

import contextlib
import itertools
import logging
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mindspeed_llm.config.data import DataConfig
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.data.indexed_dataset import IndexedDataset, IndexedDatasetBuilder, best_dtype
from mindspeed_llm.data.tokenizer import load_tokenizer
from mindspeed_llm.tasks.preprocess.handlers import Handler, SkipRow, build_handler
from mindspeed_llm.tasks.preprocess.packing import pack
from mindspeed_llm.tasks.preprocess.readers import count_rows, find_files, iterate_rows

CHUNK_ROWS = 256
CHUNK_BYTES = 1 << 20
logger = logging.getLogger(__name__)

Row = tuple[str, int, dict]  # file, row number, columns


@dataclass
class Encoded:
    """The sequences of a chunk of rows: per field all tokens (int32) in one array, and the length of each sequence."""

    tokens: list[np.ndarray]
    lengths: list[np.ndarray]
    rows: int
    skipped: Counter = field(default_factory=Counter)


def run(config: DataConfig) -> list[str]:
    """Make the data sets that `config` describes.

    Writes `<output_prefix>_<key>_document.{bin,idx}` for plain text,
    `<output_prefix>_packed_<field>_document.{bin,idx}` for tuning data. All of them appear at the end, or none.

    Returns:
        the prefixes (paths without .bin/.idx) that were written.

    Raises:
        UserError, FileNotFoundError: bad input; the text names the file, row or flag.
    """
    logging.basicConfig(level=logging.INFO)
    if not config.output_prefix:
        raise UserError("no output: give --output-prefix")
    if config.workers < 1:
        raise UserError(f"--workers {config.workers}: at least 1 is needed")
    files = find_files(config.input)
    tokenizer = load_tokenizer(config.tokenizer_name_or_path, config.tokenizer_type)
    handler = build_handler(config, tokenizer)
    if handler.instruction and config.append_eod:
        logger.info("--append-eod has no effect on tuning data: every answer has its end mark already")
    names = {name: f"{config.output_prefix}{handler.infix}_{name}_document" for name in handler.fields}
    dtype = np.dtype(np.int32) if handler.instruction else best_dtype(tokenizer.vocab_size)
    logger.info("vocab size: %d, output prefix: %s, files: %d", tokenizer.vocab_size, config.output_prefix, len(files))

    start = time.monotonic()
    with _terminate_as_exception(), contextlib.ExitStack() as stack:
        stack.enter_context(_remove_new_folders(Path(config.output_prefix).parent))
        builders = {name: stack.enter_context(IndexedDatasetBuilder(prefix, dtype)) for name, prefix in names.items()}
        if config.pack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(
                prefix=".packing-", dir=Path(config.output_prefix).parent))
            loose = {name: stack.enter_context(IndexedDatasetBuilder(Path(folder) / name)) for name in names}
            rows, skipped = _write(config, handler, files, loose)
            _finalize(loose, rows, skipped, config)
            parts = {name: IndexedDataset(Path(folder) / name) for name in names}
            packed = pack(parts, builders, config.seq_length, tokenizer.pad_id)
            used = int(parts["input_ids"].sizes.sum(dtype=np.int64))
            logger.info("packed %d conversations into %d rows of %d tokens, %.1f%% of them used",
                        len(parts["input_ids"]), packed, config.seq_length, 100 * used / (packed * config.seq_length))
        else:
            rows, skipped = _write(config, handler, files, builders)
        _finalize(builders, rows, skipped, config)
    for name, prefix in names.items():
        logger.info("wrote %d documents, %d tokens to %s.bin", builders[name].sequences, builders[name].tokens, prefix)
    logger.info("%d rows in %.1f s, %d of them skipped%s", rows, time.monotonic() - start, sum(skipped.values()),
                "".join(f"; {reason}: {count}" for reason, count in skipped.most_common()))
    return list(names.values())


def _write(config: DataConfig, handler: Handler, files: list[Path],
           builders: dict[str, IndexedDatasetBuilder]) -> tuple[int, Counter]:
    """Encode all rows into the builders; returns the number of rows and the skipped ones by reason."""
    chunks = _chunks(files, handler.required)
    done, logged, skipped, start = 0, 0, Counter(), time.monotonic()
    with contextlib.closing(_encode_all(config, handler, chunks)) as encoded_chunks, \
            tqdm(total=count_rows(files), unit=" rows", disable=None) as progress:
        for encoded in encoded_chunks:
            for builder, tokens, lengths in zip(builders.values(), encoded.tokens, encoded.lengths):
                builder.add_documents(tokens, lengths)
            done += encoded.rows
            skipped += encoded.skipped
            progress.update(encoded.rows)
            if config.log_interval > 0 and done // config.log_interval > logged // config.log_interval:
                logged = done
                seconds = time.monotonic() - start
                tokens = next(iter(builders.values())).tokens
                logger.info("processed %d rows (%.0f rows/s, %.0f tokens/s)", done, done / seconds, tokens / seconds)
    return done, skipped


def _finalize(builders: dict[str, IndexedDatasetBuilder], rows: int, skipped: Counter, config: DataConfig) -> None:
    if next(iter(builders.values())).sequences == 0:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in skipped.most_common())
        raise UserError(f"--input {config.input}: none of the {rows} rows gives a sample: {reasons}")
    for builder in builders.values():
        builder.seal()
    for builder in builders.values():
        builder.publish()


def _chunks(files: list[Path], required: tuple[str, ...]) -> Iterator[list[Row]]:
    """Rows in portions that are worth sending to a worker."""
    chunk: list[Row] = []
    size = 0
    for file in files:
        for number, row in iterate_rows(file, required):
            chunk.append((str(file), number, row))
            size += sum(len(value) for value in row.values() if isinstance(value, (str, list)))
            if len(chunk) >= CHUNK_ROWS or size >= CHUNK_BYTES:
                yield chunk
                chunk, size = [], 0
    if chunk:
        yield chunk


def _encode_all(config: DataConfig, handler: Handler, chunks: Iterator[list[Row]]) -> Iterator[Encoded]:
    """Encoded chunks in the order of the chunks, by `config.workers` processes (1: in this one)."""
    if config.workers == 1:
        for chunk in chunks:
            yield encode_chunk(handler, chunk)
        return
    # spawn: a forked copy of a process with running threads (arrow, tokenizers) may lock up
    executor = ProcessPoolExecutor(config.workers, multiprocessing.get_context("spawn"), _start_worker, (config,))
    waiting: deque = deque()
    try:
        for chunk in itertools.chain(chunks, [None]):
            if chunk is not None:
                waiting.append(executor.submit(_encode_in_worker, chunk))
            # a few chunks per worker in flight keep all busy and bound the memory
            while waiting and (chunk is None or len(waiting) >= 3 * config.workers):
                yield waiting.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            f"a worker process died (killed, or out of memory): use fewer than --workers {config.workers}") from None
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


_worker_handler: Handler | None = None


def _start_worker(config: DataConfig) -> None:
    global _worker_handler
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and stops the pool
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_leave_with_parent, args=(os.getppid(),), daemon=True).start()
    tokenizer = load_tokenizer(config.tokenizer_name_or_path, config.tokenizer_type)
    _worker_handler = build_handler(config, tokenizer)


def _leave_with_parent(parent: int) -> None:
    """A parent that was killed outright tells nobody: without this its workers would wait for ever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _encode_in_worker(chunk: list[Row]) -> Encoded:
    return encode_chunk(_worker_handler, chunk)


def encode_chunk(handler: Handler, chunk: list[Row]) -> Encoded:
    """Encode rows; an error names the file and the row."""
    sequences: list[list[np.ndarray]] = [[] for _ in handler.fields]
    skipped: Counter = Counter()
    for file, number, row in chunk:
        try:
            encoded = handler.encode(row)
        except SkipRow as reason:
            skipped[str(reason)] += 1
            continue
        except UserError as error:
            raise UserError(f"{file} row {number}: {error}") from None
        for into, sequence in zip(sequences, encoded):
            into.append(np.array(sequence, np.int32))
    return Encoded(
        tokens=[np.concatenate(into) if into else np.zeros(0, np.int32) for into in sequences],
        lengths=[np.array([sequence.size for sequence in into], np.int32) for into in sequences],
        rows=len(chunk), skipped=skipped,
    )


@contextlib.contextmanager
def _terminate_as_exception() -> Iterator[None]:
    """SIGTERM unwinds like an exception, so that half-written files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def _remove_new_folders(folder: Path) -> Iterator[None]:
    """Make the output folder; take away again what was made if the work fails."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):  # somebody else has put something there meanwhile
                path.rmdir()
        raise
