"""The six jobs for real, through their scripts, with few steps: every file and log line that a user's tools look for."""

import re
import subprocess
from pathlib import Path

import pytest

from mindspeed_llm.checkpoint import open_checkpoint
from tests.distributed.launch import script_environment

SCRIPT = Path(__file__).parents[2] / "examples" / "mindspore" / "glm4" / "quickstart.sh"


def run(folder):
    return subprocess.run(["bash", str(SCRIPT)], cwd=folder.parent,
                          env=script_environment(QUICKSTART_FAST=1, QUICKSTART_DIR=folder), text=True, capture_output=True,
                          timeout=900, stdin=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart") / "work"
    finished = run(folder)
    assert finished.returncode == 0, finished.stdout[-4000:] + finished.stderr[-2000:]
    return folder, finished.stdout


def test_training_lines_and_checkpoints(done):
    folder, output = done
    for stage, iterations in (("pretrain", 3), ("tune", 2)):
        log = (folder / f"{stage}.log").read_text()
        numbers = re.findall(rf"^ \[[^]]+\] iteration +(\d+)/ +{iterations} \| .*tokens/s: .*peak memory \(MB\): ", log, re.M)
        assert numbers == [str(number + 1) for number in range(iterations)]
    for name, iteration, stages in (("ckpt_pretrained", 3, 2), ("ckpt_tuned", 2, 1)):
        assert f"successfully saved checkpoint from iteration {iteration} to ./{name}" in output
        with open_checkpoint(folder / name) as saved:
            assert saved.iteration == iteration and saved.has_optimizer and saved.verify() > 30
            assert [saved.parallel[f"{kind}_model_parallel_size"] for kind in ("tensor", "pipeline")] == [2, stages]
    assert list((folder / "tensorboard" / "pretrain").glob("events.out.tfevents.*"))


def test_conversion_and_data(done):
    folder, output = done
    assert "successfully saved checkpoint from iteration 1 to ./mcore" in output
    assert output.count("INFO:root:Done!") == 2
    assert sorted(path.name for path in (folder / "mcore" / "iter_0000001").iterdir()) == [
        "metadata.json", "mp_rank_00_000", "mp_rank_00_001", "mp_rank_01_000", "mp_rank_01_001"]
    for name in ("pretrain_text", "tune_packed_input_ids", "tune_packed_attention_mask", "tune_packed_labels"):
        assert all((folder / "dataset" / f"{name}_document.{end}").stat().st_size > 0 for end in ("bin", "idx"))
    exported = {path.name for path in (folder / "model_from_hf" / "mg2hf").iterdir()}
    assert {"config.json", "tokenizer.model", "model.safetensors.index.json"} <= exported


def test_evaluation_and_generation_lines(done):
    folder, _ = done
    for name in ("evaluate_before", "evaluate_after"):
        log = (folder / f"{name}.log").read_text()
        found = re.findall(r"^INFO:mindspeed_llm.tasks.evaluation.eval_impl.mmlu_eval:mmlu acc = (\d+)/(\d+)=[\d.]+$", log, re.M)
        assert [total for _, total in found] == ["8", "8", "8", "8", "32"]
        assert re.search(r"^ +subject +question_n +acc$", log, re.M) and re.search(r"^4 +total +32 +[\d.]+$", log, re.M)
        assert re.search(r"INFO:main:MMLU Running Time:, [\d.]+", log) and "total: 100%" in log
    assert (folder / "generate.log").read_text().count("You:") == 4


def test_report(done):
    folder, output = done
    for pattern in (r"^accuracy before fine-tuning: [01]\.\d\d$", r"^accuracy after fine-tuning: [01]\.\d\d$",
                    r"^total minutes: \d+\.\d$"):
        assert re.search(pattern, output, re.M)
        assert re.search(pattern.strip("^$"), (folder / "report.md").read_text())
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_running_again_reuses_everything(done):
    folder, _ = done
    again = run(folder)
    assert again.returncode == 0 and again.stdout.count("done before, reused") == 11
    assert "iteration        1/" not in again.stdout


@pytest.mark.full
def test_adapters_after_it(done):
    folder, _ = done
    finished = subprocess.run(["bash", str(SCRIPT.with_name("quickstart_posttrain.sh"))], cwd=folder.parent, text=True,
                              env=script_environment(QUICKSTART_FAST=1, QUICKSTART_DIR=folder), capture_output=True,
                              timeout=900, stdin=subprocess.DEVNULL)
    assert finished.returncode == 0, finished.stdout[-4000:] + finished.stderr[-2000:]
    assert "trainable params: 131,072 || all params: 1,181,824" in finished.stdout
    assert re.search(r"^accuracy with low-rank adapters: [01]\.\d\d$", finished.stdout, re.M)
    with open_checkpoint(folder / "ckpt_lora") as saved:
        assert saved.adapters_only and saved.iteration == 4 and saved.verify() > 0
    assert {path.name for path in (folder / "lora_peft").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert (folder / "lora_merged_hf" / "model.safetensors.index.json").is_file()
    assert re.search(r"^reward accuracy: [01]\.\d\d$", finished.stdout, re.M)
    assert "576 pairs" in (folder / "make_pairs.log").read_text()
    assert re.search(r"0 pairs from \S+, 96 computed", (folder / "dpo.log").read_text())
    with open_checkpoint(folder / "ckpt_dpo") as saved:
        assert saved.iteration == 3 and saved.lora is None
