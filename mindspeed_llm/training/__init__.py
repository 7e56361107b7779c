"""Pre-training and fine-tuning: from configs to a trained checkpoint."""

from mindspeed_llm.config.configs import Configs


def run(configs: Configs) -> None:
    """Train as `configs` say (`pretrain_gpt.py`), on every rank of the job.

    Raises UserError for what the user can put right: sizes that do not fit, missing or contradicting checkpoints and data.
    """
    from mindspeed_llm.config.shape import resolve
    from mindspeed_llm.core.gpt_model import GPTModel
    from mindspeed_llm.core.optimizer.optimizer import Optimizer
    from mindspeed_llm.runtime import collectives, device
    from mindspeed_llm.session import join_job, start_session
    from mindspeed_llm.session.weights import load_weights, loaded_line
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
    if source is not None:
        configs = resolve(configs, source.model_config, str(source.directory), source.noop_layers)
        configs = checkpointing.restore_seed(configs, source)
        train = configs.train
    session = start_session(configs.model, parallel, train.params_dtype, configs.notes + notes)
    state = session.state
    stages = len(parallel.stage_layers(configs.model)[state.pp.rank])
    chunks = [GPTModel(configs.model, parallel, state, device.dtype(train.params_dtype), virtual,
                       multiple_of=state.dp_cp.size) for virtual in range(stages)]
    if source is None:
        for chunk in chunks:
            chunk.parameters.initialize(configs.model, train.seed)
    else:
        load_weights(chunks, source, train.params_dtype)
    optimizer = Optimizer(chunks, configs.optimizer, state, parallel.use_distributed_optimizer)
    scale = LossScale(train.params_dtype, configs.optimizer.initial_loss_scale)
    if source is None:
        progress = checkpointing.Progress()
    else:
        progress = checkpointing.load_training_state(source, configs.checkpoint, optimizer, scale)
        session.say(loaded_line(configs.checkpoint.load, source.iteration, progress.iteration))
        source.close()
    batches = Batches(objective_of(configs, state), train, state, progress.consumed_samples)
    samples = ValidationSamples(configs, chunks, batches) if train.eval_generate else None
    if progress.iteration >= train.train_iters:
        session.say(f"nothing to do: the checkpoint is at iteration {progress.iteration}, --train-iters is "
                    f"{train.train_iters}")
    Trainer(configs, session, chunks, optimizer, scale, progress, batches, samples).train()
    collectives.barrier()
