"""The scripts without the work: a stand-in for msrun and python records the command line, which must parse as documented."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mindspeed_llm.config.command_line import parse
from mindspeed_llm.config.lora import TARGETS
from mindspeed_llm.families import FAMILIES

SCRIPTS = Path(__file__).parents[2] / "examples" / "mindspore" / "glm4"
ENTRYPOINTS = {"pretrain_gpt.py": "pretrain", "inference.py": "inference", "evaluation.py": "evaluation",
               "convert_ckpt.py": "convert", "preprocess_data.py": "preprocess"}


class Recorder:
    """Runs scripts in `folder` with stand-ins first on PATH."""

    def __init__(self, folder):
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir()
        launcher = f'[[ "$1 $2" != "-m mindspeed_llm."[lf]a* ]] || exec {sys.executable} "$@"\n'    # launch, families
        for name in ("msrun", "python"):
            tool = self.bin / name
            tool.write_text('#!/bin/bash\n' + launcher + 'printf "%s\\n" "$@" >"$RECORD"\n'
                            'echo "${OMP_NUM_THREADS:-}" >"$RECORD.threads"\n'
                            'echo "${RANK_SIZE:-}" >"$RECORD.ranks"\n'
                            'echo "${MINDSPEED_LLM_API_KEY:-}" >"$RECORD.key"\n'
                            '[[ -z "${FAIL:-}" ]] || { mkdir -p logs; echo "$FAIL" >"$(ls -d logs/*/)worker_1.log"; '
                            'echo "${SAYS:-}"; exit 1; }\n')
            tool.chmod(0o755)
        (folder / "tokenizer").mkdir()

    def run(self, script, *flags, **variables):
        """Returns (finished process, recorded words)."""
        record = self.folder / "record"
        record.unlink(missing_ok=True)
        environment = {"PATH": f"{self.bin}:/usr/bin:/bin", "HOME": str(self.folder), "RECORD": str(record),
                       "VIRTUAL_ENV": str(self.folder), "TOKENIZER_PATH": "tokenizer", "DEVICE_TARGET": "CPU",
                       **{name: str(value) for name, value in variables.items()}}
        done = subprocess.run(["bash", str(SCRIPTS / script), *flags], cwd=self.folder, env=environment, text=True,
                              capture_output=True, timeout=30)
        return done, record.read_text().splitlines() if record.exists() else []

    def configs(self, script, *flags, **variables):
        """Parsed configs of the command that the script starts, and the launcher's own words."""
        done, words = self.run(script, *flags, **variables)
        assert done.returncode == 0, done.stderr
        at = next(index for index, word in enumerate(words) if Path(word).name in ENTRYPOINTS)
        return parse(ENTRYPOINTS[Path(words[at]).name], words[at + 1:]), words[:at]


@pytest.fixture
def recorder(tmp_path):
    return Recorder(tmp_path)


def after(words, flag):
    return words[words.index(flag) + 1]


@pytest.mark.parametrize("script, length, context", [
    ("pretrain_glm4_9b_4k_ms.sh", 4096, 1), ("pretrain_glm4_9b_8k_ms.sh", 8192, 1), ("pretrain_glm4_8k_ms.sh", 8192, 1),
    ("pretrain_glm4_9b_32k_ms.sh", 32768, 2)])
def test_pretraining_defaults_are_the_documented_ones(recorder, script, length, context):
    configs, launcher = recorder.configs(script)
    assert (after(launcher, "--worker_num"), after(launcher, "--local_worker_num")) == ("8", "8")
    model, parallel, train, optimizer = configs.model, configs.parallel, configs.train, configs.optimizer
    assert (model.num_layers, model.hidden_size, model.ffn_hidden_size, model.num_attention_heads, model.num_query_groups,
            model.kv_channels, model.padded_vocab_size) == (40, 4096, 13696, 32, 2, 128, 151552)
    assert (model.norm_epsilon, model.rotary_percent, model.add_qkv_bias) == (1.5625e-07, 0.5, True)
    assert model.rotary_base == (5e6 if length == 32768 else 1e4)
    assert (parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size, parallel.context_parallel_size,
            parallel.sequence_parallel, parallel.use_distributed_optimizer) == (2, 2, context, True, True)
    assert (train.seq_length, train.micro_batch_size, train.global_batch_size, train.params_dtype) == (length, 1, 64, "bf16")
    assert (optimizer.lr, optimizer.min_lr, optimizer.lr_decay_style, optimizer.lr_warmup_fraction, optimizer.weight_decay,
            optimizer.clip_grad, optimizer.adam_beta1, optimizer.adam_beta2) == (
                1.25e-6, 1.25e-7, "cosine", 0.01, 0.1, 1.0, 0.9, 0.95)
    assert not (configs.checkpoint.no_load_optim or configs.checkpoint.no_load_rng or configs.checkpoint.finetune)


