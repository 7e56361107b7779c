"""Conversion between Hugging Face layouts and mcore checkpoints: one module per layout, its weight map as data."""

from mindspeed_llm.tasks.convert.job import run

__all__ = ["run"]
