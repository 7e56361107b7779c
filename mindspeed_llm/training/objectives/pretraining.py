"""Pre-training: predict every next token of running text."""

from collections.abc import Sequence

from mindspore import Tensor

from mindspeed_llm.config.configs import Configs
from mindspeed_llm.core.gpt_model import GPTModel
from mindspeed_llm.data.batch import Dataset, build_train_valid_test
from mindspeed_llm.training.micro_batch import Sample
from mindspeed_llm.training.objectives.objective import Objective, TokenBatch, token_batch, token_loss
from mindspeed_llm.training.passes import Metrics

PROMPT_TOKENS = 64


class Pretraining(Objective):
    """Samples are --seq-length tokens of the documents, joined in shuffled order; each counts alike."""

    def __init__(self, configs: Configs) -> None:
        self._configs = configs

    def datasets(self, num_samples: tuple[int, int]) -> tuple[Dataset | None, Dataset | None]:
        """See `Objective`."""
        train = self._configs.train
        return build_train_valid_test(self._configs.data, seq_length=train.seq_length, seed=train.seed,
                                      num_samples=(*num_samples, 0))[:2]

    def micro_batch(self, samples: Sequence[Sample]) -> TokenBatch:
        """See `Objective`."""
        return token_batch(samples)

    def loss(self, chunk: GPTModel, hidden: Tensor, micro: TokenBatch) -> tuple[Tensor, Metrics]:
        """Mean cross entropy of the next tokens."""
        return token_loss(chunk, hidden, micro)

    def prompt(self, sample: Sample) -> list[int]:
        """The first tokens, half of the sample at most."""
        tokens = sample["tokens"]
        return tokens[:min(PROMPT_TOKENS, tokens.size // 2)].tolist()
