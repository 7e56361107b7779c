"""Checks across flags. Every message names the flags, their values and a way out."""

from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any

from mindspeed_llm.config.configs import Configs
from mindspeed_llm.config.data import DataConfig
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.config.option import flag_name
from mindspeed_llm.config.parallel import RING, ULYSSES, ParallelConfig, ulysses_divides
from mindspeed_llm.config.training import (ConvertConfig, EvaluationConfig, InferenceConfig, OptimizerConfig,
                                           ProfileConfig, TrainConfig)


def check_given(model: dict[str, Any], cli: dict[str, Any]) -> None:
    """Raise UserError when flags contradict each other that no config holds side by side.

    `model` are the model fields that were given, `cli` the inputs of derived fields.
    """
    if cli.get("bf16") and cli.get("fp16"):
        raise UserError("--bf16 and --fp16 exclude each other: use one, or neither for fp32 (--bf16=false takes back "
                        "an earlier --bf16)")
    groups, heads = model.get("num_query_groups"), model.get("num_attention_heads")
    if groups not in (None, heads) and not cli.get("group_query_attention"):
        raise UserError(f"--num-query-groups ({groups}) needs --group-query-attention: without it every query head has "
                        "its own key and value; add --group-query-attention")


def check(configs: Configs) -> None:
    """Raise UserError at the first combination that cannot work."""
    _CHECKS[configs.entrypoint](configs)
    if configs.lora is not None:
        _check_lora(configs)
    if configs.parallel is not None:
        _check_overlap(configs.parallel)
        _check_recompute(configs.parallel)
        if configs.model is not None:
            check_parallel(configs.parallel, configs.model)
            _check_sequence(configs.train.seq_length, configs.model, configs.parallel)


def notes_on(configs: Configs) -> list[str]:
    """Lines about flags that were given but cannot have their effect in this combination."""
    notes = []
    parallel, checkpoint = configs.parallel, configs.checkpoint
    if parallel is not None:
        if parallel.sequence_parallel and parallel.tensor_model_parallel_size == 1:
            notes.append("--sequence-parallel is ignored: --tensor-model-parallel-size is 1")
    if checkpoint is not None and checkpoint.save_interval is not None and checkpoint.save is None:
        notes.append("--save-interval is ignored: without --save no checkpoint is written")
    if configs.entrypoint == "pretrain" and configs.train.eval_task is None and configs.evaluation.task_data_path:
        notes.append("--task-data-path is ignored: without --eval-task no benchmark runs")
    unused = [name for name in ("step_start", "step_end", "ranks", "level", "with_cpu", "save_path")
              if f"profile_{name}" in configs.explicit]
    if configs.profile is not None and not configs.profile.profile and unused:
        flags = " ".join(flag_name(f"profile_{name}") for name in unused)
        notes.append(f"{flags} ignored: without --profile nothing is profiled")
    notes += _preference_notes(configs) if configs.preference is not None else []
    if configs.convert is not None and configs.convert.save_model_type == "mg" and configs.convert.hf_dir is not None:
        notes.append("--hf-dir (--hf-cfg-dir) is ignored: --load-dir is the Hugging Face directory of an hf -> mg "
                     "conversion")
    if configs.serve is not None and configs.inference.task != ("serve",):
        given = [flag_name(entry.name) for entry in fields(configs.serve) if entry.name in configs.explicit]
        notes += [f"{' '.join(given)}: ignored without --task serve"] if given else []
    return notes


def _preference_notes(configs: Configs) -> list[str]:
    preference, given = configs.preference, configs.explicit
    if configs.train.stage != "dpo":
        ignored = {field.name: "only --stage dpo has it" for field in fields(preference)}
    else:
        kind = preference.dpo_loss_type
        ignored = {} if preference.needs_reference else dict.fromkeys(
            ("ref_model", "precompute_ref"), f"--dpo-loss-type {kind} has no reference model")
        ignored |= {} if kind == "sigmoid" else {"dpo_label_smoothing": f"--dpo-loss-type {kind} has none"}
        ignored |= {} if kind == "simpo" else {"gamma_beta_ratio": f"--dpo-loss-type {kind} has no target margin"}
        ignored |= {"is_instruction_dataset": "--stage dpo reads pairs"}
    return [f"{flag_name(name)} is ignored: {why}" for name, why in ignored.items() if name in given]


