"""Every pipeline schedule and ring attention on HCCL: no deadlock, no batch that HCCL refuses, no communicator but the
group's own, nothing used before it has arrived, and no time lost to a wait.

The project's own code runs, one rank after the other, over its HCCL engine, whose batches `streams` records and then
plays through. In the pipelines, stand-ins take the places of tensors and of the tape.
"""

from dataclasses import dataclass
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from streams import Deadlock, Recording, Refused, play

from mindspeed_llm import kernels
from mindspeed_llm.core.context_parallel.ring import _start_shift, ring_attention
from mindspeed_llm.core.pipeline_parallel.schedules import forward_backward, forward_only
from mindspeed_llm.core.pipeline_parallel.stage import StageProgram
from mindspeed_llm.runtime import autograd, device
from mindspeed_llm.runtime.collectives import Group, finish_exchange, hccl

FORWARD, BACKWARD = 1.0, 2.0


@dataclass(eq=False)
class Thing:
    """Stands for a tensor: `what` is (kind, stage, micro-batch), unknown for one that is received into."""

    shape: tuple
    dtype: object = ms.bfloat16
    what: tuple | None = None
    source: "Thing | None" = None  # of a leaf: what it was cut from
    grad: "Thing | None" = None

    def contiguous(self):
        return self


class Pipeline:
    """All ranks of a pipeline, played one after the other. Global ranks are spread out: place r is rank 3 r + `offset`.

    `inside(rank)` is called in every pass of the rank at this place: what else it does there.
    """

    def __init__(self, ranks, chunks, microbatches, monkeypatch, offset=1, inside=lambda rank: None):
        self.ranks, self.chunks, self.microbatches, self.last = ranks, chunks, microbatches, ranks * chunks - 1
        self.members, self.inside = tuple(3 * rank + offset for rank in range(ranks)), inside
        self.recordings, self.done, self.expected, self.leaves = [], [], [], {}
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(hccl, "mint", SimpleNamespace(empty=lambda shape, dtype: Thing(tuple(shape), dtype)))
        monkeypatch.setattr(autograd, "leaf", lambda tensor: Thing(tensor.shape, tensor.dtype, source=tensor))
        monkeypatch.setattr(autograd, "grad_of", lambda leaf: leaf.grad)
        monkeypatch.setattr(autograd, "backward", lambda outputs, grads: self._backward(*outputs, *grads))

    def record(self, body):
        """`body(programs, group)` on every rank."""
        for rank in range(self.ranks):
            recording = _record(Recording(self.members[rank]), self._monkeypatch)
            self.recordings.append(recording)
            losses = body([self._program(chunk * self.ranks + rank) for chunk in range(self.chunks)],
                          Group("pp", self.members, rank, hccl))
            assert [loss.what[2] for loss in losses] == (list(range(self.microbatches)) if rank == self.ranks - 1
                                                         else [])
            assert all(batch.waited for batch in recording.batches), "a handle was dropped"

    def run(self, body):
        """`record`, then all ranks against each other. Returns the time of the last."""
        self.record(body)
        communicators = {batch.communicator for recording in self.recordings for batch in recording.batches}
        assert communicators == {"pp"}, "not the group's own communicator"
        time, delivered = play(self.recordings)
        self.check(delivered)
        return time

    def check(self, delivered):
        """Every task worked on what it was meant for."""
        for thing, expected in self.expected:
            assert delivered[id(thing)].what == expected

    def _program(self, stage):
        def forward(number, received):
            if stage:
                self._arrived(received.source or received, ("activation", stage - 1, number))
                self.leaves[stage, number] = received
            self.recordings[-1].compute(FORWARD)
            self.inside(stage % self.ranks)
            self.done.append((True, stage, number))
            return Thing(() if stage == self.last else _shape(number), what=("activation", stage, number))
        return StageProgram(forward, _shape, ms.bfloat16)

    def _backward(self, output, grad):
        _, stage, number = output.what
        if stage < self.last:
            self._arrived(grad, ("gradient", stage + 1, number))
        self.recordings[-1].compute(BACKWARD)
        self.inside(stage % self.ranks)
        self.done.append((False, stage, number))
        if stage:
            self.leaves[stage, number].grad = Thing(_shape(number), what=("gradient", stage, number))

    def _arrived(self, thing, expected):
        """`thing` is used now: its batch must have been waited for. That it is the right one is seen after `play`."""
        (batch,) = [batch for batch in self.recordings[-1].batches
                    if any(message.tensor is thing and not message.is_send for message in batch.messages)]
        assert batch.waited, f"{expected} is used before it has arrived"
        self.expected.append((thing, expected))


