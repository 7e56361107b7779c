"""Training loop, optimizer, schedule, checkpoint and run-time options."""

from dataclasses import dataclass, field
from typing import Any

from mindspeed_llm.config import flag_kinds as kind
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.option import CONVERT, EVALUATION, INFERENCE, MODEL, PREPROCESS, RUN, TRAIN, Flag, option


BENCHMARKS = ("mmlu", "ceval", "cmmlu", "boolq", "hellaswag", "gsm8k", "bbh", "agieval", "humaneval", "needlebench")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its learning-rate schedule. Learning rates are per step, warm-up and decay lengths in iterations."""

    lr: float = option(1.25e-6, Flag(kind.number(above=0.0), TRAIN, "highest learning rate"))
    min_lr: float = option(0.0, Flag(
        kind.number(low=0.0), TRAIN, "learning rate at the end of the decay; at most --lr"))
    lr_decay_style: str = option("cosine", Flag(
        kind.choice("constant", "linear", "cosine"), TRAIN, "way from --lr to --min-lr"))
    lr_warmup_fraction: float | None = option(None, Flag(
        kind.number(low=0.0, below=1.0), TRAIN, "linear warm-up for this part of --lr-decay-iters; excludes "
        "--lr-warmup-iters"))
    lr_warmup_iters: int = option(0, Flag(kind.integer(0), TRAIN, "linear warm-up for so many iterations"))
    lr_decay_iters: int | None = option(None, Flag(
        kind.integer(1), TRAIN, "iteration at which --min-lr is reached", default="--train-iters"))
    weight_decay: float = option(0.1, Flag(
        kind.number(low=0.0), TRAIN, "decoupled weight decay, not on biases and norms"))
    clip_grad: float = option(1.0, Flag(
        kind.number(low=0.0), TRAIN, "largest global L2 norm of the gradient; 0 turns clipping off"))
    adam_beta1: float = option(0.9, Flag(kind.number(low=0.0, below=1.0), TRAIN, "decay of the first moment"))
    adam_beta2: float = option(0.95, Flag(kind.number(low=0.0, below=1.0), TRAIN, "decay of the second moment"))
    adam_eps: float = option(1e-8, Flag(kind.number(above=0.0), TRAIN, "added to the root of the second moment"))
    initial_loss_scale: float = option(2.0**32, Flag(
        kind.number(low=1.0), TRAIN, "first loss scale of --fp16; bf16 and fp32 do not scale"))


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Batch sizes count sequences; `params_dtype` is fp32, bf16 or fp16."""

    micro_batch_size: int = option(1, Flag(kind.integer(1), TRAIN, "sequences in one forward pass of one replica"))
    global_batch_size: int = option(1, Flag(
        kind.integer(1), TRAIN, "sequences in one optimizer step; a multiple of --micro-batch-size x data-parallel "
        "size", default="required"))
    train_iters: int = option(1, Flag(
        kind.integer(1), TRAIN, "optimizer steps in all, those before a resume included", default="required"))
    seq_length: int = option(4096, Flag(
        kind.integer(1), RUN + PREPROCESS, "tokens in a sequence; when generating or evaluating, prompt and answer "
        "together (default there: the checkpoint's --max-position-embeddings)",
        fields=("train.seq_length", "data.seq_length")))
    params_dtype: str = option(
        "fp32",
        Flag(
            kind.switch(), RUN, "parameters and activations in bfloat16",
            name="--bf16", fields=("cli.bf16",), default="off (fp32)"),
        Flag(
            kind.switch(), RUN, "parameters and activations in float16, with loss scaling",
            name="--fp16", fields=("cli.fp16",), default="off (fp32)"))
    seed: int = option(1234, Flag(
        kind.integer(0), RUN, "of initial weights, data order and sampling; a resumed run keeps the checkpoint's "
        "(see --no-load-rng)"))
    npu_deterministic: bool = option(False, Flag(
        kind.switch(), RUN, "on Ascend operators and communication that give the same bits each time, at some cost; on "
        "CPU all do"))
    stage: str | None = option(None, Flag(
        kind.choice("sft", "dpo"), TRAIN, "sft: fine-tuning on instruction data (with --is-instruction-dataset); dpo: "
        "preference tuning on pairs (with --is-pairwise-dataset)", default="pre-training"))
    log_interval: int = option(1, Flag(kind.integer(1), TRAIN, "iterations between log lines"))
    eval_interval: int = option(1000, Flag(kind.integer(1), TRAIN, "iterations between validation losses"))
    eval_iters: int = option(0, Flag(kind.integer(0), TRAIN, "batches of a validation; 0 turns it off"))
    eval_generate: int = option(0, Flag(
        kind.integer(0), TRAIN, "a validation also shows so many greedy continuations of validation prompts, in the "
        "log and in TensorBoard"))
    eval_task: str | None = option(None, Flag(
        kind.choice(*BENCHMARKS), TRAIN, "every --eval-task-interval iterations put this benchmark's questions to the "
        "model (with --task-data-path and the other flags of evaluation); accuracies go to the log and to TensorBoard",
        default="none"))
    eval_task_interval: int | None = option(None, Flag(
        kind.integer(1), TRAIN, "iterations between two runs of --eval-task", default="required with --eval-task"))
    exit_interval: int | None = option(None, Flag(
        kind.integer(1), TRAIN, "save and exit at every multiple of so many iterations"))
    exit_signal_handler: bool = option(False, Flag(
        kind.switch(), TRAIN, "on SIGTERM finish the iteration, save and exit"))
    tensorboard_dir: str | None = option(None, Flag(kind.path(), TRAIN, "write TensorBoard events here"))
    wandb_project: str | None = option(None, Flag(
        kind.path(), TRAIN, "record the run for this Weights & Biases project (needs requirements-wandb.txt); offline "
        "unless the environment's WANDB_MODE says otherwise"))
    wandb_exp_name: str | None = option(None, Flag(kind.path(), TRAIN, "name of the run there", default="wandb's choice"))
    wandb_save_dir: str = option(".", Flag(kind.text(), TRAIN, "directory in which wandb/ with the record is written"))
    log_throughput: bool = option(False, Flag(
        kind.switch(), TRAIN, "TFLOP/s of a rank in the iteration line, and their share of what this machine's product "
        "kernel reaches (see docs/operations.md)"))
    check_for_nan_in_loss_and_grad: bool = option(True, Flag(
        kind.switch(False), TRAIN, "go on when loss or gradient is NaN or infinite instead of stopping",
        name="--no-check-for-nan-in-loss-and-grad", default="off (stop)"))
    dry_run: bool = option(False, Flag(
        kind.switch(), TRAIN, "print memory, communication and pipeline bubble of this job and end; needs no "
        "devices (see docs/planner.md)"))
    device_memory_gb: float = option(64.0, Flag(
        kind.number(above=0.0), TRAIN, "memory of a device in GiB, for the verdict of --dry-run"))

    def num_microbatches(self, data_parallel_size: int) -> int:
        """Forward passes of one replica in one optimizer step.

        Raises UserError when the global batch does not split evenly over `data_parallel_size` replicas.
        """
        step = self.micro_batch_size * data_parallel_size
        if self.global_batch_size % step:
            replicas = f" x data-parallel size ({data_parallel_size})" if data_parallel_size > 1 else ""
            lower = self.global_batch_size - self.global_batch_size % step
            near = f"{lower} or {lower + step}" if lower else str(step)
            raise UserError(f"--global-batch-size ({self.global_batch_size}) must be divisible by --micro-batch-size "
                            f"({self.micro_batch_size}){replicas}: use {near}")
        return self.global_batch_size // step


