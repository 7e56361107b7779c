"""Generating text with a model that is in memory: whoever holds its chunks, an inference job or a training run."""
