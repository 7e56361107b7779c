"""Profiling some iterations of a run (`--profile`): on CPU our own spans as a Chrome trace and a table, on Ascend
MindSpore's profiler.
"""

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mindspeed_llm import kernels
from mindspeed_llm.checkpoint.files import write_text
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.training import ProfileConfig
from mindspeed_llm.core.parallel_state import ParallelState
from mindspeed_llm.runtime import device, trace
from mindspeed_llm.runtime.collectives import barrier
from mindspeed_llm.runtime.trace import Span
from mindspeed_llm.session import Session

TRACE = "trace.json"
_ITERATION = "iteration"


class Recorder(Protocol):
    """What records on a profiled rank."""

    def start(self) -> None:
        """Record from here on."""

    def stop(self) -> None:
        """End recording and write what was recorded."""


class Profiler:
    """Starts and stops this rank's recorder at the iterations of `config`; rank 0 then shows what came out.

    Raises UserError for a rank that the job has not got.
    """

    def __init__(self, config: ProfileConfig, session: Session) -> None:
        self._config, self._session = config, session
        size, rank, directory = session.state.world.size, session.state.world.rank, Path(config.profile_save_path)
        every = -1 in config.profile_ranks
        if not every and config.profile and max(config.profile_ranks) >= size:
            raise UserError(f"--profile-ranks ({' '.join(map(str, config.profile_ranks))}): the job has the ranks "
                            f"0 to {size - 1}; -1 means all")
        self._ranks = tuple(range(size)) if every else tuple(sorted(set(config.profile_ranks)))
        self._recorder: Recorder | None = None
        self._running = False
        if config.profile and rank in self._ranks:
            directory.mkdir(parents=True, exist_ok=True)
            self._recorder = (HostTrace(config, session.state, directory) if device.on_cpu()
                              else ascend_recorder(config, directory))

    def before(self, iteration: int) -> None:
        """Called before the iteration of that number."""
        if self._config.profile and not self._running and self._config.profile_step_start <= iteration < (
                self._config.profile_step_end):
            self._running = True
            if self._recorder is not None:
                self._recorder.start()

    def after(self, iteration: int) -> None:
        """Called after the iteration of that number."""
        if self._running and iteration + 1 >= self._config.profile_step_end:
            self.close()

    def close(self) -> None:
        """End recording, if it goes on, and report. Every rank calls this at the same iteration."""
        if not self._running:
            return
        self._running = False
        if self._recorder is not None:
            self._recorder.stop()
        barrier()   # all ranks' files are there
        if self._session.is_main:
            self._session.say(*_report(self._config, self._ranks))


class HostTrace:
    """Spans of this rank into `rank_R.json`, a Chrome trace."""

    def __init__(self, config: ProfileConfig, state: ParallelState, directory: Path) -> None:
        self._level, self._rank = config.profile_level, state.world.rank
        self._path = directory / f"rank_{self._rank}.json"
        self._name = (f"rank {self._rank}: tensor {state.tp.rank}, context {state.cp.rank}, data {state.dp.rank}, "
                      f"pipeline {state.pp.rank}")
        self._plain_kernels: Callable[[], None] | None = None

    def start(self) -> None:
        """See `Recorder`."""
        if self._level != "level0":
            self._plain_kernels = kernels.trace_calls(shapes=self._level == "level2")
        trace.start()

    def stop(self) -> None:
        """See `Recorder`."""
        spans = trace.stop()
        if self._plain_kernels is not None:
            self._plain_kernels()
        write_text(self._path, json.dumps(chrome_trace(spans, self._rank, self._name)))


def ascend_recorder(config: ProfileConfig, directory: Path) -> Recorder:
    """MindSpore's profiler, set up but not started; its results are for MindStudio Insight.

    https://www.mindspore.cn/docs/en/r2.7.0/api_python/mindspore/mindspore.profiler.profile.html
    """
    from mindspore import profiler
    from mindspore.profiler import ProfilerActivity, ProfilerLevel

    level = {"level0": ProfilerLevel.Level0, "level1": ProfilerLevel.Level1, "level2": ProfilerLevel.Level2}
    activities = [ProfilerActivity.CPU, ProfilerActivity.NPU] if config.profile_with_cpu else [ProfilerActivity.NPU]
    return profiler.profile(
        activities=activities, start_profile=False,
        on_trace_ready=profiler.tensorboard_trace_handler(str(directory)),
        experimental_config=profiler._ExperimentalConfig(profiler_level=level[config.profile_level]))