@dataclass(frozen=True)
class ProfileConfig:
    """Which iterations of which ranks are profiled, and how closely."""

    profile: bool = option(False, Flag(
        kind.switch(), TRAIN, "record where the time of some iterations goes, and print a table of it (see "
        "docs/operations.md)"))
    profile_step_start: int = option(10, Flag(
        kind.integer(1), TRAIN, "first iteration that is profiled, by the number in its log line"))
    profile_step_end: int = option(12, Flag(
        kind.integer(2), TRAIN, "the iteration before which profiling ends"))
    profile_ranks: tuple[int, ...] = option((0,), Flag(
        kind.numbers(-1), TRAIN, "global ranks that are profiled; -1: all"))
    profile_level: str = option("level0", Flag(
        kind.choice("level0", "level1", "level2"), TRAIN, "on CPU level0 has data, passes, communication and optimizer; "
        "level1 the kernels too; level2 the shapes of their inputs. On Ascend MindSpore's levels of these names"))
    profile_with_cpu: bool = option(False, Flag(
        kind.switch(), TRAIN, "on Ascend: what the host does, too; on CPU it is all there is"))
    profile_save_path: str = option("./profile_dir", Flag(kind.text(), TRAIN, "directory for the profiles"))


@dataclass(frozen=True)
class CheckpointConfig:
    """Where checkpoints come from and go to; intervals are in iterations."""

    load: str | None = option(None, Flag(
        kind.path(), RUN, "checkpoint directory; empty or absent: random initial weights. To generate or evaluate also "
        "the directory of a Hugging Face model"))
    ckpt_step: int | None = option(None, Flag(
        kind.integer(0), RUN, "iteration of --load to take", default="the last one"))
    lora_load: str | None = option(None, Flag(
        kind.path(), MODEL, "checkpoint directory with adapters, whose base is --load; training goes on where they were "
        "saved (with --finetune: starts at iteration 0). In a conversion: adapters to merge, to write as PEFT does "
        "(--save-lora-to-hf), or for hf -> mg a PEFT directory to convert",
        fields=("checkpoint.lora_load", "convert.lora_load")))
    lora_ckpt_filter: bool = option(False, Flag(
        kind.switch(), TRAIN, "checkpoints of --save hold the adapters and their optimizer state only; without it the "
        "frozen base too"))
    save: str | None = option(None, Flag(kind.path(), TRAIN, "directory for checkpoints; absent: none are written"))
    save_interval: int | None = option(None, Flag(
        kind.integer(1), TRAIN, "iterations between checkpoints (with --save)", default="only at the end"))
    async_save: bool = option(False, Flag(
        kind.switch(), TRAIN, "copy what is to be saved and write it while training goes on; takes as much host memory "
        "again as the saved state of a rank"))
    save_total_limit: int | None = option(None, Flag(
        kind.integer(1), TRAIN, "training checkpoints to keep in --save: a save removes the oldest beyond these",
        default="all are kept"))
    finetune: bool = option(False, Flag(
        kind.switch(), TRAIN, "take only the weights of --load and start at iteration 0"))
    no_load_optim: bool = option(False, Flag(kind.switch(), TRAIN, "start with a fresh optimizer"))
    no_load_rng: bool = option(False, Flag(
        kind.switch(), TRAIN, "when resuming take the data order of --seed, not of the checkpoint's seed"))
    no_save_optim: bool = option(False, Flag(
        kind.switch(), TRAIN, "write weights only: such a checkpoint cannot be resumed"))
    exit_on_missing_checkpoint: bool = option(False, Flag(
        kind.switch(), TRAIN, "a --load directory without a checkpoint is an error, not a warning"))


