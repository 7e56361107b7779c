"""Every flag of the contract parses and sets its field; the list here is the contract."""

import pytest
from flag_blocks import BASE, argv

from mindspeed_llm.config.command_line import PARTS, parse
from mindspeed_llm.config.flags import FLAGS

# (entrypoint, flags, {part.field: value}); the flags are appended to a minimal valid command line.
EFFECTS = [
    ("pretrain", "--tensor-model-parallel-size 2", {"parallel.tensor_model_parallel_size": 2}),
    ("pretrain", "--pipeline-model-parallel-size 2", {"parallel.pipeline_model_parallel_size": 2}),
    ("pretrain", "--context-parallel-size 2", {"parallel.context_parallel_size": 2}),
    ("pretrain", "--context-parallel-algo ulysses_cp_algo", {"parallel.context_parallel_algo": "ulysses_cp_algo"}),
    ("pretrain", "--context-parallel-algo megatron_cp_algo", {"parallel.context_parallel_algo": "megatron_cp_algo"}),
    ("pretrain", "--sequence-parallel --tensor-model-parallel-size 2", {"parallel.sequence_parallel": True}),
    ("pretrain", "--num-layers-per-virtual-pipeline-stage 1 --pipeline-model-parallel-size 2",
     {"parallel.num_layers_per_virtual_pipeline_stage": 1}),
    ("pretrain", "--num-layer-list 3,1 --pipeline-model-parallel-size 2", {"parallel.num_layer_list": (3, 1)}),
    ("convert", "--num-layer-list 22,18 --target-pipeline-parallel-size 2", {"convert.num_layer_list": (22, 18)}),
    ("pretrain", "--noop-layers 0,3", {"parallel.noop_layers": (0, 3)}),
    ("convert", "--noop-layers 6,7,15", {"convert.noop_layers": (6, 7, 15)}),
    ("pretrain", "--use-distributed-optimizer", {"parallel.use_distributed_optimizer": True}),
    ("pretrain", "--overlap-grad-reduce", {"parallel.overlap_grad_reduce": True}),
    ("pretrain", "--overlap-param-gather --overlap-grad-reduce --use-distributed-optimizer",
     {"parallel.overlap_param_gather": True}),
    ("pretrain", "--recompute-granularity selective", {"parallel.recompute_granularity": "selective"}),
    ("pretrain", "--recompute-granularity full --recompute-method block --recompute-num-layers 2",
     {"parallel.recompute_granularity": "full", "parallel.recompute_method": "block",
      "parallel.recompute_num_layers": 2}),
    ("pretrain", "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
     {"parallel.recompute_method": "uniform"}),
    ("pretrain", "--no-shared-storage", {"parallel.no_shared_storage": True}),
    ("pretrain", "--num-layers 6", {"model.num_layers": 6}),
    ("pretrain", "--hidden-size 64", {"model.hidden_size": 64}),
    ("pretrain", "--ffn-hidden-size 96", {"model.ffn_hidden_size": 96}),
    ("pretrain", "--num-attention-heads 4", {"model.num_attention_heads": 4}),
    ("pretrain", "--group-query-attention --num-query-groups 4", {"model.num_query_groups": 4}),
    ("pretrain", "--group-query-attention=false --num-query-groups 8", {"model.num_query_groups": 8}),
    ("pretrain", "--kv-channels 32", {"model.kv_channels": 32}),
    ("pretrain", "--seq-length 128", {"train.seq_length": 128, "data.seq_length": 128}),
    ("pretrain", "--max-position-embeddings 512", {"model.max_position_embeddings": 512}),
    ("pretrain", "--padded-vocab-size 1024", {"model.padded_vocab_size": 1024}),
    ("pretrain", "--disable-bias-linear --swiglu --normalization RMSNorm --position-embedding-type rope --use-glm-rope",
     {}),
    ("pretrain", "--attention-dropout 0.0 --hidden-dropout 0 --attention-softmax-in-fp32", {}),
    ("pretrain", "--add-qkv-bias", {"model.add_qkv_bias": True}),
    ("pretrain", "--add-qkv-bias=false", {"model.add_qkv_bias": False}),
    ("pretrain", "--norm-epsilon 1e-05", {"model.norm_epsilon": 1e-5}),
    ("pretrain", "--rotary-percent 1.0", {"model.rotary_percent": 1.0}),
    ("pretrain", "--rotary-base 5000000", {"model.rotary_base": 5000000.0}),
    ("pretrain", "--untie-embeddings-and-output-weights", {"model.untie_embeddings_and_output_weights": True}),
    ("pretrain", "--untie-embeddings-and-output-weights false", {"model.untie_embeddings_and_output_weights": False}),
    ("pretrain", "--init-method-std 0.01", {"model.init_method_std": 0.01}),
    ("pretrain", "--post-norm", {"model.post_norm": True}),
    ("pretrain", "--qk-layernorm", {"model.qk_layernorm": True}),
    ("pretrain", "--micro-batch-size 2", {"train.micro_batch_size": 2}),
    ("pretrain", "--global-batch-size 16", {"train.global_batch_size": 16}),
    ("pretrain", "--train-iters 7", {"train.train_iters": 7}),
    ("pretrain", "--lr 1.25e-6", {"optimizer.lr": 1.25e-6}),
    ("pretrain", "--min-lr 1e-8", {"optimizer.min_lr": 1e-8}),
    ("pretrain", "--lr-decay-style linear", {"optimizer.lr_decay_style": "linear"}),
    ("pretrain", "--lr-decay-style constant", {"optimizer.lr_decay_style": "constant"}),
    ("pretrain", "--lr-warmup-fraction 0.01", {"optimizer.lr_warmup_fraction": 0.01}),
    ("pretrain", "--lr-warmup-iters 3", {"optimizer.lr_warmup_iters": 3}),
    ("pretrain", "--lr-decay-iters 50", {"optimizer.lr_decay_iters": 50}),
    ("pretrain", "--weight-decay 1e-1", {"optimizer.weight_decay": 0.1}),
    ("pretrain", "--clip-grad 0.5", {"optimizer.clip_grad": 0.5}),
    ("pretrain", "--adam-beta1 0.8", {"optimizer.adam_beta1": 0.8}),
    ("pretrain", "--adam-beta2 0.999", {"optimizer.adam_beta2": 0.999}),
    ("pretrain", "--adam-eps 1e-6", {"optimizer.adam_eps": 1e-6}),
    ("pretrain", "--bf16", {"train.params_dtype": "bf16"}),
    ("pretrain", "--fp16", {"train.params_dtype": "fp16"}),
    ("pretrain", "--bf16 --bf16=false --fp16", {"train.params_dtype": "fp16"}),
    ("pretrain", "", {"train.params_dtype": "fp32"}),
    ("pretrain", "--initial-loss-scale 4096", {"optimizer.initial_loss_scale": 4096.0}),
    ("pretrain", "--seed 42", {"train.seed": 42}),
    ("pretrain", "--finetune", {"checkpoint.finetune": True}),
    ("pretrain", "--stage dpo --is-pairwise-dataset --dpo-loss-type ipo --dpo-beta 0.2 --pref-ftx 0.5 --ref-model r",
     {"train.stage": "dpo", "data.is_pairwise_dataset": True, "preference.dpo_loss_type": "ipo",
      "preference.dpo_beta": 0.2, "preference.pref_ftx": 0.5, "preference.ref_model": "r"}),
    ("pretrain", "--stage dpo --is-pairwise-dataset --ref-model r --dpo-label-smoothing 0.1 --precompute-ref",
     {"preference.dpo_loss_type": "sigmoid", "preference.dpo_beta": 0.1, "preference.dpo_label_smoothing": 0.1,
      "preference.precompute_ref": True}),
    ("pretrain", "--stage dpo --is-pairwise-dataset --dpo-loss-type simpo --gamma-beta-ratio 1",
     {"preference.dpo_loss_type": "simpo", "preference.gamma_beta_ratio": 1.0}),
    ("pretrain", "--stage sft --is-instruction-dataset",
     {"train.stage": "sft", "data.is_instruction_dataset": True}),
    ("pretrain", "--no-pad-to-seq-lengths", {"data.no_pad_to_seq_lengths": True}),
    ("pretrain", "--pad-to-multiple-of 16", {"data.pad_to_multiple_of": 16}),
    ("preprocess", "--prompt-type glm4", {"data.prompt_type": "glm4"}),
    ("pretrain", "--no-check-for-nan-in-loss-and-grad", {"train.check_for_nan_in_loss_and_grad": False}),
    ("pretrain", "", {"train.check_for_nan_in_loss_and_grad": True}),
    ("pretrain", "--eval-generate 3 --eval-iters 1 --split 90,10,0 --tokenizer-name-or-path t",
     {"train.eval_generate": 3}),
    ("pretrain", "--eval-task mmlu --eval-task-interval 100 --task-data-path d --tokenizer-name-or-path t --num-shots 2",
     {"train.eval_task": "mmlu", "train.eval_task_interval": 100, "evaluation.task_data_path": "d",
      "evaluation.num_shots": 2}),
    ("pretrain", "--exit-on-missing-checkpoint", {"checkpoint.exit_on_missing_checkpoint": True}),
    ("pretrain", "--no-load-optim", {"checkpoint.no_load_optim": True}),
    ("pretrain", "--no-load-rng", {"checkpoint.no_load_rng": True}),
    ("pretrain", "--no-save-optim", {"checkpoint.no_save_optim": True}),
    ("pretrain", "--load a --save b --save-interval 5",
     {"checkpoint.load": "a", "checkpoint.save": "b", "checkpoint.save_interval": 5}),
    ("pretrain", "--lora-target-modules linear_qkv linear_fc2 --lora-r 8 --lora-alpha 16 --lora-dropout 0.1",
     {"lora.target_modules": ("linear_qkv", "linear_fc2"), "lora.r": 8, "lora.alpha": 16, "lora.dropout": 0.1}),
    ("pretrain", "--load a --lora-load b --lora-ckpt-filter",
     {"checkpoint.load": "a", "checkpoint.lora_load": "b", "checkpoint.lora_ckpt_filter": True}),
    ("pretrain", "--log-interval 3", {"train.log_interval": 3, "data.log_interval": 1000}),
    ("pretrain", "--eval-interval 9 --eval-iters 2", {"train.eval_interval": 9, "train.eval_iters": 2}),
    ("pretrain", "--exit-interval 4", {"train.exit_interval": 4}),
    ("pretrain", "--exit-signal-handler", {"train.exit_signal_handler": True}),
    ("pretrain", "--dry-run --device-memory-gb 32", {"train.dry_run": True, "train.device_memory_gb": 32.0}),
    ("pretrain", "--tensorboard-dir tb", {"train.tensorboard_dir": "tb"}),
    ("pretrain", "--profile --profile-step-start 2 --profile-step-end 4 --profile-ranks 0 3 --profile-level level1 "
     "--profile-with-cpu --profile-save-path p",
     {"profile.profile": True, "profile.profile_step_start": 2, "profile.profile_step_end": 4,
      "profile.profile_ranks": (0, 3), "profile.profile_level": "level1", "profile.profile_with_cpu": True,
      "profile.profile_save_path": "p"}),
    ("pretrain", "--wandb-project p --wandb-exp-name n --wandb-save-dir d",
     {"train.wandb_project": "p", "train.wandb_exp_name": "n", "train.wandb_save_dir": "d"}),
    ("pretrain", "--log-throughput", {"train.log_throughput": True}),
    ("pretrain", "--npu-deterministic", {"train.npu_deterministic": True}),
    ("pretrain", "--data-path one", {"data.data_path": ("one",)}),
    ("pretrain", "--data-path one two", {"data.data_path": ("one", "two")}),
    ("pretrain", "--data-path 0.3 a 0.7 b", {"data.data_path": ("0.3", "a", "0.7", "b")}),
    ("pretrain", "--data-path '0.3 a 0.7 b'", {"data.data_path": ("0.3", "a", "0.7", "b")}),
    ("pretrain", "--split 90,5,5", {"data.split": "90,5,5"}),
    ("pretrain", "--tokenizer-type PretrainedFromHF", {"data.tokenizer_type": "PretrainedFromHF"}),
    ("pretrain", "--tokenizer-name-or-path d", {"data.tokenizer_name_or_path": "d"}),
    ("pretrain", "--tokenizer-name-or-path '' --tokenizer-model dir/tokenizer.model",
     {"data.tokenizer_name_or_path": "dir"}),
    ("preprocess", "--input x.json", {"data.input": "x.json"}),
    ("preprocess", "--output-prefix p", {"data.output_prefix": "p"}),
    ("preprocess", "--json-keys a b", {"data.json_keys": ("a", "b")}),
    ("preprocess", "--workers 4", {"data.workers": 4}),
    ("preprocess", "--log-interval 10", {"data.log_interval": 10}),
    *[("preprocess", f"--handler-name {name}", {"data.handler_name": name}) for name in
      ("GeneralPretrainHandler", "AlpacaStyleInstructionHandler", "SharegptStyleInstructionHandler",
       "AlpacaStylePairwiseHandler", "SharegptStylePairwiseHandler")],
    ("preprocess", "--seq-length 64 --pack", {"data.seq_length": 64, "data.pack": True}),
    ("preprocess", "--append-eod", {"data.append_eod": True}),
    ("preprocess", """--map-keys '{"prompt":"q","query":""}'""", {"data.map_keys": {"prompt": "q", "query": ""}}),
    ("pretrain", "--reset-attention-mask", {"data.reset_attention_mask": True}),
    ("preprocess", "--max-bad-rows 3", {"data.max_bad_rows": 3}),
    ("preprocess", "--n-subs 4", {"data.n_subs": 4}),
    ("preprocess", "--report", {"data.report": True}),
    *[("convert", f"--model-type-hf {name}", {"convert.model_type_hf": name}) for name in ("chatglm3", "glm", "glm4")],
    ("convert", "--model-type GPT --use-mcore-models", {}),
    ("convert", "--load-model-type mg --save-model-type hf --hf-dir h",
     {"convert.load_model_type": "mg", "convert.save_model_type": "hf", "convert.hf_dir": "h",
      "convert.save_dir": "out"}),
    *[("convert", f"--load-model-type mg --save-model-type hf {flags}",
       {"convert.hf_dir": "h", "convert.save_dir": "out"})
      for flags in ("--hf-cfg-dir h", "--hf-dir x --hf-cfg-dir h", "--hf-cfg-dir x --hf-dir h")],
    ("convert", "--load-model-type mg --save-model-type hf",
     {"convert.hf_dir": "out", "convert.save_dir": "out/mg2hf"}),
    ("convert", "--load-model-type hf --save-model-type mg", {"convert.load_model_type": "hf", "convert.hf_dir": None,
                                                              "convert.save_dir": "out"}),
    ("convert", "--lora-load a", {"convert.lora_load": "a"}),
    ("convert", "--load-model-type mg --save-model-type hf --save-lora-to-hf", {"convert.save_lora_to_hf": True}),
    ("convert", "--target-tensor-parallel-size 2", {"convert.target_tensor_parallel_size": 2}),
    ("convert", "--target-pipeline-parallel-size 2", {"convert.target_pipeline_parallel_size": 2}),
    ("convert", "--load-dir l --save-dir s", {"convert.load_dir": "l", "convert.save_dir": "s"}),
    ("convert", "--verify d", {"convert.verify": "d"}),
    ("pretrain", "--ckpt-step 5", {"checkpoint.ckpt_step": 5}),
    ("pretrain", "--async-save", {"checkpoint.async_save": True}),
    ("pretrain", "--save-total-limit 2", {"checkpoint.save_total_limit": 2}),
    ("convert", "--params-dtype bf16", {"convert.params_dtype": "bf16"}),
    ("convert", "--num-layers 40", {"convert.stated_model": {"num_layers": 40}}),
    ("inference", "--task greedy do_sample beam_search chat",
     {"inference.task": ("greedy", "do_sample", "beam_search", "chat")}),
    ("inference", "", {"inference.task": ("greedy",), "inference.prompts": ()}),
    ("inference", "--repetition-penalty 1.2", {"inference.repetition_penalty": 1.2}),
    ("inference", "--prompt-file a.txt", {"inference.prompt_file": "a.txt"}),
    ("inference", "--output a.jsonl", {"inference.output": "a.jsonl"}),
    ("inference", "--system-prompt 'a b'", {"inference.system_prompt": "a b"}),
    ("inference", "--tools t.json", {"inference.tools": "t.json"}),
    ("inference", "--prompt 'a b' --prompt c", {"inference.prompts": ("a b", "c")}),
    ("inference", "--max-new-tokens 256", {"inference.max_new_tokens": 256}),
    ("inference", "--temperature 0.8", {"inference.temperature": 0.8}),
    ("inference", "--top-k 50", {"inference.top_k": 50}),
    ("inference", "--top-p 0.9", {"inference.top_p": 0.9}),
    ("inference", "--num-beams 2", {"inference.num_beams": 2}),
    ("inference", "--task beam_search_with_sampling", {"inference.task": ("beam_search_with_sampling",)}),
    ("inference", "--hf-chat-template", {"inference.hf_chat_template": True}),
    ("inference", "--task chat --history-turns 3", {"inference.history_turns": 3}),
    ("inference", "--add-eos-token '<|user|>' end", {"inference.add_eos_token": ("<|user|>", "end")}),
    ("inference", "--no-chat-template", {"inference.no_chat_template": True}),
    ("inference", "--task serve", {"inference.task": ("serve",), "serve.host": "127.0.0.1", "serve.port": 8000,
                                   "serve.api_key": None}),
    ("inference", "--task serve --host :: --port 0", {"serve.host": "::", "serve.port": 0}),
    ("inference", "--api-key k", {"serve.api_key": "k"}),
    ("inference", "--served-model-name m", {"serve.served_model_name": "m"}),
    ("inference", "--kv-cache-tokens 9000", {"serve.kv_cache_tokens": 9000}),
    ("inference", "--max-sequences 8", {"serve.max_sequences": 8}),
    ("inference", "--max-requests 9", {"serve.max_requests": 9}),
    ("inference", "--drain-seconds 0", {"serve.drain_seconds": 0}),
    ("inference", "--bf16 --seed 42", {"train.params_dtype": "bf16", "train.seed": 42}),
    ("evaluation", "--task mmlu", {"evaluation.task": "mmlu"}),
    ("evaluation", "--task-data-path d", {"evaluation.task_data_path": "d"}),
    ("evaluation", "--evaluation-batch-size 4", {"evaluation.evaluation_batch_size": 4}),
    ("evaluation", "--max-eval-samples 10", {"evaluation.max_eval_samples": 10}),
    ("evaluation", "--num-shots 0", {"evaluation.num_shots": 0}),
    ("evaluation", "", {"evaluation.num_shots": None, "evaluation.scoring": None}),
    ("evaluation", "--max-new-tokens 1", {"evaluation.max_new_tokens": 1}),
    ("evaluation", "--scoring generate --origin-postprocess",
     {"evaluation.scoring": "generate", "evaluation.origin_postprocess": True}),
    ("evaluation", "--eval-language zh", {"evaluation.eval_language": "zh"}),
    ("evaluation", "--chain-of-thought", {"evaluation.chain_of_thought": True}),
    ("evaluation", "--allow-code-execution", {"evaluation.allow_code_execution": True}),
    ("evaluation", "--compare a b", {"evaluation.compare": ("a", "b")}),
    ("evaluation", "--no-chat-template", {"evaluation.no_chat_template": True}),
    ("evaluation", "--hf-chat-template", {"evaluation.hf_chat_template": True}),
    ("evaluation", "--broadcast", {"evaluation.broadcast": True}),
    ("evaluation", "--alternative-prompt", {"evaluation.alternative_prompt": True}),
    ("evaluation", "--output-dir o", {"evaluation.output_dir": "o"}),
]

