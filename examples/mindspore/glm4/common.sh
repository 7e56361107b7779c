# Sourced by every script here: where things are, which Python, how a job is started. Not run by itself.
set -euo pipefail

EXAMPLE_DIR="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
REPO_DIR="$(cd "$EXAMPLE_DIR/../../.." && pwd)"

# The environment that setup_env.sh made, or the active one. msrun starts the `python` that is first on PATH.
if [[ -z "${VIRTUAL_ENV:-}" && -x "$REPO_DIR/.venv/bin/python" ]]; then
    export VIRTUAL_ENV="$REPO_DIR/.venv"
    export PATH="$VIRTUAL_ENV/bin:$PATH"
fi
export PYTHONPATH="$REPO_DIR${PYTHONPATH:+:$PYTHONPATH}"
export GLOG_v=${GLOG_v:-3}      # MindSpore's own messages: errors only

# The end of a script, which becomes the launcher (mindspeed_llm/launch). It shows what the job prints, writes it to
# $LOG_ROOT, passes signals on, and tells which rank failed and why.
# run_python NAME SCRIPT [FLAGS...]: one process.
run_python() {
    exec python -m mindspeed_llm.launch --name "$1" --log-root "$LOG_ROOT" "$REPO_DIR/$2" "${@:3}"
}
# launch NAME SCRIPT [FLAGS...]: NNODES x NPUS_PER_NODE ranks.
launch() {
    [[ -z "$DEVICE_TARGET" ]] || export DEVICE_TARGET
    exec python -m mindspeed_llm.launch --name "$1" --log-root "$LOG_ROOT" --nnodes "$NNODES" --node-rank "$NODE_RANK" \
        --nproc-per-node "$NPUS_PER_NODE" --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" \
        "$REPO_DIR/$2" "${@:3}"
}

# set_dtype_args: sets DTYPE_ARGS.
set_dtype_args() {
    case "$DTYPE" in
        bf16 | fp16) DTYPE_ARGS=("--$DTYPE") ;;
        fp32) DTYPE_ARGS=() ;;
        *) echo "error: DTYPE ($DTYPE) must be bf16, fp32 or fp16" >&2; exit 1 ;;
    esac
}

# start_from LOAD_DIR SAVE_DIR [FLAG...]: sets CHECKPOINT_ARGS. A run that has saved before resumes from there; a first
# run loads LOAD_DIR (nothing, if empty) with FLAGs.
start_from() {
    local load=$1 save=$2
    shift 2
    CHECKPOINT_ARGS=(--save "$save")
    if [[ -f "$save/latest_checkpointed_iteration.txt" ]]; then
        CHECKPOINT_ARGS+=(--load "$save")
    elif [[ -n "$load" ]]; then
        CHECKPOINT_ARGS+=(--load "$load" "$@")
    fi
}

# start_adapters LOAD_DIR SAVE_DIR: sets CHECKPOINT_ARGS for training adapters of the model in LOAD_DIR. A run that has saved
# before resumes its adapters.
start_adapters() {
    CHECKPOINT_ARGS=(--load "$1" --save "$2" --lora-ckpt-filter)
    if [[ -f "$2/latest_checkpointed_iteration.txt" ]]; then
        CHECKPOINT_ARGS+=(--lora-load "$2")
    else
        CHECKPOINT_ARGS+=(--finetune)
    fi
}
