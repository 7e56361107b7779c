"""Model shape: flags against a checkpoint."""

from dataclasses import fields, replace

import pytest
from flag_blocks import BASE, argv

from mindspeed_llm.config.command_line import parse
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.model import OVERRIDABLE_FIELDS, SHAPE_FIELDS, ModelConfig
from mindspeed_llm.config.option import flag_name
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


# Another value for each field of the stored model, as flags say it; switches are taken back.
OTHER = {"num_layers": "6", "hidden_size": "64", "ffn_hidden_size": "64", "num_attention_heads": "4",
         "num_query_groups": "4", "kv_channels": "32", "padded_vocab_size": "1024", "max_position_embeddings": "512",
         "norm_epsilon": "1e-05", "rotary_base": "5000000.0", "rotary_percent": "1.0", "add_qkv_bias": "false",
         "post_norm": "true", "qk_layernorm": "true", "untie_embeddings_and_output_weights": "false", "init_method_std": "0.5"}


def test_every_stored_field_is_fixed_or_may_be_overridden():
    names = [field.name for field in fields(ModelConfig)]
    assert sorted(SHAPE_FIELDS + OVERRIDABLE_FIELDS) == sorted(names) == sorted(OTHER)


@pytest.mark.parametrize("entrypoint", ["pretrain", "inference", "evaluation"])
@pytest.mark.parametrize("name", OTHER)
def test_no_field_differs_from_the_checkpoint_in_silence(entrypoint, name):
    """A flag that contradicts the checkpoint is an error, or wins in one line and reaches the model that a save stores."""
    configs = parse(entrypoint, [*argv(BASE[entrypoint]), "--group-query-attention", f"{flag_name(name)}={OTHER[name]}"])
    if name in SHAPE_FIELDS:
        with pytest.raises(UserError, match=f"{flag_name(name)} .*checkpoint ckpt"):
            resolve(configs, TINY, "ckpt")
        return
    resolved = resolve(configs, TINY, "ckpt")
    assert str(getattr(resolved.model, name)) == OTHER[name] != str(getattr(TINY, name))
    assert [note for note in resolved.notes if note.startswith(f"{flag_name(name)} {OTHER[name]} overrides")]
    assert ModelConfig.from_dict(resolved.model.to_dict()) == resolved.model


@pytest.mark.parametrize("flags, stored, text", [
    ("--noop-layers 2,3", (2,), "--noop-layers (2,3) contradicts the checkpoint ckpt, which has 2: use --noop-layers 2"),
    ("", (1, 2), "--noop-layers (none) contradicts the checkpoint ckpt, which has 1,2: use --noop-layers 1,2"),
    ("--noop-layers 2", (), "which has none: leave the flag out")])
def test_noop_layers_of_training_are_those_of_the_checkpoint(flags, stored, text):
    configs = parse("pretrain", argv(BASE["pretrain"]) + argv(flags))
    with pytest.raises(UserError) as error:
        resolve(configs, TINY, "ckpt", stored)
    assert text in str(error.value)
    assert resolve(configs, TINY, "ckpt", configs.parallel.noop_layers[::-1]).parallel == configs.parallel


def test_noop_layers_may_be_left_out_where_the_checkpoint_gives_the_shape():
    assert resolve(parse("inference", argv(BASE["inference"])), TINY, "ckpt", (2,)).parallel.noop_layers == (2,)
    with pytest.raises(UserError, match="--noop-layers .3. contradicts"):
        resolve(parse("inference", argv(BASE["inference"]) + argv("--noop-layers 3")), TINY, "ckpt", (2,))


def test_vocabulary_must_fit_the_checkpoint():
    base = argv(BASE["pretrain"].replace("--padded-vocab-size 512", ""))
    assert resolve(parse("pretrain", base + argv("--vocab-size 300")), TINY, "ckpt").model == TINY
    with pytest.raises(UserError, match="--vocab-size .513. contradicts the checkpoint ckpt.* 512 rows"):
        resolve(parse("pretrain", base + argv("--vocab-size 513")), TINY, "ckpt")
