"""Entrypoints and run_main, in processes of their own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from flag_blocks import BASE, argv

from mindspeed_llm.config.flags import SCRIPTS

ROOT = Path(__file__).parents[2]


def _run(code_or_script: list[str], **env: str) -> subprocess.CompletedProcess:
    clean = {key: value for key, value in os.environ.items()
             if key not in ("RANK_ID", "MS_ROLE", "MINDSPEED_LLM_TRACEBACK")}
    return subprocess.run([sys.executable, *code_or_script], cwd=ROOT, env={**clean, **env}, capture_output=True,
                          text=True, timeout=60, check=False)


def _program(body: str) -> list[str]:
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return ["-c", "import sys, threading, time\nfrom mindspeed_llm.config.errors import UserError, run_main\n"
                  f"def main():\n{lines}run_main(main)\n"]


@pytest.mark.parametrize("entrypoint", SCRIPTS)
def test_help_and_bad_flag_without_the_framework(entrypoint):
    """`-X importtime` lists every import: the framework must not be among them."""
    shown = _run(["-X", "importtime", SCRIPTS[entrypoint], "--help"])
    assert shown.returncode == 0 and f"usage: {SCRIPTS[entrypoint]}" in shown.stdout
    refused = _run(["-X", "importtime", SCRIPTS[entrypoint], *argv(BASE[entrypoint]), "--tokenizer-tpye", "x"])
    assert refused.returncode == 1
    assert "error: unknown flag --tokenizer-tpye: did you mean --tokenizer-type?" in refused.stderr
    assert "Traceback" not in refused.stderr
    for heavy in ("mindspore", "numpy", "transformers", "tokenizers"):
        assert f"| {heavy}\n" not in shown.stderr and f" {heavy}\n" not in refused.stderr


def test_success_is_zero_and_flushes():
    done = _run(_program("print('done', end='')"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "done", "")


def test_user_error_is_one_line_with_the_rank():
    failed = _run(_program("raise UserError('--x (1) must be 2')"), RANK_ID="3")
    assert (failed.returncode, failed.stderr) == (1, "rank 3: error: --x (1) must be 2\n")
    assert _run(_program("raise UserError('bad')")).stderr == "error: bad\n"
    scheduler = _run(_program("raise UserError('bad')"), RANK_ID="0", MS_ROLE="MS_SCHED")
    assert scheduler.stderr == "scheduler: error: bad\n"


def test_traceback_on_request():
    failed = _run(_program("raise UserError('bad')"), MINDSPEED_LLM_TRACEBACK="1")
    assert "Traceback" in failed.stderr and failed.stderr.endswith("error: bad\n")


@pytest.mark.parametrize("body", ["raise RuntimeError('engine')", "import json; json.loads('{engine')", "{}['engine']"])
def test_bugs_show_where_they_happened(body):
    failed = _run(_program(body))
    assert failed.returncode == 1
    assert "Traceback" in failed.stderr and failed.stderr.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("body,code,text", [
    ("sys.exit(3)", 3, ""), ("sys.exit()", 0, ""), ("sys.exit('no')", 1, "no\n"),
    ("raise KeyboardInterrupt", 130, "interrupted\n")])
def test_other_exits(body, code, text):
    ended = _run(_program(body))
    assert (ended.returncode, ended.stderr) == (code, text)


def test_failed_rank_ends_at_once_though_a_thread_waits():
    """A rank stuck in a collective has engine threads that never return: they must not keep the process."""
    start = time.monotonic()
    failed = _run(_program("threading.Thread(target=time.sleep, args=(30,)).start()\nraise UserError('bad')"))
    assert failed.returncode == 1 and time.monotonic() - start < 10


def test_closed_pipe_does_not_keep_the_rank():
    buffered = {key: value for key, value in os.environ.items() if key not in ("PYTHONUNBUFFERED", "RANK_ID")}
    process = subprocess.Popen([sys.executable, *_program("print('x' * 10)\ntime.sleep(0.5)\nraise UserError('bad')")],
                               cwd=ROOT, env=buffered, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)
    process.stdout.close()
    assert process.wait(timeout=20) == 1
    assert "error: bad" in process.stderr.read()


def test_one_failing_rank_does_not_wait_for_its_peer():
    peer = subprocess.Popen([sys.executable, *_program("time.sleep(30)")], cwd=ROOT)
    try:
        failed = _run(_program("raise UserError('rank is gone')"), RANK_ID="1")
        assert failed.returncode == 1 and peer.poll() is None
    finally:
        peer.send_signal(signal.SIGTERM)
        assert peer.wait(timeout=20) == -signal.SIGTERM
