"""Two nodes on one machine: two network namespaces joined by a veth pair, one launch script in each, losses of one node."""

import os
import re
import shutil
import signal
import subprocess
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from mindspeed_llm.checkpoint import open_checkpoint
from tests.distributed.launch import end, free_port, processes_of, script_environment, workers_after_steps
from tests.training.tiny_job import write_ramps

SECONDS = 240  # the scheduler's heartbeat is 10 s; a loaded machine starts and ends a job slowly
SCRIPT = Path(__file__).parents[2] / "examples" / "mindspore" / "glm4" / "pretrain_glm4_8k_ms.sh"
FLAGS = ("--train-iters 3 --seq-length 64 --max-position-embeddings 64 --global-batch-size 4 --lr 1e-3 --vocab-size 1024 "
         "--log-interval 1").split()


def _unavailable():
    if os.geteuid() != 0:
        return "needs root to make network namespaces"
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        return "needs iproute2's ip and util-linux's unshare"
    name = f"probe{uuid.uuid4().hex[:6]}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode:
        return "network namespaces cannot be made here"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return None


@contextmanager
def nodes():
    """Names of two namespaces; 10.77.0.1 is the first, 10.77.0.2 the second."""
    tag = uuid.uuid4().hex[:6]
    names, ends = (f"n0{tag}", f"n1{tag}"), (f"v0{tag}", f"v1{tag}")

    def ip(*words):
        subprocess.run(["ip", *words], check=True)
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for number, (name, end) in enumerate(zip(names, ends, strict=True), 1):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def _on(node):
    """Command prefix: in the node's network, and with processes of its own, so that the ranks of two nodes cannot find
    each other's shared memory and talk through the network.
    """
    return ["ip", "netns", "exec", node, "unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


def _start(folder, prefix, *flags, data, **variables):
    environment = script_environment(CKPT_LOAD_DIR="", DATA_PATH=data, TOKENIZER_PATH=folder,
                                     LOG_ROOT=folder / "logs", **variables)
    folder.mkdir(exist_ok=True)
    return subprocess.Popen([*prefix, "bash", str(SCRIPT), *FLAGS, *flags], cwd=folder, env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)


def _start_nodes(nodes, folder, ranks, *flags, **variables):
    """The job on both nodes, `ranks` each: TP within a node, PP between them."""
    port = free_port()
    return [_start(folder / f"node{rank}", _on(name), *flags, NNODES=2, NODE_RANK=rank, NPUS_PER_NODE=ranks, TP=ranks,
                   PP=2, MASTER_ADDR="10.77.0.1", MASTER_PORT=port, CKPT_SAVE_DIR=folder / f"node{rank}" / "ckpt",
                   **variables)
            for rank, name in enumerate(nodes)]


def _losses(output):
    return re.findall(r"lm loss: (\S+) \|.*grad norm: (\S+) \|", output)


def trained(folder):
    """Statuses and terminals of the nodes of a job that ends well, then of one process that does the same."""
    data = folder / "text_document"
    write_ramps(data)
    with nodes() as names:
        # no shared storage: each node saves what its own ranks need
        jobs = _start_nodes(names, folder, 2, "--no-shared-storage", data=data)
        one = _start(folder / "one", [], data=data, NPUS_PER_NODE=1, TP=1, PP=1, CKPT_SAVE_DIR=folder / "one" / "ckpt")
        outputs = [job.communicate(timeout=SECONDS)[0] for job in jobs]
        outputs.append(one.communicate(timeout=SECONDS)[0])
        return folder, [job.returncode for job in (*jobs, one)], outputs


def killed(folder):
    """Statuses and terminals of the nodes of a job whose last rank is killed, and its processes that are left."""
    data, mark = folder / "text_document", f"job-{folder}"
    write_ramps(data)
    with nodes() as names:
        jobs = _start_nodes(names, folder, 1, "--train-iters", "1000000", "--global-batch-size", "2", data=data,
                            JOB_MARK=mark)
        try:
            os.kill(workers_after_steps(jobs[0], mark, 2)[1], signal.SIGKILL)
            outputs = [job.communicate(timeout=SECONDS)[0] for job in jobs]
            return [job.returncode for job in jobs], outputs, processes_of(mark)
        finally:
            end(processes_of(mark))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """`{name: future of what its function returns}`: both jobs at once, of which the one waits for heartbeats."""
    reason = _unavailable()
    if reason:
        pytest.skip(reason)
    with ThreadPoolExecutor() as pool:
        yield {job.__name__: pool.submit(job, tmp_path_factory.mktemp(job.__name__)) for job in (killed, trained)}


def test_two_nodes_train_like_one_process(outcomes):
    folder, statuses, outputs = outcomes["trained"].result()
    assert statuses == [0, 0, 0], "\n".join(outputs)
    output = outputs[-1]
    assert len(_losses(output)) == 3
    assert "[INFO] DISTRIBUTED" not in outputs[0]   # MindSpore's last words, which the log has
    for two_nodes, one_process in zip(_losses(outputs[0]), _losses(output), strict=True):
        for mine, theirs in zip(two_nodes, one_process, strict=True):
            assert float(mine) == pytest.approx(float(theirs), rel=2e-5, abs=1e-3)
    for rank in range(2):
        with open_checkpoint(folder / f"node{rank}" / "ckpt") as saved:
            present = {path.name for path in saved.directory.iterdir() if path.is_dir()}
        assert present == {f"mp_rank_0{tp}_00{rank}" for tp in range(2)}


def test_rank_killed_on_one_node_ends_both(outcomes):
    statuses, outputs, left = outcomes["killed"].result()
    assert 0 not in statuses, outputs
    # the node itself knows the rank and why; the other one knows whom it lost
    reports = [output.split("error: the job failed")[1] for output in outputs]
    assert " on node 1;" in reports[1] and "rank 1" in reports[1], outputs[1][-2000:]
    assert "rank 1 stopped answering: see the terminal of node 1" in reports[0], outputs[0][-2000:]
    assert "stopped answering" in reports[0].splitlines()[1]  # the cause comes before what followed from it
    assert left == {}
