"""Ranks under a stand-in for msrun: what is shown, what a signal reaches, how a failed job ends and is told of."""

import os
import signal
import time

import pytest

from mindspeed_llm.launch.terminal import HIDDEN, LineFilter
from tests.distributed.launch import processes_of

TWO = ("--nproc-per-node", 2)
NODES = ("--nnodes", 2, "--nproc-per-node", 2, "--node-rank", 1)
WAITS = 'say(f"rank {rank} is process {os.getpid()}")\nnote(f"ready{rank}")\nwhile True: time.sleep(0.05)\n'
SAVES = 'signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), note(f"saved{rank}"), sys.exit(0)))\n'
READY = ("ready0", "ready1")


def test_rank_0_is_shown_and_every_log_kept(launcher):
    body = 'say("I am", rank, os.environ["RANK_SIZE"], *sys.argv[1:])'
    status, output, errors = launcher.run(body, *TWO, flags=("--lr", "1"))
    logs = launcher.folder / "logs" / "job"
    assert (status, errors) == (0, "")
    assert output == "starting 2 ranks (2 on this node), logs in logs/job\nI am 0 2 --lr 1\n"
    assert (logs / "worker_1.log").read_text() == "I am 1 2 --lr 1\n"
    assert {path.name for path in logs.iterdir()} == {"msrun.log", "scheduler.log", "worker_0.log", "worker_1.log"}


def test_only_node_0_shows_a_rank(launcher):
    status, output, _ = launcher.run('say("I am", rank)', *NODES)
    assert (status, output) == (0, "starting 4 ranks (2 on this node), logs in logs/job/node_1\n")
    assert (launcher.folder / "logs" / "job" / "node_1" / "worker_3.log").read_text() == "I am 3\n"


def test_logs_of_an_earlier_run_are_replaced(launcher):
    old, other_node = (launcher.folder / "logs" / "job" / f"node_{node}" / "worker_7.log" for node in (1, 0))
    for log in (old, other_node):
        log.parent.mkdir(parents=True)
        log.write_text("rank 7: error: old\n")
    assert launcher.run("pass", *NODES)[0] == 0
    assert not old.exists() and other_node.exists()     # on storage that the nodes share


def test_environment_of_ranks_on_cpu(launcher):
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MS_NODE_TIMEOUT", "MS_RETRY_INTERVAL_LOWER",
             "MS_RETRY_INTERVAL_UPPER")
    body = f"say(*map(os.environ.get, {names}))"
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert launcher.run(body, *TWO)[1].endswith(f"\n{threads} PASSIVE 10 1 1\n")
    assert launcher.run(body, *TWO, MS_NODE_TIMEOUT=4)[1].endswith(f"\n{threads} PASSIVE 4 1 1\n")
    assert launcher.run(body, *TWO, DEVICE_TARGET="Ascend")[1].endswith("\nNone None None None None\n")


def test_mindspore_s_own_lines_stay_in_the_log(launcher):
    body = f'say("before"); say("{HIDDEN.decode()}47,7f,python):2026 [x.cc:1] Start] success!"); print("after", end="")'
    assert launcher.run(body, *TWO)[1].endswith("logs/job\nbefore\nafter")
    assert "success!" in (launcher.folder / "logs" / "job" / "worker_0.log").read_text()
    assert "success!" in launcher.run(body, *TWO, GLOG_v=1)[1]  # asked for


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_filter_in_pieces(size):
    line = HIDDEN + b"1,2,python):2026 done\n"
    stream = b"a\n" + line + b"50%\r" + line + b"100%\r\n" + line + line + b"[INFO] MORE\n x" + line + b"[INFO] DIST"
    passed = LineFilter()
    shown = b"".join(passed.feed(stream[at:at + size]) for at in range(0, len(stream), size)) + passed.rest()
    assert shown == b"a\n50%\r100%\r\n[INFO] MORE\n x" + line + b"[INFO] DIST"


def test_failed_rank_is_told_and_the_job_ends_at_once(launcher):
    body = ('if rank == "1": say("rank 1: error: --lr (x) is not a number"); sys.exit(1)\n' + WAITS)
    status, output, errors = launcher.run(body, *TWO)   # the stand-in's scheduler waits for longer than this does
    assert status == 1
    assert errors == "error: the job failed; logs in logs/job\nrank 1: error: --lr (x) is not a number\n"
    assert output.startswith("starting 2 ranks")


