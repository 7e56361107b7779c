"""Every script begins with all variables that it honours, and every variable that it shows has its effect."""

import re
import subprocess

import pytest

from tests.scripts.test_scripts import SCRIPTS, Recorder

SOURCED = {"common.sh", "model_args.sh", "train_args.sh", "inference_args.sh"}
RUN = sorted(path.name for path in SCRIPTS.glob("*.sh") if path.name not in SOURCED)
JOBS = [name for name in RUN if name not in ("setup_env.sh", "quickstart.sh", "quickstart_posttrain.sh")]
ENVIRONMENT = {"VIRTUAL_ENV", "PYTHONPATH", "GLOG_v"}   # of Python and MindSpore: not the scripts' own
WITH_DEFAULT = re.compile(r"\$\{(\w+):?[-=]")   # ${NAME-...}, ${NAME:-...}
ASSIGNMENT = re.compile(r"([A-Z_]+)=\$\{\1:?-.*\}\s*(#.*)?")
# A value that no script has by default, and what shows it in the command line; the value itself if nothing is said.
VALUES = {"MASTER_PORT": "7654", "NNODES": "3", "NODE_RANK": "2", "NPUS_PER_NODE": "12", "TP": "3", "PP": "6",
          "CP": "5", "WORKERS": "17", "PORT": "8765", "MODEL": "glm4-tiny", "DTYPE": "fp16", "SP": "0", "DEVICE_TARGET": "CPU",
          "LORA": "1", "PRECOMPUTE_REF": "0", "CHAT": "1"}
SHOWN_AS = {"NNODES": "--worker_num 36", "NODE_RANK": "--node_rank 2", "NPUS_PER_NODE": "--local_worker_num 12",
            "MODEL": "--hidden-size 128", "TP": "parallel-size 3", "PP": "parallel-size 6",
            "CP": "--context-parallel-size 5", "WORKERS": "--workers 17", "LOG_ROOT": None, "SP": None, "DEVICE_TARGET": None,
            "API_KEY": None, "LORA": "--lora-r 16", "PRECOMPUTE_REF": None,
            "CHAT": None}


def top(script: str) -> list[str]:
    """The lines before the first that does something: comments, assignments, blanks."""
    lines = (SCRIPTS / script).read_text(encoding="utf-8").splitlines()
    end = next(number for number, line in enumerate(lines) if line and not line.startswith("#")
               and not ASSIGNMENT.fullmatch(line))
    return lines[:end]


def shown(script: str) -> list[str]:
    return [found[1] for line in top(script) if (found := ASSIGNMENT.fullmatch(line))]


def value(variable: str) -> str:
    return VALUES.get(variable, f"x{variable.lower()}")


@pytest.mark.parametrize("script", RUN)
def test_all_variables_are_at_the_top(script):
    beginning = "\n".join(top(script))
    honoured = set(WITH_DEFAULT.findall((SCRIPTS / script).read_text(encoding="utf-8")))
    if script == "setup_env.sh":    # of the machine, not of a job
        honoured -= {"DEVICE_TARGET", "1"}
    assert honoured - ENVIRONMENT <= set(WITH_DEFAULT.findall(beginning))
    assert len(shown(script)) >= (script != "setup_env.sh") * 3


@pytest.mark.parametrize("script", sorted(SOURCED))
def test_sourced_files_give_no_defaults(script):
    """So a variable that they use must come from the script: without it bash stops (set -u)."""
    assert set(WITH_DEFAULT.findall((SCRIPTS / script).read_text(encoding="utf-8"))) <= ENVIRONMENT


def test_documented_names_are_the_scripts_themselves():
    for name, script in (("pretrain_glm4_8k_ms.sh", "pretrain_glm4_9b_8k_ms.sh"),
                         ("evalute_glm4_9b_ms.sh", "evaluate_glm4_9b_ms.sh")):
        assert (SCRIPTS / name).is_symlink() and (SCRIPTS / name).resolve() == SCRIPTS / script


