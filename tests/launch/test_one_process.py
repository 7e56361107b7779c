"""A job of one process: its output on the terminal and in the log, its status, its signals."""

import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from tests.distributed.launch import processes_of

WAITS = 'note("ready")\nwhile True: time.sleep(0.05)\n'
COUNTS_INTERRUPTS = """count = []
signal.signal(signal.SIGINT, lambda *_: count.append(1))
note("ready")
while not count: time.sleep(0.02)
time.sleep(0.4)
say("interrupts:", len(count))
sys.exit(130)
"""


def test_output_status_and_log(launcher):
    status, output, errors = launcher.run('say("one"); print("two", file=sys.stderr); sys.exit(7)')
    assert (status, output, errors) == (7, "one\ntwo\n", "")
    assert (launcher.folder / "logs" / "job.log").read_text() == output


def test_flags_reach_the_script(launcher):
    flags = ("--name", "x y", "--nnodes=9", "--help", "")
    status, output, _ = launcher.run("say(sys.argv[1:])", "--log-root", "a/b", flags=flags)
    assert (status, output) == (0, f"{list(flags)}\n")
    assert (launcher.folder / "a" / "b" / "job.log").read_text() == output


def test_standard_input_is_the_script_s(launcher):
    process = launcher.start("say(input() + '!')", stdin=subprocess.PIPE)
    assert process.communicate("hello\n", timeout=60)[0] == "hello!\n"


def test_an_unfinished_line_is_shown_at_once(launcher):
    process = launcher.start('print("[INFO] then ", end="", flush=True); input(); say("more")', stdin=subprocess.PIPE)
    assert process.stdout.read(12) == "[INFO] then "
    assert process.communicate("\n", timeout=60)[0] == "more\n"


def test_a_terminal_that_goes_away_does_not_end_the_job(launcher):
    body = 'for number in range(10): say(number); time.sleep(0.1)\nnote("done")'
    done = subprocess.run(["bash", "-c", '"$@" | head -1', "bash", *launcher.command(body)], cwd=launcher.folder,
                          env=launcher.environment(), capture_output=True, text=True, timeout=60)
    assert done.stdout == "0\n" and done.stderr == ""
    launcher.wait_for("done")
    assert len((launcher.folder / "logs" / "job.log").read_text().splitlines()) == 10


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGHUP, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_script(launcher, number, status):
    assert launcher.signalled(launcher.start(WAITS), number, "ready")[0] == status


def test_a_script_may_end_well_on_a_signal(launcher):
    body = 'signal.signal(signal.SIGTERM, lambda *_: (say("saved"), sys.exit(0)))\n' + WAITS
    assert launcher.signalled(launcher.start(body), signal.SIGHUP, "ready")[:2] == (0, "saved\n")


def test_an_interrupt_that_ends_as_a_termination(launcher):
    """As MindSpore's handler makes of it."""
    body = "signal.signal(signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM))\n"
    assert launcher.signalled(launcher.start(body + WAITS), signal.SIGINT, "ready")[0] == 130


def test_an_interrupt_reaches_the_script_once(launcher):
    status, output, _ = launcher.signalled(launcher.start(COUNTS_INTERRUPTS), signal.SIGINT, "ready")
    assert (status, output) == (130, "interrupts: 1\n")


