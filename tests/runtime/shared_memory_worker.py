"""The ranks of a test in test_shared_memory.py: `worker.py scenario size directory`, forks of this process, each of which
exits non-zero on failure. It prints how each ended, on a line: rank, exit code, when by the monotonic clock.

Ranks find each other through files in `directory` and keep their errors in error-RANK there; numpy only, MindSpore is
never imported.
"""

import os
import signal
import sys
import threading
import time
from functools import cache
from pathlib import Path

import numpy as np

from mindspeed_llm.runtime.shared_memory import rendezvous, transport
from mindspeed_llm.runtime.shared_memory.transport import DTYPE_CODES, message_tag

NUMPY = {"float32": np.float32, "bfloat16": np.uint16, "float16": np.float16, "int32": np.int32, "int64": np.int64,
         "float64": np.float64}


class Rank:
    """A transport with arrays instead of addresses. bfloat16 is carried as uint16 bits."""

    def __init__(self, rank: int, size: int, directory: Path):
        self.rank, self.size, self._directory, self._round = rank, size, directory, 0
        self.joined = transport.connect(rank, size, self.exchange)
        if not isinstance(self.joined, str) and self.joined.reaches(tuple(range(size))):
            self.world = self.group("world", tuple(range(size)))

    def exchange(self, message: bytes) -> list[bytes]:
        self._round += 1
        mine = self._directory / f"{self._round}-{self.rank}"
        mine.with_suffix(".part").write_bytes(message)
        mine.with_suffix(".part").rename(mine)
        paths = [self._directory / f"{self._round}-{rank}" for rank in range(self.size)]
        while not all(path.exists() for path in paths):
            time.sleep(0.002)
        return [path.read_bytes() for path in paths]

    def group(self, name, ranks):
        return self.joined.group(name, ranks)

    def all_reduce(self, array, channel=None, op="sum", dtype=None):
        result = np.empty_like(array)
        self.joined.all_reduce(channel or self.world, array.ctypes.data, result.ctypes.data, array.size,
                               DTYPE_CODES[dtype or array.dtype.name], op)
        return result

    def all_gather(self, array, channel=None):
        channel = channel or self.world
        result = np.empty((len(channel.ranks), *array.shape), array.dtype)
        self.joined.all_gather(channel, array.ctypes.data, result.ctypes.data, array.nbytes)
        return result

    def reduce_scatter(self, array, channel=None, dtype=None):
        result = np.empty(array.shape[1:], array.dtype)
        self.joined.reduce_scatter(channel or self.world, array.ctypes.data, result.ctypes.data, result.size,
                                   DTYPE_CODES[dtype or array.dtype.name])
        return result

    def broadcast(self, array, member, channel=None):
        result = np.empty_like(array)
        self.joined.broadcast(channel or self.world, array.ctypes.data, result.ctypes.data, array.nbytes, member)
        return result

    def all_to_all(self, array, channel=None):
        result = np.empty_like(array)
        self.joined.all_to_all(channel or self.world, [part.ctypes.data for part in array],
                               [part.ctypes.data for part in result], array[0].nbytes)
        return result

    def send(self, array, rank, tag=0):
        self.joined.send(rank, tag, array.ctypes.data, array.nbytes)

    def post(self, array, rank, tag=0):
        return self.joined.post_receive(rank, tag, array.ctypes.data, array.nbytes, array)

    def receive(self, size, rank, tag=0):
        array = np.empty(size, np.uint8)
        self.joined.finish_receive(self.post(array, rank, tag))
        return array


def values(seed, dtype: str, shape) -> np.ndarray:
    """Random numbers that every rank can make again; wide range, so that the order of a sum matters."""
    numbers = drawn(seed, shape, dtype.startswith("int"))
    return to_bf16(numbers.astype(np.float32)) if dtype == "bfloat16" else numbers.astype(NUMPY[dtype])


@cache
def drawn(seed, shape, whole: bool) -> np.ndarray:
    """The numbers of `values`, which its dtypes share."""
    random = np.random.default_rng(seed)
    if whole:
        return random.integers(-1000, 1000, shape)
    return random.standard_normal(shape) * np.exp2(random.integers(-6, 6, shape))


