"""The HCCL engine: every call against signature and documentation of `ops.communication`, answered by a stand-in that
knows what all ranks hold and, for an asynchronous call, delivers only when it is waited for.
"""

import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from contract import Recorder, called_names, names
from emulator import array, require, tensor
from mindspore import Tensor, communication, mint
from mindspore.ops import communication as dist
from mindspore.ops.function.comm_func import CommHandle

from mindspeed_llm.runtime import collectives, device
from mindspeed_llm.runtime.collectives import Group, hccl, mccl

GROUP = Group("tp-3-5-6", (3, 5, 6), 1)
UNTOUCHED = -77.0


class World:
    """What the ranks of GROUP do: member m holds this rank's tensor plus 10 * (m - own place)."""

    not_in_place = {"all_reduce", "all_gather_into_tensor", "reduce_scatter_tensor"}

    def __init__(self):
        self.deliver_late = 0  # asynchronous calls that have not been waited for

    def held_by(self, member, mine):
        return array(mine) + 10 * (member - GROUP.rank)

    def result(self, values, mine, group, async_op):
        """Of a function that is not in place: (tensor, handle)."""
        require(mine.is_contiguous(), ValueError, "contiguous")
        target = tensor(np.full(values.shape, UNTOUCHED), mine.dtype)
        return target, self.answer(target, values, group, async_op)

    def answer(self, target, values, group, async_op):
        require(group == GROUP.name, ValueError, f"group {group}")
        require(target.shape == values.shape, ValueError, f"output {target.shape}, expected {values.shape}")
        return self._later([(target, values)]) if async_op else self._write(target, values)

    def set_comm_ops_inplace(self, is_enable, func_list=None):
        require(not is_enable and set(func_list) == self.not_in_place, ValueError, f"{func_list}")

    def all_reduce(self, tensor, op="sum", group=None, async_op=False):
        require(op in ("sum", "max", "min", "prod", "avg"), TypeError, f"op {op}")
        reduce = {"sum": np.sum, "max": np.max}[op]
        held = np.stack([self.held_by(member, tensor) for member in range(GROUP.size)])
        return self.result(reduce(held, axis=0), tensor, group, async_op)

    def all_gather_into_tensor(self, output_tensor, input_tensor, group=None, async_op=False):
        require(output_tensor is None and input_tensor.ndim > 0, ValueError, "not in place; an axis to gather along")
        values = np.concatenate([self.held_by(member, input_tensor) for member in range(GROUP.size)])
        return self.result(values, input_tensor, group, async_op)

    def reduce_scatter_tensor(self, output, input, op="sum", group=None, async_op=False):
        require(output is None and input.shape[0] % GROUP.size == 0, ValueError, "not in place; shapes")
        total = sum(self.held_by(member, input) for member in range(GROUP.size))
        return self.result(np.split(total, GROUP.size)[GROUP.rank], input, group, async_op)

    def broadcast(self, tensor, src, group=None, async_op=False):
        require(src in GROUP.ranks, ValueError, f"src {src} is a global rank")
        return self.answer(tensor, self.held_by(GROUP.ranks.index(src), tensor), group, async_op)

    def all_to_all(self, output_tensor_list, input_tensor_list, group=None, async_op=False):
        mine = input_tensor_list[GROUP.rank]
        for member, output in enumerate(output_tensor_list):
            require(output.dtype == mine.dtype, TypeError, "dtypes")
            self.answer(output, self.held_by(member, mine), group, False)

    def batch_isend_irecv(self, p2p_op_list):
        require(p2p_op_list and all(isinstance(op, dist.P2POp) for op in p2p_op_list), TypeError, "list of P2POp")
        require({op.group for op in p2p_op_list} == {GROUP.name}, TypeError, "one group")
        require(all(op.peer in GROUP.ranks for op in p2p_op_list), ValueError, "peers are global ranks")
        return [self._later([(op.tensor, np.full(op.tensor.shape, float(op.peer)))
                             for op in p2p_op_list if op.op == "irecv"])]

    def barrier(self, group=None, async_op=False, device_ids=None):
        require(group == hccl.WORLD, ValueError, f"group {group}")

    def _later(self, writes):
        self.deliver_late += 1

        def wait():
            for target, values in writes:
                self._write(target, values)
            self.deliver_late -= 1
        return SimpleNamespace(wait=wait)

    @staticmethod
    def _write(target, values):
        target.copy_(tensor(values, target.dtype))


@pytest.fixture
def world(monkeypatch):
    device.setup()
    world, calls = World(), []
    emulators = {f"dist.{name}": getattr(world, name) for name in (
        "all_reduce", "all_gather_into_tensor", "reduce_scatter_tensor", "broadcast", "all_to_all", "batch_isend_irecv",
        "barrier", "set_comm_ops_inplace")}
    emulators |= {"mint.clone": lambda input: tensor(array(input), input.dtype),
                  "mint.empty": lambda *size, dtype: tensor(np.full(size[0], UNTOUCHED), dtype),
                  "communication.init": lambda name: require(name == "hccl", ValueError, name),
                  "communication.get_rank": lambda: 5, "communication.get_group_size": lambda: 8,
                  "communication.create_group": lambda name, ranks: require(type(ranks) is list, TypeError, "a list")}
    for name, real in (("dist", dist), ("mint", mint), ("communication", communication)):
        monkeypatch.setattr(hccl, name, Recorder(real, name, emulators, calls))
    world.calls = calls
    return world


