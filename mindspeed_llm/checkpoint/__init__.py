"""Checkpoints on disk: format, save, load under any parallel split, verify. Knows tensors and files, not training."""

from mindspeed_llm.checkpoint.adapters import find_adapters
from mindspeed_llm.checkpoint.dtypes import LazyTensor, StoredTensor
from mindspeed_llm.checkpoint.load import Checkpoint, open_checkpoint
from mindspeed_llm.checkpoint.save import (OptimizerShard, SaveInfo, begin_save, commit_save, remove_old,
                                           staging_directory, write_model_file, write_optimizer_file)
from mindspeed_llm.checkpoint.source import WeightSource

__all__ = ["Checkpoint", "LazyTensor", "OptimizerShard", "SaveInfo", "StoredTensor", "WeightSource", "begin_save",
           "commit_save", "find_adapters", "open_checkpoint", "remove_old", "staging_directory", "write_model_file",
           "write_optimizer_file"]