def test_rank_ended_by_a_signal_is_named(launcher):
    body = 'say(f"rank {rank} is process {os.getpid()}")\nif rank == "1": os.kill(os.getpid(), 11)\n' + WAITS
    status, _, errors = launcher.run(body, *TWO)
    assert status == 1
    assert errors.splitlines()[1:] == ["rank 1 was ended by signal 11: killed from outside, or out of memory"]


def test_ends_of_the_logs_when_nobody_said_why(launcher):
    body = 'for line in range(9): say("line", line, "of", rank)\nnote(rank)\n'
    _, _, errors = launcher.run(body + 'while not (Path("0").exists() and Path("1").exists()): pass\nsys.exit(3)', *TWO)
    assert "--- end of logs/job/worker_1.log\nline 4 of 1\n" in errors and "line 3" not in errors
    assert "--- end of logs/job/msrun.log\n[ERROR] ME(1): Worker process" in errors


def test_with_several_nodes_the_scheduler_lives_on(launcher):
    process = launcher.start('if rank == "3": sys.exit(1)\n' + WAITS, *NODES)
    launcher.wait_for("ready2")
    time.sleep(1.5)     # msrun has long told of the failure
    assert process.poll() is None
    assert len(processes_of(launcher.mark)) == 4    # launcher, msrun, scheduler and who stands for it
    process.terminate()     # no ranks are left: msrun ends
    assert launcher.finish(process)[0] == 143


@pytest.mark.parametrize("number, name, status", [(signal.SIGTERM, "SIGTERM", 143), (signal.SIGHUP, "SIGTERM", 143),
                                                  (signal.SIGINT, "SIGINT", 130)])
def test_a_signal_ends_the_ranks(launcher, number, name, status):
    ended, _, errors = launcher.signalled(launcher.start(WAITS, *TWO), number, *READY)
    assert ended == status
    assert errors.splitlines()[0] == f"error: the job was ended by {name}; logs in logs/job"
    assert "killed from outside" not in errors and "Traceback" not in errors


def test_an_interrupt_reaches_ranks_as_a_termination(launcher):
    """MindSpore's communicator would catch a SIGINT, stop working and keep it from Python."""
    ignores = "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    assert launcher.signalled(launcher.start(ignores + WAITS, *TWO), signal.SIGINT, *READY)[0] == 130


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_ranks_may_save_before_they_end(launcher, number):
    status, _, errors = launcher.signalled(launcher.start(SAVES + WAITS, *TWO), number, *READY)
    assert (status, errors) == (0, "")
    assert (launcher.folder / "saved0").exists() and (launcher.folder / "saved1").exists()


def test_what_goes_wrong_after_a_signal_is_told(launcher):
    body = ('def full(*_): say(f"rank {rank}: error: the disk is full"); sys.exit(1)\n'
            'signal.signal(signal.SIGTERM, full)\n')
    status, _, errors = launcher.signalled(launcher.start(body + WAITS, *TWO), signal.SIGTERM, *READY)
    assert status == 143 and "rank 0: error: the disk is full\n" in errors


def test_deaf_ranks_are_killed_by_a_second_interrupt(launcher):
    process = launcher.start("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + WAITS, *TWO)
    launcher.wait_for(*READY)
    process.send_signal(signal.SIGINT)
    time.sleep(1.2)
    assert process.poll() is None
    assert launcher.signalled(process, signal.SIGINT)[0] == 130


def test_a_signal_before_there_are_ranks(launcher):
    process = launcher.start(WAITS, *TWO, FAKE_MSRUN_STARTS_AFTER=600)
    launcher.wait_for("logs/job/msrun.log")
    time.sleep(0.2)
    assert launcher.signalled(process, signal.SIGTERM)[0] == 143


def test_ranks_do_not_outlive_msrun(launcher):
    process = launcher.start(f'note(f"msrun{{rank}}", os.getppid())\n{WAITS}', *TWO)
    launcher.wait_for(*READY)
    os.kill(int((launcher.folder / "msrun0").read_text()), signal.SIGKILL)
    assert launcher.finish(process)[0] == 128 + signal.SIGKILL
