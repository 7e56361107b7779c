"""Training loop, optimizer, schedule, checkpoint and run-time options."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mindspeed_llm.config.errors import UserError


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its learning-rate schedule. Learning rates are per step, warm-up and decay lengths in iterations."""

    lr: float = 1.25e-6
    min_lr: float = 0.0
    lr_decay_style: str = "cosine"
    lr_warmup_fraction: float | None = None
    lr_warmup_iters: int = 0
    lr_decay_iters: int | None = None
    weight_decay: float = 0.1
    clip_grad: float = 1.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_eps: float = 1e-8
    initial_loss_scale: float = 2.0**32


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Batch sizes count sequences; `params_dtype` is fp32, bf16 or fp16."""

    micro_batch_size: int = 1
    global_batch_size: int = 1
    train_iters: int = 1
    seq_length: int = 4096
    params_dtype: str = "fp32"
    seed: int = 1234
    stage: str | None = None
    log_interval: int = 1
    eval_interval: int = 1000
    eval_iters: int = 0
    eval_generate: int = 0
    exit_interval: int | None = None
    exit_signal_handler: bool = False
    tensorboard_dir: str | None = None
    check_for_nan_in_loss_and_grad: bool = True
    dry_run: bool = False
    device_memory_gb: float = 64.0

    def check_batch(self) -> None:
        """Raise UserError unless the global batch is a whole number of micro-batches."""
        self.num_microbatches(1)

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
class CheckpointConfig:
    """Where checkpoints come from and go to; intervals are in iterations."""

    load: str | None = None
    save: str | None = None
    save_interval: int | None = None
    finetune: bool = False
    no_load_optim: bool = False
    no_load_rng: bool = False
    no_save_optim: bool = False
    exit_on_missing_checkpoint: bool = False


@dataclass(frozen=True)
class ConvertConfig:
    """`convert_ckpt.py`: source and target of a conversion; sizes are of the written mcore checkpoint.

    mg -> hf needs the original HF directory for config and tokenizer. With `hf_dir` the output goes to `save_dir`
    itself. Without it `save_dir` is the original, as MindSpeed-LLM documents it: it becomes `hf_dir`, and the output
    goes into its `mg2hf/`. After construction `hf_dir` and `save_dir` have their final meaning either way.
    `stated_model` are model fields given as flags, to be checked against the source's config.
    """

    load_model_type: str = "hf"
    save_model_type: str = "mg"
    model_type_hf: str = "chatglm3"
    load_dir: str = ""
    save_dir: str = ""
    hf_dir: str | None = None
    params_dtype: str | None = None
    target_tensor_parallel_size: int = 1
    target_pipeline_parallel_size: int = 1
    num_layer_list: tuple[int, ...] | None = None
    noop_layers: tuple[int, ...] = ()
    stated_model: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.save_model_type == "hf" and self.hf_dir is None and self.save_dir:
            object.__setattr__(self, "hf_dir", self.save_dir)
            object.__setattr__(self, "save_dir", str(Path(self.save_dir) / "mg2hf"))


@dataclass(frozen=True)
class InferenceConfig:
    """`inference.py`: what to generate and how to choose the next token."""

    task: tuple[str, ...] = ("greedy",)
    prompts: tuple[str, ...] = ()
    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    num_beams: int = 4
    no_chat_template: bool = False


@dataclass(frozen=True)
class EvaluationConfig:
    """`evaluation.py`: the benchmark, its files, and how the prompt is built."""

    task: str = "mmlu"
    task_data_path: str = ""
    evaluation_batch_size: int = 1
    max_eval_samples: int | None = None
    num_shots: int = 5
    no_chat_template: bool = False
    broadcast: bool = False
    alternative_prompt: bool = False
    output_dir: str | None = None
