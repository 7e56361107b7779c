"""What `evaluation.py` does: load the model, read the benchmark, run it, report; or compare two results."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from mindspeed_llm.checkpoint.layout import latest_iteration
from mindspeed_llm.config.command_line import Configs
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.training import EvaluationConfig
from mindspeed_llm.data.tokenizer import Tokenizer, load_tokenizer
from mindspeed_llm.generation.generator import Generator
from mindspeed_llm.runtime.collectives import barrier
from mindspeed_llm.runtime.messages import broadcast_text
from mindspeed_llm.tasks.evaluation import code_execution
from mindspeed_llm.tasks.evaluation.eval_impl import TASKS
from mindspeed_llm.tasks.evaluation.language_model import ParallelLanguageModel
from mindspeed_llm.tasks.evaluation.progress import Progress
from mindspeed_llm.tasks.evaluation.prompt_writer import PromptWriter
from mindspeed_llm.tasks.evaluation.prompts import Form
from mindspeed_llm.tasks.evaluation.question_files import Source, Subject
from mindspeed_llm.tasks.evaluation.results import SubjectResult, write_results
from mindspeed_llm.tasks.evaluation.runner import Answering, Runner
from mindspeed_llm.tasks.evaluation.task import GENERATE, Task
from mindspeed_llm.tasks.inference.loading import load
from mindspeed_llm.tasks.inference.prompting import Prompter


@dataclass(frozen=True)
class EvaluationPlan:
    """What a command line asks of a benchmark. Raises UserError for what the benchmark does not have."""

    task: Task
    form: Form
    num_shots: int
    answering: Answering

    @classmethod
    def of(cls, config: EvaluationConfig) -> "EvaluationPlan":
        """See the class."""
        task = TASKS[config.task]
        if task.runs_code and not config.allow_code_execution:
            raise UserError(f"--task {task.name} runs programs that the model writes: add --allow-code-execution, in a "
                            "container or on a machine that may be lost")
        scoring = config.scoring or (GENERATE if config.origin_postprocess else task.scoring)
        if scoring != task.scoring and task.scoring == GENERATE:
            raise UserError(f"--scoring {scoring}: the answers of --task {task.name} are written: leave it out")
        extract = task.extract
        if config.origin_postprocess:
            if task.extract_original is None:
                raise UserError(f"--origin-postprocess: --task {task.name} has one way to find the answer: leave it "
                                "out")
            extract = task.extract_original
        tokens = task.reasoning_tokens if config.chain_of_thought else task.max_new_tokens
        return cls(task, task.form(config.eval_language, config.alternative_prompt, config.chain_of_thought),
                   task.shots(config.num_shots), Answering(scoring, config.max_new_tokens or tokens, (), extract))


def run(configs: Configs) -> list[SubjectResult]:
    """Evaluate `--load` on `--task`; the results on every rank. Rank 0 logs (stderr) and writes `--output-dir`.

    Raises UserError or FileNotFoundError with what to put right.
    """
    config, plan = configs.evaluation, EvaluationPlan.of(configs.evaluation)
    # before the model: a wrong path should not cost the time of loading
    if plan.task.runs_code:
        code_execution.check()
    subjects = [] if config.broadcast else read(configs, plan)
    loaded = load(configs)
    agree = partial(broadcast_text, world=loaded.state.world)
    if config.broadcast:  # other nodes may not have the files
        text = agree(json.dumps([subject.to_dict() for subject in read(configs, plan)]) if loaded.is_rank_0 else None)
        subjects = [Subject.from_dict(values) for values in json.loads(text)]
    if loaded.is_rank_0:
        logging.basicConfig(level=logging.INFO)
        if plan.task.runs_code and not code_execution.isolated():
            logging.getLogger(plan.task.logger).warning(
                "this system gives programs no namespaces of their own: they may read and write what their user may")
    runner = prepare(loaded.configs, loaded.tokenizer, loaded.generator(), plan, subjects, loaded.is_rank_0, agree)
    settings = describe(loaded.configs, runner, plan, subjects)
    progress = Progress(config.output_dir, plan.task.name, settings) if config.output_dir and loaded.is_rank_0 else None
    finished = _agreed(progress, agree) if config.output_dir else {}
    results = runner.run(subjects, finished, None if progress is None else progress.keep)
    if progress is not None:
        write_results(config.output_dir, plan.task.name, results, plan.task.categories, settings)
        progress.close()
    barrier()
    return results


def read(configs: Configs, plan: EvaluationPlan) -> list[Subject]:
    """The benchmark's subjects. Raises as `Task.read`."""
    config, data = configs.evaluation, configs.data
    length = configs.train.seq_length if "seq_length" in configs.explicit else None
    return plan.task.read(Source(Path(config.task_data_path), plan.num_shots, config.max_eval_samples,
                                 lambda: load_tokenizer(data.tokenizer_name_or_path, data.tokenizer_type), length))


def prepare(configs: Configs, tokenizer: Tokenizer, generator: Generator, plan: EvaluationPlan,
            subjects: Sequence[Subject], is_rank_0: bool, agree: Callable[[str | None], str]) -> Runner:
    """What puts the questions of these subjects to the model of the generator."""
    config = configs.evaluation
    template = Prompter.of(configs, tokenizer, config.no_chat_template, config.hf_chat_template).template
    answering = replace(plan.answering, until=plan.task.until if template is None else plan.task.template_until)
    writes = not all(answering.rates(question) for subject in subjects for question in subject.questions)
    writer = PromptWriter(tokenizer, template, plan.form, generator.max_length,
                          answering.max_new_tokens if writes else 0)
    model = ParallelLanguageModel(generator, config.evaluation_batch_size)
    return Runner(plan.task, answering, model, writer, tokenizer, is_rank_0, agree)


def describe(configs: Configs, runner: Runner, plan: EvaluationPlan, subjects: Sequence[Subject]) -> dict:
    """All that the answers depend on, JSON-ready."""
    config, place, writer = configs.evaluation, configs.checkpoint, runner.writer
    return {
        "load": place.load, "iteration": latest_iteration(place.load), "lora_load": place.lora_load,
        "lora_iteration": latest_iteration(place.lora_load) if place.lora_load else None,
        "params_dtype": configs.train.params_dtype,
        "template": writer.template_name, "num_shots": plan.num_shots, "scoring": plan.answering.scoring,
        "max_new_tokens": plan.answering.max_new_tokens, "eval_language": config.eval_language,
        "alternative_prompt": config.alternative_prompt, "chain_of_thought": config.chain_of_thought,
        "origin_postprocess": config.origin_postprocess, "max_eval_samples": config.max_eval_samples,
        "seq_length": writer.room,
        "questions": hashlib.sha256(json.dumps([subject.to_dict() for subject in subjects]).encode()).hexdigest()[:16]}


def _agreed(progress: Progress | None, agree: Callable[[str | None], str]) -> dict[str, SubjectResult]:
    """The finished subjects that rank 0 found, on every rank."""
    found = None if progress is None else json.dumps([result.to_dict() for result in progress.finished().values()])
    results = [SubjectResult.from_dict(values) for values in json.loads(agree(found))]
    return {result.name: result for result in results}
