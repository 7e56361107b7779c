#!/usr/bin/env bash
# Make the Python environment: .venv in the checkout (or the active one), the pinned requirements, the compiled kernels;
# and the names that the MindSpeed-LLM documentation has for two places of the checkout, as links outside version control.
# Silent and instant when everything is there. --dev adds what the tests need.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

requirements=requirements.txt
[[ "${1:-}" != --dev ]] || requirements=requirements-dev.txt

# link NAME PLACE: NAME in the checkout leads to PLACE, unless there is something of that name.
link() {
    [[ -e "$REPO_DIR/$1" || -L "$REPO_DIR/$1" ]] || ln -s "$2" "$REPO_DIR/$1" || true
}
link example examples
link posttrain_gpt.py pretrain_gpt.py

on_cpu() {
    [[ "${DEVICE_TARGET:-}" == CPU ]] || { [[ -z "${DEVICE_TARGET:-}" ]] && ! compgen -G '/dev/davinci[0-9]*' >/dev/null; }
}

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
    # What pip has to say about a machine's own settings is of interest only when it fails.
    if ! said=$(python -m pip install --disable-pip-version-check -r "$REPO_DIR/$requirements" 2>&1); then
        echo "$said" >&2
        echo "error: pip could not install $requirements" >&2
        exit 1
    fi
    echo "$wanted" >"$mark"
fi

if on_cpu; then
    # by its path: as a module of its package it would import MindSpore first, which takes seconds
    python -P "$REPO_DIR/mindspeed_llm/kernels/cpu/build.py" --quiet
    python -m mindspeed_llm.runtime.shared_memory.build
fi