def check_parallel(parallel: ParallelConfig, model: ModelConfig) -> None:
    """Check the sizes against the model's shape. Raises UserError naming the flags."""
    tp, cp = parallel.tensor_model_parallel_size, parallel.context_parallel_size
    for size, flag in ((tp, "--tensor-model-parallel-size"), (cp, "--context-parallel-size"),
                       (parallel.pipeline_model_parallel_size, "--pipeline-model-parallel-size")):
        if size < 1:
            raise UserError(f"{flag} ({size}) must be at least 1")
    for value, flag in ((model.num_attention_heads, "--num-attention-heads"),
                        (model.ffn_hidden_size, "--ffn-hidden-size"),
                        (model.padded_vocab_size, "--padded-vocab-size")):
        if value % tp:
            raise UserError(f"{flag} ({value}) must be divisible by --tensor-model-parallel-size ({tp}): "
                            f"use {_alternatives(size for size in range(1, 9) if value % size == 0)}")
    groups = model.num_query_groups
    if groups % tp and tp % groups:
        raise UserError(f"--num-query-groups ({groups}) must divide, or be divisible by, "
                        f"--tensor-model-parallel-size ({tp})")
    _check_layers(parallel, model.num_layers)


def _check_layers(parallel: ParallelConfig, layers: int) -> None:
    pp, counts = parallel.pipeline_model_parallel_size, parallel.num_layer_list
    per_chunk = parallel.num_layers_per_virtual_pipeline_stage
    if counts is not None:
        if len(counts) != pp or sum(counts) != layers or min(counts) < 1:
            raise UserError(f"--num-layer-list ({','.join(map(str, counts))}) must have {pp} positive entries "
                            f"(--pipeline-model-parallel-size) that add up to --num-layers ({layers})")
        if per_chunk is not None:
            raise UserError("--num-layer-list and --num-layers-per-virtual-pipeline-stage exclude each other: use one")
    elif per_chunk is not None:
        if pp < 2:
            raise UserError("--num-layers-per-virtual-pipeline-stage needs --pipeline-model-parallel-size of at least 2")
        if per_chunk < 1 or layers % (pp * per_chunk):
            raise UserError(f"--num-layers ({layers}) must be divisible by --pipeline-model-parallel-size ({pp}) x "
                            f"--num-layers-per-virtual-pipeline-stage ({per_chunk})")
    elif layers % pp:
        raise UserError(f"--num-layers ({layers}) must be divisible by --pipeline-model-parallel-size ({pp}): use a "
                        "divisor, or --num-layer-list")
    for layer in parallel.noop_layers:
        if not 0 <= layer < layers:
            raise UserError(f"--noop-layers ({layer}) must lie in 0..{layers - 1}")


def _alternatives(sizes: Iterable[int]) -> str:
    return " or ".join(map(str, sizes))


def _require(value: object, flag: str, why: str) -> None:
    if value is None or value == "" or value == ():
        raise UserError(f"{flag} must be given: {why}")


def _check_convert(configs: Configs) -> None:
    convert: ConvertConfig = configs.convert
    if convert.verify is not None:
        return
    _require(convert.load_dir, "--load-dir", "the directory to read")
    _require(convert.save_dir, "--save-dir", "the directory to write")
    if convert.save_lora_to_hf and convert.save_model_type != "hf":
        raise UserError("--save-lora-to-hf needs --load-model-type mg --save-model-type hf")
    if convert.load_model_type == convert.save_model_type:
        raise UserError(f"--load-model-type and --save-model-type are both {convert.load_model_type}: use hf and mg, "
                        "or mg and hf (an mcore checkpoint loads under any other parallel sizes as it is)")
    stages = convert.target_pipeline_parallel_size
    if convert.num_layer_list is not None and len(convert.num_layer_list) != stages:
        shown = ",".join(map(str, convert.num_layer_list))
        raise UserError(f"--num-layer-list ({shown}) must have --target-pipeline-parallel-size ({stages}) entries")


