"""`python -m mindspeed_llm.report LOGDIR... [--output FILE] [--watch [SECONDS]]`: curves of training runs in one page."""

import argparse
import time
from pathlib import Path

from mindspeed_llm.checkpoint.files import write_text
from mindspeed_llm.config.errors import UserError, run_main
from mindspeed_llm.report.logs import find_runs
from mindspeed_llm.report.page import page

_INTERVAL = 10.0


def main() -> None:
    """Write the page; with --watch again and again until all runs have ended."""
    parser = argparse.ArgumentParser(prog="python -m mindspeed_llm.report", description=__doc__)
    parser.add_argument("logs", nargs="+", metavar="LOGDIR", help="log files, or directories with logs")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the page [report.html in the first LOGDIR]")
    parser.add_argument("--watch", nargs="?", type=float, const=_INTERVAL, metavar="SECONDS", help="write the page anew "
                        f"so often [{_INTERVAL:g}], until every run is at its last iteration")
    options = parser.parse_args()
    if options.watch is not None and options.watch <= 0:
        raise UserError(f"--watch ({options.watch:g}) must be above 0 seconds")
    first = Path(options.logs[0])
    output = options.output or (first if first.is_dir() else first.parent) / "report.html"
    title = "Training: " + ", ".join(Path(place).resolve().name for place in options.logs)
    while True:
        runs = find_runs(options.logs)
        going = options.watch is not None and not all(run.ended for run in runs)
        write_text(output, page(runs, title, options.watch if going else None))
        print(f"{output}: {len(runs)} runs, " + ", ".join(
            f"{run.name} at {run.iterations[-1].number}/{run.iterations[-1].total}" for run in runs), flush=True)
        if not going:
            return
        time.sleep(options.watch)


if __name__ == "__main__":
    run_main(main)
