"""Run a script as one process, or as ranks under msrun; the scripts in examples/ end with this command.

    python -m mindspeed_llm.launch --name pretrain --nnodes 1 --nproc-per-node 8 pretrain_gpt.py <flags>

What the job prints goes to the terminal (rank 0's output, when there are several) and whole into `--log-root`. The exit
status is the script's own for one process and 1 for ranks that failed; 128 + the signal's number for a job that was
ended by one (130 for Ctrl-C).
"""

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from mindspeed_llm.config.errors import UserError, run_main
from mindspeed_llm.launch.job import Job, run


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument "))


def parse(argv: list[str]) -> Job:
    """The job that the command line asks for. Raises UserError naming the option; exits after --help."""
    parser = _Parser(prog="python -m mindspeed_llm.launch", allow_abbrev=False,
                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--name", required=True, help="name of the job's log file or folder")
    parser.add_argument("--log-root", type=Path, default=Path("logs"), help="folder of all logs")
    parser.add_argument("--nnodes", type=int, default=1, help="nodes of the job (NNODES)")
    parser.add_argument("--node-rank", type=int, default=0, help="number of this node (NODE_RANK)")
    parser.add_argument("--nproc-per-node", type=int, default=1, help="ranks of every node (NPUS_PER_NODE)")
    parser.add_argument("--master-addr", default="127.0.0.1", help="address of node 0 (MASTER_ADDR)")
    parser.add_argument("--master-port", type=int, default=6000, help="a free port on node 0 (MASTER_PORT)")
    parser.add_argument("script", help="the Python script that every rank runs")
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="its flags")
    given = parser.parse_args(argv)
    for option, value in (("--nnodes (NNODES)", given.nnodes),
                          ("--nproc-per-node (NPUS_PER_NODE)", given.nproc_per_node)):
        if value < 1:
            raise UserError(f"{option} is {value}: give the number that there are, at least 1")
    if not 0 <= given.node_rank < given.nnodes:
        raise UserError(f"--node-rank (NODE_RANK) is {given.node_rank}: nodes are counted from 0 to {given.nnodes - 1}")
    if not Path(given.script).is_file():
        raise UserError(f"{given.script} is not a file: name the script that the ranks are to run")
    return Job(given.name, given.log_root, given.script, tuple(given.flags), given.nnodes, given.node_rank,
               given.nproc_per_node, given.master_addr, given.master_port)


def main() -> None:
    """Run the job of the command line and end with its status."""
    sys.exit(run(parse(sys.argv[1:])))


if __name__ == "__main__":
    run_main(main)
