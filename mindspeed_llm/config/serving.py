"""How `inference.py --task serve` serves."""

from dataclasses import dataclass

from mindspeed_llm.config import flag_kinds as kind
from mindspeed_llm.config.option import INFERENCE, Flag, option

KEY_VARIABLE = "MINDSPEED_LLM_API_KEY"


@dataclass(frozen=True)
class ServeConfig:
    """Address, key and bounds of the server."""

    host: str = option("127.0.0.1", Flag(
        kind.text(), INFERENCE, "address that --task serve listens at; 0.0.0.0: at all of this machine"))
    port: int = option(8000, Flag(kind.integer(0, 65535), INFERENCE, "port of --task serve; 0: any that is free"))
    api_key: str | None = option(None, Flag(
        kind.text(), INFERENCE, "key that clients of --task serve must send; others can read it in the list of "
        f"processes: better set {KEY_VARIABLE}", default=KEY_VARIABLE))
    served_model_name: str | None = option(None, Flag(
        kind.text(), INFERENCE, "name of the model for clients of --task serve", default="the name of the --load "
        "directory"))
    kv_cache_tokens: int | None = option(None, Flag(
        kind.integer(1), INFERENCE, "tokens whose keys and values --task serve keeps in memory, for all requests "
        "together; at least --seq-length", default="65536, or --seq-length if that is more"))
    max_sequences: int = option(32, Flag(
        kind.integer(1), INFERENCE, "answers that --task serve generates at a time; further ones wait"))
    max_requests: int = option(1024, Flag(
        kind.integer(1), INFERENCE, "answers that --task serve has under way, waiting ones included; further ones are "
        "refused"))
    drain_seconds: int = option(30, Flag(
        kind.integer(0), INFERENCE, "time that --task serve has to finish answers when it is asked to end"))
