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
from mindspeed_llm.tasks.preprocess.lengths import report
from mindspeed_llm.tasks.preprocess.packing import pack
from mindspeed_llm.tasks.preprocess.readers import count_rows, find_files, iterate_rows

CHUNK_ROWS = 256
CHUNK_BYTES = 1 << 20
logger = logging.getLogger(__name__)

BAD_ROWS_NAMED = 3
STOP = "stop"

Row = tuple[str, int, dict | UserError]  # file, row number, columns or what is wrong with them


@dataclass
class Tally:
    """What became of rows.

    Attributes:
        rows: how many were read.
        skipped: those that give no sample, by reason.
        bad: those that could not be read; `named` tells of the first few.
    """

    rows: int = 0
    skipped: Counter = field(default_factory=Counter)
    bad: int = 0
    named: list[str] = field(default_factory=list)

    def add(self, other: "Tally", config: DataConfig) -> None:
        """Take in the tally of further rows.

        Raises:
            UserError: more bad rows than `--max-bad-rows`.
        """
        self.rows += other.rows
        self.skipped += other.skipped
        self.bad += other.bad
        self.named = [*self.named, *other.named][:BAD_ROWS_NAMED]
        if self.bad > config.max_bad_rows == 0:
            raise UserError(f"{self.named[0]} (--max-bad-rows N leaves out up to N bad rows)")
        if self.bad > config.max_bad_rows:
            raise UserError(f"more than --max-bad-rows {config.max_bad_rows} rows cannot be read; the first: "
                            f"{'; '.join(self.named)}")


@dataclass
class Encoded:
    """The sequences of a chunk of rows: per field all tokens (int32) in one array, and the length of each sequence."""

    tokens: list[np.ndarray]
    lengths: list[np.ndarray]
    tally: Tally


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
        pool = stack.enter_context(_worker_pool(config, handler))
        stack.enter_context(_remove_new_folders(Path(config.output_prefix).parent))
        builders = {name: stack.enter_context(IndexedDatasetBuilder(prefix, dtype)) for name, prefix in names.items()}
        if config.pack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(
                prefix=".packing-", dir=Path(config.output_prefix).parent))
            loose = {name: stack.enter_context(IndexedDatasetBuilder(Path(folder) / name)) for name in names}
            tally = _write(config, handler, pool, files, loose)
            _finalize(loose, tally, config)
            parts = {name: IndexedDataset(Path(folder) / name) for name in names}
            packed = pack(parts, builders, config.seq_length, tokenizer.pad_id)
            used = int(parts["input_ids"].sizes.sum(dtype=np.int64))
            logger.info("packed %d conversations into %d rows of %d tokens, %.1f%% of them used",
                        len(parts["input_ids"]), packed, config.seq_length, 100 * used / (packed * config.seq_length))
        else:
            tally = _write(config, handler, pool, files, builders)
        written = loose if config.pack else builders
        lengths = next(iter(written.values())).sizes
        _finalize(builders, tally, config)
    for name, prefix in names.items():
        logger.info("wrote %d documents, %d tokens to %s.bin", builders[name].sequences, builders[name].tokens, prefix)
    logger.info("%d rows in %.1f s, %d of them skipped%s", tally.rows, time.monotonic() - start,
                sum(tally.skipped.values()),
                "".join(f"; {reason}: {count}" for reason, count in tally.skipped.most_common()))
    if tally.bad:
        logger.warning("%d bad rows left out (--max-bad-rows %d); the first: %s", tally.bad, config.max_bad_rows,
                       "; ".join(tally.named))
    if config.report:
        logger.info("%s", report(lengths, f"{config.output_prefix}_lengths.png",
                                 config.seq_length if handler.instruction else None))
    return list(names.values())


