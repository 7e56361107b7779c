"""The first page of the region: which process is which rank, who has left, and the first failure anybody noticed.

Fields are 64-bit words, each written by one process at one time and read by others at leisure; the failure's text is
written before its length.
"""

import os
from pathlib import Path

import numpy as np

BYTES = 65536
_WORDS = 4                      # per rank: pid, start time, has left, spare
_FAILURE_AT = 32768             # its length; the text follows 8 bytes later
_FAILURE_MAX = 2048


class Roster:
    """View of the page. `memory` is a writable buffer of BYTES bytes shared by all ranks of the host."""

    def __init__(self, memory, ranks: int):
        whole = np.frombuffer(memory, dtype=np.uint8, count=BYTES)
        self._ranks = whole[:ranks * _WORDS * 8].view(np.uint64).reshape(ranks, _WORDS)
        self._failure = whole[_FAILURE_AT:_FAILURE_AT + 8].view(np.uint64)
        self._text = whole[_FAILURE_AT + 8:_FAILURE_AT + 8 + _FAILURE_MAX]

    def sign_in(self, rank: int) -> None:
        """Record this process as `rank`."""
        self._ranks[rank, 0] = os.getpid()
        self._ranks[rank, 1] = start_time(os.getpid()) or 0

    def sign_off(self, rank: int) -> None:
        """This rank will not communicate any more and ends as it should."""
        self._ranks[rank, 2] = 1

    def pid(self, rank: int) -> int:
        """Process id of `rank`."""
        return int(self._ranks[rank, 0])

    def has_left(self, rank: int) -> bool:
        """True after `sign_off`."""
        return bool(self._ranks[rank, 2])

    def is_dead(self, rank: int) -> bool:
        """True when the process is gone (or a zombie, or its id now belongs to another) and did not sign off."""
        return not self.has_left(rank) and start_time(self.pid(rank)) != int(self._ranks[rank, 1])

    def report_failure(self, text: str) -> None:
        """Tell everybody; the first report stays."""
        if not self._failure[0]:
            encoded = np.frombuffer(text.encode()[:_FAILURE_MAX], dtype=np.uint8)
            self._text[:len(encoded)] = encoded
            self._failure[0] = len(encoded)

    def failure(self) -> str | None:
        """The reported failure."""
        length = int(self._failure[0])
        return self._text[:length].tobytes().decode(errors="replace") if length else None


def start_time(pid: int) -> int | None:
    """When a process began, in clock ticks since boot; None when it does not run any more."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text[text.rindex(")") + 2:].split()
    return None if fields[0] in "ZX" else int(fields[19])