def test_the_32b_model_is_pre_trained_on_two_nodes(recorder):
    """61 layers as 64 of which three are empty, TP2 x PP8: upstream's arrangement."""
    configs, launcher = recorder.configs("pretrain_glm4_32b_ms.sh", NODE_RANK=1, MASTER_ADDR="10.0.0.1")
    assert (after(launcher, "--worker_num"), after(launcher, "--local_worker_num"), after(launcher, "--node_rank")) == (
        "16", "8", "1")
    model, parallel = configs.model, configs.parallel
    assert (model.num_layers, model.hidden_size, model.ffn_hidden_size, model.num_attention_heads, model.num_query_groups,
            model.kv_channels, model.padded_vocab_size) == (64, 6144, 23040, 48, 2, 128, 151552)
    assert (model.norm_epsilon, model.rotary_percent, model.add_qkv_bias, model.post_norm) == (1e-05, 0.5, False, True)
    assert (parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size, parallel.noop_layers) == (
        2, 8, (6, 7, 15))
    assert [sum(map(len, chunks)) for chunks in parallel.stage_layers(model)] == [6, 7, 8, 8, 8, 8, 8, 8]


@pytest.mark.parametrize("name", [name for family in FAMILIES for name in family.models])
def test_every_model_of_the_registry_can_be_trained(recorder, name):
    configs, _ = recorder.configs("pretrain_glm4_9b_4k_ms.sh", MODEL=name)
    assert configs.model.num_attention_heads * configs.model.kv_channels >= configs.model.hidden_size


def test_tuning_defaults_are_the_documented_ones(recorder):
    configs, _ = recorder.configs("tune_glm4_9b_32k_full_ms.sh")
    assert configs.train.stage == "sft" and configs.data.is_instruction_dataset and configs.data.no_pad_to_seq_lengths
    assert (configs.train.seq_length, configs.train.micro_batch_size, configs.optimizer.min_lr) == (32768, 2, 1e-8)
    parallel = configs.parallel
    assert (parallel.num_layer_list, parallel.recompute_granularity, parallel.recompute_method,
            parallel.recompute_num_layers) == ((22, 18), "full", "block", 22)


def test_preference_tuning_of_all_weights_and_of_adapters(recorder):
    full, _ = recorder.configs("dpo_glm4_9b_8k_ms.sh", CKPT_LOAD_DIR="base")
    assert full.train.stage == "dpo" and full.data.is_pairwise_dataset and full.data.no_pad_to_seq_lengths
    assert (full.preference.ref_model, full.preference.precompute_ref, full.preference.dpo_beta) == ("base", True, 0.1)
    assert (full.checkpoint.load, full.checkpoint.finetune, full.train.seq_length) == ("base", True, 8192)
    adapters, _ = recorder.configs("dpo_glm4_9b_8k_ms.sh", CKPT_LOAD_DIR="base", LORA=1)
    assert adapters.preference.ref_model is None and len(adapters.lora.target_modules) == 4
    assert adapters.checkpoint.lora_ckpt_filter
    other, _ = recorder.configs("dpo_glm4_9b_8k_ms.sh", CKPT_LOAD_DIR="base", REF_MODEL_DIR="other", LORA=1)
    assert other.preference.ref_model == "other"


@pytest.mark.parametrize("script, length, tensor", [("tune_glm4_9b_4k_lora_ms.sh", 4096, 2),
                                                    ("tune_glm4_9b_32k_lora_ms.sh", 32768, 4)])
