"""The report of a failed job, from logs as MindSpore's scheduler, msrun and the ranks write them."""

import io
import signal

import pytest

from mindspeed_llm.launch.failure import report

TIMED_OUT = "[ERROR] DISTRIBUTED(1): [node.cc:1] Update] The node: {} is timed out. It may exit with exception.\n"
EXITED = "[ERROR] ME(9): Worker process {} exit with exception. Error code: -{}.\n"


@pytest.fixture
def told(tmp_path):
    """`told(logs, nnodes, node_rank, passed_on)`: the report's lines on nodes of two ranks."""
    def lines(logs, nnodes=1, node_rank=0, passed_on=None):
        for name, text in logs.items():
            (tmp_path / name).write_text(text)
        stream = io.StringIO()
        report(tmp_path, nnodes, node_rank, 2, passed_on, stream)
        return stream.getvalue().replace(str(tmp_path), "LOGS").splitlines()
    return lines


def test_lost_node_is_told_whole_and_before_what_followed(told):
    logs = {"scheduler.log": TIMED_OUT.format(3) * 2, "msrun.log": EXITED.format(50, 15),
            "worker_0.log": "rank 0 is process 50\n", "worker_1.log": "rank 1: error: rank 3 does not answer\n"}
    assert told(logs, nnodes=2) == [
        "error: the job failed on node 0; logs in LOGS", "rank 2 stopped answering: see the terminal of node 1",
        "rank 3 stopped answering: see the terminal of node 1", "rank 1: error: rank 3 does not answer"]


def test_own_node_is_not_called_lost(told):
    logs = {"scheduler.log": TIMED_OUT.format(1), "msrun.log": EXITED.format(51, 9),
            "worker_1.log": "rank 1 is process 51\n"}
    assert told(logs, nnodes=2)[1:] == ["rank 1 was ended by signal 9: killed from outside, or out of memory"]


def test_ranks_that_the_engine_ended_point_to_the_other_nodes(told):
    logs = {"msrun.log": EXITED.format(52, 15), "worker_2.log": "rank 2 is process 52\n"}
    assert told(logs, nnodes=2, node_rank=1)[1:] == [
        "no rank of node 1 failed by itself: see the terminals of the other nodes"]
    assert told(logs)[1:] == ["rank 2 was ended by signal 15: killed from outside, or out of memory"]


def test_errors_are_told_once_and_other_lines_are_not(told):
    logs = {"worker_0.log": "Traceback\nrank 0: error: bad\nnot rank 1: error: no\n",
            "msrun.log": "rank 0: error: bad\n", "worker_1.log": "scheduler: error: gone\nrank 1: interrupted\nscheduler: error: gone\n"}
    assert told(logs)[1:] == ["rank 0: error: bad", "rank 1: interrupted", "scheduler: error: gone"]


def test_a_signal_that_was_passed_on_is_no_riddle(told):
    logs = {"msrun.log": EXITED.format(53, 15), "worker_0.log": "rank 0 is process 53\nlast words\n"}
    for number in (signal.SIGTERM, signal.SIGINT):
        assert told(logs, passed_on=number) == [f"error: the job was ended by {number.name}; logs in LOGS"]
    logs["msrun.log"] = EXITED.format(53, 9)
    assert told(logs, passed_on=signal.SIGINT)[1:] == [
        "rank 0 was ended by signal 9: killed from outside, or out of memory"]


def test_ends_of_the_logs_otherwise(told):
    logs = {"worker_0.log": "".join(f"{line}\n" for line in range(7)), "msrun.log": "no rank could be started\n"}
    assert told(logs)[1:] == ["--- end of LOGS/worker_0.log", "2", "3", "4", "5", "6", "--- end of LOGS/msrun.log",
                              "no rank could be started"]
