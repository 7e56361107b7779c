"""`python -m mindspeed_llm.families MODEL`: the flags of a model's shape, one word a line, for scripts."""

import sys

from mindspeed_llm.config.errors import run_main
from mindspeed_llm.families import model_arguments


def main() -> None:
    """Print them."""
    print("\n".join(model_arguments(sys.argv[1])))


if __name__ == "__main__":
    run_main(main)