def test_adapters_are_trained_and_resumed(recorder, script, length, tensor):
    configs, _ = recorder.configs(script, CKPT_LOAD_DIR="base", CKPT_SAVE_DIR="tuned")
    lora, place = configs.lora, configs.checkpoint
    assert (lora.target_modules, lora.r, lora.alpha, lora.dropout) == (TARGETS, 16, 32, 0.0)
    assert (configs.train.stage, configs.train.seq_length, configs.parallel.tensor_model_parallel_size) == (
        "sft", length, tensor)
    assert (place.load, place.lora_load, place.finetune, place.lora_ckpt_filter) == ("base", None, True, True)
    (recorder.folder / "tuned").mkdir()
    (recorder.folder / "tuned" / "latest_checkpointed_iteration.txt").write_text("5\n")
    place = recorder.configs(script, CKPT_LOAD_DIR="base", CKPT_SAVE_DIR="tuned")[0].checkpoint
    assert (place.load, place.lora_load, place.finetune) == ("base", "tuned", False)


def test_variables_and_flags_win_without_editing(recorder):
    configs, launcher = recorder.configs(
        "pretrain_glm4_8k_ms.sh", "--train-iters", "20", "--seq-length", "256", "--max-position-embeddings", "256",
        MODEL="glm4-tiny", DTYPE="fp32", NPUS_PER_NODE=4, NNODES=2, NODE_RANK=1, MASTER_ADDR="10.0.0.1", MASTER_PORT=7777,
        TP=4, PP=1, SP=0, CKPT_LOAD_DIR="")
    assert after(launcher, "--worker_num") == "8" and after(launcher, "--node_rank") == "1"
    assert (after(launcher, "--master_addr"), after(launcher, "--master_port")) == ("10.0.0.1", "7777")
    assert (configs.train.train_iters, configs.train.seq_length, configs.train.params_dtype) == (20, 256, "fp32")
    assert (configs.parallel.tensor_model_parallel_size, configs.parallel.sequence_parallel) == (4, False)
    assert configs.model.hidden_size == 128 and configs.checkpoint.load is None


def test_a_run_that_saved_resumes(recorder):
    first, _ = recorder.configs("tune_glm4_9b_32k_full_ms.sh", CKPT_LOAD_DIR="base", CKPT_SAVE_DIR="tuned")
    assert (first.checkpoint.load, first.checkpoint.finetune, first.checkpoint.save) == ("base", True, "tuned")
    (recorder.folder / "tuned").mkdir()
    (recorder.folder / "tuned" / "latest_checkpointed_iteration.txt").write_text("5\n")
    again, _ = recorder.configs("tune_glm4_9b_32k_full_ms.sh", CKPT_LOAD_DIR="base", CKPT_SAVE_DIR="tuned")
    assert (again.checkpoint.load, again.checkpoint.finetune) == ("tuned", False)


@pytest.mark.parametrize("script, variable", [("generate_glm4_9b_ms.sh", "CHECKPOINT"),
                                              ("generate_glm4_9b_ms.sh", "CKPT_LOAD_DIR"),
                                              ("evaluate_glm4_9b_ms.sh", "CHECKPOINT"),
                                              ("evaluate_glm4_9b_ms.sh", "CKPT_LOAD_DIR"),
                                              ("evalute_glm4_9b_ms.sh", "CHECKPOINT")])
def test_inference_scripts(recorder, script, variable):
    configs, launcher = recorder.configs(script, **{variable: "weights"})
    assert after(launcher, "--worker_num") == "2"
    assert (configs.parallel.tensor_model_parallel_size, configs.parallel.pipeline_model_parallel_size) == (1, 2)
    assert configs.checkpoint.load == "weights"
    if configs.evaluation is not None:
        assert (configs.evaluation.task, configs.evaluation.task_data_path) == ("mmlu", "./mmlu/test/")
        assert configs.evaluation.no_chat_template  # a base model
        assert not recorder.configs(script, CHAT=1)[0].evaluation.no_chat_template


def test_serving_script(recorder):
    """The key goes where no list of processes shows it."""
    configs, launcher = recorder.configs("serve_glm4_9b_ms.sh", "--drain-seconds", "5", API_KEY="k3y", PORT=9000)
    assert after(launcher, "--worker_num") == "2" and configs.inference.task == ("serve",)
    serve = configs.serve
    assert (serve.host, serve.port, serve.served_model_name, serve.drain_seconds) == ("127.0.0.1", 9000, "glm4-9b", 5)
    assert serve.api_key is None and (recorder.folder / "record.key").read_text() == "k3y\n"
    assert "k3y" not in (recorder.folder / "record").read_text()
    recorder.configs("serve_glm4_9b_ms.sh")
    assert (recorder.folder / "record.key").read_text() == "\n"