def to_bf16(array):
    bits = array.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def expected(parts, dtype: str, op: str):
    """The sum (in rank order) or maximum of the ranks' arrays, in fp32 for 16-bit types with one rounding."""
    wide = {"bfloat16": lambda part: (part.astype(np.uint32) << 16).view(np.float32),
            "float16": lambda part: part.astype(np.float32)}.get(dtype, lambda part: part)
    total = wide(parts[0]).copy()
    for part in parts[1:]:
        total = total + wide(part) if op == "sum" else np.maximum(total, wide(part))
    return to_bf16(total) if dtype == "bfloat16" else total.astype(NUMPY[dtype])


def same(got, want):
    assert got.dtype == want.dtype and got.shape == want.shape
    assert got.tobytes() == want.tobytes(), f"{np.count_nonzero(got != want)} of {got.size} elements differ"


def collectives(me: Rank):
    """Bit-exact results for every dtype and for sizes around all block and chunk boundaries."""
    sizes = [0, 1, 7, 1000, 8192, 8193, 81920, 300_001] if me.size < 8 else [0, 1, 513, 100_003]
    for dtype in NUMPY:
        for size in sizes:
            parts = [values((size, rank), dtype, size) for rank in range(me.size)]
            for op in ("sum", "max"):
                same(me.all_reduce(parts[me.rank], op=op, dtype=dtype), expected(parts, dtype, op))
        for size in sizes[:-1]:
            tables = [values((size, rank, 1), dtype, (me.size, size)) for rank in range(me.size)]
            same(me.reduce_scatter(tables[me.rank], dtype=dtype), expected([t[me.rank] for t in tables], dtype, "sum"))
    for size in sizes:
        parts = [np.random.default_rng((size, rank)).integers(0, 256, size, np.uint8) for rank in range(me.size)]
        same(me.all_gather(parts[me.rank]), np.stack(parts))
        same(me.broadcast(parts[me.rank], size % me.size), parts[size % me.size])
        tables = [np.random.default_rng((size, rank)).integers(0, 256, (me.size, size), np.uint8)
                  for rank in range(me.size)]
        same(me.all_to_all(tables[me.rank]), np.stack([table[me.rank] for table in tables]))
        me.joined.barrier(me.world)


def large(me: Rank):
    """More than all blocks together, several times over; and one message of that size."""
    parts = [values(rank, "float32", 2_500_003) for rank in range(me.size)]
    same(me.all_reduce(parts[me.rank]), expected(parts, "float32", "sum"))
    same(me.all_gather(parts[me.rank]), np.stack(parts))
    same(me.reduce_scatter(np.stack([parts[me.rank]] * me.size)), expected(parts, "float32", "sum"))
    other = 1 - me.rank
    for _ in range(3):
        me.send(parts[me.rank], other)
        same(me.receive(parts[0].nbytes, other).view(np.float32), parts[other])


def halves(me: Rank):
    """Every fp16 pattern survives, sums round to nearest even, NaN and infinity come through."""
    patterns = np.arange(65536, dtype=np.uint32).astype(np.uint16).view(np.float16)
    negative_zero = np.full(65536, -0.0, np.float16)
    got = me.all_reduce(patterns if me.rank == 0 else negative_zero)
    nan = np.isnan(patterns)
    assert np.isnan(got[nan]).all()
    same(got[~nan], patterns[~nan])
    shuffled = np.random.default_rng(0).permutation(patterns)
    with np.errstate(all="ignore"):
        want = (patterns.astype(np.float32) + shuffled.astype(np.float32)).astype(np.float16)
        highest = np.maximum(patterns, shuffled)
    got = me.all_reduce(patterns if me.rank == 0 else shuffled)
    same(np.isnan(got), np.isnan(want))
    same(got[~np.isnan(want)], want[~np.isnan(want)])
    same(np.isnan(me.all_reduce(patterns if me.rank == 0 else shuffled, op="max")), np.isnan(highest))
    odd = np.array([np.nan, np.inf, -np.inf, 3e38], np.float32)
    bf16 = me.all_reduce((odd.view(np.uint32) >> 16).astype(np.uint16), dtype="bfloat16")
    wide = (bf16.astype(np.uint32) << 16).view(np.float32)
    assert np.isnan(wide[0]) and wide[1] == np.inf and wide[2] == -np.inf and wide[3] == np.inf


