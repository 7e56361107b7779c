"""Rows of a data file, or of all data files in a folder, one dict per row, with a few rows in memory at a time.

Formats by ending: .parquet, .arrow (IPC stream or file), .csv (first line: column names), .json (a list of objects, or
an object per line), .jsonl, .txt (every non-empty line is a row with the column `text`). The last four may be gzipped
(.jsonl.gz).
"""

import contextlib
import csv
import glob
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from mindspeed_llm.config.errors import UserError

BATCH_ROWS = 1024
READ_CHARS = 1 << 20
SPACE = re.compile(r"[ \t\r\n]*")


def find_files(path: str | None) -> list[Path]:
    """The data files of `--input`: the file itself, those of a folder and its subfolders in order of their names, or
    all that a pattern (`data/*.jsonl`) finds.

    Raises:
        UserError: no path, an unknown ending, a folder without data files, an empty file.
        FileNotFoundError: nothing is there.
    """
    if not path:
        raise UserError("no data: give a file, a folder or a pattern with --input")
    location = Path(path)
    if location.exists():
        locations = [location]
    elif glob.has_magic(path):
        locations = [Path(found) for found in sorted(glob.glob(path, recursive=True))]
        if not locations:
            raise FileNotFoundError(f"--input {path}: no file or folder has such a name (quote the pattern)")
    else:
        raise FileNotFoundError(f"--input {path}: no such file or folder")
    files = list(dict.fromkeys(file for place in locations for file in _files_at(place)))
    for file in files:
        if file.stat().st_size == 0:
            raise UserError(f"{file} is empty")
    return files


def _files_at(location: Path) -> list[Path]:
    endings = ", ".join(READERS)
    if not location.is_dir():
        if _ending(location) not in READERS:
            raise UserError(f"--input {location}: files ending in {location.suffix or '(nothing)'} cannot be read, use "
                            f"{endings}")
        return [location]
    files = sorted(file for file in location.rglob("*") if _ending(file) in READERS and file.is_file()
                   and not any(part.startswith(".") for part in file.relative_to(location).parts))
    if not files:
        raise UserError(f"--input {location}: the folder holds no data file ({endings})")
    return files


def _ending(file: Path) -> str:
    return "".join(file.suffixes[-2:] if file.suffix.lower() == ".gz" else file.suffixes[-1:]).lower()


def iterate_rows(file: Path, required: tuple[str, ...]) -> Iterator[tuple[int, dict | UserError]]:
    """(row number from 1, row) of one file. Instead of a row that is damaged by itself or lacks a column there is the
    error that says so: whoever reads decides whether to go on.

    Args:
        required: columns that every row must have.

    Raises:
        UserError: a file that cannot be read on.
    """
    empty = True
    for number, row in enumerate(READERS[_ending(file)](file), start=1):
        missing = [column for column in required if column not in row] if isinstance(row, dict) else []
        if missing:
            row = UserError(f"{file} row {number} has no column {missing[0]!r}; its columns are: "
                            f"{', '.join(row) or '(none)'}. Choose the text column with --json-keys, the columns of "
                            "tuning data with --map-keys, or the handler that fits with --handler-name")
        empty = False
        yield number, row
    if empty:
        raise UserError(f"{file} holds no rows")


def count_rows(files: list[Path]) -> int | None:
    """Number of rows if that is known without reading the data (parquet), else None."""
    if any(file.suffix.lower() != ".parquet" for file in files):
        return None
    import pyarrow.parquet as parquet
    with _arrow_errors(files[0]):
        return sum(parquet.read_metadata(file).num_rows for file in files)


def _read_parquet(file: Path) -> Iterator[dict]:
    import pyarrow.parquet as parquet
    with _arrow_errors(file):
        # buffer_size: pages as they are needed, not a whole row group at once
        for batch in parquet.ParquetFile(file, buffer_size=1 << 20).iter_batches(BATCH_ROWS):
            yield from batch.to_pylist()


def _read_arrow(file: Path) -> Iterator[dict]:
    import pyarrow as arrow
    # not memory-mapped: the pages of the file would count as the process's
    with _arrow_errors(file), arrow.OSFile(str(file)) as source:
        is_file_format = source.read(6) == b"ARROW1"
        source.seek(0)
        if is_file_format:
            reader = arrow.ipc.open_file(source)
            batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
        else:
            batches = arrow.ipc.open_stream(source)
        for batch in batches:
            for start in range(0, batch.num_rows, BATCH_ROWS):
                yield from batch.slice(start, BATCH_ROWS).to_pylist()


class _arrow_errors:
    """Turns pyarrow's errors about a file into one line that names it."""

    def __init__(self, file: Path):
        self.file = file

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        import pyarrow as arrow
        if isinstance(error, (arrow.ArrowException, OSError)):
            text = str(error).split("\n")[0]
            raise UserError(
                f"{self.file} cannot be read, it is damaged, incomplete or of another format: {text}") from None


