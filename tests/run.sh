#!/usr/bin/env bash
# Set up the environment and run the tests; further words go to pytest: bash tests/run.sh tests/core -k golden
# Words of the project's own: --full runs the long tables too. Two processes share the tests (whole jobs, which
# mostly wait, beside the rest; four were no faster on two cores); -n 0 keeps them in one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash examples/mindspore/glm4/setup_env.sh --dev
source examples/mindspore/glm4/common.sh
unset PYTHONDONTWRITEBYTECODE   # dozens of processes would each compile what they import, pytest every test
exec python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