def _shape(number):
    return 10 + number, 2


def _record(recording, monkeypatch):
    monkeypatch.setattr(hccl, "dist", SimpleNamespace(
        P2POp=lambda op, tensor, peer, group: SimpleNamespace(op=op, tensor=tensor, peer=peer, group=group),
        batch_isend_irecv=recording.batch_isend_irecv))
    return recording


def everything(pipeline, passes=(True, False)):
    """What all stages have to do."""
    return {(forward, stage, number) for forward in passes for stage in range(pipeline.last + 1)
            for number in range(pipeline.microbatches)}


def lone_waits_for_sends(program):
    """Batches without a receive that computation waits for, though it needs no later batch on the same stream."""
    for (kind, what), following in zip(program, program[1:]):
        if kind == "wait" and all(message.is_send for message in what.messages) and following[0] == "compute":
            yield what


@pytest.fixture
def counts(pytestconfig):
    """`counts(ranks)`: numbers of micro-batches; all up to 16 with --full, else fewest and those about whole rounds."""
    def some(ranks):
        return sorted({1, 2} | {rounds * ranks + more for rounds in (1, 2) for more in (-1, 0, 1)} - {0})
    return (lambda ranks: range(1, 17)) if pytestconfig.getoption("--full") else some


@pytest.mark.parametrize("chunks", [1, 2, 3])
@pytest.mark.parametrize("ranks", range(2, 9))
def test_training(ranks, chunks, counts, monkeypatch):
    for microbatches in counts(ranks):
        pipeline = Pipeline(ranks, chunks, microbatches, monkeypatch)
        time = pipeline.run(lambda programs, pp, m=microbatches: forward_backward(programs, m, pp, Thing(())))
        assert sorted(pipeline.done) == sorted(everything(pipeline))
        if microbatches % ranks == 0 or chunks == 1:
            # The bubble of the papers: nothing is lost to a wait.
            assert time == (FORWARD + BACKWARD) * (chunks * microbatches + ranks - 1)
        for recording in pipeline.recordings:
            assert not list(lone_waits_for_sends(recording.program)), "a send holds up the computation"


@pytest.mark.parametrize("chunks", [1, 2, 3])
@pytest.mark.parametrize("ranks", range(2, 9))
def test_forward_only(ranks, chunks, counts, monkeypatch):
    for microbatches in counts(ranks):
        pipeline = Pipeline(ranks, chunks, microbatches, monkeypatch)
        pipeline.run(lambda programs, pp, m=microbatches: forward_only(programs, m, pp))
        assert sorted(pipeline.done) == sorted(everything(pipeline, (True,)))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("size", [2, 3, 4, 8, *(pytest.param(size, marks=pytest.mark.full) for size in (5, 6, 7))])