def _read_csv(file: Path) -> Iterator[dict | UserError]:
    csv.field_size_limit(1 << 30)
    with _open_text(file, newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    yield UserError(f"{file} line {reader.line_num} does not have the {len(reader.fieldnames)} fields "
                                    "of the first line: the file is cut short, or a text with commas is not in quotes")
                else:
                    yield row
        except csv.Error as error:
            raise UserError(f"{file} line {reader.line_num}: {error}") from None


def _read_json(file: Path) -> Iterator[dict | UserError]:
    """A list of objects, one object per line, or a single object over several lines."""
    with _open_text(file) as stream:
        while (head := stream.read(1)).isspace():
            pass
        lines = False
        if head == "{":
            with contextlib.suppress(json.JSONDecodeError):  # an object that goes on in the next lines
                lines = isinstance(json.loads(head + stream.readline()), dict)
    if lines:
        yield from _read_lines(file)
        return
    rows = _read_list(file) if head == "[" else [_load_whole(file)]
    for number, row in enumerate(rows, start=1):
        yield _object(row, f"{file} row {number}")


def _read_list(file: Path) -> Iterator[object]:
    """The values of a JSON list one by one."""
    decoder = json.JSONDecoder()
    with _open_text(file) as stream:
        buffer, at, lines, wanted = "", 0, 0, "["

        def fill() -> bool:
            nonlocal buffer, at, lines
            lines += buffer.count("\n", 0, at)
            more = stream.read(max(READ_CHARS, len(buffer) - at))  # doubles what does not suffice
            buffer, at = buffer[at:] + more, 0
            return bool(more)

        def damaged(position: int, what: str) -> UserError:
            return _not_json(file, lines + buffer.count("\n", 0, position) + 1, what)

        while True:
            while (at := SPACE.match(buffer, at).end()) == len(buffer):
                if not fill():
                    if wanted:
                        raise damaged(at, f"Expecting '{wanted}'")
                    return
            if not wanted:
                raise damaged(at, "Extra data")
            sign = buffer[at]
            if wanted == "[":
                at, wanted = at + 1, "value or ]"
            elif sign == "]" and wanted != "value":
                at, wanted = at + 1, ""
            elif wanted == ", or ]":
                if sign != ",":
                    raise damaged(at, "Expecting ',' delimiter")
                at, wanted = at + 1, "value"
            else:
                try:
                    value, end = decoder.raw_decode(buffer, at)
                except json.JSONDecodeError as error:
                    cut = error.msg.startswith("Unterminated string") or error.pos > len(buffer) - 16
                    if cut and fill():
                        continue
                    raise damaged(error.pos, error.msg) from None
                if end == len(buffer) and fill():
                    continue  # a number may go on
                yield value
                at, wanted = end, ", or ]"


def _read_lines(file: Path) -> Iterator[dict | UserError]:
    with _open_text(file) as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                try:
                    yield _object(json.loads(line), f"{file} line {number}")
                except json.JSONDecodeError as error:
                    yield UserError(
                        f"{file} line {number} is not JSON ({error.msg}): it is damaged or cut short")


def _read_text(file: Path) -> Iterator[dict]:
    with _open_text(file) as stream:
        for line in stream:
            if line.strip():
                yield {"text": line.rstrip("\r\n")}


@contextlib.contextmanager
def _open_text(file: Path, newline: str | None = None) -> Iterator[TextIO]:
    """UTF-8 text, unzipped if need be; what is wrong with it becomes an error that names the file."""
    opened = gzip.open if file.suffix.lower() == ".gz" else open
    try:
        with opened(file, "rt", encoding="utf-8-sig", newline=newline) as stream:
            yield stream
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text: {error.reason}") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{file} cannot be unzipped, it is damaged or cut short: {error}") from None


def _load_whole(file: Path) -> object:
    with _open_text(file) as stream:
        try:
            return json.load(stream)
        except json.JSONDecodeError as error:
            raise _not_json(file, error.lineno, error.msg) from None


def _not_json(file: Path, line: int, what: str) -> UserError:
    return UserError(f"{file} is not valid JSON (line {line}: {what}): it is damaged or cut short")


def _object(row: object, where: str) -> dict | UserError:
    if not isinstance(row, dict):
        return UserError(f"{where} is a JSON {type(row).__name__}, an object with named columns is wanted")
    return row


_TEXT_READERS = {".csv": _read_csv, ".json": _read_json, ".jsonl": _read_lines, ".txt": _read_text}
READERS = {".parquet": _read_parquet, ".arrow": _read_arrow, **_TEXT_READERS,
           **{f"{ending}.gz": reader for ending, reader in _TEXT_READERS.items()}}
