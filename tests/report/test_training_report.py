"""`python -m mindspeed_llm.report`: which logs are runs, what the page says of them, that it stays current."""

import re
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.report.logs import find_runs, read_run
from mindspeed_llm.report.page import fields, page
from mindspeed_llm.training.logs import IterationRecord

ROOT = Path(__file__).parents[2]


def line(iteration, total, loss, extra=""):
    return IterationRecord(iteration, total, iteration * 4, 0.5, 1e-3, 4, loss, 1.0, 2.0, 0, 0, 1000.0 + iteration,
                           100.0).line() + extra + "\n"


def write(path, iterations, total, extra=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("starting\n" + "".join(line(number, total, 8 / number, extra) for number in range(1, iterations + 1)))


@pytest.fixture
def logs(tmp_path):
    write(tmp_path / "pretrain" / "worker_0.log", 60, 60)
    write(tmp_path / "pretrain" / "msrun.log", 60, 60)
    (tmp_path / "pretrain" / "worker_1.log").write_text("rank 1 is process 7\n")
    write(tmp_path / "tune.log", 3, 10, " rewards/margins: 0.25 |")
    with (tmp_path / "tune.log").open("a") as log:
        log.write(" validation loss at iteration 2 | lm loss value: 3.500000E+00 | lm loss PPL: 3.311545E+01 |\n")
        log.write(line(4, 10, float("nan")))
    return tmp_path


def test_a_job_is_one_run(logs):
    pretrain, tune = find_runs([logs])
    assert (pretrain.name, len(pretrain.iterations), pretrain.ended) == ("pretrain", 60, True)
    assert (tune.name, len(tune.iterations), tune.ended) == ("tune", 4, False)
    assert tune.validation == {2: 3.5}
    assert tune.series("lm loss") == ([1, 2, 3], [8.0, 4.0, 2.666667]), "what is no number has no point"
    assert [run.name for run in find_runs([logs / "pretrain", logs / "tune.log"])] == ["pretrain", str(logs / "tune.log")]


def test_page_has_a_curve_for_every_number_that_moves(logs):
    runs = find_runs([logs])
    assert fields(runs) == ["lm loss", "learning rate", "grad norm", "tokens/s", "peak memory (MB)",
                            "elapsed time per iteration (ms)", "rewards/margins"]
    text = page(runs, "a <b> title")
    assert "a &lt;b&gt; title" in text and "http-equiv" not in text
    assert "<td>4 / 10</td><td>8.0000</td><td>2.6667</td><td>2.6667</td><td>3.5000</td>" in text
    assert "<td>0:00:03</td>" in text   # six iterations of half a second
    pictures = re.findall(r"<figure><figcaption>(.*?)</figcaption>(<svg.*?</svg>)", text, re.DOTALL)
    assert [name for name, _ in pictures] == fields(runs)
    drawn = ElementTree.fromstring(pictures[0][1])
    paths = [path.get("d").count("L") for path in drawn.iter("{http://www.w3.org/2000/svg}path")
             if "stroke: #0072b2" in path.get("style", "")]
    assert paths == [59, 59], "60 points of the first run, raw and smoothed"
    assert not re.search(r"(src|href)=.(?!#)", text), "nothing is fetched"


def test_watching_ends_with_the_runs(tmp_path):
    log = tmp_path / "tune.log"
    write(log, 1, 2)
    watching = subprocess.Popen([sys.executable, "-m", "mindspeed_llm.report", str(tmp_path), "--watch", "0.1"], cwd=ROOT,
                                text=True, stdout=subprocess.PIPE)
    try:
        assert "tune at 1/2" in watching.stdout.readline()
        assert 'http-equiv="refresh"' in (tmp_path / "report.html").read_text()
        write(log, 2, 2)
        deadline = time.monotonic() + 60
        assert watching.wait(timeout=max(0.0, deadline - time.monotonic())) == 0
    finally:
        watching.kill()
        watching.stdout.close()
    text = (tmp_path / "report.html").read_text()
    assert "<td>2 / 2</td>" in text and "http-equiv" not in text


def test_places_without_a_run(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} has no log with iteration lines"):
        find_runs([tmp_path])
    with pytest.raises(FileNotFoundError, match="gone: no such log"):
        find_runs([tmp_path / "gone"])
    (tmp_path / "empty.log").write_text("nothing\n")
    with pytest.raises(UserError, match="empty.log has no iteration lines"):
        read_run(tmp_path / "empty.log")
