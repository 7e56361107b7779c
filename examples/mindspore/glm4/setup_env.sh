#!/usr/bin/env bash
# Make the Python environment: .venv in the checkout (or the active one), the pinned requirements, the compiled kernels.
# Silent and instant when everything is there. --dev adds what the tests need.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

requirements=requirements.txt
[[ "${1:-}" != --dev ]] || requirements=requirements-dev.txt

find_python() {
    local candidate
    for candidate in python3.11 python3 python; do
        if command -v "$candidate" >/dev/null &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "error: Python 3.11 was not found on PATH: install it (on Debian 12: apt-get install python3 python3-venv)" >&2
    return 1
}

if [[ -z "${VIRTUAL_ENV:-}" ]]; then
    python=$(find_python)
    echo "making $REPO_DIR/.venv"
    if ! "$python" -m venv "$REPO_DIR/.venv"; then
        rm -rf "$REPO_DIR/.venv"
        echo "error: '$python -m venv' failed (on Debian 12: apt-get install python3-venv)" >&2
        exit 1
    fi
    export VIRTUAL_ENV="$REPO_DIR/.venv" PATH="$REPO_DIR/.venv/bin:$PATH"
fi

# One mark per set of requirements: the environment is up to date when its mark is.
mark="$VIRTUAL_ENV/.mindspeed_llm-${requirements%.txt}"
wanted=$(cat "$REPO_DIR"/requirements*.txt | sha256sum)
if [[ "$(cat "$mark" 2>/dev/null || true)" != "$wanted" ]]; then
    echo "installing $requirements (a few minutes on a new machine)"
    python -m pip install --quiet --disable-pip-version-check -r "$REPO_DIR/$requirements"
    echo "$wanted" >"$mark"
fi

if on_cpu; then
    python -m mindspeed_llm.kernels.cpu.build --quiet
    python -m mindspeed_llm.runtime.shared_memory.build
fi
