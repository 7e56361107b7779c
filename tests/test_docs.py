"""The documentation is true: files, links, tables of variables, flags and environment variables exist as written, and
the commands marked `<!-- run -->` run.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from mindspeed_llm.config.flags import FLAGS
from mindspeed_llm.config.flags import SCRIPTS as SCRIPT_FILES
from mindspeed_llm.config.parallel import ParallelConfig
from tests.distributed.rows import ROWS

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "examples" / "mindspore" / "glm4"
READMES = (ROOT / "README.md", ROOT / "README_zh.md")
GUIDE = SCRIPTS / "README.md"
PAGES = (*READMES, GUIDE, *sorted((ROOT / "docs").rglob("*.md")))
SOURCED = {"common.sh", "model_args.sh", "train_args.sh", "inference_args.sh"}
NO_JOBS = SOURCED | {"setup_env.sh", "quickstart.sh", "quickstart_posttrain.sh"}
JOBS = sorted(path.name for path in SCRIPTS.glob("*.sh") if path.name not in NO_JOBS)
OPENING = ["bash examples/mindspore/glm4/quickstart.sh", "bash tests/run.sh"]
OTHER_FLAGS = {"--help", "--full", "--worker_num", "--local_worker_num", "--join", "--watch",  # of argparse, tests/run.sh,
               "--model", "--model_args", "--tasks", "--batch_size", "--agreement"}  # msrun, the report; the harness
MADE_BY_SCRIPTS = {"activate", "set_env.sh", "posttrain_gpt.py"}  # of .venv, of CANN, a link that setup_env.sh makes


@dataclass(frozen=True)
class Block:
    """A fenced code block; `run` says that it is marked to be executed."""

    page: Path
    line: int
    language: str
    text: str
    run: bool


@dataclass(frozen=True)
class Table:
    """A Markdown table with the scripts that the line above it names."""

    header: list[str]
    rows: list[list[str]]
    scripts: list[str]


def blocks(page: Path) -> list[Block]:
    found, opened, lines = [], None, page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if line.startswith("```"):
            if opened is None:
                opened = number
            else:
                run = opened > 0 and lines[opened - 1] == "<!-- run -->"
                found.append(Block(page, opened + 1, lines[opened][3:], "\n".join(lines[opened + 1:number]), run))
                opened = None
    assert opened is None, f"{page}: a code block is not closed"
    return found


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def inline_code(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(page))


def tables(page: Path) -> list[Table]:
    found, scripts, current = [], [], None
    for line in prose(page).splitlines():
        if re.match(r"(Scripts?: |脚本：)", line):
            names = re.findall(r"`(\w+\.sh)`", line)
            scripts = names if names else list(JOBS)
        if not line.startswith("|"):
            current = None
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if current is None:
            current = Table(cells, [], scripts)
            found.append(current)
        elif not re.fullmatch(r"\|(-+\|)+", line):
            assert len(cells) == len(current.header), f"{page}: {line}"
            current.rows.append(cells)
    return found


def defaults(script: str) -> dict[str, str | None]:
    """Variable -> default of a script: the first assignment counts, in it or in what it sources."""
    found: dict[str, str | None] = {}
    for line in (SCRIPTS / script).read_text(encoding="utf-8").splitlines():
        assignment = re.match(r"([A-Za-z_]+)=\$\{\1:?-(.*)\}\s*(#.*)?$", line)
        if assignment:
            found.setdefault(assignment[1], shown(assignment[2]))
        sourced = re.match(r'source ".*/(\w+\.sh)"', line)
        if sourced:
            for name, value in defaults(sourced[1]).items():
                found.setdefault(name, value)
    return found


def shown(default: str) -> str | None:
    """A default as a reader writes it: what a nested default gives, paths without shell operators, None for not set."""
    nested = re.fullmatch(r"\$\{\w+:?-(.*)\}", default)
    return nested[1] if nested else re.sub(r"\$\{(\w+)%/\}", r"$\1", default) or None


def flag_value(script: str, flag: str) -> str | None:
    """What a training script passes after a flag."""
    found = re.search(rf"(?<!\S){flag} (\S+)", (SCRIPTS / script).read_text(encoding="utf-8"))
    return found[1] if found else None


def code(cell: str) -> str | None:
    """The cell's text when it is one piece of inline code, else None."""
    found = re.fullmatch(r"`([^`]*)`", cell)
    return found[1] if found else None


def ids(pages) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in pages]


def test_the_two_commands_open_both_readmes():
    for page in READMES:
        first = blocks(page)[0]
        assert first.text.splitlines() == OPENING and first.line < 15
        assert "\n## " not in page.read_text(encoding="utf-8")[:page.read_text(encoding="utf-8").index(OPENING[0])]


