"""Collectives and messages between the ranks of one host, on addresses in this process's memory.

Groups are given by global ranks, all on this host, and made by `group`; every member must call the same collectives
of a group in the same order. Not for use by two threads at once. Addresses must be aligned to the element size, inputs
are not changed, outputs must not overlap inputs.

Nothing hangs: while waiting, a rank looks every 0.1 s for peers that died or left, for a failure that another rank
reported, and for the time limit MINDSPEED_LLM_COLLECTIVE_TIMEOUT (seconds, default 600). All these, and operations that
do not match between ranks, raise RuntimeError; after one the transport refuses further work with the same text.
"""

import atexit
import ctypes
import hashlib
import mmap
import os
import time
import zlib
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from mindspeed_llm.runtime.shared_memory import build, rendezvous, roster

DTYPE_CODES = {"float32": 0, "bfloat16": 1, "float16": 2, "int32": 3, "int64": 4, "float64": 5}
OPERATIONS = ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all", "barrier")
REDUCTIONS = ("sum", "max")

BLOCK_BYTES = 512 * 1024
HEAP_BYTES = 1 << 34            # address range per rank, not memory
SPINS = 400                     # about 10-20 us, only when there is a core for every rank

_ABORTED, _MISMATCH, _NO_MEMORY = 1, 2, 3


@dataclass
class Receive:
    """A receive that `Transport.post_receive` registered; `done` once its buffer is filled."""

    source: int
    tag: int
    address: int
    bytes: int
    done: bool = False
    buffer: object = field(default=None, repr=False)        # kept alive until then


@dataclass(frozen=True)
class _Channel:
    name: str
    ranks: tuple[int, ...]
    number: int


def connect(rank: int, size: int, exchange: rendezvous.Exchange) -> "Transport | str":
    """Set up shared memory with the other ranks of this host. Every rank of the job must call it.

    Returns a Transport on every rank or, on every rank, one line that says why there is none.
    """
    library, why_not = _load(size)
    met = rendezvous.meet(rank, exchange, lambda ranks: library.sm_size(ranks, BLOCK_BYTES, HEAP_BYTES), why_not)
    if isinstance(met, str):
        return met
    try:
        transport, why_not = Transport(library, met, rank), None
    except OSError as error:
        transport, why_not = None, f"cannot map the region: {error.strerror}"
    finally:
        os.close(met.file)
    reasons = [text.decode(errors="replace").strip() for text in exchange((why_not or "").encode()[:200].ljust(200))]
    refusal = next((reason for reason in reasons if reason), None)
    if refusal and transport is not None:
        transport.close()
    return refusal or transport


def _load(size: int) -> tuple[ctypes.CDLL | None, str | None]:
    if os.environ.get("MINDSPEED_LLM_SHARED_MEMORY") == "0":
        return None, "switched off by MINDSPEED_LLM_SHARED_MEMORY=0"
    try:
        library = ctypes.CDLL(str(build.build()))
    except (build.BuildError, OSError) as error:
        return None, str(error).splitlines()[0]
    if size > library.sm_max_ranks():
        return None, f"more than {library.sm_max_ranks()} ranks"
    number, pointer = ctypes.c_uint64, ctypes.c_void_p
    library.sm_size.argtypes, library.sm_size.restype = (ctypes.c_int, number, number), number
    library.sm_open.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int, number, number, ctypes.c_int, pointer)
    library.sm_open.restype = pointer
    library.sm_group.argtypes = (pointer, number, pointer, ctypes.c_int)
    library.sm_all_reduce.argtypes = (pointer, ctypes.c_int, pointer, pointer, number, ctypes.c_int, ctypes.c_int)
    library.sm_all_gather.argtypes = (pointer, ctypes.c_int, pointer, pointer, number)
    library.sm_reduce_scatter.argtypes = (pointer, ctypes.c_int, pointer, pointer, number, ctypes.c_int)
    library.sm_all_to_all.argtypes = (pointer, ctypes.c_int, pointer, pointer, number)
    library.sm_broadcast.argtypes = (pointer, ctypes.c_int, pointer, pointer, number, ctypes.c_int)
    library.sm_barrier.argtypes = (pointer, ctypes.c_int)
    library.sm_send.argtypes = (pointer, ctypes.c_int, number, pointer, number)
    library.sm_peek.argtypes = (pointer, ctypes.c_int, pointer, pointer)
    library.sm_take.argtypes = (pointer, ctypes.c_int, pointer)
    library.sm_awaited.argtypes, library.sm_awaited.restype = (pointer, pointer), None
    library.sm_header.argtypes, library.sm_header.restype = (pointer, ctypes.c_int, ctypes.c_int, pointer), None
    library.sm_serial.argtypes, library.sm_serial.restype = (pointer, ctypes.c_int), number
    library.sm_close.argtypes, library.sm_close.restype = (pointer,), None
    return library, None


