"""What `evaluation.py` does: load the model, read the benchmark, score it, report."""

import json
import logging

from mindspeed_llm.config.command_line import Configs
from mindspeed_llm.runtime.collectives import barrier
from mindspeed_llm.runtime.messages import broadcast_text
from mindspeed_llm.tasks.evaluation.choice_model import ParallelChoiceModel
from mindspeed_llm.tasks.evaluation.eval_impl import mmlu_eval
from mindspeed_llm.tasks.evaluation.prompt_forms import ALTERNATIVE, STANDARD, PromptWriter
from mindspeed_llm.tasks.evaluation.question_files import Subject, read_subjects
from mindspeed_llm.tasks.evaluation.results import SubjectResult, write_results
from mindspeed_llm.tasks.inference.loading import Loaded, load
from mindspeed_llm.tasks.inference.prompting import Prompter

TASKS = {"mmlu": mmlu_eval.evaluate}


def run(configs: Configs) -> list[SubjectResult]:
    """Evaluate `--load` on `--task`; the results on every rank. Rank 0 logs (stderr) and writes `--output-dir`.

    Raises UserError or FileNotFoundError with what to put right.
    """
    config = configs.evaluation
    # before the model: a wrong path should not cost the time of loading
    subjects = [] if config.broadcast else _read(configs)
    loaded = load(configs)
    if config.broadcast:
        subjects = _broadcast_subjects(loaded)
    if loaded.is_rank_0:
        logging.basicConfig(level=logging.INFO)
    template = Prompter.of(configs, loaded.tokenizer, config.no_chat_template).template
    writer = PromptWriter(loaded.tokenizer, template, ALTERNATIVE if config.alternative_prompt else STANDARD,
                          loaded.max_length)
    model = ParallelChoiceModel(loaded.generator(), config.evaluation_batch_size)
    results = TASKS[config.task](subjects, model, writer, loaded.is_rank_0)
    if config.output_dir and loaded.is_rank_0:
        settings = {"load": configs.checkpoint.load, "num_shots": config.num_shots,
                    "template": None if template is None else template.name,
                    "alternative_prompt": config.alternative_prompt, "max_eval_samples": config.max_eval_samples,
                    "params_dtype": configs.train.params_dtype}
        write_results(config.output_dir, config.task, results, settings)
    barrier()
    return results


def _read(configs: Configs) -> list[Subject]:
    config = configs.evaluation
    return read_subjects(config.task_data_path, config.num_shots, config.max_eval_samples)


def _broadcast_subjects(loaded: Loaded) -> list[Subject]:
    """--broadcast: rank 0 reads, as other nodes may not have the files."""
    text = None
    if loaded.is_rank_0:
        text = json.dumps([subject.to_dict() for subject in _read(loaded.configs)])
    return [Subject.from_dict(values) for values in json.loads(broadcast_text(text, loaded.state.world))]