@dataclass(frozen=True)
class ConvertConfig:
    """`convert_ckpt.py`: source and target of a conversion; sizes are of the written mcore checkpoint.

    mg -> hf needs `hf_dir`, the original HF directory, for config and tokenizer, and writes `save_dir`. `stated_model` are
    model fields given as flags, to be checked against the source's config.
    """

    load_model_type: str = option("hf", Flag(
        kind.choice("hf", "mg"), CONVERT, "layout that is read: Hugging Face or mcore"))
    save_model_type: str = option("mg", Flag(kind.choice("mg", "hf"), CONVERT, "layout that is written"))
    model_type_hf: str = option("chatglm3", Flag(
        kind.choice("chatglm3", "glm", "glm4", "qwen3"), CONVERT, "Hugging Face layout: chatglm3 is GLM-4-9B's own "
        "(transformer.*), the others are the native ones"))
    load_dir: str = option("", Flag(kind.path(), CONVERT, "directory that is read", default="required"))
    save_dir: str = option("", Flag(
        kind.path(), CONVERT, "directory that is written; for mg -> hf without --hf-dir it is the original HF "
        "directory, and the output goes into its mg2hf/", default="required"))
    hf_dir: str | None = option(
        None,
        Flag(
            kind.path(), CONVERT, "for mg -> hf: the original HF directory (config and tokenizer come from it); "
            "with it the output goes to --save-dir itself", default="--save-dir"),
        Flag(kind.path(), CONVERT, "MindSpeed-LLM's other name of --hf-dir", name="--hf-cfg-dir", default="--hf-dir"))
    params_dtype: str | None = option(None, Flag(
        kind.choice("fp32", "bf16", "fp16"), CONVERT, "dtype that is written", default="the source's"))
    target_tensor_parallel_size: int = option(1, Flag(
        kind.integer(1), CONVERT, "tensor-parallel size of the mcore checkpoint that is written"))
    target_pipeline_parallel_size: int = option(1, Flag(
        kind.integer(1), CONVERT, "pipeline-parallel size of the mcore checkpoint that is written"))
    verify: str | None = option(None, Flag(
        kind.path(), CONVERT, "convert nothing: check every file and tensor of this mcore checkpoint directory"))
    save_lora_to_hf: bool = option(False, Flag(
        kind.switch(), CONVERT, "for mg -> hf: write the adapters of --lora-load as a PEFT adapter directory instead of "
        "merging them"))
    lora_load: str | None = None
    num_layer_list: tuple[int, ...] | None = None
    noop_layers: tuple[int, ...] = ()
    stated_model: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class InferenceConfig:
    """`inference.py`: what to generate and how to choose the next token."""

    task: tuple[str, ...] = option(("greedy",), Flag(
        kind.words("greedy", "do_sample", "beam_search", "beam_search_with_sampling", "chat", "serve"), INFERENCE,
        "one or several ways to generate, or serve: answer requests over HTTP"))
    prompts: tuple[str, ...] = option((), Flag(
        kind.repeated_text(), INFERENCE, "a prompt; may be repeated", name="--prompt", default="a few built-in ones"))
    prompt_file: str | None = option(None, Flag(
        kind.path(), INFERENCE, "prompts: the lines of a .txt file, or `prompt` of each object in a .jsonl file"))
    output: str | None = option(None, Flag(
        kind.path(), INFERENCE, "write the answers to this file as JSON lines, with ids, log-probabilities and why "
        "each ended"))
    system_prompt: str = option("", Flag(
        kind.text(), INFERENCE, "what the model is told before every conversation, in the chat template",
        default="none"))
    tools: str | None = option(None, Flag(
        kind.path(), INFERENCE, "JSON file with a list of the tools that the model is told of, in the chat template, "
        "described as the OpenAI API has them"))
    max_new_tokens: int = option(128, Flag(kind.integer(1), INFERENCE, "longest answer, in tokens"))
    temperature: float = option(1.0, Flag(kind.number(above=0.0), INFERENCE, "divides the logits before sampling"))
    top_k: int = option(0, Flag(kind.integer(0), INFERENCE, "sample among the k likeliest tokens; 0: among all"))
    top_p: float = option(1.0, Flag(
        kind.number(above=0.0, high=1.0), INFERENCE, "sample among the likeliest tokens that make up this "
        "probability"))
    repetition_penalty: float = option(1.0, Flag(
        kind.number(above=0.0), INFERENCE, "logits of tokens that prompt or answer already have are divided by this "
        "(negative ones multiplied); 1.0: no penalty"))
    num_beams: int = option(4, Flag(
        kind.integer(1), INFERENCE, "beams of beam_search and beam_search_with_sampling"))
    hf_chat_template: bool = option(False, Flag(
        kind.switch(), INFERENCE + EVALUATION, "write conversations with the Jinja template in the tokenizer's "
        "directory (chat_template.jinja, or tokenizer_config.json) instead of the one of --prompt-type",
        fields=("inference.hf_chat_template", "evaluation.hf_chat_template")))
    add_eos_token: tuple[str, ...] = option((), Flag(
        kind.words(), INFERENCE, "more tokens that end an answer, by their text", default="none"))
    history_turns: int | None = option(None, Flag(
        kind.integer(0), INFERENCE, "earlier questions of a chat, with their answers, that the model is shown",
        default="as many as fit"))
    no_chat_template: bool = option(False, Flag(
        kind.switch(), INFERENCE + EVALUATION + TRAIN, "the prompt is given to the model as it is",
        fields=("inference.no_chat_template", "evaluation.no_chat_template")))