def test_ring(size, packed, monkeypatch):
    """Forward and backward with real tensors; what is received stays zero."""
    device.setup()
    kernels.setup()
    monkeypatch.setattr(hccl, "mint", SimpleNamespace(
        empty=lambda shape, dtype: Tensor(np.zeros(shape, np.float32)).astype(dtype)))
    members, recordings = tuple(2 * rank + 1 for rank in range(size)), []
    bounds = np.array([0, 3, 4 * size], np.int32) if packed else None
    for rank in range(size):
        recordings.append(_record(Recording(members[rank]), monkeypatch))
        q, k, v = (autograd.leaf(Tensor(np.ones((4, 1, heads, 8), np.float32)).astype(ms.bfloat16))
                   for heads in (2, 1, 1))
        out = ring_attention(q, k, v, 0.5, Group("cp", members, rank, hccl), bounds)
        autograd.backward((out,), (out,))
        batches = recordings[-1].batches
        # Forward moves the keys on size - 1 times, backward again, with the gradients all the way round.
        assert len(batches) == 2 * (size - 1) + size
        assert all(batch.waited for batch in batches) and {batch.communicator for batch in batches} == {"cp"}
    play(recordings)


@pytest.mark.parametrize("chunks", [1, 2])
def test_rings_inside_pipelines(chunks, monkeypatch):
    """Three pipelines of four, whose ranks of one stage form rings: two communicators on every rank."""
    pipelines = []
    for place in range(3):
        def turn(rank, place=place):
            ring = Group(f"cp{rank}", tuple(3 * rank + member for member in range(3)), place, hccl)
            for _ in range(2):
                finish_exchange(_start_shift(Thing((4, 4)), ring))
        pipelines.append(Pipeline(4, chunks, 6, monkeypatch, place, turn))
        pipelines[-1].record(lambda programs, pp: forward_backward(programs, 6, pp, Thing(())))
    time, delivered = play([recording for pipeline in pipelines for recording in pipeline.recordings], latency=0.1)
    for pipeline in pipelines:
        pipeline.check(delivered)
    assert time > (FORWARD + BACKWARD) * (6 * chunks + 3)


def ask(recording, *messages):
    """Post (op, peer) or (op, peer, shape) in one batch; returns its handle."""
    named = [SimpleNamespace(op=op, peer=peer, group="g", tensor=Thing(*shape or ((1,),)))
             for op, peer, *shape in messages]
    return recording.batch_isend_irecv(named)[0]


def test_two_lone_sends_to_each_other_are_a_deadlock():
    pair = [Recording(0), Recording(1)]
    for recording in pair:
        ask(recording, ("isend", 1 - recording.rank))
        ask(recording, ("irecv", 1 - recording.rank)).wait()
    with pytest.raises(Deadlock, match=r"rank 0 in \[\('send', 1\)\]; rank 1 in"):
        play(pair)


def test_a_paired_batch_is_none():
    pair = [Recording(0), Recording(1)]
    for recording in pair:
        recording.compute(1 + recording.rank)
        ask(recording, ("isend", 1 - recording.rank), ("irecv", 1 - recording.rank)).wait()
        recording.compute(1)
    assert play(pair)[0] == 3
    assert play(pair, latency=0.5)[0] == 3.5


def test_a_receive_behind_a_wait_is_a_deadlock():
    """The compute stream never comes to the second batch."""
    pair = [Recording(0), Recording(1)]
    for recording in pair:
        ask(recording, ("irecv", 1 - recording.rank)).wait()
        ask(recording, ("isend", 1 - recording.rank))
    with pytest.raises(Deadlock):
        play(pair)


def test_ends_that_differ_and_two_tensors_for_one_peer_are_refused():
    with pytest.raises(Refused, match="more than one tensor"):
        ask(Recording(0), ("isend", 1), ("irecv", 1), ("isend", 1))
    pair = [Recording(0), Recording(1)]
    ask(pair[0], ("isend", 1, (2, 3)))
    ask(pair[1], ("irecv", 0, (3, 2)))
    with pytest.raises(Refused, match="disagree"):
        play(pair)


def test_a_message_without_a_receiver_is_a_deadlock():
    pair = [Recording(0), Recording(1)]
    ask(pair[0], ("isend", 1))
    with pytest.raises(Deadlock):
        play(pair)
