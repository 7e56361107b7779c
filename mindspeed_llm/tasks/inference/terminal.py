"""One user, many ranks: what rank 0 reads, every rank gets; what a model says, rank 0 shows."""

import queue
import sys
import threading
from typing import TextIO

from mindspeed_llm.data.tokenizer import Tokenizer
from mindspeed_llm.runtime.collectives import Group
from mindspeed_llm.runtime.messages import HEARTBEAT, broadcast_int, receive_text

_NOTHING_YET, _END = -2, -1


class Inbox:
    """Lines of rank 0's input, on all ranks alike. While the user thinks, the ranks exchange a sign of life."""

    def __init__(self, world: Group, stream: TextIO | None = None) -> None:
        self._world = world
        self._stream = stream if stream is not None else sys.stdin
        self._lines: queue.Queue[str | None] | None = None

    def read(self) -> str | None:
        """The next line without its end, or None when there is none any more."""
        if self._world.size == 1:
            line = self._stream.readline()
            return line.rstrip("\r\n") if line else None
        while True:
            length, line = _NOTHING_YET, None
            if self._world.rank == 0:
                line, ended = self._poll()
                length = _END if ended else _NOTHING_YET if line is None else len(line.encode())
            length = broadcast_int(length, self._world)
            if length == _END:
                return None
            if length != _NOTHING_YET:
                return receive_text(length, line, self._world)

    def _poll(self) -> tuple[str | None, bool]:
        """(a line or None, whether the input has ended), after waiting for a heartbeat at most."""
        if self._lines is None:
            self._lines = queue.Queue()
            threading.Thread(target=self._pump, args=(self._lines,), daemon=True).start()
        try:
            line = self._lines.get(timeout=HEARTBEAT)
        except queue.Empty:
            return None, False
        return line, line is None

    def _pump(self, lines: "queue.Queue[str | None]") -> None:
        for line in self._stream:
            lines.put(line.rstrip("\r\n"))
        lines.put(None)


class Speaker:
    """Shows an answer as its tokens arrive. White space at its start is left out (templates begin with a newline)."""

    def __init__(self, tokenizer: Tokenizer, out: TextIO) -> None:
        self._stream, self._out = tokenizer.stream(), out
        self._begun = False

    def push(self, token: int) -> None:
        """Show what `token` completes."""
        self._show(self._stream.push(token))

    def finish(self) -> None:
        """Show the rest and end the line."""
        self._show(self._stream.finish())
        self._out.write("\n")
        self._out.flush()

    def _show(self, text: str) -> None:
        text = text if self._begun else text.lstrip()
        if text:
            self._begun = True
            self._out.write(text)
            self._out.flush()
