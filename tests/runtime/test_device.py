"""What `runtime.device` does in MindSpore's place."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindspeed_llm.runtime import device

ODD = np.float32([0, -0.0, np.inf, -np.inf, np.nan, 65504, 65520, 1e-8, 6e-8, 3.4e38, 1e-40, 1.00390625, 1.01171875])
TYPES = (ms.float32, ms.bfloat16, ms.float16)


@pytest.fixture(scope="module")
def values():
    """fp32 `(2, 3, n)`: numbers of every exponent, and those that round or end in a way of their own."""
    device.setup()
    bits = np.random.default_rng(5).integers(0, 2**32, 6000 - len(ODD), dtype=np.uint64).astype(np.uint32)
    return np.concatenate([ODD, bits.view(np.float32)]).reshape(2, 3, -1)


@pytest.mark.parametrize("wanted", TYPES)
@pytest.mark.parametrize("given", TYPES)
def test_cast_has_the_bits_of_mindspores_own(values, given, wanted):
    tensor = Tensor(values).astype(given)
    for one in (tensor, tensor.transpose(2, 0, 1)):
        found, expected = device.cast(one, wanted), one.astype(wanted)
        assert found.dtype == wanted and found.shape == one.shape
        np.testing.assert_array_equal(found.astype(ms.float32).asnumpy(), expected.astype(ms.float32).asnumpy())


def test_cast_takes_whole_numbers_and_truth(values):
    whole = Tensor(np.arange(-3, 4))
    assert device.cast(whole, ms.int32).asnumpy().tolist() == [-3, -2, -1, 0, 1, 2, 3]
    assert device.cast(whole > 0, ms.float32).asnumpy().tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert device.cast(Tensor(np.float16(3)), ms.float32).shape == ()
