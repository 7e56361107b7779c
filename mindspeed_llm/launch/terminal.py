"""Showing a log that a process writes while it grows."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

# MindSpore 2.10 prints two such lines when a rank signs off from the scheduler, whatever its log level.
HIDDEN = b"[INFO] DISTRIBUTED("
_INFORMATION = ("0", "1")   # levels of GLOG_v with which its lines were asked for


class Follower:
    """Copies a log to standard output as it grows, all but the HIDDEN lines.

    `show` copies what is new, also of a line that has not ended; the log need not exist yet.
    """

    def __init__(self, path: Path, environment: Mapping[str, str]) -> None:
        self._path = path
        self._stream: BinaryIO | None = None
        self._filter = None if environment.get("GLOG_v") in _INFORMATION else LineFilter()
        self._terminal = True

    def show(self) -> None:
        """Copy what the log has more than before."""
        if self._stream is None:
            if not self._path.exists():
                return
            self._stream = self._path.open("rb")
        new = self._stream.read()
        if new:
            self._write(new if self._filter is None else self._filter.feed(new))

    def close(self) -> None:
        """Copy the rest."""
        self.show()
        if self._filter is not None:
            self._write(self._filter.rest())
        if self._stream is not None:
            self._stream.close()

    def _write(self, data: bytes) -> None:
        if not (data and self._terminal):
            return
        try:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        except OSError:     # nobody reads any more: the job goes on, and its log is whole
            self._terminal = False


class LineFilter:
    """Takes HIDDEN lines out of a stream that comes in pieces; everything else passes at once, unfinished lines too."""

    def __init__(self) -> None:
        self._kept = b""    # the start of a line that may turn out to be HIDDEN
        self._hides: bool | None = None     # of the line that is passing; None between lines

    def feed(self, data: bytes) -> bytes:
        """The part of the stream up to the end of `data` that is to be shown now."""
        shown = []
        lines = (self._kept + data).splitlines(keepends=True)
        self._kept = b""
        for line in lines:
            ended = line.endswith((b"\n", b"\r"))
            if self._hides is None:
                if not ended and HIDDEN.startswith(line):
                    self._kept = line
                    break
                self._hides = line.startswith(HIDDEN)
            if not self._hides:
                shown.append(line)
            if ended:
                self._hides = None
        return b"".join(shown)

    def rest(self) -> bytes:
        """What was kept back, when nothing follows."""
        kept, self._kept = self._kept, b""
        return kept
