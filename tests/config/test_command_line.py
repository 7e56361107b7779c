"""Documented blocks, precedence, notes and messages of the command line."""

import pytest
from flag_blocks import BASE, BLOCKS, MCORE2HF, PRETRAIN_8K, PRETRAIN_32K, TUNE_32K, argv

from mindspeed_llm.config.command_line import parse
from mindspeed_llm.config.errors import UserError


@pytest.mark.parametrize("block", BLOCKS)
def test_documented_blocks_parse_verbatim(block):
    entrypoint, flags = BLOCKS[block]
    configs = parse(entrypoint, argv(flags))
    assert configs.entrypoint == entrypoint
    assert sum("accepted without effect" in note for note in configs.notes) <= 1


def test_8k_block_gives_the_glm4_9b_run():
    configs = parse("pretrain", argv(PRETRAIN_8K))
    model = configs.model
    assert (model.num_layers, model.hidden_size, model.ffn_hidden_size) == (40, 4096, 13696)
    assert (model.num_attention_heads, model.num_query_groups, model.kv_channels) == (32, 2, 128)
    assert (model.padded_vocab_size, model.max_position_embeddings, model.rotary_dim) == (151552, 8192, 64)
    assert model.add_qkv_bias and model.untie_embeddings_and_output_weights and not model.post_norm
    assert (model.norm_epsilon, model.rotary_base, model.init_method_std) == (1.5625e-07, 10000.0, 0.01)
    assert configs.parallel.sequence_parallel and configs.parallel.data_parallel_size(8) == 2
    assert configs.train.num_microbatches(2) == 32 and configs.train.params_dtype == "bf16"
    assert configs.optimizer.lr_warmup_fraction == 0.01 and configs.optimizer.min_lr == 1.25e-7
    assert configs.checkpoint.load == "./model_weights/glm4_mcore/" and configs.checkpoint.no_load_optim
    assert configs.data.data_path == ("./dataset/alpaca_text_document",)
    assert configs.inference is None and configs.convert is None
    assert len(configs.notes) == 1 and "--use-mcore-models" in configs.notes[0]


def test_32k_blocks():
    long = parse("pretrain", argv(PRETRAIN_32K))
    assert long.parallel.context_parallel_size == 4 and long.model.rotary_base == 5e6
    tune = parse("pretrain", argv(TUNE_32K))
    assert tune.parallel.num_layer_list == (22, 18) and tune.parallel.recompute_num_layers == 22
    assert tune.train.stage == "sft" and tune.checkpoint.finetune


def test_mcore2hf_writes_beside_the_original():
    convert = parse("convert", argv(MCORE2HF)).convert
    assert (convert.hf_dir, convert.save_dir) == ("./model_from_hf/glm4_hf/", "model_from_hf/glm4_hf/mg2hf")
    assert convert.stated_model == {"add_qkv_bias": True}


def test_later_flags_win():
    configs = parse("pretrain", argv(BASE["pretrain"]) + argv("--train-iters 5 --train-iters=6 --load a --load "))
    assert configs.train.train_iters == 6 and configs.checkpoint.load is None
    switched = argv(BASE["pretrain"]) + argv("--tensor-model-parallel-size 2 --sequence-parallel")
    assert parse("pretrain", switched).parallel.sequence_parallel
    assert not parse("pretrain", switched + ["--sequence-parallel=false"]).parallel.sequence_parallel


def test_quoted_path_with_spaces_stays_whole_when_it_exists(tmp_path):
    prefix = tmp_path / "my data"
    prefix.with_suffix(".bin").touch()
    base = argv(BASE["pretrain"])
    assert parse("pretrain", base + ["--data-path", str(prefix)]).data.data_path == (str(prefix),)
    assert parse("pretrain", base + ["--data-path", "a b"]).data.data_path == ("a", "b")


def test_explicit_names_what_was_given():
    explicit = parse("inference", argv(BASE["inference"]) + argv("--bf16 --seq-length 64 --num-layers 4")).explicit
    assert explicit >= {"params_dtype", "seq_length", "num_layers", "load"} and "top_k" not in explicit


def test_model_is_left_to_the_checkpoint_unless_described():
    assert parse("inference", argv(BASE["inference"])).model is None
    assert parse("inference", argv(BASE["inference"]) + ["--num-layers", "4"]).model is None
    assert parse(*BLOCKS["generate"][:1], argv(BLOCKS["generate"][1])).model.num_query_groups == 2