WITHOUT_EFFECT = [
    "--use-mcore-models", "--use-flash-attn", "--use-fused-rmsnorm", "--use-fused-swiglu", "--no-rope-fusion",
    "--no-bias-swiglu-fusion", "--no-masked-softmax-fusion", "--no-gradient-accumulation-fusion",
    "--no-create-attention-mask-in-dataloader", "--distributed-backend nccl", "--distributed-backend hccl",
    "--ckpt-format torch", "--ai-framework mindspore", "--use-fused-rotary-pos-emb",
    "--variable-seq-lengths", "--use-cp-send-recv-overlap", "--enable-thinking", "--enable-thinking true",
    "--tokenizer-not-use-fast", "--streaming", "--neat-pack", "--reset-position-ids",
    "--lora-fusion",
]

# Flags whose effect has a test of its own below.
TESTED_BELOW = {"--vocab-size", "--make-vocab-size-divisible-by"}


def test_every_flag_of_the_table_is_in_the_contract_and_back():
    tested = {word.split("=")[0] for _, flags, _ in EFFECTS for word in argv(flags) if word.startswith("--")}
    tested |= {entry.split()[0] for entry in WITHOUT_EFFECT} | TESTED_BELOW
    assert tested == {flag.name for flag in FLAGS}


@pytest.mark.parametrize("entrypoint,flags,effects", EFFECTS, ids=lambda value: value if isinstance(value, str) else "")
def test_flag_sets_its_field(entrypoint, flags, effects):
    configs = parse(entrypoint, argv(BASE[entrypoint]) + argv(flags))
    for target, expected in effects.items():
        part, name = target.split(".")
        assert getattr(getattr(configs, part), name) == expected, target


