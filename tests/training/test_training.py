"""Training in one process: the loss falls, resuming changes nothing, the lines that tools parse keep their form."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mindspeed_llm import checkpoint
from mindspeed_llm.checkpoint import open_checkpoint
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.core.structure import model_specs
from mindspeed_llm.data.tokenizer import load_tokenizer
from mindspeed_llm.kernels import cpu
from mindspeed_llm.training.loss_scale import GROWTH_INTERVAL, LossScale
from tests.training.tiny_job import SCHEDULE, SHAPE, write_documents

ROOT = Path(__file__).parents[2]
LINE = re.compile(
    r"^ \[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] iteration +(\d+)/ +(\d+) \| consumed samples: +(\d+) \| elapsed time per iteration "
    r"\(ms\): \d+\.\d \| learning rate: (\d\.\d{6}E[-+]\d\d) \| global batch size: +(\d+) \| lm loss: (\d\.\d{6}E[-+]\d\d) \| "
    r"loss scale: (\d+\.\d) \| grad norm: \d+\.\d{3} \| number of skipped iterations: +(\d+) \| number of nan iterations: "
    r"+(\d+) \| tokens/s: [\d.]+ \| peak memory \(MB\): [\d.]+ \|$")


def losses(output):
    return [float(LINE.match(line)[6]) for line in output.splitlines() if line.startswith(" [")]


def weights(directory, iteration=None):
    with open_checkpoint(directory, iteration) as saved:
        return {name: saved.read_global(name).array.copy() for name in saved.names()}


def optimizer_state(directory):
    with open_checkpoint(directory) as saved:
        return {(spec.name, state): array
                for spec in model_specs(saved.model_config)
                for state, array in saved.read_optimizer(spec, 0, 1, 0, int(np.prod(spec.shape))).items()}


def test_loss_falls_and_lines_keep_their_form(train, tmp_path, capsys):
    train("--train-iters", 30, "--tensorboard-dir", tmp_path / "tb")
    output = capsys.readouterr().out
    found = losses(output)
    assert "no --load: starting from random initialisation" in output
    assert len(found) == 30
    assert abs(found[0] - math.log(320)) < 0.3
    assert found[-1] < 0.6 * found[0]
    last = LINE.match(output.splitlines()[-1])
    assert (last[1], last[2], last[3], last[4], last[5], last[7]) == ("30", "30", "120", "1.000000E-03", "4", "1.0")
    assert any(path.stat().st_size > 0 for path in (tmp_path / "tb").iterdir())


@pytest.mark.full   # ten seconds to import and start wandb
def test_weights_and_biases_record_stays_here(train, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    train("--train-iters", 2, "--wandb-project", "tiny", "--wandb-exp-name", "first", "--wandb-save-dir", tmp_path)
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    (record,) = folder.glob("run-*.wandb")
    assert all(word in record.read_bytes() for word in (b"tiny", b"first", b"lm loss", b"tokens-per-second"))


def test_weights_and_biases_are_an_extra(train, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install -r requirements-wandb.txt"):
        train("--wandb-project", "tiny")


def test_resuming_gives_the_same_bits(train, tmp_path, capsys):
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    train("--save", straight)
    train("--save", resumed, "--exit-interval", 2)
    train("--save", resumed, "--load", resumed)
    output = capsys.readouterr().out
    assert f"successfully saved checkpoint from iteration 2 to {resumed}" in output
    assert f"successfully loaded checkpoint from {resumed} at iteration 2\n" in output
    first, second = weights(straight), weights(resumed)
    assert first.keys() == second.keys() and len(first) > 10
    assert all(np.array_equal(first[name], second[name]) for name in first)
    first, second = optimizer_state(straight), optimizer_state(resumed)
    assert all(np.array_equal(first[key], second[key]) for key in first)
    found = losses(output)
    assert found[:6] == found[6:]
    assert "IN ANOTHER ORDER" not in output
    metadata = resumed / "iter_0000006/metadata.json"
    metadata.write_text(metadata.read_text().replace('"sample_order"', '"unknown_then"'))
    train("--load", resumed)   # at its last iteration already
    assert f"WARNING: {metadata.parent} comes from a version that read pre-training samples IN ANOTHER ORDER: this run " \
        "goes on after 24 samples" in capsys.readouterr().out


def test_a_save_in_the_background_is_the_same_checkpoint(train, tmp_path, capsys):
    """Every save in turn, the last one finished at exit; old ones go; resuming follows the uninterrupted run."""
    flags = ("--train-iters", 6, "--save-interval", 2)
    train(*flags, "--save", tmp_path / "sync")
    expected = losses(capsys.readouterr().out)
    train(*flags, "--save", tmp_path / "async", "--async-save", "--save-total-limit", 2)
    output = capsys.readouterr().out
    assert [f"iteration {n} to {tmp_path / 'async'}" in output for n in (2, 4, 6)] == [True] * 3
    assert sorted(path.name for path in (tmp_path / "async").iterdir()) == [
        "iter_0000004", "iter_0000006", "latest_checkpointed_iteration.txt"]
    for iteration in (4, 6):
        files = [(tmp_path / kind / f"iter_000000{iteration}/mp_rank_00/{name}.safetensors").read_bytes()
                 for name in ("model", "optimizer_dp_000") for kind in ("sync", "async")]
        assert files[0] == files[1] and files[2] == files[3]
    train("--train-iters", 6, "--load", tmp_path / "async", "--ckpt-step", 4)
    assert losses(capsys.readouterr().out) == expected[4:]


def test_a_failed_write_in_the_background_ends_the_job(train, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise UserError("cannot write model.safetensors: No space left on device")
    monkeypatch.setattr(checkpoint, "write_model_file", fail)
    with pytest.raises(UserError, match="No space left"):
        train("--train-iters", 4, "--save-interval", 1, "--save", tmp_path / "c", "--async-save")
    assert not list((tmp_path / "c").glob("iter_*[0-9]")) and not list(tmp_path.glob("c/*.txt"))


def test_finetune_starts_again(train, tmp_path, capsys):
    train("--save", tmp_path / "first")
    train("--load", tmp_path / "first", "--finetune", "--save", tmp_path / "second", "--train-iters", 1)
    output = capsys.readouterr().out
    iterations = (tmp_path / "first" / "latest_checkpointed_iteration.txt").read_text().strip()
    assert (f"successfully loaded checkpoint from {tmp_path / 'first'} at iteration 0 "
            f"(weights of iteration {iterations})\n") in output
    assert losses(output)[-1] < losses(output)[0]


def test_bf16_follows_fp32(train, capsys):
    train("--train-iters", 10)
    train("--train-iters", 10, "--bf16")
    found = losses(capsys.readouterr().out)
    assert found[10:] != found[:10]
    np.testing.assert_allclose(found[10:], found[:10], rtol=0.02)


def test_without_a_compiler_bf16_trains_on_the_reference_and_says_so(train, monkeypatch, capsys):
    train("--train-iters", 2, "--bf16")
    expected = losses(capsys.readouterr().out)
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(cpu, "_module", None)
    train("--train-iters", 2, "--bf16")
    output = capsys.readouterr().out
    (said,) = re.findall(r"kernels: cpu backend not available \((.*)\): using reference\n", output)
    assert "no-such-compiler" in said
    assert "kernels: reference computes bf16 in fp32 on CPU and rounds the results\n" in output
    np.testing.assert_allclose(losses(output), expected, rtol=0.01)


def test_bf16_resumes_from_masters(train, tmp_path):
    train("--bf16", "--save", tmp_path / "straight")
    train("--bf16", "--save", tmp_path / "resumed", "--exit-interval", 3)
    train("--bf16", "--save", tmp_path / "resumed", "--load", tmp_path / "resumed")
    first, second = optimizer_state(tmp_path / "straight"), optimizer_state(tmp_path / "resumed")
    assert all(np.array_equal(first[key], second[key]) for key in first)


def test_validation_loss_is_reported(train, capsys):
    train("--train-iters", 20, "--eval-iters", 2, "--eval-interval", 10, "--split", "90,10,0")
    lines = re.findall(r"validation loss at iteration (\d+) \| lm loss value: (\S+) \|", capsys.readouterr().out)
    assert [number for number, _ in lines] == ["10", "20"]
    assert float(lines[1][1]) < float(lines[0][1])


SAMPLE = re.compile(r'^ validation sample (\d) at iteration (\d+) \| prompt: ("(?:[^"\\]|\\.)*") \| '
                    r'continuation: ("(?:[^"\\]|\\.)*") \|$', re.MULTILINE)


def test_validation_shows_what_the_model_says(train, tmp_path, capsys, monkeypatch):
    written = []
    monkeypatch.setattr("tensorboardX.SummaryWriter.add_text", lambda self, *entry: written.append(entry))
    flags = ("--eval-iters", 1, "--eval-interval", 3, "--split", "90,10,0", "--train-iters", 6)
    train(*flags, "--eval-generate", 2, "--tensorboard-dir", tmp_path / "tb", "--save", tmp_path / "shown")
    shown = capsys.readouterr().out
    train(*flags, "--save", tmp_path / "silent")
    silent = capsys.readouterr().out
    found = SAMPLE.findall(shown)
    assert [(number, iteration) for number, iteration, _, _ in found] == [("1", "3"), ("2", "3"), ("1", "6"), ("2", "6")]
    assert found[0][2] == found[2][2] != found[1][2]
    assert all(json.loads(text) for _, _, *texts in found for text in texts)
    assert [(tag, iteration) for tag, _, iteration in written] == [(f"validation sample {n}", i)
                                                                   for i in (3, 6) for n in (1, 2)]
    assert losses(shown) == losses(silent) and "validation sample" not in silent
    first, second = weights(tmp_path / "shown"), weights(tmp_path / "silent")
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_documents_do_not_see_each_other(train, tmp_path, capsys):
    """--reset-attention-mask: the loss of two documents in a sample is that of one document a sample."""
    rng = np.random.default_rng(5)
    write_documents(tmp_path / "d", [rng.integers(0, 256, 16) for _ in range(9)])
    step = ("--data-path", tmp_path / "d", "--train-iters", 1, "--init-method-std", 0.5)
    found = []
    for flags in (("--reset-attention-mask", "--reset-position-ids"), (),
                  ("--seq-length", 16, "--global-batch-size", 8)):
        train(*step, *flags)
        found += losses(capsys.readouterr().out)
    together, seeing, apart = found
    assert abs(together - apart) < 2e-6 * apart and abs(seeing - apart) > 1e-3 * apart


def write_instruction_rows(prefix):
    rows = [np.full(20 + n, 7) for n in range(12)]
    write_documents(f"{prefix}_packed_input_ids_document", rows)
    write_documents(f"{prefix}_packed_attention_mask_document", [np.ones_like(row) for row in rows])
    write_documents(f"{prefix}_packed_labels_document", [np.where(np.arange(row.size) < 15, -100, 9) for row in rows])
    return prefix


def test_prompts_of_instruction_data_end_where_the_answer_begins(train, tokenizer_dir, tmp_path, capsys):
    train("--stage", "sft", "--is-instruction-dataset", "--no-pad-to-seq-lengths", "--data-path",
          write_instruction_rows(tmp_path / "tune"), "--split", "50,50,0", "--eval-iters", 1, "--eval-interval", 30,
          "--train-iters", 30, "--eval-generate", 1)
    ((_, _, prompt, continuation),) = SAMPLE.findall(capsys.readouterr().out)
    tokenizer = load_tokenizer(tokenizer_dir)
    assert json.loads(prompt) == tokenizer.decode(15 * [7])
    assert set(json.loads(continuation)) == {tokenizer.decode([9])}


def test_instruction_data_trains_on_answers_only(train, tmp_path, capsys):
    prefix = write_instruction_rows(tmp_path / "tune")
    train("--stage", "sft", "--is-instruction-dataset", "--variable-seq-lengths", "--no-pad-to-seq-lengths",
          "--prompt-type", "glm4", "--data-path", prefix, "--train-iters", 30)
    found = losses(capsys.readouterr().out)
    assert found[-1] < 0.2 < 4 < found[0]


def test_nan_stops_with_the_parameters_name(train, monkeypatch):
    from mindspeed_llm.core.optimizer import optimizer
    update = optimizer.Optimizer._update

    def poison(self, chunk_state, lr, grad_scale):
        update(self, chunk_state, lr, grad_scale)
        chunk_state.chunk.parameters["decoder.layers.1.mlp.linear_fc2.weight"].asnumpy()[0, 0] = np.nan
    monkeypatch.setattr(optimizer.Optimizer, "_update", poison)
    with pytest.raises(FloatingPointError, match="iteration 2: .*embedding.word_embeddings.weight"):
        train()


def test_missing_checkpoint(train, tmp_path, capsys):
    train("--load", tmp_path, "--train-iters", 1)
    train("--load", tmp_path / "none", "--train-iters", 1)
    output = capsys.readouterr().out
    for place, why in ((tmp_path, "holds no checkpoint"), (tmp_path / "none", "does not exist")):
        assert f"WARNING: --load {place} {why}: STARTING FROM RANDOM INITIALISATION" in output
    assert losses(output)[0] == losses(output)[1]
    for flag in ("--exit-on-missing-checkpoint", "--finetune"):
        with pytest.raises(UserError, match=f"--load {tmp_path} holds no checkpoint and {flag}"):
            train("--load", tmp_path, flag)


def test_contradicting_shape(train, tmp_path):
    train("--save", tmp_path, "--train-iters", 1)
    with pytest.raises(UserError, match=r"--ffn-hidden-size \(64\) contradicts .*48"):
        train("--load", tmp_path, "--ffn-hidden-size", 64)


def test_exit_signal_saves(text_data, tokenizer_dir, tmp_path):
    job = _start(text_data, tokenizer_dir, tmp_path, "--exit-signal-handler", "--save-interval", 10**6)
    for line in job.stdout:
        if " iteration " in line:
            job.send_signal(signal.SIGTERM)
            break
    rest = job.communicate(timeout=60)[0]
    assert job.returncode == 0, rest
    assert "(exit signal)" in rest and "successfully saved checkpoint" in rest


def test_killed_at_any_moment_leaves_a_loadable_checkpoint(text_data, tokenizer_dir, tmp_path):
    rng = np.random.default_rng(0)
    reached = []
    for background in ([], ["--async-save"], ["--async-save"]):
        job = _start(text_data, tokenizer_dir, tmp_path, "--save-interval", 1, "--load", tmp_path, *background)
        for line in job.stdout:
            if "successfully saved" in line:
                break
        time.sleep(float(rng.uniform(0, 0.3)))
        job.kill()
        job.communicate()
        with open_checkpoint(tmp_path) as saved:
            assert saved.verify() > 10
            reached.append(saved.iteration)
    assert reached == sorted(reached) and reached[-1] > reached[0]


def _start(text_data, tokenizer_dir, save, *flags):
    command = [sys.executable, ROOT / "pretrain_gpt.py", *SHAPE, *SCHEDULE, "--train-iters", "100000", "--data-path",
               text_data, "--tokenizer-name-or-path", tokenizer_dir, "--save", save, *flags]
    return subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, text=True,
                            env={**os.environ, "DEVICE_TARGET": "CPU", "GLOG_v": "3"})


def test_loss_scale_halves_after_two_overflows_and_doubles_when_calm():
    scale = LossScale("fp16", 1024.0)
    scale.update(overflowed=True)
    assert scale.value == 1024.0
    scale.update(overflowed=True)
    assert scale.value == 512.0
    for _ in range(GROWTH_INTERVAL):
        scale.update(overflowed=False)
    assert scale.value == 1024.0
    copy = LossScale("fp16", 1.0)
    copy.load_state(scale.state())
    assert copy.state() == scale.state()
    assert LossScale("bf16", 1024.0).value == 1.0


def test_noop_layers_must_be_those_of_the_checkpoint(train, tmp_path):
    """A layer more would drop its weights, a layer less would lack them."""
    train("--num-layers", 4, "--noop-layers", 2, "--train-iters", 1, "--save", tmp_path)
    for flags, said in ((["--noop-layers", "2,3"], "2,3"), ([], "none")):
        with pytest.raises(UserError, match=rf"--noop-layers \({said}\) contradicts .* use --noop-layers 2"):
            train("--num-layers", 4, *flags, "--train-iters", 2, "--load", tmp_path)
    train("--num-layers", 4, "--noop-layers", 2, "--train-iters", 2, "--load", tmp_path, "--save", tmp_path)
    with open_checkpoint(tmp_path) as saved:
        assert (saved.iteration, saved.noop_layers) == (2, (2,))


def test_data_order_goes_on_with_the_seed_of_the_checkpoint(train, tmp_path, capsys):
    train("--seed", 5, "--train-iters", 4, "--save", tmp_path / "whole")
    train("--seed", 5, "--train-iters", 4, "--exit-interval", 2, "--save", tmp_path / "half")
    expected = losses(capsys.readouterr().out)[2:4]
    train("--train-iters", 4, "--load", tmp_path / "half", "--save", tmp_path / "resumed")
    output = capsys.readouterr().out
    assert losses(output) == expected and "seed 5 of" in output
    with open_checkpoint(tmp_path / "resumed") as saved:
        assert saved.rng == {"seed": 5}
    with pytest.raises(UserError, match=r"--seed \(6\) contradicts .*5.*--no-load-rng"):
        train("--seed", 6, "--train-iters", 4, "--load", tmp_path / "half")
    train("--seed", 6, "--no-load-rng", "--train-iters", 4, "--load", tmp_path / "half", "--save", tmp_path / "other")
    assert losses(capsys.readouterr().out) != expected
    with open_checkpoint(tmp_path / "other") as saved:
        assert saved.rng == {"seed": 6}
    for start in (["--finetune"], ["--finetune", "--seed", "7"]):
        train(*start, "--train-iters", 1, "--load", tmp_path / "half")
    assert "seed 5 of" not in capsys.readouterr().out
