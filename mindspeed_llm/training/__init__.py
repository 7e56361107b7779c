"""Pre-training and fine-tuning: from configs to a trained checkpoint."""

from typing import TYPE_CHECKING

from mindspeed_llm.config.configs import Configs

if TYPE_CHECKING:
    from mindspeed_llm.training.benchmark import BenchmarkOf


def run(configs: Configs, benchmark_of: "BenchmarkOf | None" = None) -> None:
    """Train as `configs` say (`pretrain_gpt.py`), on every rank of the job; `benchmark_of` makes `--eval-task`.

    Raises UserError for what the user can put right: sizes that do not fit, missing or contradicting checkpoints and data.
    """
    from mindspeed_llm.checkpoint import find_adapters
    from mindspeed_llm.core.gpt_model import GPTModel
    from mindspeed_llm.core.optimizer.optimizer import Optimizer
    from mindspeed_llm.runtime import collectives, device
    from mindspeed_llm.session import join_job, start_session
    from mindspeed_llm.session.weights import load_weights, loaded_line, parameters_line, resolve
    from mindspeed_llm.training import checkpointing
    from mindspeed_llm.training.batches import Batches
    from mindspeed_llm.training.loop import Trainer
    from mindspeed_llm.training.loss_scale import LossScale
    from mindspeed_llm.training.objectives import objective_of
    from mindspeed_llm.training.validation_samples import ValidationSamples

    train, parallel = configs.train, configs.parallel
    train.num_microbatches(parallel.data_parallel_size(collectives.launched_ranks()))
    join_job(train, parallel)
    source, notes = checkpointing.find(configs.checkpoint)
    adapters = find_adapters(configs.checkpoint.lora_load, source, f"--load {configs.checkpoint.load}")
    configs = resolve(configs, source, adapters)
    if adapters is not None and adapters is not source and adapters.warning:
        notes = [*notes, adapters.warning]
    resumed = source if configs.lora is None else adapters
    configs = checkpointing.restore_seed(configs, resumed)
    train = configs.train
    session = start_session(configs.model, parallel, train.params_dtype, configs.notes + notes)
    state = session.state
    if parallel.no_shared_storage:
        checkpointing.require_same_iteration(resumed, state.world)
    batches = Batches(objective_of(configs, state), train, state)
    stages = len(parallel.stage_layers(configs.model)[state.pp.rank])
    chunks = [GPTModel(configs.model, parallel, state, device.dtype(train.params_dtype), virtual,
                       lora=configs.lora, multiple_of=state.dp_cp.size) for virtual in range(stages)]
    if configs.lora is not None:
        session.say(parameters_line(configs.model, parallel.noop_layers, configs.lora))
    if source is None or configs.lora is not None and adapters is None:
        for chunk in chunks:
            chunk.parameters.initialize(configs.model, train.seed, adapters_only=source is not None)
    if source is not None:
        load_weights(chunks, source, train.params_dtype, adapters)
    optimizer = Optimizer(chunks, configs.optimizer, state, parallel.use_distributed_optimizer)
    scale = LossScale(train.params_dtype, configs.optimizer.initial_loss_scale)
    if source is None:
        progress = checkpointing.Progress()
    else:
        progress = checkpointing.load_training_state(resumed, configs.checkpoint, optimizer, scale)
        loaded = resumed or source
        session.say(loaded_line(configs.checkpoint.lora_load or configs.checkpoint.load, loaded.iteration,
                                progress.iteration))
        for opened in {source, loaded}:
            opened.close()
    batches.go_on_after(progress.consumed_samples)
    samples = ValidationSamples(configs, chunks, batches) if train.eval_generate else None
    benchmark = benchmark_of(configs, chunks) if benchmark_of is not None else None
    if progress.iteration >= train.train_iters:
        session.say(f"nothing to do: the checkpoint is at iteration {progress.iteration}, --train-iters is "
                    f"{train.train_iters}")
    Trainer(configs, session, chunks, optimizer, scale, progress, batches, samples, benchmark).train()
    collectives.barrier()
