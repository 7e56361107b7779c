"""A benchmark for the model that a training run has in memory: `--eval-task` of pretrain_gpt.py."""

from dataclasses import replace
from functools import partial

from mindspeed_llm.config.configs import Configs
from mindspeed_llm.core.gpt_model import GPTModel
from mindspeed_llm.data.tokenizer import load_tokenizer
from mindspeed_llm.generation.generator import Generator
from mindspeed_llm.runtime.messages import broadcast_text
from mindspeed_llm.tasks.evaluation.job import EvaluationPlan, prepare, read
from mindspeed_llm.tasks.evaluation.results import by_category, summary
from mindspeed_llm.training.benchmark import Scores


class TrainingBenchmark:
    """A `training.benchmark.Benchmark`: the same questions every time, put to the live weights under any parallel
    sizes.

    Data-parallel replicas share the questions. Raises as `Task.read` and `EvaluationPlan.of`.
    """

    def __init__(self, configs: Configs, chunks: list[GPTModel]) -> None:
        configs = replace(configs, evaluation=replace(configs.evaluation, task=configs.train.eval_task))
        plan = EvaluationPlan.of(configs.evaluation)
        self._task, self._subjects = plan.task, read(configs, plan)
        tokenizer = load_tokenizer(configs.data.tokenizer_name_or_path, configs.data.tokenizer_type)
        generator = Generator(chunks, tokenizer.vocab_size, configs.model.max_position_embeddings)
        world = generator.state.world
        self._runner = prepare(configs, tokenizer, generator, plan, self._subjects, world.rank == 0,
                               partial(broadcast_text, world=world))

    def run(self) -> Scores:
        """See `Benchmark`."""
        results = [self._runner.answer(subject) for subject in self._subjects]
        total = summary(results)
        categories = by_category(results, self._task.categories)
        return Scores(self._task.name, total.question_n, total.acc, total.stderr,
                      {name: entry.acc for name, entry in categories.items()})
