#!/usr/bin/env bash
# Set up the environment and run the tests; further words go to pytest: bash tests/run.sh tests/core -k golden
# bash tests/run.sh --full runs the long parity table too.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash examples/mindspore/glm4/setup_env.sh --dev
source examples/mindspore/glm4/common.sh
exec python -m pytest "$@"
