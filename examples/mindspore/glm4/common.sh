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

# In every script.
MODEL=${MODEL:-glm4-9b}
DTYPE=${DTYPE:-bf16}
[[ -z "${DEVICE_TARGET:-}" ]] || export DEVICE_TARGET
export GLOG_v=${GLOG_v:-3}      # MindSpore's own messages: errors only
LOG_ROOT=${LOG_ROOT:-logs}

case "$DTYPE" in
    bf16 | fp16) DTYPE_ARGS=("--$DTYPE") ;;
    fp32) DTYPE_ARGS=() ;;
    *) echo "error: DTYPE ($DTYPE) must be bf16, fp32 or fp16" >&2; exit 1 ;;
esac

on_cpu() {
    [[ "${DEVICE_TARGET:-}" == CPU ]] || { [[ -z "${DEVICE_TARGET:-}" ]] && ! compgen -G '/dev/davinci[0-9]*' >/dev/null; }
}

# run_python NAME SCRIPT [FLAGS...]: one process, its output on the terminal and in $LOG_ROOT/NAME.log.
run_python() {
    local name=$1 script=$2
    shift 2
    mkdir -p "$LOG_ROOT"
    local to_both tee_pid status=0
    exec {to_both}> >(exec tee -i "$LOG_ROOT/$name.log")
    tee_pid=$!
    attend /dev/null python "$REPO_DIR/$script" "$@" >&"$to_both" 2>&1 || status=$?
    exec {to_both}>&-
    wait "$tee_pid" || true
    return "$status"
}

# attend PID_FILE COMMAND...: runs the command. bash would end by a SIGTERM or SIGHUP and leave the command running: they are
# passed on, and the command ends as it does by them.
attend() {
    local pid_file=$1 pid status
    shift
    env --default-signal=INT "$@" <&0 &     # in the background Ctrl-C would not be heard
    pid=$!
    echo "$pid" >"$pid_file"
    trap 'pass_on "$pid"' TERM HUP
    trap : INT
    while status=0; wait "$pid" || status=$?; kill -0 "$pid" 2>/dev/null; do :; done    # a signal interrupts `wait`
    trap - TERM HUP INT
    return "$status"
}

# children_of PID: the processes it has started, none if it is gone.
children_of() {
    cat "/proc/$1/task/$1/children" 2>/dev/null || true
}

# pass_on PID: SIGTERM to the process, or to the ranks that it has started. msrun then ends with them; ended first, it would
# leave them running, and ranks that save before they end (--exit-signal-handler) still need its scheduler.
pass_on() {
    local child ranks=()
    for child in $(children_of "$1"); do
        ! grep -qz '^MS_ROLE=MS_WORKER$' "/proc/$child/environ" 2>/dev/null || ranks+=("$child")
    done
    kill -TERM "${ranks[@]:-$1}" 2>/dev/null || true
}

# launch NAME SCRIPT [FLAGS...]: NNODES x NPUS_PER_NODE ranks through msrun. Rank 0's output goes to the terminal, every
# rank's to $LOG_ROOT/NAME/; when a rank fails, its error goes to the terminal too and the status is non-zero.
launch() {
    local name=$1 script=$2 status=0
    shift 2
    local world=$((NNODES * NPUS_PER_NODE)) log_dir="$LOG_ROOT/$name"
    if on_cpu; then
        # Ranks share the cores; idle OpenMP threads must not spin on a core that another rank needs.
        export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(threads_per_rank)} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
        # Seconds until msrun's scheduler gives up on ranks that are gone (its default keeps a failed job for half a minute).
        export MS_NODE_TIMEOUT=${MS_NODE_TIMEOUT:-10}
        # Ranks that find the scheduler busy ask again at once, not after seconds.
        export MS_RETRY_INTERVAL_LOWER=${MS_RETRY_INTERVAL_LOWER:-1} MS_RETRY_INTERVAL_UPPER=${MS_RETRY_INTERVAL_UPPER:-1}
    fi
    local flag
    for flag in "$@"; do
        if [[ "$flag" == --dry-run ]]; then     # a plan needs the number of ranks, not the ranks
            RANK_SIZE=$world run_python "$name" "$script" "$@"
            return
        fi
    done
    if ((world == 1)); then
        run_python "$name" "$script" "$@"
        return
    fi
    rm -rf "$log_dir" && mkdir -p "$log_dir"
    echo "starting $world ranks ($NPUS_PER_NODE on this node), logs in $log_dir"
    local tail_pid=
    if ((NODE_RANK == 0)); then
        : >"$log_dir/worker_0.log"
        tail -n +1 -F "$log_dir/worker_0.log" 2>/dev/null &
        tail_pid=$!
    fi
    end_scheduler_of_failed_job "$log_dir" &
    local watcher_pid=$!
    attend "$log_dir/msrun.pid" msrun --worker_num "$world" --local_worker_num "$NPUS_PER_NODE" \
        --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" --node_rank "$NODE_RANK" --log_dir "$log_dir" --join True \
        "$REPO_DIR/$script" "$@" >"$log_dir/msrun.log" 2>&1 || status=$?
    kill "$watcher_pid" 2>/dev/null || true
    wait "$watcher_pid" 2>/dev/null || true
    if [[ -n "$tail_pid" ]]; then
        sleep 0.3   # tail polls: let it print the last lines
        kill "$tail_pid" 2>/dev/null || true
        wait "$tail_pid" 2>/dev/null || true
    fi
    ((status == 0)) || report_failure "$log_dir"
    return "$status"
}