class Transport:
    """One rank's end of the shared region. Made by `connect`."""

    def __init__(self, library: ctypes.CDLL, met: rendezvous.Meeting, rank: int):
        self.rank, self.ranks = rank, met.ranks
        self._library = library
        self._local = {other: place for place, other in enumerate(met.ranks)}
        self._roster = roster.Roster(mmap.mmap(met.file, roster.BYTES), len(met.ranks))
        self._idle = ctypes.CFUNCTYPE(ctypes.c_int)(self._on_idle)          # kept: C calls it
        spins = SPINS if len(os.sched_getaffinity(0)) >= len(met.ranks) else 0
        self._context = library.sm_open(met.file, self._local[rank], len(met.ranks), BLOCK_BYTES, HEAP_BYTES, spins,
                                        ctypes.cast(self._idle, ctypes.c_void_p))
        if not self._context:
            raise OSError(0, "no address space")
        self._timeout = float(os.environ.get("MINDSPEED_LLM_COLLECTIVE_TIMEOUT", "600"))
        self._channels: dict[tuple[str, tuple[int, ...]], _Channel] = {}
        self._posted: dict[int, dict[int, deque[Receive]]] = {}
        self._early: dict[tuple[int, int], deque[np.ndarray]] = {}
        self._broken: str | None = None
        self._pending: BaseException | None = None
        self._doing, self._channel = "", None
        self._since, self._suspects = None, set()
        self._pid = os.getpid()
        self._roster.sign_in(self._local[rank])
        atexit.register(self.leave)

    def reaches(self, ranks: tuple[int, ...]) -> bool:
        """True when all the given global ranks are on this host."""
        return all(other in self._local for other in ranks)

    def close(self) -> None:
        """Sign off and unmap the region; the object is of no use afterwards."""
        self.leave()
        atexit.unregister(self.leave)
        self._broken = "the shared memory transport is closed"
        self._library.sm_close(self._context)

    def leave(self) -> None:
        """Sign off: from now on a peer that waits for this rank gets an error at once. Runs by itself at exit."""
        if os.getpid() == self._pid:
            self._roster.sign_off(self._local[self.rank])

    def group(self, name: str, ranks: tuple[int, ...]) -> _Channel:
        """The communication channel of the given global ranks, this one among them. Cheap to call again."""
        channel = self._channels.get((name, ranks))
        if channel is None:
            key = int.from_bytes(hashlib.sha256(f"{name} {ranks}".encode()).digest()[:8], "little") | 1
            members = np.array([self._local[other] for other in ranks], np.int32)
            number = self._library.sm_group(self._context, key, members.ctypes.data, len(ranks))
            if number < 0:
                raise RuntimeError(f"too many communication groups: no place for {name}")
            channel = self._channels[name, ranks] = _Channel(name, ranks, number)
        return channel

    def all_reduce(self, channel: _Channel, source: int, target: int, elements: int, dtype: int, op: str) -> None:
        """Sum or maximum over ranks of `elements` elements; `dtype` is one of DTYPE_CODES, `op` one of REDUCTIONS."""
        self._begin("all_reduce", channel)
        self._check(self._library.sm_all_reduce(self._context, channel.number, source, target, elements, dtype,
                                                REDUCTIONS.index(op)))

    def all_gather(self, channel: _Channel, source: int, target: int, size: int) -> None:
        """`size` bytes of every rank into `len(ranks) * size` bytes."""
        self._begin("all_gather", channel)
        self._check(self._library.sm_all_gather(self._context, channel.number, source, target, size))

    def reduce_scatter(self, channel: _Channel, source: int, target: int, elements: int, dtype: int) -> None:
        """Sum of `len(ranks) * elements` elements over ranks, of which this rank gets its `elements`."""
        self._begin("reduce_scatter", channel)
        self._check(self._library.sm_reduce_scatter(self._context, channel.number, source, target, elements, dtype))

    def broadcast(self, channel: _Channel, source: int, target: int, size: int, member: int) -> None:
        """`size` bytes of group member `member`, whose `source` counts, into everybody's `target`."""
        self._begin("broadcast", channel)
        self._check(self._library.sm_broadcast(self._context, channel.number, source, target, size, member))

    def all_to_all(self, channel: _Channel, sources: list[int], targets: list[int], size: int) -> None:
        """`size` bytes from `sources[m]` to member m, from member m into `targets[m]`."""
        self._begin("all_to_all", channel)
        pointers = ctypes.c_void_p * len(sources)
        self._check(self._library.sm_all_to_all(self._context, channel.number, pointers(*sources),
                                                pointers(*targets), size))

    def barrier(self, channel: _Channel) -> None:
        """Wait for all members."""
        self._begin("barrier", channel)
        self._check(self._library.sm_barrier(self._context, channel.number))

    def send(self, rank: int, tag: int, source: int, size: int) -> None:
        """Send `size` bytes to global rank `rank`. Returns when they are copied, never waits for the receiver.

        Messages with the same source, target and tag (0 to 2^64-1) arrive in the order sent.
        """
        self._begin(f"send to rank {rank}", None)
        self._check(self._library.sm_send(self._context, self._local[rank], tag, source, size))

    def post_receive(self, rank: int, tag: int, target: int, size: int, buffer: object = None) -> Receive:
        """Register a receive; `finish_receive` waits for it. Receives are served in the order posted."""
        receive = Receive(rank, tag, target, size, buffer=buffer)
        early = self._early.get((rank, tag))
        if early:
            self._deliver_early(receive, early.popleft())
        else:
            self._posted.setdefault(rank, {}).setdefault(tag, deque()).append(receive)
        return receive

    def finish_receive(self, receive: Receive) -> None:
        """Wait until the message of this receive is in its buffer."""
        while not receive.done:
            self._begin(f"receive from rank {receive.source}", None)
            self._next_message(receive.source)

    def _next_message(self, source: int) -> None:
        """Take the next message of `source` to the receive that waits for it, or keep it until there is one."""
        place, tag, size = self._local[source], ctypes.c_uint64(), ctypes.c_uint64()
        self._check(self._library.sm_peek(self._context, place, ctypes.byref(tag), ctypes.byref(size)))
        waiting = self._posted.get(source, {}).get(tag.value)
        if waiting:
            receive = waiting.popleft()
            if receive.bytes != size.value:
                self._fail(f"rank {source} sent {size.value} bytes where rank {self.rank} expects {receive.bytes}")
            self._check(self._library.sm_take(self._context, place, receive.address))
            receive.done, receive.buffer = True, None
        else:
            kept = np.empty(size.value, np.uint8)
            self._check(self._library.sm_take(self._context, place, kept.ctypes.data))
            self._early.setdefault((source, tag.value), deque()).append(kept)

    def _deliver_early(self, receive: Receive, kept: np.ndarray) -> None:
        if receive.bytes != kept.nbytes:
            self._fail(f"rank {receive.source} sent {kept.nbytes} bytes where rank {self.rank} expects {receive.bytes}")
        ctypes.memmove(receive.address, kept.ctypes.data, kept.nbytes)
        receive.done, receive.buffer = True, None

    def _begin(self, what: str, channel: _Channel | None) -> None:
        if self._broken:
            raise RuntimeError(self._broken)
        self._doing, self._channel, self._since = what, channel, None

    def _check(self, code: int) -> None:
        if code == 0:
            return
        if code == _ABORTED:
            error, self._pending = self._pending, None
            self._broken = str(error) or type(error).__name__
            raise error
        if code == _MISMATCH:
            self._fail(self._describe_mismatch())
        if code == _NO_MEMORY:
            self._fail(f"rank {self.rank} has {HEAP_BYTES >> 30} GB of messages under way that nobody receives "
                       f"({self._doing})")
        raise RuntimeError(f"shared memory transport: unknown result {code}")

    def _fail(self, text: str) -> None:
        self._broken = text
        self._roster.report_failure(text)
        raise RuntimeError(text)

    def _on_idle(self) -> int:
        """Called by C between slices of waiting; an exception must not cross it."""
        try:
            self._watch()
        except BaseException as error:      # includes KeyboardInterrupt: raised again once C has returned
            self._pending = error
            return 1
        return 0

    def _watch(self) -> None:
        if self._since is None:
            self._since, self._suspects = time.monotonic(), set()
        failure = self._roster.failure()
        if failure:
            raise RuntimeError(f"{failure} (rank {self.rank} was waiting in {self._where()})")
        flags = (ctypes.c_uint8 * len(self.ranks))()
        self._library.sm_awaited(self._context, flags)
        awaited = {place for place in range(len(self.ranks)) if flags[place]}
        gone = {place for place in range(len(self.ranks))
                if self._roster.is_dead(place) or (place in awaited and self._roster.has_left(place))}
        # What a rank did just before it went must count, so look once more at the memory before believing it.
        for place in sorted(gone & self._suspects):
            how = "has left the job" if self._roster.has_left(place) else "died"
            self._fail(f"rank {self.ranks[place]} (pid {self._roster.pid(place)}) {how} while rank {self.rank} "
                       f"waits in {self._where()}")
        self._suspects = gone
        if time.monotonic() - self._since > self._timeout:
            missing = ", ".join(str(self.ranks[place]) for place in sorted(awaited))
            self._fail(f"rank {self.rank} waited {self._timeout:g} s in {self._where()}; not arrived: rank {missing} "
                       "(do all ranks call the same operations? MINDSPEED_LLM_COLLECTIVE_TIMEOUT sets the limit)")

    def _where(self) -> str:
        if self._channel is None:
            return self._doing
        serial = self._library.sm_serial(self._context, self._channel.number)
        return f"{self._doing} #{serial} of group {self._channel.name}"

    def _describe_mismatch(self) -> str:
        fields = (ctypes.c_uint64 * 5)()
        said: dict[str, list[int]] = {}
        for member, rank in enumerate(self._channel.ranks):
            self._library.sm_header(self._context, self._channel.number, member, fields)
            said.setdefault(_describe_header(*fields), []).append(rank)
        each = "; ".join(f"rank {', '.join(map(str, ranks))}: {text}" for text, ranks in said.items())
        return f"ranks of group {self._channel.name} do not do the same: {each}"


def _describe_header(op: int, dtype: int, size: int, detail: int, serial: int) -> str:
    name = OPERATIONS[op]
    extra = {"all_reduce": f" {list(DTYPE_CODES)[dtype]} {REDUCTIONS[detail % 2]}",
             "reduce_scatter": f" {list(DTYPE_CODES)[dtype]}", "broadcast": f" from member {detail}"}.get(name, "")
    return f"{name}{extra} of {size} bytes (#{serial})"


def message_tag(name: str, ranks: tuple[int, ...]) -> int:
    """Tag that keeps the messages of one group apart from those of another between the same two ranks."""
    return zlib.crc32(f"{name} {ranks}".encode())