@pytest.mark.parametrize("entrypoint", list(PARTS))
@pytest.mark.parametrize("flag", WITHOUT_EFFECT)
def test_flag_without_effect_is_accepted_and_named_in_one_line(entrypoint, flag):
    base = argv(BASE[entrypoint])
    configs = parse(entrypoint, base + argv(flag))
    noted = [note for note in configs.notes if note.startswith("accepted without effect: ")]
    assert len(noted) == 1 and flag.split()[0] in noted[0]


@pytest.mark.parametrize("entrypoint", list(PARTS))
def test_every_flag_is_accepted_by_every_entrypoint(entrypoint):
    """Values of flags that belong elsewhere are not even looked at: 1 fits any arity."""
    base = argv(BASE[entrypoint])
    elsewhere = {flag.name for flag in FLAGS} - {flag.name for flag in FLAGS if entrypoint in flag.used_by}
    words = [word for name in sorted(elsewhere) for word in (name, "1")]
    plain, configs = parse(entrypoint, base), parse(entrypoint, base + words)
    note = configs.notes[0].split("; ")[-1]
    assert all(f"{name} " in note for name in elsewhere)
    for part in PARTS[entrypoint]:
        assert getattr(configs, part) == getattr(plain, part)


@pytest.mark.parametrize("flags,rows", [
    ("--vocab-size 500", 512), ("--vocab-size 513", 640), ("--vocab-size 513 --tensor-model-parallel-size 2", 768),
    ("--vocab-size 500 --make-vocab-size-divisible-by 1 --tensor-model-parallel-size 2", 500)])
def test_vocabulary_is_padded_when_only_its_size_is_given(flags, rows):
    base = argv(BASE["pretrain"].replace("--padded-vocab-size 512", ""))
    assert parse("pretrain", base + argv(flags)).model.padded_vocab_size == rows


def test_vocabulary_size_comes_from_the_tokenizer_when_no_flag_gives_it():
    base = argv(BASE["pretrain"].replace("--padded-vocab-size 512", ""))
    asked = []

    def vocab_size_of(data):
        asked.append(data.tokenizer_name_or_path)
        return 130

    assert parse("pretrain", base, vocab_size_of).model.padded_vocab_size == 256
    assert asked == ["t"]
    assert parse("pretrain", base + ["--vocab-size", "100"], vocab_size_of).model.padded_vocab_size == 128
    assert asked == ["t"]