# end_scheduler_of_failed_job LOG_DIR: when msrun has ended the ranks of a failed job it waits for its scheduler, which waits
# MS_NODE_TIMEOUT for the ranks: end it at once. With several nodes it must live to tell the others.
end_scheduler_of_failed_job() {
    local log_dir=$1 child
    ((NNODES == 1)) || return 0
    local silent
    exec {silent}<> <(:)    # nothing comes: `read -t` waits without a process that would outlive this one
    until grep -qs 'Worker process .* exit with exception' "$log_dir/msrun.log"; do
        read -rt 0.5 -u "$silent" || true
    done
    read -rt 0.5 -u "$silent" || true   # msrun is killing the other ranks
    for child in $(children_of "$(<"$log_dir/msrun.pid")"); do
        kill -KILL "$child" 2>/dev/null || true
    done
}

threads_per_rank() {
    local threads=$(($(nproc) / NPUS_PER_NODE))
    echo $((threads > 0 ? threads : 1))
}

# report_failure LOG_DIR: the ranks of other nodes that are gone, the rank that a signal ended, if one did, and the errors of
# the ranks that left one; the ends of the logs if there is none of these.
report_failure() {
    local log_dir=$1 told=0 where= pid signal rank node log
    ((NNODES == 1)) || where=" on node $NODE_RANK"
    {
        echo "error: the job failed$where; logs in $log_dir"
        # The scheduler, on node 0: "The node: 3 is timed out." It stops at the first rank it misses, which need not be the
        # one that failed: msrun there has ended all ranks of the node by then.
        while read -r node; do
            ((node != NODE_RANK)) || continue
            for ((rank = node * NPUS_PER_NODE; rank < (node + 1) * NPUS_PER_NODE; rank++)); do
                echo "rank $rank stopped answering: see the terminal of node $node"
            done
            told=1
        done < <(sed -nE 's/.*The node: ([0-9]+) is timed out.*/\1/p' "$log_dir/scheduler.log" 2>/dev/null |
            while read -r rank; do echo $((rank / NPUS_PER_NODE)); done | sort -nu)
        # msrun: "Worker process 123 exit with exception. Error code: -9."
        while read -r pid signal; do
            log=$(grep -lE "^rank [0-9]+ is process $pid\$" "$log_dir"/worker_*.log) || continue
            if ((NNODES > 1 && signal == 15)); then     # the engine ends a rank so when others are gone
                ((told == 1)) || echo "no rank of node $NODE_RANK failed by itself: see the terminals of the other nodes"
            else
                sed -nE "s/^(rank [0-9]+) is process $pid\$/\1 was ended by signal $signal: killed from outside, or out of memory/p" "$log"
            fi
            told=1
        done < <(sed -nE 's/.*Worker process ([0-9]+) exit with exception\. Error code: -([0-9]+)\..*/\1 \2/p' "$log_dir/msrun.log")
        if grep -hE '^(rank [0-9]+|scheduler): (error|interrupted)' "$log_dir"/worker_*.log | sort -u; then
            told=1
        fi
        if ((told == 0)); then
            for log in "$log_dir"/worker_*.log "$log_dir/msrun.log"; do
                echo "--- end of $log"
                tail -n 5 "$log"
            done
        fi
    } >&2
}

# start_from LOAD_DIR SAVE_DIR [FLAG...]: sets CHECKPOINT_ARGS. A run that has saved before resumes from there; a first run
# loads LOAD_DIR (nothing, if empty) with FLAGs.
start_from() {
    local load=$1 save=$2
    shift 2
    CHECKPOINT_ARGS=(--save "$save")
    if [[ -f "$save/latest_checkpointed_iteration.txt" ]]; then
        CHECKPOINT_ARGS+=(--load "$save")
    elif [[ -n "$load" ]]; then
        CHECKPOINT_ARGS+=(--load "$load" --exit-on-missing-checkpoint "$@")
    fi
}