def test_conversion_scripts(recorder):
    forth, _ = recorder.configs("ckpt_convert_glm4_hf2mcore.sh", TP=4, PP=1)
    assert (forth.convert.load_dir, forth.convert.save_dir) == ("./model_from_hf/glm4_hf/", "./model_weights/glm4_mcore/")
    assert (forth.convert.target_tensor_parallel_size, forth.convert.target_pipeline_parallel_size) == (4, 1)
    assert forth.convert.params_dtype == "bf16"
    back, _ = recorder.configs("ckpt_convert_glm4_mcore2hf.sh")
    assert (back.convert.hf_dir, back.convert.save_dir) == ("./model_from_hf/glm4_hf/", "./model_from_hf/glm4_hf/mg2hf")


def test_data_scripts(recorder):
    text, _ = recorder.configs("data_convert_glm4_pretrain.sh", INPUT="in.parquet", OUTPUT_PREFIX="out/x")
    assert (text.data.input, text.data.output_prefix, text.data.append_eod) == ("in.parquet", "out/x", True)
    assert (recorder.folder / "out").is_dir()
    tune, _ = recorder.configs("data_convert_glm4_tune.sh")
    assert (tune.data.handler_name, tune.data.prompt_type, tune.data.pack, tune.data.append_eod) == (
        "AlpacaStyleInstructionHandler", "glm4", True, True)
    loose, _ = recorder.configs("data_convert_glm4_tune.sh", "--pack=false")
    assert not loose.data.pack


def test_threads_are_shared_among_ranks(recorder):
    recorder.configs("pretrain_glm4_8k_ms.sh", NPUS_PER_NODE=4)
    assert (recorder.folder / "record.threads").read_text().strip() == str(max(1, len(os.sched_getaffinity(0)) // 4))


def test_a_dry_run_starts_no_ranks(recorder):
    done, words = recorder.run("pretrain_glm4_9b_32k_ms.sh", "--dry-run", NNODES=2)
    assert done.returncode == 0 and Path(words[0]).name == "pretrain_gpt.py" and "--worker_num" not in words
    assert (recorder.folder / "record.ranks").read_text().strip() == "16"


def test_a_failing_rank_reaches_terminal_and_status(recorder):
    done, _ = recorder.run("pretrain_glm4_8k_ms.sh", FAIL="rank 1: error: --lr (x) is not a number")
    assert done.returncode == 1
    assert "rank 1: error: --lr (x) is not a number" in done.stderr


def test_a_rank_ended_by_a_signal_is_named(recorder):
    done, _ = recorder.run("pretrain_glm4_8k_ms.sh", FAIL="rank 1 is process 4711",
                           SAYS="[ERROR] Worker process 4711 exit with exception. Error code: -9.")
    assert done.returncode == 1
    assert "rank 1 was ended by signal 9: killed from outside, or out of memory" in done.stderr


@pytest.mark.parametrize("script", ["pretrain_glm4_9b_4k_ms.sh", "tune_glm4_9b_32k_full_ms.sh"])
def test_missing_weights_are_an_error_for_tuning_only(recorder, script):
    checkpoint = recorder.configs(script, CKPT_LOAD_DIR="nowhere")[0].checkpoint
    assert checkpoint.load == "nowhere" and not checkpoint.exit_on_missing_checkpoint
    assert checkpoint.finetune == script.startswith("tune")     # with which a missing checkpoint is an error


def test_wrong_variable(recorder):
    for variables, text in (({"MODEL": "glm5"}, "MODEL (glm5) must be glm4-9b, glm4-tiny, "),
                            ({"DTYPE": "int8"}, "DTYPE (int8) must be bf16, fp32 or fp16")):
        done, _ = recorder.run("pretrain_glm4_8k_ms.sh", **variables)
        assert done.returncode == 1 and text in done.stderr


def test_every_script_is_strict_and_parses():
    scripts = sorted(SCRIPTS.glob("*.sh"))
    assert len(scripts) > 12
    for script in scripts:
        assert subprocess.run(["bash", "-n", script]).returncode == 0
        text = script.read_text()
        assert "set -euo pipefail" in text or 'common.sh"' in text or text.startswith("# Sourced")
