"""Model shape: flags against a checkpoint."""

from dataclasses import replace

import pytest
from flag_blocks import BASE, argv

from mindspeed_llm.config.command_line import parse
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.shape import merge_model, pad_vocab, resolve

TINY = parse("pretrain", argv(BASE["pretrain"])).model


@pytest.mark.parametrize("size,divisor,tp,padded", [
    (151343, 128, 1, 151424), (151343, 1, 2, 151344), (512, 128, 4, 512), (1, 128, 2, 256)])
def test_pad_vocab(size, divisor, tp, padded):
    assert pad_vocab(size, divisor, tp) == padded


def test_training_flags_that_agree_change_nothing():
    configs = parse("pretrain", argv(BASE["pretrain"]))
    resolved = resolve(configs, TINY, "ckpt")
    assert resolved.model == TINY and resolved.notes == configs.notes


@pytest.mark.parametrize("entrypoint", ["pretrain", "inference", "evaluation"])
@pytest.mark.parametrize("flags,text", [
    ("--num-layers 6", "--num-layers (6) contradicts the checkpoint ckpt, which has 4: use 4 or leave the flag out"),
    ("--norm-epsilon 1e-05", "--norm-epsilon (1e-05) contradicts"),
    ("--group-query-attention --num-query-groups 4", "use --group-query-attention --num-query-groups 2"),
    ("--add-qkv-bias=false", "--add-qkv-bias is not given, but the checkpoint ckpt has it: add the flag"),
    ("--post-norm", "--post-norm is given, but the checkpoint ckpt does not have it: remove the flag")])
def test_contradiction_is_an_error(entrypoint, flags, text):
    with pytest.raises(UserError) as error:
        resolve(parse(entrypoint, argv(BASE[entrypoint]) + argv(flags)), TINY, "ckpt")
    assert text in str(error.value)


def test_absent_switches_count_in_training_only():
    without = [word for word in argv(BASE["pretrain"]) if word != "--add-qkv-bias"]
    with pytest.raises(UserError, match="--add-qkv-bias is not given"):
        resolve(parse("pretrain", without), TINY, "ckpt")
    assert resolve(parse("inference", argv(BASE["inference"])), TINY, "ckpt").model == TINY


@pytest.mark.parametrize("entrypoint", ["pretrain", "inference"])
def test_what_is_not_given_comes_from_the_checkpoint(entrypoint):
    stored = replace(TINY, rotary_base=5e6, norm_epsilon=1e-5)
    resolved = resolve(parse(entrypoint, argv(BASE[entrypoint])), stored, "ckpt")
    assert (resolved.model.rotary_base, resolved.model.norm_epsilon) == (5e6, 1e-5)


def test_overrides_win_and_are_noted():
    flags = argv("--rotary-base 5000000 --max-position-embeddings 1024 --seq-length 1024")
    resolved = resolve(parse("pretrain", argv(BASE["pretrain"]) + flags), TINY, "ckpt")
    assert resolved.model.rotary_base == 5e6 and resolved.model.max_position_embeddings == 1024
    assert "--rotary-base 5000000.0 overrides 10000.0 of ckpt" in resolved.notes
    assert "--max-position-embeddings 1024 overrides 256 of ckpt" in resolved.notes


def test_generation_may_use_the_whole_length_by_default():
    resolved = resolve(parse("inference", argv(BASE["inference"])), TINY, "ckpt")
    assert resolved.train.seq_length == resolved.data.seq_length == 256
    given = resolve(parse("inference", argv(BASE["inference"]) + ["--seq-length", "64"]), TINY, "ckpt")
    assert given.train.seq_length == 64
    with pytest.raises(UserError, match="at most --max-position-embeddings"):
        resolve(parse("inference", argv(BASE["inference"]) + ["--seq-length", "512"]), TINY, "ckpt")


def test_parallel_sizes_are_checked_against_the_checkpoint():
    configs = parse("inference", argv(BASE["inference"]) + ["--tensor-model-parallel-size", "3"])
    with pytest.raises(UserError, match="--num-attention-heads"):
        resolve(configs, TINY, "ckpt")


def test_conversion_checks_stated_shapes():
    stated = parse("convert", argv(BASE["convert"]) + ["--num-layers", "28"]).convert.stated_model
    with pytest.raises(UserError, match="28"):
        merge_model(stated, TINY, "ckpt")
    assert merge_model({"num_layers": 4}, TINY, "ckpt") == (TINY, [])