def test_defaults_derived_from_the_shape():
    flags = ("--num-layers 2 --hidden-size 64 --num-attention-heads 4 --padded-vocab-size 128 --seq-length 32 "
             "--global-batch-size 2 --train-iters 1 --data-path d")
    model = parse("pretrain", argv(flags)).model
    assert (model.ffn_hidden_size, model.kv_channels, model.num_query_groups) == (256, 16, 4)
    assert (model.add_qkv_bias, model.untie_embeddings_and_output_weights) == (False, False)
    assert model.max_position_embeddings == 32
    assert parse("pretrain", argv(flags + " --group-query-attention")).model.num_query_groups == 1
    with pytest.raises(UserError, match=r"--hidden-size \(66\) must be divisible by --num-attention-heads \(4\)"):
        parse("pretrain", argv(flags + " --hidden-size 66"))


def test_sequence_parallel_is_ignored_at_tp_1_with_a_note():
    configs = parse("pretrain", argv(BASE["pretrain"]) + ["--sequence-parallel", "--seq-length", "255"])
    assert not configs.parallel.sequence_parallel
    assert any("--sequence-parallel is ignored" in note for note in configs.notes)


def test_save_interval_without_save_is_noted():
    configs = parse("pretrain", argv(BASE["pretrain"]) + ["--save-interval", "5"])
    assert any("--save-interval is ignored" in note for note in configs.notes)


@pytest.mark.parametrize("flags, ignored", [
    ("--dpo-beta 0.2 --ref-model r", dict.fromkeys(("--dpo-beta", "--ref-model"), "only --stage dpo has it")),
    ("--stage dpo --is-pairwise-dataset --ref-model r", {}),
    ("--stage dpo --is-pairwise-dataset --is-instruction-dataset --dpo-loss-type orpo --ref-model r "
     "--dpo-label-smoothing 0.1 --gamma-beta-ratio 1",
     {"--ref-model": "--dpo-loss-type orpo has no reference model",
      "--dpo-label-smoothing": "--dpo-loss-type orpo has none",
      "--gamma-beta-ratio": "--dpo-loss-type orpo has no target margin",
      "--is-instruction-dataset": "--stage dpo reads pairs"}),
])
def test_preference_flags_without_effect_are_noted(flags, ignored):
    notes = parse("pretrain", argv(BASE["pretrain"]) + argv(flags)).notes
    assert notes == [f"{flag} is ignored: {why}" for flag, why in ignored.items()]


def test_training_flags_given_to_inference_are_noted_once():
    configs = parse("inference", argv(BASE["inference"]) + argv("--lr 1e-3 --micro-batch-size 1 --use-flash-attn"))
    assert len(configs.notes) == 1
    assert "--lr --micro-batch-size (not used by inference.py)" in configs.notes[0]