def _check_preprocess(configs: Configs) -> None:
    data: DataConfig = configs.data
    _require(data.input, "--input", "the file or directory to read")
    _require(data.output_prefix, "--output-prefix", "the start of the output files' names")
    _require(data.tokenizer_name_or_path, "--tokenizer-name-or-path", "the directory with the tokenizer's files")


def _check_pretrain(configs: Configs) -> None:
    _require(configs.data.data_path, "--data-path", "the prefix of the preprocessed .bin and .idx files")
    _check_data_path(configs.data.data_path)
    for name in ("train_iters", "global_batch_size"):
        if name not in configs.explicit:
            raise UserError(f"--{name.replace('_', '-')} must be given for training")
    configs.train.num_microbatches(1)
    _check_schedule(configs.optimizer, configs.train)
    _check_eval_generate(configs.train, configs.data)
    _check_eval_task(configs)
    _check_profile(configs.profile)
    _check_stage(configs)


def _check_stage(configs: Configs) -> None:
    stage, data, preference = configs.train.stage, configs.data, configs.preference
    if stage == "sft" and not data.is_instruction_dataset:
        raise UserError("--stage sft needs instruction data: add --is-instruction-dataset")
    if (stage == "dpo") != data.is_pairwise_dataset:
        raise UserError("--stage dpo needs pairs of answers: add --is-pairwise-dataset" if stage == "dpo" else
                        "--is-pairwise-dataset: pairs of answers are for --stage dpo"
                        + (f", not for --stage {stage}" if stage else "") + ": change the stage, or leave the flag out")
    if stage == "dpo" and preference.needs_reference:
        place, lora = configs.checkpoint, configs.lora
        base = place.load if lora is not None and (lora.target_modules or place.lora_load) else None
        if base is None:
            _require(preference.ref_model, "--ref-model", f"--dpo-loss-type {preference.dpo_loss_type} compares with a "
                     "reference model, usually the checkpoint of --load (with adapters, --lora-target-modules or "
                     "--lora-load, that is the reference as it is)")


def _check_eval_generate(train: TrainConfig, data: DataConfig) -> None:
    if not train.eval_generate:
        return
    if not train.eval_iters:
        raise UserError(f"--eval-generate ({train.eval_generate}) needs validations: give --eval-iters")
    if float(data.split.split(",")[1]) == 0:
        raise UserError(f"--eval-generate ({train.eval_generate}) needs validation data: give them a share in --split "
                        f"({data.split}), such as 98,2,0")
    _require(data.tokenizer_name_or_path, "--tokenizer-name-or-path", "--eval-generate writes text")


def _check_eval_task(configs: Configs) -> None:
    train = configs.train
    if train.eval_task is None:
        if train.eval_task_interval is not None:
            raise UserError(f"--eval-task-interval ({train.eval_task_interval}) needs --eval-task: add it, or leave the "
                            "interval out")
        return
    _require(train.eval_task_interval, "--eval-task-interval", f"how often --eval-task {train.eval_task} runs")
    _require(configs.evaluation.task_data_path, "--task-data-path", f"the test files of --eval-task {train.eval_task}")
    _require(configs.data.tokenizer_name_or_path, "--tokenizer-name-or-path", "--eval-task reads and writes text")
    _check_postprocess(configs.evaluation)


def _check_lora(configs: Configs) -> None:
    place = configs.checkpoint
    if place.lora_load and not place.load:
        raise UserError(f"--lora-load ({place.lora_load}) needs --load: the checkpoint of the model that the adapters are of")
    if configs.lora.target_modules or place.lora_load:
        return
    for name, flag in (("r", "--lora-r"), ("alpha", "--lora-alpha"), ("dropout", "--lora-dropout"),
                       ("lora_ckpt_filter", "--lora-ckpt-filter")):
        if name in configs.explicit:
            raise UserError(f"{flag} is given, but no adapters are: add --lora-target-modules (new ones) or --lora-load "
                            "(saved ones)")


def _check_profile(profile: ProfileConfig) -> None:
    if profile.profile_step_start >= profile.profile_step_end:
        raise UserError(f"--profile-step-end ({profile.profile_step_end}) must be above --profile-step-start "
                        f"({profile.profile_step_start}): it is the first iteration that is not profiled any more")