def subgroups(me: Rank):
    """Groups that overlap, used in turn at different paces, share the blocks without mixing their data."""
    half = me.size // 2
    rows = me.group("row", tuple(range(half)) if me.rank < half else tuple(range(half, me.size)))
    columns = me.group("column", (me.rank % half, me.rank % half + half))
    random = np.random.default_rng(me.rank)
    for turn in range(120 if me.size == 4 else 50):
        if random.random() < 0.2:
            time.sleep(random.random() * 0.004)
        for channel in (rows, columns, me.world) if turn % 5 == 0 else (rows, rows, columns):
            size = (17, 9000, 30_000)[turn % 3]
            parts = [values((turn, rank), "float32", size) for rank in channel.ranks]
            mine = parts[channel.ranks.index(me.rank)]
            if turn % 2:
                same(me.all_reduce(mine, channel), expected(parts, "float32", "sum"))
            else:
                same(me.all_gather(mine, channel), np.stack(parts))


def stopped_reader(me: Rank):
    """Rank 1 is stopped between its arrival and its reading: rank 0 must not write over what rank 1 is to read."""
    first = me.group("first", (0, 1))
    second = me.group("second", (0, 2))
    pid = int(me.all_gather(np.array([os.getpid()]))[1, 0])
    if me.rank == 1:
        same(me.all_gather(np.full(1000, 1, np.int32), first)[0], np.full(1000, 7, np.int32))
        return
    if me.rank == 0:
        time.sleep(0.3)                     # rank 1 sleeps in its all_gather by now
        os.kill(pid, signal.SIGSTOP)
        me.all_gather(np.full(1000, 7, np.int32), first)
        threading.Timer(0.3, os.kill, (pid, signal.SIGCONT)).start()
    for turn in range(6):
        assert (me.all_gather(np.full(1000, turn, np.int32), second) == turn).all()


def quick_steps(me: Rank):
    """A lost wake-up would cost a slice of 0.1 s each time: the results would be right, the time would not."""
    started = time.monotonic()
    for _ in range(200):
        me.joined.barrier(me.world)
        me.send(np.zeros(1, np.uint8), (me.rank + 1) % me.size)
        me.receive(1, (me.rank - 1) % me.size)
    assert time.monotonic() - started < 10


def one_forward_one_backward(me: Rank):
    """The message pattern of the 1F1B schedule, plus: everything sent before anything is received."""
    batches, size = 12, 200_000
    first, last = me.rank == 0, me.rank == me.size - 1
    before, after = me.rank - 1, me.rank + 1

    def forward(batch):
        got = np.full(size, batch, np.uint8) if first else me.receive(size, before)
        assert (got == batch + me.rank).all()
        if not last:
            me.send(got + np.uint8(1), after)

    def backward(batch):
        got = np.full(size, batch + 100, np.uint8) if last else me.receive(size, after)
        assert (got == batch + 100 + me.size - 1 - me.rank).all()
        if not first:
            me.send(got + np.uint8(1), before)

    warmup = min(batches, me.size - 1 - me.rank)
    for batch in range(warmup):
        forward(batch)
    for batch in range(batches - warmup):
        forward(batch + warmup)
        backward(batch)
    for batch in range(batches - warmup, batches):
        backward(batch)
    for other in range(me.size):
        for number in range(6):
            me.send(np.full(1 << 20, 10 * me.rank + number, np.uint8), other)
    for other in range(me.size):
        for number in range(6):
            assert (me.receive(1 << 20, other) == 10 * other + number).all()


