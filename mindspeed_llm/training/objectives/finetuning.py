"""Supervised fine-tuning: predict the answers of conversations, and only these."""

from collections.abc import Sequence
from dataclasses import replace

from mindspore import Tensor

from mindspeed_llm.config.configs import Configs
from mindspeed_llm.core.gpt_model import GPTModel
from mindspeed_llm.data.batch import Dataset, build_train_valid_test
from mindspeed_llm.training.micro_batch import Sample
from mindspeed_llm.training.objectives.objective import Objective, TokenBatch, length_multiple, token_batch, token_loss
from mindspeed_llm.training.passes import Metrics


class Finetuning(Objective):
    """Samples are rows of instruction data, as long as they are or filled up with `pad_id`; packed rows hold several
    conversations that do not see each other.
    """

    def __init__(self, configs: Configs, pad_id: int) -> None:
        self._configs, self._pad_id = configs, pad_id

    def datasets(self, num_samples: tuple[int, int]) -> tuple[Dataset | None, Dataset | None]:
        """See `Objective`."""
        train, data = self._configs.train, self._configs.data
        data = replace(data, pad_to_multiple_of=length_multiple(data.pad_to_multiple_of, self._configs.parallel))
        return build_train_valid_test(data, seq_length=train.seq_length, seed=train.seed, num_samples=(*num_samples, 0),
                                      kind="instruction", pad_id=self._pad_id)[:2]

    def micro_batch(self, samples: Sequence[Sample]) -> TokenBatch:
        """See `Objective`."""
        return token_batch(samples, self._pad_id)

    def loss(self, chunk: GPTModel, hidden: Tensor, micro: TokenBatch) -> tuple[Tensor, Metrics]:
        """Mean cross entropy of the answers' tokens."""
        return token_loss(chunk, hidden, micro)

    def prompt(self, sample: Sample) -> list[int]:
        """Everything before the first token of an answer."""
        learned = sample["loss_mask"].nonzero()[0]
        return sample["tokens"][:learned[0] + 1].tolist() if learned.size else []