def _check_inference(configs: Configs) -> None:
    _check_runnable(configs)
    inference = configs.inference
    if inference.prompts and inference.prompt_file:
        raise UserError(f"--prompt and --prompt-file ({inference.prompt_file}) exclude each other: use one")
    if "serve" in inference.task:
        _check_serving(configs)
    for flag, value in (("--prompt-file", inference.prompt_file), ("--output", inference.output)):
        if value and set(inference.task) == {"chat"}:
            raise UserError(f"{flag} ({value}) has no use in --task chat: add another task, such as greedy, or leave "
                            "it out")
    if inference.history_turns is not None and "chat" not in inference.task:
        raise UserError(f"--history-turns ({inference.history_turns}) is of --task chat: add that, or leave it out")
    _check_chat_template(configs, inference)
    if inference.system_prompt and inference.no_chat_template:
        raise UserError("--system-prompt has its place in the chat template: leave out --no-chat-template, or put the "
                        "text into the prompt")
    if inference.tools and inference.no_chat_template:
        raise UserError(f"--tools ({inference.tools}) have their place in the chat template: leave out "
                        "--no-chat-template, or describe them in the prompt")


def _check_chat_template(configs: Configs, job: InferenceConfig | EvaluationConfig) -> None:
    if job.hf_chat_template and (job.no_chat_template or configs.data.prompt_type):
        other = "--no-chat-template" if job.no_chat_template else f"--prompt-type ({configs.data.prompt_type})"
        raise UserError(f"--hf-chat-template and {other} exclude each other: use one")


def _check_evaluation(configs: Configs) -> None:
    if compared := configs.evaluation.compare:
        if len(compared) != 2:
            raise UserError(f"--compare ({' '.join(compared)}) takes two directories: --compare A B")
        return
    _require(configs.evaluation.task_data_path, "--task-data-path", "the directory of the benchmark's test files")
    _check_runnable(configs)
    _check_postprocess(configs.evaluation)
    _check_chat_template(configs, configs.evaluation)


def _check_postprocess(evaluation: EvaluationConfig) -> None:
    if evaluation.origin_postprocess and evaluation.scoring == "logprob":
        raise UserError("--origin-postprocess reads written answers: use --scoring generate, or leave it out")


def _check_runnable(configs: Configs) -> None:
    _require(configs.data.tokenizer_name_or_path, "--tokenizer-name-or-path",
             "the directory with the tokenizer's files")
    if configs.checkpoint.load is None and configs.model is None:
        raise UserError("--load must be given: the checkpoint directory (for random weights give all model flags "
                        "instead)")


def _check_serving(configs: Configs) -> None:
    """Alone, and without flags of what each request says for itself."""
    inference, serve, length = configs.inference, configs.serve, configs.train.seq_length
    if len(inference.task) > 1:
        raise UserError(f"--task {' '.join(inference.task)}: serve goes on until it is ended; give it alone")
    given = [flag_name(name) for name in ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty",
                                          "num_beams", "prompt_file", "output", "tools") if name in configs.explicit]
    given += ["--prompt"] if inference.prompts else []
    if inference.hf_chat_template:
        raise UserError("--hf-chat-template is not for --task serve, which needs the form of tool calls and thoughts: "
                        "leave it out, or name a template with --prompt-type")
    if given:
        raise UserError(f"{given[0]} is not for --task serve: clients say so in each request; leave it out")
    if serve.kv_cache_tokens is not None and "seq_length" in configs.explicit and serve.kv_cache_tokens < length:
        raise UserError(f"--kv-cache-tokens ({serve.kv_cache_tokens}) must be at least --seq-length ({length}), for a "
                        "sequence of that length")


_CHECKS: dict[str, Callable[[Configs], None]] = {
    "convert": _check_convert, "preprocess": _check_preprocess, "pretrain": _check_pretrain,
    "inference": _check_inference, "evaluation": _check_evaluation}


def _check_data_path(entries: tuple[str, ...]) -> None:
    """One or several prefixes, or `weight prefix` pairs; mixtures are refused."""
    if len(entries) == 1:
        return
    weights = [_as_weight(entry) for entry in entries]
    if all(weight is None for weight in weights):
        return
    shown = " ".join(entries)
    if len(entries) % 2 or any((weight is None) == (i % 2 == 0) for i, weight in enumerate(weights)):
        raise UserError(f"--data-path ({shown}) must be prefixes only, or a weight before every prefix: 0.3 a 0.7 b")
    if any(weight <= 0 for weight in weights[::2]):
        raise UserError(f"--data-path ({shown}): weights must be above 0")