def random_messages(me: Rank):
    """Random sizes to everybody under three tags, received in another order than sent; order holds within a tag."""
    def size_of(source, target, tag, number):
        return int(np.random.default_rng((source, target, tag, number)).integers(0, 4) ** 9 * 3)

    for turn in range(6):
        for number in range(5):
            for target in range(me.size):
                for tag in range(3):
                    content = (31 * me.rank + 7 * target + 3 * tag + number + turn) % 256
                    me.send(np.full(size_of(me.rank, target, tag, number), content, np.uint8), target, tag)
        for tag in (2, 0, 1):
            awaited = [(source, number, np.empty(size_of(source, me.rank, tag, number), np.uint8))
                       for source in range(me.size) for number in range(5)]
            posted = [me.post(buffer, source, tag) for source, _, buffer in awaited]
            for receive, (source, number, buffer) in zip(reversed(posted), reversed(awaited), strict=True):
                me.joined.finish_receive(receive)
                assert (buffer == (31 * source + 7 * me.rank + 3 * tag + number + turn) % 256).all()


def endless(me: Rank):
    """All-reduces until stopped; rank 2 kills itself in the middle of one, from a second thread."""
    if me.rank == 2:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGKILL)).start()
    array = np.ones(1_000_000, np.float32)
    while True:
        me.all_reduce(array)


def exits_in_ring(me: Rank):
    """Rank 2 fails with the hard exit of config/errors.py; rank 1 waits for it, rank 0 only for rank 1."""
    if me.rank == 2:
        time.sleep(0.3)
        os._exit(1)
    me.receive(8, me.rank + 1)


def leaves(me: Rank):
    """Rank 1 ends well after its last message; that one still arrives, the next wait fails."""
    if me.rank == 1:
        me.send(np.ones(8, np.uint8), 0)
        return
    assert me.receive(8, 1).sum() == 8
    me.joined.barrier(me.world)


def absent(me: Rank):
    """Rank 1 is alive but does not come."""
    if me.rank == 1:
        time.sleep(4)
    else:
        me.all_gather(np.ones(8, np.uint8))


def different_sizes(me: Rank):
    me.all_reduce(np.ones(100_000 if me.rank == 1 else 10, np.float32))


def different_operations(me: Rank):
    me.joined.barrier(me.world) if me.rank == 1 else me.all_reduce(np.ones(10, np.float32), op="max")


def message_size(me: Rank):
    if me.rank == 1:
        me.send(np.ones(100, np.uint8), 0)
        time.sleep(1)
    else:
        me.receive(64, 1)


def refused(me: Rank):
    assert me.joined == "rank 1: switched off by MINDSPEED_LLM_SHARED_MEMORY=0", me.joined


def two_hosts(me: Rank):
    assert me.joined.ranks == ((0, 1) if me.rank < 2 else (2, 3))
    assert me.joined.reaches(me.joined.ranks) and not me.joined.reaches((0, 2)) and not me.joined.reaches((1, 2, 3))
    pair = me.group("pair", me.joined.ranks)
    same(me.all_gather(np.array([me.rank]), pair)[:, 0], np.array(me.joined.ranks))


def fork(size: int, directory: Path) -> int:
    """Returns in the ranks only, each with its number; this process waits for them and ends."""
    ranks = {}
    for rank in range(size):
        process = os.fork()
        if process == 0:
            error = os.open(directory / f"error-{rank}", os.O_WRONLY | os.O_CREAT)
            os.dup2(error, 2)
            return rank
        ranks[process] = rank
    while ranks:
        process, status = os.wait()
        print(ranks.pop(process), os.waitstatus_to_exitcode(status), time.monotonic(), flush=True)
    os._exit(0)


def main():
    scenario, size, directory = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    rank = fork(size, directory)
    if scenario == "refused" and rank == 1:
        os.environ["MINDSPEED_LLM_SHARED_MEMORY"] = "0"
    if scenario == "two_hosts":
        rendezvous.host_token = lambda: f"host {rank // 2}"
    assert message_tag("a", (0, 1)) != message_tag("b", (0, 1))
    me = Rank(rank, size, directory)
    assert "mindspore" not in sys.modules
    globals()[scenario](me)


if __name__ == "__main__":
    main()
