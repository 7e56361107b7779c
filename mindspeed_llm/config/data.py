"""Where text comes from and how it becomes token ids."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DataConfig:
    """Data, tokenizer and preprocessing options (`preprocess_data.py` and the data flags of `pretrain_gpt.py`)."""

    data_path: tuple[str, ...] = ()
    split: str = "100,0,0"
    seq_length: int = 4096
    tokenizer_type: str = "PretrainedFromHF"
    tokenizer_name_or_path: str | None = None
    prompt_type: str | None = None
    is_instruction_dataset: bool = False
    no_pad_to_seq_lengths: bool = False
    pad_to_multiple_of: int = 8
    input: str | None = None
    output_prefix: str | None = None
    json_keys: tuple[str, ...] = ("text",)
    workers: int = 1
    log_interval: int = 1000
    handler_name: str = "GeneralPretrainHandler"
    pack: bool = False
    append_eod: bool = False
