"""The same rows come out of every format; damaged files are named, with what is wrong with them."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.tasks.preprocess import readers
from mindspeed_llm.tasks.preprocess.readers import count_rows, find_files, iterate_rows

ROWS = [{"id": "1", "text": "first, \"quoted\"\nline"}, {"id": "2", "text": "第二"}, {"id": "3", "text": ""}]


def write(path, rows=ROWS):
    table = pa.Table.from_pylist(rows)
    if path.suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=2)
    elif path.name == "stream.arrow":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    elif path.suffix == ".arrow":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    elif path.suffix == ".csv":
        quoted = [",".join('"' + value.replace('"', '""') + '"' for value in row.values()) for row in rows]
        path.write_text("\n".join(["id,text", *quoted]), encoding="utf-8-sig")
    elif path.name == "list.json":
        path.write_text(json.dumps(rows, indent=1))
    elif path.name == "lines.json" or path.suffix == ".jsonl":
        path.write_text("\n" + "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    return path


NAMES = ["a.parquet", "stream.arrow", "file.arrow", "a.csv", "list.json", "lines.json", "a.jsonl"]


def read(path, required=("text",)):
    rows = [row for file in find_files(str(path)) for _, row in iterate_rows(file, required)]
    for row in rows:
        if isinstance(row, UserError):
            raise row
    return rows


@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_the_same_rows(tmp_path, name):
    assert read(write(tmp_path / name)) == ROWS


@pytest.mark.parametrize("name", ["a.csv", "list.json", "lines.json", "a.jsonl"])
def test_zipped_text_is_read(tmp_path, name):
    plain = write(tmp_path / name)
    zipped = tmp_path / f"{name}.gz"
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    assert read(zipped) == read(tmp_path) == ROWS
    zipped.write_bytes(zipped.read_bytes()[:-9])
    with pytest.raises(UserError, match=f"{name}.gz cannot be unzipped"):
        read(zipped)
    zipped.write_bytes(b"not zipped at all")
    with pytest.raises(UserError, match=f"{name}.gz cannot be unzipped"):
        read(zipped)


def test_a_pattern_finds_files_and_folders(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "c.csv", "d/e.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, [{"id": "1", "text": name}])
    assert [row["text"] for row in read(tmp_path / "*.jsonl")] == ["a.jsonl", "b.jsonl"]
    assert [row["text"] for row in read(tmp_path / "**" / "*.jsonl")] == ["a.jsonl", "b.jsonl", "d/e.jsonl"]
    assert [row["text"] for row in read(tmp_path / "[cd]*")] == ["c.csv", "d/e.jsonl"]
    with pytest.raises(FileNotFoundError, match="quote the pattern"):
        read(tmp_path / "*.txt")


@pytest.mark.parametrize("chars", [1, 2, 3, 7, 64])
def test_a_list_is_read_in_pieces_of_any_size(tmp_path, monkeypatch, chars):
    monkeypatch.setattr(readers, "READ_CHARS", chars)
    rows = [{"text": "a\"b\\ 二\u2028", "n": [1, -2.5e3, None, True], "o": {"x": {}}}, {"text": ""}, {"text": "[" * 9}]
    for indent in (None, 2):
        (tmp_path / "list.json").write_text(json.dumps(rows, indent=indent) + " \n ")
        assert read(tmp_path / "list.json") == rows
    for content, message in (
        ('[{"text": 1},\n{"text" 2}]', r"line 2: Expecting ':'"), ('[{"text": 1}\n\n{}]', "line 3: Expecting ','"),
        ('[{"text": 1}] 5', "Extra data"), ('[{"text": "', "Unterminated"), ('[{"text": 1}', "Expecting ', or ]'"),
        ('[{"text": 1},]', "Expecting value"), ("[\n1x", "JSON|Expecting"), ('[{"text": "\t"}]', "control character"),
    ):
        (tmp_path / "list.json").write_text(content)
        with pytest.raises(UserError, match=f"list.json is not valid JSON .*({message})"):
            read(tmp_path / "list.json")


def test_a_bad_row_does_not_end_the_reading(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": 1}\nxx\n[1]\n{"id": 2}\n{"text": 3}\n')
    (tmp_path / "a.json").write_text('[{"text": 1}, 5, {"text": 3}]')
    (tmp_path / "a.csv").write_text("id,text\n1,a\n2\n3,c\n")
    for name, good, bad in (("a.jsonl", 2, 3), ("a.json", 2, 1), ("a.csv", 2, 1)):
        rows = [row for _, row in iterate_rows(tmp_path / name, ("text",))]
        assert [isinstance(row, UserError) for row in rows].count(True) == bad and len(rows) == good + bad


def test_text_gives_a_row_per_line(tmp_path):
    (tmp_path / "a.txt").write_text("\ufefffirst\n\n  \n second 二 \r\n", encoding="utf-8")
    assert read(tmp_path / "a.txt") == [{"text": "first"}, {"text": " second 二 "}]


def test_single_object_over_lines(tmp_path):
    (tmp_path / "a.json").write_text('{\n "text": "x"\n}\n')
    assert read(tmp_path / "a.json") == [{"text": "x"}]


def test_folder_in_order_of_names(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    write(tmp_path / "b.jsonl", [{"text": "b"}])
    write(tmp_path / "a.parquet", [{"text": "a"}])
    write(tmp_path / "sub" / "c.jsonl", [{"text": "c"}])
    write(tmp_path / ".hidden" / "d.jsonl", [{"text": "d"}])
    (tmp_path / "README.md").write_text("not data")
    assert [row["text"] for row in read(tmp_path)] == ["a", "b", "c"]


def test_rows_are_counted_where_that_is_free(tmp_path):
    write(tmp_path / "a.parquet")
    assert count_rows(find_files(str(tmp_path))) == 3
    write(tmp_path / "b.jsonl")
    assert count_rows(find_files(str(tmp_path))) is None


@pytest.mark.parametrize("name", NAMES)
def test_missing_column_names_those_that_are_there(tmp_path, name):
    with pytest.raises(UserError, match=f"{name} row 1 has no column 'content'; its columns are: id, text"):
        read(write(tmp_path / name), ("content",))


# where the cut leaves a file that is valid in itself (a stream without its end mark, a csv line without its last
# character) no reader can tell, so those two are cut in the middle only
@pytest.mark.parametrize("name, keep", [(name, keep) for name in NAMES for keep in (0.3, 0.9)
                                        if (name, keep) not in (("stream.arrow", 0.9), ("a.csv", 0.9))])
def test_cut_files_are_refused(tmp_path, name, keep):
    path = write(tmp_path / name)
    path.write_bytes(path.read_bytes()[:int(path.stat().st_size * keep)])
    with pytest.raises(UserError, match=name):
        read(path)


def test_empty_and_foreign_files(tmp_path):
    for name in (*NAMES, "a.txt"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(UserError, match=f"{name} is empty"):
            read(tmp_path / name)
    for name, content, message in (
        ("a.json", "[]", "no rows"), ("a.json", "[1]", "JSON int"), ("a.json", "3", "JSON int"),
        ("a.jsonl", "[1]\n", "line 1 is a JSON list"), ("a.csv", "id,text\n", "no rows"),
        ("a.csv", "id,text\n1,a,b\n", "line 2"), ("a.txt", "\n \n", "no rows"),
        ("a.parquet", "PAR0xxxxxxxxxxx", "damaged"), ("a.jsonl", '{"text": 1}\nxx', "line 2"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=message):
            read(tmp_path / name)
    for name in ("a.json", "a.jsonl", "a.txt", "a.csv"):
        (tmp_path / name).write_bytes('{"text": "é"}'.encode("latin-1"))
        with pytest.raises(UserError, match="UTF-8"):
            read(tmp_path / name)


def test_nothing_to_read(tmp_path):
    with pytest.raises(UserError, match="--input"):
        find_files(None)
    with pytest.raises(FileNotFoundError, match="gone"):
        find_files(str(tmp_path / "gone"))
    with pytest.raises(UserError, match="no data file"):
        find_files(str(tmp_path))
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(UserError, match=".docx cannot be read"):
        find_files(str(tmp_path / "a.docx"))
