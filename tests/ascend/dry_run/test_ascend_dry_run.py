"""MindSpore's own Ascend back end takes every call that the project makes: dispatch, types, shapes, autograd.

Nothing is computed: see docs/ascend.md for what this shows and what it cannot. Three processes run all cases: one rank by
itself, the first and the last of eight.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ALONE = ["kernels fp32", "kernels bf16", "kernels fp16", "tape bf16", "tape fp16", "generation", "save and load fp32",
         "save and load bf16"]
# What the first and the last rank do alike, and what they do not: another pipeline stage or part of the sequence.
ALIKE = ["train dp fp32", "train dp fp16", "train dp overlap", "train tp2", "train tp2 sp fp32",
         "train tp4 sp, shared K/V rows", "train selective", "train uniform", "train post norm", "train norms of q and k",
         "train dp, packed", "train adapters", "train pairs, known reference"]
DIFFERENT = ["collectives", "generation tp2 pp2", "train pp2", "train pp4 fp16", "train pp2 tied", "train vpp",
             "train cp2 ring", "train cp4 ring", "train cp2 ring fp32", "train cp2 ulysses", "train cp4 ulysses",
             "train cp2 ring, packed", "train cp2 ulysses, packed", "train block",
             "train tp2 sp pp2 cp2", "train head in chunks", "train adapters, tp2 sp pp2", "train pairs",
             "train pairs, adapters"]
# (ranks, this one): cases
RUNS = {(1, 0): ALONE, (8, 0): ALIKE + DIFFERENT, (8, 7): DIFFERENT}


@pytest.fixture(scope="module")
def ran(simulation, tmp_path_factory):
    """`{(ranks, this one): {case: what went wrong in it, "output": the process's}}`; all processes at once."""
    folder, jobs = tmp_path_factory.mktemp("dry_run"), {}
    for (world, rank), cases in RUNS.items():
        place = {} if world == 1 else {"RANK_SIZE": str(world), "RANK_ID": str(rank)}
        command = [sys.executable, HERE / "cases.py", folder / f"{world}_{rank}.json", *cases]
        log = folder / f"{world}_{rank}.log"
        jobs[world, rank] = subprocess.Popen(command, env=simulation | place, cwd=folder, stdout=log.open("w"),
                                             stderr=subprocess.STDOUT)
    seen = {}
    try:
        for (world, rank), job in jobs.items():
            status, out = job.wait(timeout=400), folder / f"{world}_{rank}.json"
            seen[world, rank] = json.loads(out.read_text()) if out.exists() else {}
            seen[world, rank]["output"] = f"status {status}: {(folder / f'{world}_{rank}.log').read_text()}"
    finally:
        for job in jobs.values():
            job.kill()
    return seen


@pytest.mark.parametrize("place, case", [(place, case) for place, cases in RUNS.items() for case in cases],
                         ids=lambda value: value if isinstance(value, str) else f"{value[1]} of {value[0]}")
def test_ascend_takes_it(place, case, ran):
    results = ran[place]
    assert results.get(case, results["output"][-5000:]) == ""


def test_every_case_runs():
    source = (HERE / "cases.py").read_text()
    layouts = re.findall(r'^    "(.*)": f?"', source[source.index("LAYOUTS = {"):source.index("\n}")], re.MULTILINE)
    assert len(layouts) > 15 and {f"train {name}" for name in layouts} <= {*ALIKE, *DIFFERENT}


def test_the_log_says_that_values_mean_nothing(ran):
    for output in (ran[1, 0]["output"], ran[8, 0]["output"]):
        assert "nothing is computed, every value below is meaningless" in output
