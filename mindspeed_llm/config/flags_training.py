"""Flags of the optimizer, the training loop and checkpoints."""

from mindspeed_llm.config import flag_kinds as kind
from mindspeed_llm.config.flag_kinds import RUN, TRAIN, Flag

_OPTIMIZER = "optimizer"
_TRAINING = "training"
_CHECKPOINT = "checkpoint"

OPTIMIZER_FLAGS = (
    Flag("--lr", kind.number(above=0.0), ("optimizer.lr",), TRAIN, "highest learning rate", _OPTIMIZER),
    Flag("--min-lr", kind.number(low=0.0), ("optimizer.min_lr",), TRAIN,
         "learning rate at the end of the decay; at most --lr", _OPTIMIZER),
    Flag("--lr-decay-style", kind.choice("constant", "linear", "cosine"), ("optimizer.lr_decay_style",), TRAIN,
         "way from --lr to --min-lr", _OPTIMIZER),
    Flag("--lr-warmup-fraction", kind.number(low=0.0, below=1.0), ("optimizer.lr_warmup_fraction",), TRAIN,
         "linear warm-up for this part of --lr-decay-iters; excludes --lr-warmup-iters", _OPTIMIZER),
    Flag("--lr-warmup-iters", kind.integer(0), ("optimizer.lr_warmup_iters",), TRAIN,
         "linear warm-up for so many iterations", _OPTIMIZER),
    Flag("--lr-decay-iters", kind.integer(1), ("optimizer.lr_decay_iters",), TRAIN,
         "iteration at which --min-lr is reached", _OPTIMIZER, default="--train-iters"),
    Flag("--weight-decay", kind.number(low=0.0), ("optimizer.weight_decay",), TRAIN,
         "decoupled weight decay, not on biases and norms", _OPTIMIZER),
    Flag("--clip-grad", kind.number(low=0.0), ("optimizer.clip_grad",), TRAIN,
         "largest global L2 norm of the gradient; 0 turns clipping off", _OPTIMIZER),
    Flag("--adam-beta1", kind.number(low=0.0, below=1.0), ("optimizer.adam_beta1",), TRAIN,
         "decay of the first moment", _OPTIMIZER),
    Flag("--adam-beta2", kind.number(low=0.0, below=1.0), ("optimizer.adam_beta2",), TRAIN,
         "decay of the second moment", _OPTIMIZER),
    Flag("--adam-eps", kind.number(above=0.0), ("optimizer.adam_eps",), TRAIN,
         "added to the root of the second moment", _OPTIMIZER),
    Flag("--initial-loss-scale", kind.number(low=1.0), ("optimizer.initial_loss_scale",), TRAIN,
         "first loss scale of --fp16; bf16 and fp32 do not scale", _OPTIMIZER),
)

TRAINING_FLAGS = (
    Flag("--micro-batch-size", kind.integer(1), ("train.micro_batch_size",), TRAIN,
         "sequences in one forward pass of one replica", _TRAINING),
    Flag("--global-batch-size", kind.integer(1), ("train.global_batch_size",), TRAIN,
         "sequences in one optimizer step; a multiple of --micro-batch-size x data-parallel size", _TRAINING,
         default="required"),
    Flag("--train-iters", kind.integer(1), ("train.train_iters",), TRAIN,
         "optimizer steps in all, those before a resume included", _TRAINING, default="required"),
    Flag("--seq-length", kind.integer(1), ("train.seq_length", "data.seq_length"), RUN + ("preprocess",),
         "tokens in a sequence; when generating or evaluating, prompt and answer together (default there: the "
         "checkpoint's --max-position-embeddings)", _TRAINING),
    Flag("--bf16", kind.switch(), ("cli.bf16",), RUN, "parameters and activations in bfloat16", _TRAINING,
         default="off (fp32)"),
    Flag("--fp16", kind.switch(), ("cli.fp16",), RUN, "parameters and activations in float16, with loss scaling",
         _TRAINING, default="off (fp32)"),
    Flag("--seed", kind.integer(0), ("train.seed",), RUN,
         "of initial weights, data order and sampling; a resumed run keeps the checkpoint's (see --no-load-rng)",
         _TRAINING),
    Flag("--stage", kind.choice("sft"), ("train.stage",), TRAIN,
         "sft: fine-tuning on instruction data (with --is-instruction-dataset)", _TRAINING, default="pre-training"),
    Flag("--log-interval", kind.integer(1), ("train.log_interval",), TRAIN, "iterations between log lines", _TRAINING),
    Flag("--eval-interval", kind.integer(1), ("train.eval_interval",), TRAIN,
         "iterations between validation losses", _TRAINING),
    Flag("--eval-iters", kind.integer(0), ("train.eval_iters",), TRAIN,
         "batches of a validation; 0 turns it off", _TRAINING),
    Flag("--exit-interval", kind.integer(1), ("train.exit_interval",), TRAIN,
         "save and exit at every multiple of so many iterations", _TRAINING),
    Flag("--exit-signal-handler", kind.switch(), ("train.exit_signal_handler",), TRAIN,
         "on SIGTERM finish the iteration, save and exit", _TRAINING),
    Flag("--tensorboard-dir", kind.path(), ("train.tensorboard_dir",), TRAIN, "write TensorBoard events here",
         _TRAINING),
    Flag("--no-check-for-nan-in-loss-and-grad", kind.switch(False), ("train.check_for_nan_in_loss_and_grad",), TRAIN,
         "go on when loss or gradient is NaN or infinite instead of stopping", _TRAINING, default="off (stop)"),
    Flag("--dry-run", kind.switch(), ("train.dry_run",), TRAIN,
         "print memory, communication and pipeline bubble of this job and end; needs no devices (see docs/planner.md)",
         _TRAINING),
    Flag("--device-memory-gb", kind.number(above=0.0), ("train.device_memory_gb",), TRAIN,
         "memory of a device in GiB, for the verdict of --dry-run", _TRAINING),
)

CHECKPOINT_FLAGS = (
    Flag("--load", kind.path(), ("checkpoint.load",), RUN,
         "checkpoint directory; empty or absent: random initial weights", _CHECKPOINT),
    Flag("--save", kind.path(), ("checkpoint.save",), TRAIN, "directory for checkpoints; absent: none are written",
         _CHECKPOINT),
    Flag("--save-interval", kind.integer(1), ("checkpoint.save_interval",), TRAIN,
         "iterations between checkpoints (with --save)", _CHECKPOINT, default="only at the end"),
    Flag("--finetune", kind.switch(), ("checkpoint.finetune",), TRAIN,
         "take only the weights of --load and start at iteration 0", _CHECKPOINT),
    Flag("--no-load-optim", kind.switch(), ("checkpoint.no_load_optim",), TRAIN, "start with a fresh optimizer",
         _CHECKPOINT),
    Flag("--no-load-rng", kind.switch(), ("checkpoint.no_load_rng",), TRAIN,
         "when resuming take the data order of --seed, not of the checkpoint's seed", _CHECKPOINT),
    Flag("--no-save-optim", kind.switch(), ("checkpoint.no_save_optim",), TRAIN,
         "write weights only: such a checkpoint cannot be resumed", _CHECKPOINT),
    Flag("--exit-on-missing-checkpoint", kind.switch(), ("checkpoint.exit_on_missing_checkpoint",), RUN,
         "a --load directory without a checkpoint is an error, not a warning", _CHECKPOINT),
)