def _write(config: DataConfig, handler: Handler, pool: ProcessPoolExecutor | None, files: list[Path],
           builders: dict[str, IndexedDatasetBuilder]) -> Tally:
    """Encode all rows into the builders."""
    if config.n_subs > 1:
        return _write_subs(config, pool, files, builders)
    total, logged, start = Tally(), 0, time.monotonic()
    chunks = _chunks(_rows(files, handler))
    with contextlib.closing(_encode_all(config, handler, pool, chunks)) as encoded_chunks, \
            tqdm(total=count_rows(files), unit=" rows", disable=None) as progress:
        for encoded in encoded_chunks:
            _add(builders, encoded)
            total.add(encoded.tally, config)
            progress.update(encoded.tally.rows)
            if config.log_interval > 0 and total.rows // config.log_interval > logged // config.log_interval:
                logged = total.rows
                seconds = time.monotonic() - start
                tokens = next(iter(builders.values())).tokens
                logger.info("processed %d rows (%.0f rows/s, %.0f tokens/s)", logged, logged / seconds,
                            tokens / seconds)
    return total


def _add(builders: dict[str, IndexedDatasetBuilder], encoded: Encoded) -> None:
    for builder, tokens, lengths in zip(builders.values(), encoded.tokens, encoded.lengths):
        builder.add_documents(tokens, lengths)


def _write_subs(config: DataConfig, pool: ProcessPoolExecutor, files: list[Path],
                builders: dict[str, IndexedDatasetBuilder]) -> Tally:
    """`--n-subs`: processes that each read, encode and write a run of rows; then all runs, in order."""
    rows = count_rows(files)
    if rows is None:
        rows = sum(1 for file in files for _ in iterate_rows(file, ()))
    bounds = [rows * part // config.n_subs for part in range(config.n_subs + 1)]
    dtype = next(iter(builders.values())).dtype
    total = Tally()
    with tempfile.TemporaryDirectory(prefix=".parts-", dir=Path(config.output_prefix).parent) as name:
        folder = Path(name)
        try:
            parts = [pool.submit(_write_sub, config, files, bounds[part:part + 2], dtype, folder, part)
                     for part in range(config.n_subs)]
            for part, result in enumerate(parts):
                written, tally = result.result()
                total.add(tally, config)
                for field_name, builder in builders.items() if written else ():
                    builder.add_dataset(folder / f"{part}_{field_name}")
                logger.info("part %d of %d: %d rows", part + 1, config.n_subs, tally.rows)
        except BaseException:
            (folder / STOP).touch()  # the other parts need not be finished
            pool.shutdown(wait=True, cancel_futures=True)  # nobody writes into the folder any more
            raise
    return total


def _write_sub(config: DataConfig, files: list[Path], bounds: list[int], dtype: np.dtype, folder: Path, part: int
               ) -> tuple[bool, Tally]:
    """One part, in a worker: (whether any row gave a sample, what became of the rows)."""
    handler = _worker_handler
    tally = Tally()
    with contextlib.ExitStack() as stack:
        builders = {name: stack.enter_context(IndexedDatasetBuilder(folder / f"{part}_{name}", dtype))
                    for name in handler.fields}
        for chunk in _chunks(itertools.islice(_rows(files, handler), *bounds)):
            if (folder / STOP).exists():
                break
            encoded = encode_chunk(handler, chunk)
            _add(builders, encoded)
            tally.add(encoded.tally, config)
        written = next(iter(builders.values())).sequences > 0
        for builder in builders.values() if written else ():
            builder.finalize()
    return written, tally


def _finalize(builders: dict[str, IndexedDatasetBuilder], tally: Tally, config: DataConfig) -> None:
    if next(iter(builders.values())).sequences == 0:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in tally.skipped.most_common())
        raise UserError(f"--input {config.input}: none of the {tally.rows} rows gives a sample: {reasons}")
    for builder in builders.values():
        builder.seal()
    for builder in builders.values():
        builder.publish()


