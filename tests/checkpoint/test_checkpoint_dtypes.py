"""Casts between fp32, bf16 and fp16 against their definitions."""

import numpy as np
import pytest

from mindspeed_llm.checkpoint.dtypes import StoredTensor, cast
from mindspeed_llm.config.errors import UserError


def test_bf16_rounds_to_nearest_even_and_keeps_special_values() -> None:
    bits = np.array([0x3F800000, 0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x7F800000, 0xFF800000,
                     0x7FFFFFFF, 0xFF800001], np.uint32)
    out = cast(bits.view(np.float32), "fp32", "bf16")
    # Ties go to the even mantissa; the largest fp32 rounds to infinity; NaNs stay NaNs of the same sign.
    assert [hex(v) for v in out[:7]] == ["0x3f80", "0x3f80", "0x3f82", "0x3f81", "0x7f80", "0x7f80", "0xff80"]
    assert np.isnan(cast(out[7:], "bf16", "fp32")).all() and out[8] >> 15 == 1


def test_bf16_survives_fp32_and_back() -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    finite = every[(every & 0x7F80) != 0x7F80]
    assert (cast(cast(finite, "bf16", "fp32"), "fp32", "bf16") == finite).all()


def test_cast_to_fp16_refuses_overflow_only() -> None:
    with pytest.raises(UserError, match="fp16"):
        cast(np.array([1e6], np.float32), "fp32", "fp16")
    assert np.isinf(cast(np.array([np.inf], np.float32), "fp32", "fp16")).all()


def test_a_stored_tensor_checks_its_tag() -> None:
    with pytest.raises(ValueError, match="bf16"):
        StoredTensor(np.zeros(3, np.float32), "bf16")
