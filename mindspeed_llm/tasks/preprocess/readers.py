"""Rows of a data file, or of all data files in a folder, one dict per row.

Formats by ending: .parquet, .arrow (IPC stream or file), .csv (first line: column names), .json (a list of objects, or
an object per line), .jsonl, .txt (every non-empty line is a row with the column `text`).
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from mindspeed_llm.config.errors import UserError

BATCH_ROWS = 1024


def find_files(path: str | None) -> list[Path]:
    """The data files of `--input`: the file itself, or those of a folder and its subfolders in order of their names.

    Raises:
        UserError: no path, an unknown ending, a folder without data files, an empty file.
        FileNotFoundError: nothing is there.
    """
    if not path:
        raise UserError("no data: give a file or a folder with --input")
    location = Path(path)
    if not location.exists():
        raise FileNotFoundError(f"--input {path}: no such file or folder")
    endings = ", ".join(READERS)
    if location.is_dir():
        files = sorted(file for file in location.rglob("*") if file.suffix.lower() in READERS and file.is_file()
                       and not any(part.startswith(".") for part in file.relative_to(location).parts))
        if not files:
            raise UserError(f"--input {path}: the folder holds no data file ({endings})")
    else:
        files = [location]
        if location.suffix.lower() not in READERS:
            raise UserError(f"--input {path}: files ending in {location.suffix or '(nothing)'} cannot be read, use "
                            f"{endings}")
    for file in files:
        if file.stat().st_size == 0:
            raise UserError(f"{file} is empty")
    return files


def iterate_rows(file: Path, required: tuple[str, ...]) -> Iterator[tuple[int, dict]]:
    """(row number from 1, row) of one file.

    Args:
        required: columns that every row must have.

    Raises:
        UserError: a damaged file, or a missing column; the text names the columns that are there.
    """
    empty = True
    for number, row in enumerate(READERS[file.suffix.lower()](file), start=1):
        missing = [column for column in required if column not in row]
        if missing:
            raise UserError(f"{file} row {number} has no column {missing[0]!r}; its columns are: "
                            f"{', '.join(row) or '(none)'}. Choose the text column with --json-keys, or the "
                            "handler that fits with --handler-name")
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
        for batch in parquet.ParquetFile(file).iter_batches(BATCH_ROWS):
            yield from batch.to_pylist()


def _read_arrow(file: Path) -> Iterator[dict]:
    import pyarrow as arrow
    with _arrow_errors(file), arrow.memory_map(str(file)) as source:
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


def _read_csv(file: Path) -> Iterator[dict]:
    csv.field_size_limit(1 << 30)
    with _open_text(file) as stream:
        reader = csv.DictReader(stream, strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise UserError(f"{file} line {reader.line_num} does not have the {len(reader.fieldnames)} fields "
                                    "of the first line: the file is cut short, or a text with commas is not in quotes")
                yield row
        except csv.Error as error:
            raise UserError(f"{file} line {reader.line_num}: {error}") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{file} is not UTF-8 text: {error.reason}") from None


def _read_json(file: Path) -> Iterator[dict]:
    """A list of objects, one object per line, or a single object over several lines."""
    if _starts_with_lines_of_objects(file):
        yield from _read_lines(file)
        return
    rows = _load_whole(file)
    if isinstance(rows, dict):
        rows = [rows]
    if not isinstance(rows, list):
        raise UserError(f"{file} holds a JSON {type(rows).__name__}, a list of objects is wanted")
    for number, row in enumerate(rows, start=1):
        yield _check_object(row, f"{file} row {number}")


def _starts_with_lines_of_objects(file: Path) -> bool:
    with _open_text(file) as stream:
        try:
            while (head := stream.read(1)).isspace():
                pass
            return head == "{" and isinstance(json.loads(head + stream.readline()), dict)
        except json.JSONDecodeError:  # an object that goes on in the next lines
            return False
        except UnicodeDecodeError as error:
            raise UserError(f"{file} is not UTF-8 text: {error.reason}") from None


def _read_lines(file: Path) -> Iterator[dict]:
    with _open_text(file) as stream:
        try:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    try:
                        yield _check_object(json.loads(line), f"{file} line {number}")
                    except json.JSONDecodeError as error:
                        raise UserError(
                            f"{file} line {number} is not JSON ({error.msg}): it is damaged or cut short") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{file} is not UTF-8 text: {error.reason}") from None


def _read_text(file: Path) -> Iterator[dict]:
    with _open_text(file) as stream:
        try:
            for line in stream:
                if line.strip():
                    yield {"text": line.rstrip("\r\n")}
        except UnicodeDecodeError as error:
            raise UserError(f"{file} is not UTF-8 text: {error.reason}") from None


def _open_text(file: Path):
    return open(file, encoding="utf-8-sig", newline="" if file.suffix.lower() == ".csv" else None)


def _load_whole(file: Path) -> object:
    with _open_text(file) as stream:
        try:
            return json.load(stream)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{file} is not valid JSON (line {error.lineno}: {error.msg}): it is damaged or cut short") from None


def _check_object(row: object, where: str) -> dict:
    if not isinstance(row, dict):
        raise UserError(f"{where} is a JSON {type(row).__name__}, an object with named columns is wanted")
    return row


READERS = {".parquet": _read_parquet, ".arrow": _read_arrow, ".csv": _read_csv, ".json": _read_json,
           ".jsonl": _read_lines, ".txt": _read_text}
