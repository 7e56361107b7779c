"""Where text comes from and how it becomes token ids."""

from dataclasses import dataclass

from mindspeed_llm.config import flag_kinds as kind
from mindspeed_llm.config.option import EVALUATION, INFERENCE, PREPROCESS, RUN, TRAIN, Flag, option


@dataclass(frozen=True)
class DataConfig:
    """Data, tokenizer and preprocessing options (`preprocess_data.py` and the data flags of `pretrain_gpt.py`)."""

    data_path: tuple[str, ...] = option((), Flag(
        kind.words(), TRAIN, "prefix of .bin/.idx files, or several, or weighted: 0.3 a 0.7 b"))
    split: str = option("100,0,0", Flag(kind.shares(), TRAIN, "shares of training, validation and test"))
    seq_length: int = 4096
    tokenizer_type: str = option("PretrainedFromHF", Flag(
        kind.choice("PretrainedFromHF"), RUN + PREPROCESS, "a tokenizer in a Hugging Face directory"))
    tokenizer_name_or_path: str | None = option(
        None,
        Flag(kind.path(), RUN + PREPROCESS, "directory with the tokenizer's files"),
        Flag(
            kind.path(), RUN + PREPROCESS, "a tokenizer file; its directory is used when --tokenizer-name-or-path "
            "is not given", name="--tokenizer-model", fields=("cli.tokenizer_model",), default="none"))
    prompt_type: str | None = option(None, Flag(
        kind.text(), PREPROCESS + INFERENCE + EVALUATION, "chat template of instruction data and prompts, such as "
        "glm4; tuning reads data that have it already"))
    is_instruction_dataset: bool = option(False, Flag(
        kind.switch(), TRAIN, "--data-path holds packed instruction data"))
    is_pairwise_dataset: bool = option(False, Flag(
        kind.switch(), TRAIN, "--data-path holds pairs of a chosen and a rejected answer (--stage dpo)"))
    no_pad_to_seq_lengths: bool = option(False, Flag(
        kind.switch(), TRAIN, "pad a batch to its longest sample, not to --seq-length"))
    pad_to_multiple_of: int = option(8, Flag(
        kind.integer(1), TRAIN, "with --no-pad-to-seq-lengths: lengths are rounded up to a multiple of this"))
    reset_attention_mask: bool = option(False, Flag(
        kind.switch(), TRAIN, "pre-training: the documents of a sample do not see each other (the conversations of "
        "packed instruction data never do)"))
    input: str | None = option(None, Flag(
        kind.path(), PREPROCESS, "file, directory or quoted pattern: parquet, arrow, csv, json, jsonl, txt; the last "
        "four also .gz"))
    output_prefix: str | None = option(None, Flag(kind.path(), PREPROCESS, "start of the names of the output files"))
    json_keys: tuple[str, ...] = option(("text",), Flag(kind.words(), PREPROCESS, "columns or keys that hold the text"))
    workers: int = option(1, Flag(kind.integer(1), PREPROCESS, "processes"))
    log_interval: int = option(1000, Flag(kind.integer(1), PREPROCESS, "documents between progress lines"))
    handler_name: str = option("GeneralPretrainHandler", Flag(
        kind.choice("GeneralPretrainHandler", "AlpacaStyleInstructionHandler", "SharegptStyleInstructionHandler",
                    "AlpacaStylePairwiseHandler", "SharegptStylePairwiseHandler"),
        PREPROCESS, "what a row of the input means"))
    map_keys: dict | None = option(None, Flag(
        kind.json_object(), PREPROCESS, "what the columns of tuning data are called: prompt, query, response, history, "
        "system, tools, messages, chosen, rejected; \"\" for none; under tags: role_tag, content_tag, user_tag, "
        "assistant_tag, system_tag, observation_tag, function_tag"))
    max_bad_rows: int = option(0, Flag(
        kind.integer(0), PREPROCESS, "rows that cannot be read and may be left out; one more is an error"))
    n_subs: int = option(1, Flag(
        kind.integer(1), PREPROCESS, "parts that --workers read and encode by themselves, merged in order"))
    report: bool = option(False, Flag(
        kind.switch(), PREPROCESS, "histogram of the lengths on the terminal and in PREFIX_lengths.png"))
    pack: bool = option(False, Flag(kind.switch(), PREPROCESS, "join samples up to --seq-length"))
    append_eod: bool = option(False, Flag(kind.switch(), PREPROCESS, "end every document with the end token"))