@dataclass(frozen=True)
class EvaluationConfig:
    """`evaluation.py`: the benchmark, its files, and how the prompt is built. None: the benchmark's own choice."""

    task: str = option("mmlu", Flag(kind.single_word(*BENCHMARKS), EVALUATION, "benchmark"))
    task_data_path: str = option("", Flag(
        kind.single_word(), EVALUATION + TRAIN, "directory of the benchmark's test files, in its public layout (see "
        "docs/evaluation.md)", default="required"))
    evaluation_batch_size: int = option(1, Flag(kind.integer(1), EVALUATION + TRAIN, "questions in one forward pass"))
    max_eval_samples: int | None = option(None, Flag(
        kind.integer(1), EVALUATION + TRAIN, "at most so many questions of each subject", default="all"))
    num_shots: int | None = option(None, Flag(
        kind.integer(0, 5), EVALUATION + TRAIN, "answered examples before each question, where the benchmark has them",
        default="the benchmark's (mmlu: 5)"))
    scoring: str | None = option(None, Flag(
        kind.choice("logprob", "generate"), EVALUATION + TRAIN, "logprob: the likeliest of a question's options is the "
        "answer; generate: the model writes its answer, as MindSpeed-LLM has it", default="the benchmark's (mmlu: logprob)"))
    max_new_tokens: int | None = option(None, Flag(
        kind.integer(1), EVALUATION + TRAIN, "longest answer, in tokens, where the model writes it",
        default="the benchmark's"))
    eval_language: str | None = option(None, Flag(
        kind.choice("en", "zh"), EVALUATION + TRAIN, "language of the words around a question",
        default="the benchmark's (mmlu: en)"))
    no_chat_template: bool = False
    hf_chat_template: bool = False
    broadcast: bool = option(False, Flag(
        kind.switch(), EVALUATION, "rank 0 reads the questions and sends them to the others"))
    alternative_prompt: bool = option(False, Flag(kind.switch(), EVALUATION + TRAIN, "the second form of the prompt"))
    chain_of_thought: bool = option(False, Flag(
        kind.switch(), EVALUATION + TRAIN, "examples show the way to the answer, and the model writes it too (gsm8k, bbh)"))
    origin_postprocess: bool = option(False, Flag(
        kind.switch(), EVALUATION + TRAIN, "answers are written, and read by MindSpeed-LLM's first rule of the "
        "benchmark"))
    allow_code_execution: bool = option(False, Flag(
        kind.switch(), EVALUATION + TRAIN, "humaneval may run the programs that the model writes, on this machine"))
    output_dir: str | None = option(None, Flag(
        kind.path(), EVALUATION, "write accuracies, every answer and a chart here; an evaluation that was ended goes on "
        "after its last finished subject"))
    compare: tuple[str, ...] = option((), Flag(
        kind.words(), EVALUATION, "compare the --output-dir of two evaluations question by question, and end",
        default="off"))