def chrome_trace(spans: list[Span], rank: int, name: str) -> dict[str, Any]:
    """The spans in Chrome's trace event format (complete events, microseconds), which Perfetto opens.

    https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
    """
    threads = {thread: number for number, thread in enumerate(dict.fromkeys(span.thread for span in spans))}
    events: list[dict[str, Any]] = [{"ph": "M", "pid": rank, "name": "process_name", "args": {"name": name}}]
    events += [{"ph": "X", "pid": rank, "tid": threads[span.thread], "name": span.name, "cat": span.category,
                "ts": span.start / 1e3, "dur": (span.stop - span.start) / 1e3, "args": span.details} for span in spans]
    return {"displayTimeUnit": "ms", "traceEvents": events}


@dataclass(frozen=True)
class Line:
    """A row of the table: calls and milliseconds per iteration, and the part of the iteration that this is."""

    name: str
    category: str
    calls: float
    milliseconds: float
    share: float


def summary(events: list[dict[str, Any]]) -> list[Line]:
    """Time of each kind of span without the spans inside it, longest first; the events of one rank's trace.

    What lies between iterations (validation, saving) does not count.
    """
    whole = [(event["ts"], event["ts"] + event["dur"]) for event in events if event["name"] == _ITERATION]
    spans = sorted((event for event in events if event["ph"] == "X"
                    and any(start <= event["ts"] < stop for start, stop in whole)),
                   key=lambda event: (event["tid"], event["ts"], -event["dur"]))
    own: dict[tuple[str, str], float] = defaultdict(float)
    calls: dict[tuple[str, str], int] = defaultdict(int)
    around: list[dict[str, Any]] = []
    for event in spans:
        while around and (around[-1]["tid"] != event["tid"] or around[-1]["ts"] + around[-1]["dur"] <= event["ts"]):
            around.pop()
        if around:
            own[around[-1]["name"], around[-1]["cat"]] -= event["dur"]
        own[event["name"], event["cat"]] += event["dur"]
        calls[event["name"], event["cat"]] += 1
        around.append(event)
    total = sum(stop - start for start, stop in whole)
    return [Line(*key, calls[key] / len(whole), spent / len(whole) / 1e3, spent / total)
            for key, spent in sorted(own.items(), key=lambda entry: -entry[1])]


def _report(config: ProfileConfig, ranks: tuple[int, ...]) -> list[str]:
    """What rank 0 prints. On CPU it joins the traces that lie in its directory and shows the table of the first."""
    directory = Path(config.profile_save_path)
    if not device.on_cpu():
        return [f"profile: MindSpore's, in {directory}"]
    traces = {rank: json.loads(path.read_text(encoding="utf-8"))
              for rank in ranks if (path := directory / f"rank_{rank}.json").exists()}
    if not traces:
        return [f"profile: the traces are in {directory} of the profiled ranks' machines"]
    events = [event for rank in traces for event in traces[rank]["traceEvents"]]
    write_text(directory / TRACE, json.dumps({"displayTimeUnit": "ms", "traceEvents": events}))
    shown = min(traces)
    table = summary(traces[shown]["traceEvents"])
    milliseconds = sum(line.milliseconds for line in table)
    lines = [f"profile: {milliseconds:.1f} ms an iteration on rank {shown}; {directory / TRACE} has "
             f"{len(traces)} of {len(ranks)} profiled ranks and opens in ui.perfetto.dev",
             f"{'span':24} {'category':14} {'calls':>8} {'ms':>10} {'share':>7}"]
    return lines + [f"{line.name:24} {line.category:14} {line.calls:8.1f} {line.milliseconds:10.2f} {line.share:7.1%}"
                    for line in table]