@pytest.mark.parametrize("body", [COUNTS_INTERRUPTS, WAITS], ids=["handled", "not handled"])
def test_control_c_reaches_the_script_once(launcher, body):
    """Through a real terminal, which interrupts launcher and script both."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(launcher.folder)
        os.execve(sys.executable, launcher.command(body), launcher.environment())
    launcher.wait_for("ready")
    os.write(terminal, b"\x03")
    shown = b""
    try:
        while part := os.read(terminal, 4096):
            shown += part
    except OSError:
        pass    # the terminal's end: the job is over
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    assert (b"interrupts: 1" in shown) == (body is COUNTS_INTERRUPTS)
    assert processes_of(launcher.mark) == {}


def test_a_second_interrupt_kills(launcher):
    process = launcher.start("signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + WAITS)
    launcher.wait_for("ready")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)  # the same again, not the user's second
    time.sleep(1.2)
    assert process.poll() is None
    assert launcher.signalled(process, signal.SIGINT)[0] == 130


def test_ignored_signals_stay_ignored(launcher):
    """As under nohup."""
    body = 'note("ready")\nwhile not Path("end").exists(): time.sleep(0.02)\nsay("end")'
    process = subprocess.Popen(["nohup", *launcher.command(body)], cwd=launcher.folder, env=launcher.environment(),
                               text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    launcher.wait_for("ready")
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    (launcher.folder / "end").touch()
    assert launcher.finish(process)[:2] == (0, "end\n")


def test_processes_of_a_killed_script_are_ended(launcher):
    body = 'import subprocess; subprocess.Popen(["sleep", "600"])\nos.kill(os.getpid(), 9)'
    assert launcher.run(body)[0] == 128 + signal.SIGKILL


def test_an_error_of_the_launcher_ends_the_job(launcher):
    source = ("import os; from pathlib import Path; from mindspeed_llm.launch.supervision import attend\n"
              "attend(['sleep', '600'], Path('log'), os.environ, print, lambda pid: 1 / 0)")
    done = subprocess.run([sys.executable, "-c", source], cwd=launcher.folder, env=launcher.environment(), text=True,
                          capture_output=True, timeout=60)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr
    assert processes_of(launcher.mark) == {}


def test_processes_of_the_calling_script_are_left_alone(launcher):
    """A shell that becomes the launcher may have started something before."""
    command = 'sleep 600 >/dev/null & echo $! >sleeper; exec "$@"'
    subprocess.run(["bash", "-c", command, "bash", *launcher.command("pass")], cwd=launcher.folder, check=True,
                   timeout=60, env=launcher.environment())
    os.kill(int((launcher.folder / "sleeper").read_text()), signal.SIGKILL)  # raises if it is gone


def test_a_dry_run_is_one_process_that_knows_the_ranks(launcher):
    status, output, _ = launcher.run('say(os.environ["RANK_SIZE"], rank)', "--nnodes", 2, "--nproc-per-node", 8,
                                     flags=("--dry-run",))
    assert (status, output) == (0, "16 None\n")


def test_threads(launcher):
    body = 'say(os.environ.get("OMP_NUM_THREADS"), os.environ.get("OMP_WAIT_POLICY"))'
    cores = len(os.sched_getaffinity(0))
    assert launcher.run(body)[1] == f"{cores} PASSIVE\n"
    assert launcher.run(body, OMP_NUM_THREADS=5, OMP_WAIT_POLICY="")[1] == "5 PASSIVE\n"
    assert launcher.run(body, DEVICE_TARGET="Ascend")[1] == "None None\n"


@pytest.mark.parametrize("options, message", [
    (("--nnodes", 0), "--nnodes (NNODES) is 0"), (("--nproc-per-node", -1), "--nproc-per-node (NPUS_PER_NODE) is -1"),
    (("--nnodes", "two"), "--nnodes: invalid int value: 'two'"),
    (("--nnodes", 2, "--node-rank", 2), "--node-rank (NODE_RANK) is 2: nodes are counted from 0 to 1")])
def test_wrong_numbers(launcher, options, message):
    status, _, errors = launcher.run("pass", *options)
    assert status == 1 and f"error: {message}" in errors and "Traceback" not in errors


def test_missing_script_and_missing_program(launcher):
    command = [*launcher.command("pass")[:-1], "nothing.py"]
    done = subprocess.run(command, cwd=launcher.folder, env=launcher.environment(), text=True, capture_output=True)
    assert done.returncode == 1 and done.stderr.startswith("error: nothing.py is not a file")
    (launcher.folder / "bin" / "msrun").unlink()
    status, _, errors = launcher.run("pass", "--nproc-per-node", 2, PATH="/usr/bin:/bin")
    assert status == 1 and errors.startswith("error: msrun was not found on PATH")