def test_readmes_are_parallel():
    english, chinese = READMES
    def depth(page):
        return [len(marks) for marks in re.findall(r"^(#+) ", prose(page), re.MULTILINE)]
    assert depth(english) == depth(chinese)
    def shown_code(page):
        return [(block.language, block.text, block.run) for block in blocks(page)]
    assert shown_code(english) == shown_code(chinese)
    first, second = tables(english), tables(chinese)
    assert [(len(t.rows), len(t.header)) for t in first] == [(len(t.rows), len(t.header)) for t in second]


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_commands_name_existing_files(page):
    missing = []
    commands = [(block.line, line) for block in blocks(page) if block.language == "bash" for line in
                block.text.replace("\\\n", " ").splitlines()]
    commands += [(0, text) for text in inline_code(page) if re.match(r"(bash|python) ", text)]
    for number, command in commands:
        for path in re.findall(r"\b(?:bash|python|source) ([\w./-]+\.(?:sh|py))", command):
            if Path(path).name not in MADE_BY_SCRIPTS and not (ROOT / path).is_file():
                missing.append(f"{page.name}:{number}: {path}")
        for module in re.findall(r"python -m ([\w.]+)", command):
            place = ROOT / module.replace(".", "/")
            if not (place.with_suffix(".py").is_file() or (place / "__main__.py").is_file()):
                missing.append(f"{page.name}:{number}: {module}")
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_files_in_inline_code_exist(page):
    names = {path.name for folder in (SCRIPTS, ROOT / "mindspeed_llm", ROOT / "tests", ROOT / "docs")
             for path in folder.rglob("*") if path.is_file()} | {path.name for path in ROOT.iterdir()} | MADE_BY_SCRIPTS
    missing = []
    for text in inline_code(page):
        if "/" in text:
            local = re.fullmatch(r"(?:examples|mindspeed_llm|docs|tests|benchmarks|\.ci|config|runtime|kernels|core|"
                                 r"data|checkpoint|training|tasks)/[\w./-]*", text)
            if local and not any((base / text).exists() for base in (ROOT, ROOT / "mindspeed_llm")):
                missing.append(text)
        elif re.fullmatch(r"[a-z]\w+\.(?:py|sh)", text) and text not in names:
            missing.append(text)
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_links_resolve(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", (*READMES, GUIDE), ids=ids((*READMES, GUIDE)))
def test_tables_state_the_defaults_of_the_scripts(page):
    wrong, checked = [], 0

    def check(script, name, cell):
        nonlocal checked
        checked += 1
        value = flag_value(script, name) if name.startswith("--") else defaults(script).get(name)
        if code(cell) != value:
            wrong.append(f"{script}: {name} is {value}, the table says {cell}")

    for table in tables(page):
        if table.header[0] in ("variable", "变量"):
            assert table.scripts
            for row in table.rows:
                for script in table.scripts:
                    check(script, code(row[0]), row[1])
        elif table.header[0] in ("script", "脚本"):
            for row in table.rows:
                for name, cell in zip(table.header[1:], row[1:], strict=True):
                    check(code(row[0]), code(name), cell)
    assert not wrong
    assert checked > 50


@pytest.mark.parametrize("page", READMES, ids=ids(READMES))
def test_every_variable_of_every_script_is_documented(page):
    documented: dict[str, set[str]] = {script: set() for script in JOBS}
    anywhere: set[str] = set()
    for table in tables(page):
        if table.header[0] in ("variable", "变量"):
            for script in table.scripts:
                documented[script] |= {code(row[0]) for row in table.rows}
        elif table.header[0] in ("script", "脚本"):
            for row in table.rows:
                documented[code(row[0])] |= {code(name) for name in table.header[1:]}
        elif table.header[0] in ("name", "名称"):
            anywhere |= {name for row in table.rows for name in re.findall(r"`(\w+)`", row[0])}
    for alias in ("pretrain_glm4_8k_ms.sh", "evalute_glm4_9b_ms.sh"):
        assert alias in page.read_text(encoding="utf-8")
        documented[alias] |= documented[(SCRIPTS / alias).resolve().name]
    missing = {script: set(defaults(script)) - documented[script] - anywhere for script in JOBS}
    assert not {script: names for script, names in missing.items() if names}
    assert {"QUICKSTART_DIR", "QUICKSTART_FAST"} <= anywhere


@pytest.mark.parametrize("page", READMES, ids=ids(READMES))
def test_environment_variables_are_those_of_the_code(page):
    read = set()
    for path in [*(ROOT / "mindspeed_llm").rglob("*"), *SCRIPTS.glob("*.sh")]:
        if path.suffix in (".py", ".sh", ".cc", ".h", ".inc"):
            text = path.read_text(encoding="utf-8")
            read |= set(re.findall(r"""(?:getenv|env_int|environ\.get|environ\[)\(?["'](MINDSPEED_LLM_\w+)""", text))
            read |= set(re.findall(r"\$\{?(MINDSPEED_LLM_\w+)", text)) if path.suffix == ".sh" else set()
    assert read == set(re.findall(r"`(MINDSPEED_LLM_\w+)`", prose(page)))


@pytest.mark.parametrize("page", READMES, ids=ids(READMES))
def test_parallel_modes_have_rows_in_the_parity_table(page):
    fields = {flag.name: flag.fields[0].removeprefix("parallel.") for flag in FLAGS if flag.group == "parallel"}
    table = next(table for table in tables(page) if table.header[0] in ("mode", "模式"))
    named = [fields[flag] for row in table.rows for flag in re.findall(r"`([^`]+)`", row[1])]
    assert len(named) > 10
    for field in named:
        assert any(getattr(row.parallel, field) != getattr(ParallelConfig(), field) for row in ROWS), field


WRITTEN = [page for page in PAGES if page.name != "flags.md"]  # which is made from the flags


@pytest.mark.parametrize("page", WRITTEN, ids=ids(WRITTEN))
def test_flags_exist(page):
    known = {flag.name for flag in FLAGS} | OTHER_FLAGS
    texts = inline_code(page) + [block.text for block in blocks(page) if block.language == "bash"]
    unknown = {flag for text in texts for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", text)} - known
    assert not unknown


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """(folder, environment): a checkout of links, with a tiny model and texts where the pages expect the user's."""
    place = tmp_path_factory.mktemp("docs")
    for name in ("mindspeed_llm", "examples", *SCRIPT_FILES.values()):
        (place / name).symlink_to(ROOT / name)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
                   "VIRTUAL_ENV": sys.prefix, "PYTHONPATH": str(place), "DEVICE_TARGET": "CPU", "WORKERS": "1",
                   "OMP_NUM_THREADS": "1"}
    for name in ("MODEL", "DTYPE", "TP", "PP", "INPUT", "HF_DIR", "MCORE_DIR", "LOG_ROOT"):
        environment.pop(name, None)
    (place / "dataset").mkdir()
    (place / "quickstart" / "dataset").mkdir(parents=True)
    (place / "model_from_hf").mkdir()
    texts = [{"text": f"Document {number} says that the river is {number} miles long."} for number in range(60)]
    (place / "dataset" / "corpus.jsonl").write_text("\n".join(map(json.dumps, texts)), encoding="utf-8")
    rows = [{"instruction": f"Add {number} and 1.", "output": str(number + 1)} for number in range(20)]
    (place / "dataset" / "alpaca.json").write_text(json.dumps(rows), encoding="utf-8")
    make_model = ("MODEL=glm4-tiny; source examples/mindspore/glm4/model_args.sh; "
                  "python -m mindspeed_llm.tasks.quickstart make-model --save-dir quickstart/model_from_hf "
                  '"${MODEL_ARGS[@]}" --seq-length 256 --max-position-embeddings 256')
    execute(make_model, place, environment)
    (place / "model_from_hf" / "glm4_hf").symlink_to(place / "quickstart" / "model_from_hf")
    for end in ("bin", "idx"):  # the README makes the one, and uses the quickstart's
        (place / "quickstart" / "dataset" / f"pretrain_text_document.{end}").symlink_to(
            place / "dataset" / f"alpaca_text_document.{end}")
    return place, environment


def execute(command: str, place: Path, environment: dict[str, str]) -> str:
    """Output of a bash command that must succeed."""
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", command], cwd=place, env=environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}"
    return done.stdout


def test_marked_commands_run(workplace):
    place, environment = workplace
    # the README first: its commands make what the other pages use
    pages = (READMES[0], *sorted((ROOT / "docs").rglob("*.md")))
    marked = [block for page in pages for block in blocks(page) if block.run]
    outputs = []
    for block in marked:
        command = block.text if block.language == "bash" else f"python - <<'SOURCE'\n{block.text}\nSOURCE"
        outputs.append(execute(command, place, environment))
    output = "".join(outputs)
    assert "successfully saved checkpoint from iteration 1 to ./model_weights/glm4_mcore/" in output
    assert "INFO:root:Done!" in output
    assert re.search(r"iteration +3/ +3 \| consumed samples: +6 \|", output)
    assert "tensors are sound" in output
    assert (place / "model_from_hf/glm4_hf/mg2hf/config.json").is_file()
    assert (place / "ckpt/laptop/latest_checkpointed_iteration.txt").read_text() == "3\n"
    for name in ("ckpt_convert_glm4_hf2mcore", "data_convert_glm4_tune", "pretrain_glm4_9b_8k"):
        assert (place / "logs" / f"{name}.log").stat().st_size > 0