def _as_weight(entry: str) -> float | None:
    try:
        return float(entry)
    except ValueError:
        return None


def _check_schedule(optimizer: OptimizerConfig, train: TrainConfig) -> None:
    if optimizer.min_lr > optimizer.lr:
        raise UserError(f"--min-lr ({optimizer.min_lr}) must be at most --lr ({optimizer.lr})")
    if optimizer.lr_warmup_fraction is not None and optimizer.lr_warmup_iters:
        raise UserError(f"--lr-warmup-fraction ({optimizer.lr_warmup_fraction}) and --lr-warmup-iters "
                        f"({optimizer.lr_warmup_iters}) exclude each other: use one")
    decay = optimizer.lr_decay_iters or train.train_iters
    if optimizer.lr_warmup_iters >= decay and optimizer.lr_warmup_iters:
        raise UserError(f"--lr-warmup-iters ({optimizer.lr_warmup_iters}) must be below --lr-decay-iters ({decay}, by "
                        "default --train-iters)")


def _check_overlap(parallel: ParallelConfig) -> None:
    if parallel.overlap_param_gather and not (parallel.use_distributed_optimizer and parallel.overlap_grad_reduce):
        raise UserError("--overlap-param-gather needs --use-distributed-optimizer and --overlap-grad-reduce: add them "
                        "or leave it out")


def _check_recompute(parallel: ParallelConfig) -> None:
    granularity, method = parallel.recompute_granularity, parallel.recompute_method
    layers = parallel.recompute_num_layers
    if granularity == "full" and (method is None or layers is None):
        raise UserError("--recompute-granularity full needs --recompute-method {block,uniform} and "
                        "--recompute-num-layers")
    if granularity != "full" and (method is not None or layers is not None):
        given = f"--recompute-method {method}" if method is not None else f"--recompute-num-layers {layers}"
        raise UserError(f"{given} needs --recompute-granularity full")


def _check_sequence(seq_length: int, model: ModelConfig, parallel: ParallelConfig) -> None:
    tp, cp = parallel.tensor_model_parallel_size, parallel.context_parallel_size
    if seq_length > model.max_position_embeddings:
        raise UserError(f"--seq-length ({seq_length}) must be at most --max-position-embeddings "
                        f"({model.max_position_embeddings}): raise the latter or shorten the sequence")
    if cp > 1 and parallel.context_parallel_algo == ULYSSES:
        _check_ulysses_heads(model, tp, cp)
        _divides(seq_length, cp, f"--context-parallel-size ({cp})")
    elif cp > 1:
        _divides(seq_length, 2 * cp, f"2 x --context-parallel-size ({cp}), as ring attention deals out two pieces a "
                                     "rank")
    if parallel.sequence_parallel:
        divisor = f"--tensor-model-parallel-size ({tp})" + (f" x --context-parallel-size ({cp})" if cp > 1 else "")
        _divides(seq_length, tp * cp, divisor + " under --sequence-parallel")


def _check_ulysses_heads(model: ModelConfig, tp: int, cp: int) -> None:
    """Every rank of a context group takes as many heads as the others, and whole query groups or a part of one."""
    heads, groups = model.local_heads(tp).queries, model.local_heads(tp).groups
    if not ulysses_divides(heads, groups, cp):
        possible = _alternatives(size for size in range(1, heads + 1) if ulysses_divides(heads, groups, size))
        raise UserError(f"--context-parallel-size ({cp}) under {ULYSSES} must divide --num-attention-heads / "
                        f"--tensor-model-parallel-size ({heads}) and give every rank as many query groups (of {groups}) "
                        f"as the others: use {possible}, or --context-parallel-algo {RING}")


def _divides(seq_length: int, divisor: int, text: str) -> None:
    if seq_length % divisor:
        lower = seq_length - seq_length % divisor
        near = f"{lower} or {lower + divisor}" if lower else str(divisor)
        raise UserError(f"--seq-length ({seq_length}) must be divisible by {text}: use {near}")
