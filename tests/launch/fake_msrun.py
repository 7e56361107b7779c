"""What of msrun concerns its caller, without the framework: ranks in sessions of their own and their logs, a scheduler
that outlives the ranks, the words and the status of a failure.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

OPTIONS = ("--worker_num", "--local_worker_num", "--master_addr", "--master_port", "--node_rank", "--log_dir", "--join")
# Waits longer than any test, unless it is told that the ranks have ended.
SCHEDULER = """import time
from mindspeed_llm.config.scheduler import stay_behind
stay_behind()
time.sleep(600)
"""


def main() -> int:
    """Run the ranks; 0 when all of them did well."""
    words, given = sys.argv[1:], {}
    while words[0] in OPTIONS:
        given[words[0]] = words[1]
        words = words[2:]
    time.sleep(float(os.environ.get("FAKE_MSRUN_STARTS_AFTER", "0")))
    log_dir, local = Path(given["--log_dir"]), int(given["--local_worker_num"])
    os.environ["RANK_SIZE"] = given["--worker_num"]
    with (log_dir / "scheduler.log").open("w") as log:
        scheduler = subprocess.Popen([sys.executable, "-c", SCHEDULER], stdout=log, stderr=log)
    os.environ["MS_ROLE"] = "MS_WORKER"
    ranks = []
    for index in range(local):
        os.environ["RANK_ID"] = str(int(given["--node_rank"]) * local + index)
        with (log_dir / f"worker_{os.environ['RANK_ID']}.log").open("w") as log:
            ranks.append(subprocess.Popen(["python", *words], stdout=log, stderr=log, preexec_fn=os.setsid))
    while None in (ends := [rank.poll() for rank in ranks]) and not any(ends):
        time.sleep(0.05)
    failed = next((rank for rank in ranks if rank.returncode), None)
    if failed is None:
        if local == int(given["--worker_num"]):
            return scheduler.wait()
        scheduler.kill()    # with several nodes, MindSpore's ends when the ranks of all have signed off
        return 0
    print(f"[ERROR] ME(1): Worker process {failed.pid} exit with exception. Error code: {failed.returncode}.",
          flush=True)
    for rank in ranks:
        if rank.poll() is None:
            os.killpg(rank.pid, signal.SIGKILL)
    scheduler.wait()
    return 1


if __name__ == "__main__":
    sys.exit(main())