def _rows(files: list[Path], handler: Handler) -> Iterator[Row]:
    required = tuple(handler.columns.name_in_file(column) for column in handler.required)
    for file in files:
        for number, row in iterate_rows(file, required):
            yield str(file), number, row


def _chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Rows in portions that are worth sending to a worker."""
    chunk: list[Row] = []
    size = 0
    for file, number, row in rows:
        chunk.append((file, number, row))
        if isinstance(row, dict):
            size += sum(len(value) for value in row.values() if isinstance(value, (str, list)))
        if len(chunk) >= CHUNK_ROWS or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _encode_all(config: DataConfig, handler: Handler, pool: ProcessPoolExecutor | None,
                chunks: Iterator[list[Row]]) -> Iterator[Encoded]:
    """Encoded chunks in the order of the chunks, by the pool's processes (None: in this one)."""
    if pool is None:
        for chunk in chunks:
            yield encode_chunk(handler, chunk)
        return
    waiting: deque = deque()
    for chunk in itertools.chain(chunks, [None]):
        if chunk is not None:
            waiting.append(pool.submit(_encode_in_worker, chunk))
        # a few chunks per worker in flight keep all busy and bound the memory
        while waiting and (chunk is None or len(waiting) >= 3 * config.workers):
            yield waiting.popleft().result()


@contextlib.contextmanager
def _worker_pool(config: DataConfig, handler: Handler) -> Iterator[ProcessPoolExecutor | None]:
    """`--workers` processes, or None where this one does the work alone."""
    workers = min(config.workers, config.n_subs) if config.n_subs > 1 else config.workers
    if workers == 1 and config.n_subs <= 1:
        yield None
        return
    # A copy of this process has the tokenizer already. But a lock that another thread holds is locked in the copy for
    # ever: where there are threads, the workers start afresh.
    forked = _is_alone()
    executor = ProcessPoolExecutor(workers, multiprocessing.get_context("fork" if forked else "spawn"), _start_worker,
                                   (config, handler if forked else None))
    try:
        if forked:
            executor.submit(int)  # fork all of them now, before reading starts threads
        yield executor
    except BrokenProcessPool:
        raise UserError(
            f"a worker process died (killed, or out of memory): use fewer than --workers {workers}") from None
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _is_alone() -> bool:
    """Whether this process is known to have a single thread, those of libraries counted."""
    try:
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:
        return False


_worker_handler: Handler | None = None


def _start_worker(config: DataConfig, handler: Handler | None) -> None:
    global _worker_handler
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and stops the pool
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_leave_with_parent, args=(os.getppid(),), daemon=True).start()
    _worker_handler = handler or build_handler(
        config, load_tokenizer(config.tokenizer_name_or_path, config.tokenizer_type))


def _leave_with_parent(parent: int) -> None:
    """A parent that was killed outright tells nobody: without this its workers would wait for ever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _encode_in_worker(chunk: list[Row]) -> Encoded:
    return encode_chunk(_worker_handler, chunk)


def encode_chunk(handler: Handler, chunk: list[Row]) -> Encoded:
    """Encode rows; what is wrong with a bad one names the file and the row."""
    sequences: list[list[np.ndarray]] = [[] for _ in handler.fields]
    tally = Tally(rows=len(chunk))
    for file, number, row in chunk:
        try:
            if isinstance(row, UserError):
                raise row
            encoded = handler.encode(handler.columns.apply(row))
        except SkipRow as reason:
            tally.skipped[str(reason)] += 1
        except UserError as error:
            tally.bad += 1
            tally.named.append(str(error) if error is row else f"{file} row {number}: {error}")
        else:
            for into, sequence in zip(sequences, encoded):
                into.append(np.asarray(sequence, np.int32))
    return Encoded(
        tokens=[np.concatenate(into) if into else np.zeros(0, np.int32) for into in sequences],
        lengths=[np.array([sequence.size for sequence in into], np.int32) for into in sequences],
        tally=tally,
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