@pytest.mark.parametrize("script", JOBS)
def test_every_variable_has_its_effect(script, tmp_path):
    """All at once, from the environment; what is left as it is shows in a second run."""
    recorder, names = Recorder(tmp_path), shown(script)
    variables = {name: value(name) for name in names}
    done, words = recorder.run(script, **variables)
    assert done.returncode == 0, done.stderr
    line = " ".join(words)
    for name in names:
        expected = SHOWN_AS.get(name, value(name))
        assert expected is None or expected in line, name
    assert list((tmp_path / "xlog_root").iterdir()) and not (tmp_path / "logs").exists()
    if "SP" in names:
        assert "--sequence-parallel" not in line
        assert "--sequence-parallel" in recorder.run(script, **(variables | {"SP": "1"}))[1]
    if "CHAT" in names:
        assert "--no-chat-template" not in line
        assert "--no-chat-template" in recorder.run(script, **(variables | {"CHAT": "0"}))[1]
    if "PRECOMPUTE_REF" in names:
        assert "--precompute-ref" not in line
        assert "--precompute-ref" in recorder.run(script, **(variables | {"PRECOMPUTE_REF": "1"}))[1]
    if "DEVICE_TARGET" in names:
        assert (tmp_path / "record.threads").read_text().strip()    # of the CPU
        recorder.run(script, **(variables | {"DEVICE_TARGET": "Ascend"}))
        assert not (tmp_path / "record.threads").read_text().strip()


def test_set_up_makes_the_documented_names(tmp_path):
    """`example/...` and `posttrain_gpt.py`, as links that git does not see."""
    root = SCRIPTS.parents[2]
    recorder = Recorder(tmp_path)
    for name in ("examples", "mindspeed_llm", "pretrain_gpt.py", "convert_ckpt.py", "requirements.txt",
                 "requirements-dev.txt"):
        (tmp_path / name).symlink_to(root / name)
    (tmp_path / "tokenizer").rmdir()
    environment = {"PATH": f"{recorder.bin}:/usr/bin:/bin", "VIRTUAL_ENV": str(tmp_path), "DEVICE_TARGET": "CPU",
                   "RECORD": str(tmp_path / "record")}

    def bash(script: str) -> subprocess.CompletedProcess:
        return subprocess.run(["bash", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    for expected in ("installing requirements.txt (a few minutes on a new machine)\n", ""):     # then nothing
        done = bash("examples/mindspore/glm4/setup_env.sh")
        assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")
    assert (tmp_path / "posttrain_gpt.py").resolve() == root / "pretrain_gpt.py"
    done = bash("example/mindspore/glm4/ckpt_convert_glm4_hf2mcore.sh")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "record").read_text().splitlines()[0] == str(tmp_path / "convert_ckpt.py")
    assert {"/example", "/posttrain_gpt.py"} <= set((root / ".gitignore").read_text().splitlines())


def test_pip_is_heard_only_when_it_fails(tmp_path):
    recorder = Recorder(tmp_path)
    (tmp_path / "checkout").mkdir()
    for name in ("examples", "requirements.txt", "requirements-dev.txt"):
        (tmp_path / "checkout" / name).symlink_to(SCRIPTS.parents[2] / name)

    def set_up(status: int) -> subprocess.CompletedProcess:
        (recorder.bin / "python").write_text(
            f'#!/bin/bash\n[[ "$2" != pip ]] || {{ echo "WARNING: odd" >&2; exit {status}; }}\n')
        return subprocess.run(["bash", "examples/mindspore/glm4/setup_env.sh"], cwd=tmp_path / "checkout", text=True,
                              env={"PATH": f"{recorder.bin}:/usr/bin:/bin", "VIRTUAL_ENV": str(tmp_path)},
                              capture_output=True, timeout=60)
    failed = set_up(1)
    assert failed.returncode == 1 and failed.stderr == "WARNING: odd\nerror: pip could not install requirements.txt\n"
    done = set_up(0)
    assert (done.returncode, done.stderr) == (0, "") and "odd" not in done.stdout
