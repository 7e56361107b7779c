"""`preprocess_data.py`: raw text or conversations to indexed data sets."""

from mindspeed_llm.tasks.preprocess.pipeline import run

__all__ = ["run"]
