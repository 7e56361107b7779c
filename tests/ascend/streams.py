"""Point-to-point messages on Ascend, played through on streams: what `ops.communication.batch_isend_irecv` was asked for
on every rank, under the rules of HCCL.

Rules: the host runs ahead; a rank's compute stream works through what the host gave it in order. A batch is put on the
stream of its communicator, where one batch runs at a time, in order, and starts when the compute stream has reached the
place where it was posted. Sends are a rendezvous without a buffer: a message passes when the batch of its sender and
the batch of its receiver both run; messages of one batch do not wait for each other. `CommHandle.wait` holds up the
compute stream until the batch has ended. A batch may name a peer once as a receiver and once as a sender, by the
constraints of HcclBatchSendRecv in CANN's documentation.

`Recording` takes the calls of one rank, one rank after the other: what a schedule posts must not depend on values.
`play` then runs all ranks against each other.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from types import SimpleNamespace


class Refused(Exception):
    """HCCL would refuse a batch."""


class Deadlock(Exception):
    """No stream can go on."""


@dataclass
class Message:
    """One end of a message: the global rank at the other end, and the tensor sent or received into."""

    is_send: bool
    peer: int
    tensor: object


@dataclass(eq=False)
class Batch:
    """A call of `batch_isend_irecv` by `rank` on `communicator`."""

    rank: int
    communicator: str
    messages: list[Message]
    waited: bool = False  # by the host's program
    posted_at: float | None = None  # when the compute stream came to it
    passed: dict[int, float] = field(default_factory=dict)  # message index -> when

    @property
    def ended(self) -> bool:
        """All messages have passed."""
        return len(self.passed) == len(self.messages)

    def ends(self) -> list[tuple[str, int]]:
        """(send or recv, peer) of every message."""
        return [("send" if message.is_send else "recv", message.peer) for message in self.messages]


class Recording:
    """The program of one rank: ("compute", units), ("post", batch) and ("wait", batch) in order."""

    def __init__(self, rank: int) -> None:
        self.rank, self.program = rank, []

    def compute(self, units: float) -> None:
        """Work on the compute stream."""
        self.program.append(("compute", units))

    def batch_isend_irecv(self, p2p_op_list) -> list:
        """Stands for `ops.communication.batch_isend_irecv`."""
        communicators = {op.group for op in p2p_op_list}
        if len(communicators) != 1:
            raise Refused(f"a batch over several groups: {communicators}")
        named = [(op.op, op.peer) for op in p2p_op_list]
        repeated = {entry for entry in named if named.count(entry) > 1}
        if repeated:
            raise Refused(f"rank {self.rank}: more than one tensor in a batch for {sorted(repeated)}")
        batch = Batch(self.rank, communicators.pop(),
                      [Message(op.op == "isend", op.peer, op.tensor) for op in p2p_op_list])
        self.program.append(("post", batch))

        def wait():
            batch.waited = True
            self.program.append(("wait", batch))
        return [SimpleNamespace(wait=wait)]

    @property
    def batches(self) -> list[Batch]:
        """Everything posted."""
        return [what for kind, what in self.program if kind == "post"]


def play(recordings: list[Recording], latency: float = 0.0) -> tuple[float, dict[int, object]]:
    """Run all ranks; a message takes `latency`. Returns the time at which the last rank ends, and for every tensor
    received into, by `id`, the tensor that was sent. Raises Deadlock, or Refused when the two ends of a message differ.
    """
    ranks = {recording.rank: SimpleNamespace(todo=list(reversed(recording.program)), time=0.0)
             for recording in recordings}
    queues: dict[tuple[str, int], list[Batch]] = defaultdict(list)
    free_at: dict[tuple[str, int], float] = defaultdict(float)
    ended_at: dict[int, float] = {}
    delivered: dict[int, object] = {}

    for recording in recordings:
        for batch in recording.batches:
            batch.passed = {}

    def advance(state) -> bool:
        """Work through a rank's program up to a wait for a batch that has not ended."""
        moved = False
        while state.todo:
            kind, what = state.todo[-1]
            if kind == "compute":
                state.time += what
            elif kind == "post":
                what.posted_at = state.time
                queues[what.communicator, what.rank].append(what)
            elif what.ended:
                state.time = max(state.time, ended_at[id(what)])
            else:
                break
            state.todo.pop()
            moved = True
        return moved

    def running(communicator: str, rank: int) -> tuple[Batch | None, float]:
        queue = queues[communicator, rank]
        return (queue[0], max(queue[0].posted_at, free_at[communicator, rank])) if queue else (None, 0.0)

    def exchange(communicator: str, rank: int) -> bool:
        """Let pass what can of the batch that runs on one communicator's stream of one rank."""
        batch, since = running(communicator, rank)
        moved = False
        for index, message in enumerate(batch.messages if batch else ()):
            other, other_since = running(communicator, message.peer)
            if index in batch.passed or other is None:
                continue
            for other_index, end in enumerate(other.messages):
                if end.peer == rank and end.is_send != message.is_send and other_index not in other.passed:
                    _check_ends(communicator, rank, message, end)
                    batch.passed[index] = other.passed[other_index] = max(since, other_since) + latency
                    receiver, sender = (end, message) if message.is_send else (message, end)
                    delivered[id(receiver.tensor)] = sender.tensor
                    moved = True
        return moved

    def retire(communicator: str, rank: int) -> None:
        queue = queues[communicator, rank]
        while queue and queue[0].ended:
            batch = queue.pop(0)
            free_at[communicator, rank] = ended_at[id(batch)] = max(batch.passed.values())

    while True:
        moved = False
        for state in ranks.values():
            moved |= advance(state)
        for communicator, rank in list(queues):
            moved |= exchange(communicator, rank)
        for communicator, rank in list(queues):
            retire(communicator, rank)
        if not moved:
            break
    stuck = [batch for queue in queues.values() for batch in queue[:1]]
    if stuck or any(state.todo for state in ranks.values()):
        raise Deadlock("; ".join(f"rank {batch.rank} in {batch.ends()}" for batch in stuck)
                       or "a rank waits for a batch that was never posted")
    return max(state.time for state in ranks.values()), delivered


def _check_ends(communicator: str, rank: int, message: Message, end: Message) -> None:
    ours, theirs = ((tuple(m.tensor.shape), m.tensor.dtype) for m in (message, end))
    if ours != theirs:
        raise Refused(f"{communicator}: rank {rank} and rank {message.peer} disagree over a message: {ours}, {theirs}")
