"""--profile: a trace of the asked iterations that a viewer can open, a table that adds up, unchanged training; and the
FLOPs of --log-throughput, which the trace's kernels add up to.
"""

import json
import re
from unittest import mock

import pytest
from mindspore import profiler

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.training import ProfileConfig
from mindspeed_llm.training.profiling import ascend_recorder, summary
from mindspeed_llm.training.throughput import Throughput


def events_of(directory):
    trace = json.loads((directory / "trace.json").read_text())
    return [event for event in trace["traceEvents"] if event["ph"] == "X"]


def losses(output):
    return [line.split("lm loss: ")[1].split()[0] for line in output.splitlines() if "lm loss:" in line]


PRODUCTS = {"linear_fwd", "linear_dgrad", "linear_wgrad"}


def flops_of(event):
    """Of a product of S x B rows of one width with a weight; of anything else 0."""
    if event["name"] not in PRODUCTS:
        return 0
    (rows, width), right = event["args"]["shapes"][:2]
    columns = right[0] if event["name"] == "linear_fwd" else right[1]
    return 2 * rows * width * columns


@pytest.fixture
def counted(monkeypatch):
    """FLOPs that --log-throughput counts in each step."""
    found, count = [], Throughput.flops

    def flops(self, micro_batches):
        found.append(count(self, micro_batches))
        return found[-1]

    monkeypatch.setattr(Throughput, "flops", flops)
    return found


def test_trace_and_table_of_two_iterations(train, tmp_path, capsys, counted):
    train("--split", "90,10,0")
    plain = losses(capsys.readouterr().out)
    train("--log-throughput", "--profile", "--profile-step-start", 3, "--profile-step-end", 5, "--profile-level", "level2",
          "--profile-save-path", tmp_path, "--eval-iters", 1, "--eval-interval", 3, "--split", "90,10,0")
    output = capsys.readouterr().out
    assert losses(output) == plain
    events = events_of(tmp_path)
    iterations = [event for event in events if event["name"] == "iteration"]
    assert len(iterations) == 2
    for event in iterations:
        inside = [other for other in events if event["ts"] <= other["ts"] < event["ts"] + event["dur"]]
        assert all(other["ts"] + other["dur"] <= event["ts"] + event["dur"] + 1 for other in inside)
        names = [other["name"] for other in inside]
        # two micro-batches through two layers: four linear layers each, and the output layer
        assert names.count("forward") == names.count("backward") == 2
        assert names.count("linear_fwd") == 2 * (2 * 4 + 1)
        assert names.count("attention_bwd") == 4
    shapes = {tuple(map(tuple, event["args"]["shapes"])) for event in events if event["name"] == "linear_wgrad"}
    assert shapes == {((64, rows), (64, width), (rows, width)) for rows, width in (
        (64, 32), (32, 32), (96, 32), (32, 48), (320, 32))}   # qkv, proj, fc1, fc2, output layer; S x B is 64
    products = sum(flops_of(event) for event in inside)
    heads, width, pairs = 4, 8, 4 * 32 * 33 // 2    # four sequences of 32
    attention = 2 * 3 * 2 * 2 * heads * width * pairs   # layers; forward and twice that backward; QK and PV
    assert set(counted) == {products + attention}
    last = [line for line in output.splitlines() if "lm loss: " in line][-1]
    done = float(re.search(r"throughput per GPU \(TFLOP/s/GPU\): ([\d.]+) \|", last)[1])
    milliseconds = float(re.search(r"elapsed time per iteration \(ms\): ([\d.]+)", last)[1])
    assert done == pytest.approx(counted[0] / milliseconds / 1e9, abs=1e-4)
    assert 0 <= float(re.search(r"share of measured limit: ([\d.]+) \|", last)[1]) < 1
    table = output[output.index("profile: "):].splitlines()
    shares = [float(line.split()[-1].rstrip("%")) for line in table[2:] if line.endswith("%")]
    assert sum(shares) == pytest.approx(100, abs=2)
    assert str(tmp_path / "trace.json") in table[0]


def test_time_of_a_span_is_without_those_inside():
    def event(name, start, length, thread=0):
        return {"ph": "X", "pid": 0, "tid": thread, "name": name, "cat": name, "ts": start, "dur": length, "args": {}}

    lines = summary([event("iteration", 0, 100e3), event("forward", 10e3, 60e3), event("kernel", 20e3, 30e3),
                     event("kernel", 55e3, 5e3), event("kernel", 200e3, 5e3)])
    assert [(line.name, line.calls, line.milliseconds, line.share) for line in lines] == [
        ("iteration", 1, 40.0, 0.4), ("kernel", 2, 35.0, 0.35), ("forward", 1, 25.0, 0.25)]


def test_level0_leaves_the_kernels_out(train, tmp_path, capsys):
    train("--profile", "--profile-step-start", 1, "--profile-step-end", 2, "--profile-save-path", tmp_path)
    assert {event["cat"] for event in events_of(tmp_path)} == {"iteration", "data", "pass", "communication", "optimizer"}


@pytest.mark.parametrize("flags, message", [
    (("--profile-step-start", 5, "--profile-step-end", 5), "--profile-step-end .5. must be above --profile-step-start"),
    (("--profile-ranks", 0, 1), "--profile-ranks .0 1.: the job has the ranks 0 to 0")])
def test_what_cannot_be_profiled(train, flags, message):
    with pytest.raises(UserError, match=message):
        train("--profile", *flags)


def test_flags_without_profile_are_told(train, capsys):
    train("--train-iters", 1, "--profile-level", "level1")
    assert "--profile-level ignored: without --profile" in capsys.readouterr().out


def test_mindspores_profiler_is_called_as_documented(tmp_path, monkeypatch):
    stand_in = mock.create_autospec(profiler.profile)
    monkeypatch.setattr(profiler, "profile", stand_in)
    recorder = ascend_recorder(ProfileConfig(profile=True, profile_level="level1", profile_with_cpu=True), tmp_path)
    recorder.start()
    recorder.stop()
    given = stand_in.call_args.kwargs
    assert given["activities"] == [profiler.ProfilerActivity.CPU, profiler.ProfilerActivity.NPU]
    assert not given["start_profile"] and callable(given["on_trace_ready"])
    assert given["experimental_config"].profiler_level == profiler.ProfilerLevel.Level1
