"""Kill a training job at random moments, inside saves too, and start it again: it must end as if nothing had happened.

    python tests/distributed/kill_training.py --kills 50 --ranks 4 [--async-save]

A job of `--ranks` ranks (tensor and data parallel, distributed optimizer) saves every other iteration. Each time, at a
random moment, SIGKILL goes to one random rank or to all; the job is started again on its checkpoint directory. Every loss
that any run prints must be, to the digit, that of a run without kills; at the end every file of the checkpoint is verified.
"""

import argparse
import contextlib
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from mindspeed_llm.data.tokenizer_training import train_tiktoken_bpe, write_chatglm_tokenizer  # noqa: E402
from mindspeed_llm.tasks.convert.verify import verify  # noqa: E402
from tests.distributed.launch import end, end_tree, free_port, processes_of, worker_environment  # noqa: E402
from tests.training.tiny_job import SCHEDULE, SHAPE, write_ramps  # noqa: E402

LOSS = re.compile(r"iteration +(\d+)/.*lm loss: (\S+)")
SAVES = 2  # iterations between saves
PATIENCE = 600  # seconds for anything that must happen


class Job:
    """One run under msrun."""

    def __init__(self, folder: Path, number: str, ranks: int, iterations: int, *flags: object) -> None:
        self.mark, self.logs = f"kill-{folder}-{number}", folder / f"logs-{number}"
        parallel = ["--tensor-model-parallel-size", 2, "--use-distributed-optimizer"] if ranks > 1 else []
        words = [*SHAPE, *SCHEDULE, *parallel, "--train-iters", iterations, "--data-path", folder / "text_document",
                 "--tokenizer-name-or-path", folder / "tokenizer", *flags]
        self.logs.mkdir()
        self.process = subprocess.Popen(
            ["msrun", "--worker_num", str(ranks), "--local_worker_num", str(ranks), "--master_port", str(free_port()),
             "--log_dir", str(self.logs), "--join", "True", str(ROOT / "pretrain_gpt.py"), *map(str, words)],
            env=worker_environment({"JOB_MARK": self.mark}), cwd=folder, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def losses(self) -> dict[int, str]:
        """Loss of each iteration in the logs, as printed."""
        text = "".join(path.read_text(errors="replace") for path in self.logs.glob("worker_*.log"))
        return {int(iteration): loss for iteration, loss in LOSS.findall(text)}

    def wait_for(self, count: int) -> bool:
        """Wait for `count` iterations; False if the job ended before."""
        limit = time.monotonic() + PATIENCE
        while len(self.losses()) < count:
            if self.process.poll() is not None:
                return False
            if time.monotonic() > limit:
                self.close()
                sys.exit(f"error: no iteration in {PATIENCE} s; logs in {self.logs}")
            time.sleep(0.05)
        return True

    def kill(self, everyone: bool, chance: random.Random) -> None:
        """SIGKILL to one rank or all; then wait for the job's end."""
        workers = [pid for pid, rank in processes_of(self.mark).items() if rank is not None]
        end(workers if everyone or not workers else [chance.choice(workers)])
        self.finish()

    def finish(self) -> int:
        """The exit status."""
        try:
            return self.process.wait(PATIENCE)
        finally:
            self.close()

    def close(self) -> None:
        """Nothing stays behind."""
        end_tree(self.process.pid)
        end(processes_of(self.mark))


def run(kills: int, ranks: int, iterations: int, flags: list[str], seed: int) -> str:
    """The whole test; returns a summary. Exits with a message where a loss differs."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="kills_") as name:
        folder = Path(name)
        write_ramps(folder / "text_document")
        write_chatglm_tokenizer(folder / "tokenizer", train_tiktoken_bpe(["one two three four"] * 4, 260))
        calm = Job(folder, "calm", ranks, iterations)
        if calm.finish():
            sys.exit(f"error: the run without kills failed: {_last_words(calm)}")
        expected = calm.losses()
        assert sorted(expected) == list(range(1, iterations + 1)), "a run without kills prints every loss"
        done = rounds = inside = resumed = 0
        while done < kills:
            rounds += 1
            save = folder / f"save-{rounds}"
            for attempt in range(kills + 1):
                job = Job(folder, f"{rounds}-{attempt}", ranks, iterations, "--load", save, "--save", save,
                          "--save-interval", SAVES, *flags)
                alive = done < kills and job.wait_for(chance.randint(1, max(1, iterations // 4)))
                if alive:
                    time.sleep(chance.random() * 0.1)
                    job.kill(chance.random() < 0.5, chance)
                    done += 1
                    inside += any(save.glob("iter_*.tmp"))
                else:
                    status = job.finish()
                found = job.losses()
                resumed += min(found, default=1) > 1
                wrong = {number: (loss, expected[number]) for number, loss in found.items() if loss != expected[number]}
                if wrong:
                    sys.exit(f"error: after {done} kills losses differ (iteration: found, expected): {wrong}")
                if not alive and status:
                    sys.exit(f"error: after {done} kills a restart failed: {_last_words(job)}")
                if iterations in found or not alive:
                    break
            if not alive and found and max(found) != iterations:
                sys.exit(f"error: after {done} kills a run ended at iteration {max(found)}")
            with contextlib.redirect_stdout(None):
                verify(str(save))
        return (f"{done} kills, {inside} of them inside a save, {resumed} restarts from a checkpoint, {rounds} whole "
                "trainings: every loss is that of the run without kills")


def _last_words(job: Job) -> str:
    return "\n".join(path.read_text(errors="replace")[-1500:] for path in sorted(job.logs.glob("worker_*.log"))[:2])


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=120)
    parser.add_argument("--async-save", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    print(run(arguments.kills, arguments.ranks, arguments.iterations,
              ["--async-save"] if arguments.async_save else [], arguments.seed))


if __name__ == "__main__":
    main()
