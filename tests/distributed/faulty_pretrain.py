"""pretrain_gpt.py with a fault on one rank, for test_failures.py.

FAULT_RANK is the rank; FAULT says where it raises: `data` (the rank reads the data set FAULT_DATA instead), `forward`
or `backward` (inside the third training step).
"""

import os
import sys

from mindspeed_llm.config.errors import run_main


def _raising(function, calls: int):
    """`function` until its call number `calls`, which raises instead."""
    left = calls

    def wrapped(*arguments, **options):
        nonlocal left
        left -= 1
        if left == 0:
            raise RuntimeError("planted fault")
        return function(*arguments, **options)
    return wrapped


def plant(place: str) -> None:
    """Make this process fail at `place`; a step has 4 layers to go through forward, and 24 weight gradients."""
    if place == "data":
        sys.argv[sys.argv.index("--data-path") + 1] = os.environ["FAULT_DATA"]
    elif place == "forward":
        from mindspeed_llm.core.transformer.layer import MLP
        MLP.__call__ = _raising(MLP.__call__, 10)
    else:
        from mindspeed_llm.core.tensor_parallel import layers
        layers.accumulate_grad = _raising(layers.accumulate_grad, 60)


def main() -> None:
    """Plant the fault where it belongs and train."""
    from pretrain_gpt import main as pretrain

    if os.environ.get("RANK_ID") == os.environ["FAULT_RANK"] and os.environ.get("MS_ROLE") == "MS_WORKER":
        plant(os.environ["FAULT"])
    pretrain()


if __name__ == "__main__":
    run_main(main)