def values(*shape):
    return Tensor(np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape))


@pytest.mark.parametrize("dtype", [ms.float32, ms.bfloat16])
def test_collectives(world, dtype):
    x = values(6, 2).astype(dtype)
    mine = array(x)
    assert np.array_equal(array(hccl.all_reduce(x, GROUP, "sum")), 3 * mine)
    assert np.array_equal(array(hccl.all_reduce(x, GROUP, "max")), mine + 10)
    assert np.array_equal(array(hccl.all_gather(x, GROUP)), np.concatenate((mine - 10, mine, mine + 10)))
    assert np.array_equal(array(hccl.reduce_scatter(x, GROUP)), 3 * mine[2:4])
    assert np.array_equal(array(hccl.broadcast(x, GROUP, 2)), mine + 10)
    parts = hccl.all_to_all(list(x.chunk(3, 0)), GROUP)
    assert [part.dtype for part in parts] == [dtype] * 3
    assert np.array_equal(array(mint.cat(parts, dim=0)), np.concatenate((mine[2:4] - 10, mine[2:4], mine[2:4] + 10)))
    assert np.array_equal(array(x), mine), "the caller's tensor is not changed"
    assert world.deliver_late == 0


def test_gather_of_a_number(world):
    assert array(hccl.all_gather(Tensor(np.float32(4)), GROUP)).tolist() == [-6, 4, 14]


@pytest.mark.parametrize("start, result", [
    (hccl.start_all_reduce, lambda mine: 3 * mine),
    (hccl.start_all_gather, lambda mine: np.concatenate((mine - 10, mine, mine + 10))),
    (hccl.start_reduce_scatter, lambda mine: 3 * mine[2:4]),
])
def test_started_collectives_complete_at_finish(world, start, result):
    x = values(6, 2)
    handle = start(x, GROUP)
    assert world.deliver_late == 1
    assert np.array_equal(array(collectives.finish(handle)), result(array(x)))
    assert world.deliver_late == 0


def test_exchange(world):
    sends = [(values(4, 2), 0), (values(3).astype(ms.bfloat16), 2)]
    handle = hccl.start_exchange(sends, [((2, 2), ms.float32, 2), ((5,), ms.bfloat16, 0)], GROUP)
    assert world.deliver_late == 1
    received = hccl.finish_exchange(handle)
    assert world.deliver_late == 0
    assert [part.dtype for part in received] == [ms.float32, ms.bfloat16]
    assert array(received[0]).tolist() == [[6, 6], [6, 6]] and array(received[1]).tolist() == [3] * 5
    operations = [(arguments["op"], arguments["peer"]) for name, arguments in world.calls if name == "dist.P2POp"]
    assert operations == [("isend", 3), ("isend", 6), ("irecv", 6), ("irecv", 3)]


@pytest.mark.parametrize("sends, receives", [([(values(2), 0)], []), ([], [((2,), ms.float32, 0)])])
def test_exchange_in_one_direction(world, sends, receives):
    assert len(hccl.finish_exchange(hccl.start_exchange(sends, receives, GROUP))) == len(receives)


def test_sent_tensors_live_until_the_end(world):
    handle = hccl.start_exchange([(values(4, 3).swapaxes(0, 1), 0)], [], GROUP)
    sent = [arguments["tensor"] for name, arguments in world.calls if name == "dist.P2POp"]
    assert sent[0].is_contiguous() and any(sent[0] is kept for kept, _ in handle[0])


def test_every_call_has_been_checked(world):
    """Every call of MindSpore in the engine's source, found by parsing it, was made under the recorder."""
    assert hccl.init() == (5, 8)
    hccl.create_group("pair", (3, 5))
    hccl.barrier(Group(hccl.WORLD, tuple(range(8)), 5))
    x = values(3)
    for function in (hccl.all_gather, hccl.reduce_scatter, hccl.start_all_reduce):
        function(x, GROUP)
    hccl.all_reduce(x, GROUP, "sum")
    hccl.broadcast(x, GROUP, 0)
    hccl.all_to_all([x, x, x], GROUP)
    hccl.start_exchange([(x, 0)], [((3,), ms.float32, 0)], GROUP)
    written = called_names(Path(hccl.__file__), {"dist", "mint", "communication"})
    assert written and written <= names(world.calls), written - names(world.calls)


def test_handles_are_waited_for_without_arguments():
    """The stand-in's handle has what MindSpore's has."""
    inspect.signature(CommHandle.wait).bind(None)


def test_engines_have_one_interface():
    """What the package calls of an engine exists in both, with the same parameters in the same order."""
    source = Path(collectives.__file__).read_text(encoding="utf-8")
    used = set(re.findall(r"\bengine\.(\w+)\(", source)) | {"init"}
    assert len(used) > 10
    for name in used:
        parameters = [list(inspect.signature(getattr(engine, name)).parameters) for engine in (hccl, mccl)]
        assert parameters[0] == parameters[1], name
    assert hccl.WORLD == "hccl_world_group"
