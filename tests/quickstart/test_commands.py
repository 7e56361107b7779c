import json

import pytest

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.tasks.quickstart.__main__ import main

SHAPE = ("--num-layers 2 --hidden-size 32 --ffn-hidden-size 64 --num-attention-heads 2 --group-query-attention "
         "--num-query-groups 1 --kv-channels 16 --padded-vocab-size 1024 --add-qkv-bias --swiglu --seq-length 128 "
         "--max-position-embeddings 128 --untie-embeddings-and-output-weights").split()


def test_make_data(tmp_path, capsys):
    main(["make-data", "--save-dir", str(tmp_path / "data"), "--documents", "20", "--seed", "5"])
    assert len((tmp_path / "data/pretrain.jsonl").read_text().splitlines()) == 20
    assert "384 test questions about the other 48" in capsys.readouterr().out


def test_make_model_takes_the_training_flags(tmp_path):
    main(["make-model", "--save-dir", str(tmp_path / "hf"), "--seed", "5", *SHAPE])
    config = json.loads((tmp_path / "hf/config.json").read_text())
    assert (config["num_layers"], config["ffn_hidden_size"], config["seq_length"]) == (2, 64, 128)


def test_model_and_data_of_one_seed_belong_together(tmp_path):
    """The tokenizer holds the names of the data made with the same seed as single tokens."""
    from mindspeed_llm.data.tokenizer import load_tokenizer

    main(["make-model", "--save-dir", str(tmp_path / "hf"), "--seed", "5", *SHAPE])
    main(["make-data", "--save-dir", str(tmp_path / "data"), "--documents", "20", "--seed", "5"])
    tokenizer = load_tokenizer(str(tmp_path / "hf"))
    name = (tmp_path / "data/prompts.txt").read_text().split()[1]
    assert len(tokenizer.encode(" " + name)) == 1


def test_compare(tmp_path, capsys):
    def log(name, right):
        path = tmp_path / name
        path.write_text(f"INFO:mindspeed_llm.tasks.evaluation.eval_impl.mmlu_eval:mmlu acc = {right}/40={right / 40}\n")
        return str(path)

    full = log("full.log", 36)
    main(["compare", "--full-log", full, "--lora-log", log("near.log", 35), "--within", "0.05"])
    assert capsys.readouterr().out == "accuracy after full fine-tuning: 0.90\naccuracy with low-rank adapters: 0.88\n"
    with pytest.raises(UserError, match="at most 0.05 less was expected"):
        main(["compare", "--full-log", full, "--lora-log", log("far.log", 33), "--within", "0.05"])


def test_pairs_and_what_tuning_on_them_reached(tmp_path, capsys):
    main(["make-data", "--save-dir", str(tmp_path), "--documents", "20"])
    main(["make-pairs", "--save-dir", str(tmp_path)])
    pairs, rows = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("pairs", "instructions"))
    right = {row["instruction"]: row["output"] for row in rows}
    assert len(pairs) == len(rows) == 576
    assert all(pair["chosen"] == right[pair["instruction"]] != pair["rejected"] for pair in pairs)
    assert {pair["rejected"] for pair in pairs} == set("ABCD")
    capsys.readouterr()

    def log(name, text):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    share = [0.1, *[0.95] * 10]
    dpo = log("dpo.log", "".join(
        f" [2026-11-25 02:00:00] iteration {number:8d}/      11 | lm loss: 0.6 | rewards/accuracies: {value:.6E} |\n"
        for number, value in enumerate(share, start=1)))
    before, after = (log(f"{right}.log", f"INFO:x:mmlu acc = {right}/40={right / 40}\n") for right in (36, 35))
    flags = ["preferences", "--dpo-log", dpo, "--before-log", before, "--after-log", after]
    main([*flags, "--least-reward", "0.9", "--within", "0.05"])
    assert capsys.readouterr().out == ("reward accuracy: 0.95\naccuracy before preference tuning: 0.90\n"
                                       "accuracy after preference tuning: 0.88\n")
    with pytest.raises(UserError, match="reward accuracy is 0.9500, at least 0.96"):
        main([*flags, "--least-reward", "0.96"])
    with pytest.raises(UserError, match="after preference tuning is 0.8750, before it was 0.9000: at most 0.0 less"):
        main([*flags, "--within", "0"])
    with pytest.raises(UserError, match="no field rewards/accuracies"):
        sft = log("sft.log", " [2026-11-25 02:00:00] iteration        1/       1 | lm loss: 1.0 |\n")
        main(["preferences", "--dpo-log", sft, "--before-log", before, "--after-log", after])


@pytest.mark.parametrize("argv, message", [
    (["make-model", "--save-dir", "x"], "needs the model flags"),
    (["make-model", "--save-dir", "x", "--num-leyers", "4"], "did you mean --num-layers"),
    (["make-data", "--save-dir", "x", "--bad"], "unknown argument '--bad' of make-data"),
    (["make-data"], "--save-dir"),
    (["bake-data"], "bake-data"),
])
def test_wrong_command_lines(argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        main(argv)
    assert not list(tmp_path.iterdir())