ERRORS = [
    ("pretrain", "--num-layer 4", "unknown flag --num-layer: did you mean --num-layers?"),
    ("pretrain", "--sequence-paralel", "unknown flag --sequence-paralel: did you mean --sequence-parallel?"),
    ("pretrain", "--seq-lenght=9", "unknown flag --seq-lenght: did you mean --seq-length?"),
    ("pretrain", "--xyzzy", "unknown flag --xyzzy: python pretrain_gpt.py --help"),
    ("pretrain", "--seq", "unknown flag --seq"),
    ("pretrain", "--load my ckpt", "unexpected argument 'ckpt'"),
    ("pretrain", "--lr", "--lr: expected one argument"),
    ("pretrain", "--lr fast", "--lr (fast) must be a number above 0.0"),
    ("pretrain", "--lr nan", "--lr (nan) must be"),
    ("pretrain", "--train-iters 0", "--train-iters (0) must be a whole number at least 1"),
    ("pretrain", "--adam-beta2 1.0", "--adam-beta2 (1.0) must be a number at least 0.0 and below 1.0"),
    ("pretrain", "--bf16 --fp16", "--bf16 and --fp16 exclude each other"),
    ("pretrain", "--normalization LayerNorm", "--normalization (LayerNorm) must be RMSNorm"),
    ("pretrain", "--position-embedding-type learned_absolute", "(learned_absolute) must be rope"),
    ("pretrain", "--swiglu=false", "--swiglu (false) is always on"),
    ("pretrain", "--attention-dropout 0.1", "--attention-dropout (0.1) must be 0.0"),
    ("pretrain", "--sequence-parallel maybe", "--sequence-parallel (maybe) is a switch"),
    ("pretrain", "--stage grpo", "--stage (grpo) must be sft or dpo"),
    ("pretrain", "--stage dpo", "add --is-pairwise-dataset"),
    ("pretrain", "--is-pairwise-dataset", "--is-pairwise-dataset: pairs of answers are for --stage dpo: change"),
    ("pretrain", "--stage sft --is-instruction-dataset --is-pairwise-dataset", "not for --stage sft"),
    ("pretrain", "--stage dpo --is-pairwise-dataset", "--ref-model must be given: --dpo-loss-type sigmoid compares"),
    ("pretrain", "--dpo-loss-type kto", "--dpo-loss-type (kto) must be sigmoid"),
    ("pretrain", "--dpo-beta 0", "--dpo-beta (0) must be a number above 0"),
    ("pretrain", "--dpo-label-smoothing 0.5", "(0.5) must be a number at least 0.0 and below 0.5"),
    ("pretrain", "--stage sft", "add --is-instruction-dataset"),
    ("pretrain", "--tokenizer-type Llama", "--tokenizer-type (Llama) must be PretrainedFromHF"),
    ("pretrain", "--ai-framework pytorch", "--ai-framework (pytorch) must be mindspore"),
    ("pretrain", "--ckpt-format torch_dist", "--ckpt-format (torch_dist) must be torch"),
    ("pretrain", "--distributed-backend gloo", "must be nccl or hccl"),
    ("pretrain", "--num-layer-list 2;2", "--num-layer-list (2;2) must be whole numbers separated by commas"),
    ("pretrain", "--num-layer-list 2,3 --pipeline-model-parallel-size 2", "add up to --num-layers (4)"),
    ("pretrain", "--noop-layers 4", "--noop-layers (4) must lie in 0..3"),
    ("pretrain", "--split 1,2", "--split (1,2) must be three"),
    ("pretrain", "--data-path 0.3 a b", "--data-path (0.3 a b) must be prefixes only, or a weight before every prefix"),
    ("pretrain", "--data-path -1 a 1 b", "weights must be above 0"),
    ("pretrain", "--data-path ''", "--data-path () must not be empty"),
    ("pretrain", "--lr 1e-6 --min-lr 1e-5", "--min-lr (1e-05) must be at most --lr (1e-06)"),
    ("pretrain", "--lr-warmup-fraction 0.1 --lr-warmup-iters 2", "exclude each other: use one"),
    ("pretrain", "--lr-warmup-iters 20", "--lr-warmup-iters (20) must be below --lr-decay-iters (20"),
    ("pretrain", "--micro-batch-size 3",
     "--global-batch-size (8) must be divisible by --micro-batch-size (3): use 6 or 9"),
    ("pretrain", "--tensor-model-parallel-size 3", "--num-attention-heads (8) must be divisible by "
                                                   "--tensor-model-parallel-size (3): use 1 or 2 or 4 or 8"),
    ("pretrain", "--num-attention-heads 7", "--num-attention-heads (7) must be divisible by --num-query-groups (2)"),
    ("pretrain", "--group-query-attention=false", "--num-query-groups (2) needs --group-query-attention"),
    ("pretrain", "--seq-length 512", "--seq-length (512) must be at most --max-position-embeddings (256)"),
    ("pretrain", "--seq-length 255 --tensor-model-parallel-size 2 --sequence-parallel",
     "--seq-length (255) must be divisible by --tensor-model-parallel-size (2) under --sequence-parallel: use 254 or "
     "256"),
    ("pretrain", "--seq-length 250 --context-parallel-size 2", "--seq-length (250) must be divisible by 2 x"),
    ("pretrain", "--context-parallel-size 3 --context-parallel-algo ulysses_cp_algo",
     "under ulysses_cp_algo must divide --num-attention-heads / --tensor-model-parallel-size (8) and give every rank "
     "as many query groups (of 2) as the others: use 1 or 2 or 4 or 8, or --context-parallel-algo megatron_cp_algo"),
    ("pretrain", "--num-attention-heads 12 --context-parallel-size 3 --seq-length 240 --context-parallel-algo "
                 "ulysses_cp_algo", "query groups (of 2) as the others: use 1 or 2 or 4 or 6 or 12"),
    ("pretrain", "--tensor-model-parallel-size 4 --context-parallel-size 4 --context-parallel-algo ulysses_cp_algo",
     "--num-attention-heads / --tensor-model-parallel-size (2) and give every rank as many query groups (of 1) as the "
     "others: use 1 or 2,"),
    ("pretrain", "--seq-length 254 --context-parallel-size 4 --context-parallel-algo ulysses_cp_algo",
     "must be divisible by --context-parallel-size (4): use 252 or 256"),
    ("pretrain", "--eval-generate 2", "--eval-generate (2) needs validations: give --eval-iters"),
    ("pretrain", "--eval-generate 2 --eval-iters 1", "needs validation data: give them a share in --split (100,0,0)"),
    ("pretrain", "--overlap-param-gather", "needs --use-distributed-optimizer and --overlap-grad-reduce"),
    ("pretrain", "--recompute-granularity full", "needs --recompute-method"),
    ("pretrain", "--recompute-method block", "needs --recompute-granularity full"),
    ("pretrain", "--recompute-granularity selective --recompute-num-layers 2", "needs --recompute-granularity full"),
    ("pretrain", "--eval-task mmlu --task-data-path d", "--eval-task-interval must be given"),
    ("pretrain", "--eval-task mmlu --eval-task-interval 5", "--task-data-path must be given"),
    ("pretrain", "--eval-task-interval 5", "--eval-task-interval (5) needs --eval-task"),
    ("inference", "--task gready", "--task (gready) must be greedy or do_sample or beam_search or"),
    ("inference", "--system-prompt s --no-chat-template", "--system-prompt has its place in the chat template"),
    ("inference", "--tools t.json --no-chat-template", "--tools (t.json) have their place in the chat template"),
    ("inference", "--repetition-penalty 0", "--repetition-penalty (0) must be a number above 0.0"),
    ("inference", "--hf-chat-template --no-chat-template",
     "--hf-chat-template and --no-chat-template exclude each other"),
    ("inference", "--hf-chat-template --prompt-type glm4", "and --prompt-type (glm4) exclude each other"),
    ("evaluation", "--task-data-path d --hf-chat-template --no-chat-template",
     "--hf-chat-template and --no-chat-template exclude each other"),
    ("inference", "--task serve --hf-chat-template", "--hf-chat-template is not for --task serve"),
    ("inference", "--history-turns 2", "--history-turns (2) is of --task chat"),
    ("inference", "--prompt a --prompt-file b.txt", "--prompt and --prompt-file (b.txt) exclude each other"),
    ("inference", "--task chat --output a.jsonl", "--output (a.jsonl) has no use in --task chat"),
    ("inference", "--task chat --prompt-file a.txt", "--prompt-file (a.txt) has no use in --task chat"),
    ("inference", "--top-p 0", "--top-p (0) must be a number at most 1.0 and above 0.0"),
    ("inference", "--tokenizer-name-or-path ''", "--tokenizer-name-or-path must be given"),
    ("inference", "--load ''", "--load must be given"),
    ("evaluation", "--task mmlu ceval", "--task (mmlu ceval) takes one entry per run"),
    ("evaluation", "--task triviaqa", "--task (triviaqa) must be mmlu or ceval or "),
    ("evaluation", "--num-shots 6", "--num-shots (6) must be a whole number at least 0 and at most 5"),
    ("convert", "--model-type-hf llama", "--model-type-hf (llama) must be chatglm3 or glm or glm4"),
    ("convert", "--save-model-type hf", "--load-model-type and --save-model-type are both hf"),
    ("convert", "--save-dir ''", "--save-dir must be given"),
    ("convert", "--num-layer-list 22,18",
     "--num-layer-list (22,18) must have --target-pipeline-parallel-size (1) entries"),
    ("preprocess", "--handler-name Alpaca", "--handler-name (Alpaca) must be GeneralPretrainHandler or"),
    ("preprocess", "--input ''", "--input must be given"),
    ("preprocess", "--workers 0", "--workers (0) must be a whole number at least 1"),
]


@pytest.mark.parametrize("entrypoint,flags,text", ERRORS, ids=[f"{e}: {f}" for e, f, _ in ERRORS])
def test_mistake_is_named_with_its_remedy(entrypoint, flags, text):
    with pytest.raises(UserError) as error:
        parse(entrypoint, argv(BASE[entrypoint]) + argv(flags))
    assert text in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("missing", ["--num-layers", "--hidden-size", "--num-attention-heads", "--global-batch-size",
                                     "--train-iters", "--data-path", "--padded-vocab-size"])
def test_training_needs_its_flags(missing):
    words = argv(BASE["pretrain"])
    at = words.index(missing)
    with pytest.raises(UserError, match=missing):
        parse("pretrain", words[:at] + words[at + 2:])
