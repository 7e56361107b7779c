"""MMLU 5-shot, questions per second: evaluation.py's runner against lm-evaluation-harness with Hugging Face on PyTorch,
and whether both, and our model within the harness, give the same answers question by question.

    python benchmarks/evaluation_speed.py --peer-python path/to/venv/bin/python --mmlu path/to/mmlu \
        --load path/to/mcore --hf path/to/hf --dtype fp32 --subjects 4 --questions 50

--mmlu holds dev/ and test/ in the original layout; --hf is a directory of a native Hugging Face layout (with
tokenizer.json) and --load the checkpoint that convert_ckpt.py made of it. Without both, a random model of the size of
train_step.py is made in --work, with a tokenizer of the questions' words. The peer's environment needs the harness,
PyTorch and this project's requirements, in one call: pip install -r requirements.txt torch==2.13.0 transformers==5.24.0
'lm_eval[hf]==0.4.13'.

Two worker processes take turns, ours, theirs, ours, ...: a turn answers all questions; loading is not counted, making
prompts and cutting them into tokens is. --isa limits both sides to an instruction set, as in train_step.py. --agreement
is one turn of each and one of `mindspeed_llm` as a model of the harness, and compares the answers alone.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

from train_step import BENCH, LIMITS, ROOT, compared, settings

HEADER = "The following are multiple choice questions (with answers) about {subject}.\n\n"
FORM = "{{question}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:"


def subjects_of(options):
    """The subjects that are asked, each with at most --questions."""
    return all_subjects(options.mmlu, options.questions)[:options.subjects]


def all_subjects(mmlu, questions=None):
    """All of MMLU, or at most so many questions of each subject."""
    sys.path.insert(0, str(ROOT))
    from mindspeed_llm.tasks.evaluation.eval_impl import TASKS
    from mindspeed_llm.tasks.evaluation.question_files import Source
    return TASKS["mmlu"].read(Source(Path(mmlu) / "test", 5, questions))


def write_harness_tasks(folder: Path, options) -> None:
    """The same questions as tasks of the harness: MMLU's own description, texts as they are in the CSVs."""
    folder.mkdir(parents=True, exist_ok=True)
    for subject in subjects_of(options):
        for split, questions in (("dev", subject.shots), ("test", subject.questions)):
            rows = [json.dumps({"question": question.text, "choices": question.options,
                                "answer": "ABCD".index(question.answer)}) for question in questions]
            (folder / f"{subject.name}_{split}.jsonl").write_text("\n".join(rows) + "\n")
        description = {
            "task": f"csv_{subject.name}", "dataset_path": "json", "test_split": "test", "fewshot_split": "dev",
            "dataset_kwargs": {"data_files": {split: str(folder / f"{subject.name}_{split}.jsonl")
                                              for split in ("dev", "test")}},
            "fewshot_config": {"sampler": "first_n"}, "num_fewshot": 5, "output_type": "multiple_choice",
            "description": HEADER.format(subject=subject.name.replace("_", " ")), "doc_to_text": FORM,
            "doc_to_choice": ["A", "B", "C", "D"], "doc_to_target": "answer",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]}
        (folder / f"{subject.name}.yaml").write_text(json.dumps(description))  # JSON is YAML


def ours(options):
    """Returns the function that answers all questions: log-probabilities of the letters, `[questions][4]`."""
    from mindspeed_llm.config.command_line import parse
    from mindspeed_llm.tasks.evaluation.job import EvaluationPlan, prepare
    from mindspeed_llm.tasks.inference.loading import load
    configs = parse("evaluation", [
        "--load", options.load, "--tokenizer-name-or-path", options.hf, "--task", "mmlu", "--task-data-path",
        options.mmlu, "--scoring", "logprob", "--no-chat-template", "--evaluation-batch-size", str(options.batch),
        *(["--bf16"] if options.dtype == "bf16" else [])])
    subjects, loaded = subjects_of(options), load(configs)

    def answer():
        runner = prepare(loaded.configs, loaded.tokenizer, loaded.generator(), EvaluationPlan.of(configs.evaluation),
                         subjects, True, None)
        return [question.log_probs for subject in subjects for question in runner.answer(subject).questions]
    return answer


def harness(options, model):
    """The same by the harness with the model."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    folder = Path(options.work) / "tasks"
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    names = [f"csv_{subject.name}" for subject in subjects_of(options)]

    def answer():
        samples = simple_evaluate(model=model, tasks=names, task_manager=manager, num_fewshot=5, bootstrap_iters=0,
                                  log_samples=True)["samples"]
        return [[float(entry[0]) for entry in sample["filtered_resps"]] for name in names
                for sample in sorted(samples[name], key=lambda sample: sample["doc_id"])]
    return answer


def peer(options):
    """Hugging Face on PyTorch."""
    import torch
    from lm_eval.models.huggingface import HFLM
    torch.set_num_threads(options.threads)
    return harness(options, HFLM(pretrained=options.hf, dtype={"fp32": "float32", "bf16": "bfloat16"}[options.dtype],
                                 batch_size=options.peer_batch, device="cpu"))


def bridge(options):
    """Our model within the harness."""
    from mindspeed_llm.tasks.evaluation.harness import HarnessModel
    return harness(options, HarnessModel(load=options.load, tokenizer=options.hf, dtype=options.dtype,
                                         batch_size=options.batch))


def work(options) -> None:
    """A worker: one turn per line on stdin, its seconds and log-probabilities as JSON on the first stdout."""
    sys.path.insert(0, str(ROOT))
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print is not an answer
    logging.disable(logging.INFO)
    answer = {"ours": ours, "peer": peer, "bridge": bridge}[options.worker](options)
    for _ in sys.stdin:
        started = time.perf_counter()
        found = answer()
        print(json.dumps({"seconds": time.perf_counter() - started, "log_probs": found}), file=channel, flush=True)


def make_model(options) -> None:
    """A worker of the peer's Python: a random model and a tokenizer of the questions' words in --hf."""
    import torch
    from tokenizers import AddedToken, processors
    from transformers import GlmConfig, GlmForCausalLM

    sys.path.insert(0, str(ROOT))
    from mindspeed_llm.data.tokenizer import GLM4_PREFIX, GLM4_SPECIAL_TOKENS
    from mindspeed_llm.data.tokenizer_training import train_tiktoken_bpe
    from tests.data.rank_bpe import bpe_from_ranks
    # of all questions: the fewer a tokenizer has seen, the longer it makes the others
    texts = ["\n".join([question.text, *question.options]) for subject in all_subjects(options.mmlu)
             for question in subject.questions]
    backend = bpe_from_ranks(train_tiktoken_bpe(texts, BENCH["padded_vocab_size"] - 64))
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in GLM4_SPECIAL_TOKENS])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{' '.join(GLM4_PREFIX)} $A",
        special_tokens=[(name, backend.token_to_id(name)) for name in GLM4_PREFIX])
    end = backend.token_to_id("<|endoftext|>")
    torch.manual_seed(3)
    model = GlmForCausalLM(GlmConfig(
        vocab_size=BENCH["padded_vocab_size"], hidden_size=BENCH["hidden_size"],
        intermediate_size=BENCH["ffn_hidden_size"], num_hidden_layers=BENCH["num_layers"],
        num_attention_heads=BENCH["num_attention_heads"],
        num_key_value_heads=BENCH["num_query_groups"], head_dim=BENCH["kv_channels"], rms_norm_eps=1.5625e-07,
        attention_bias=True, max_position_embeddings=8192, tie_word_embeddings=False, pad_token_id=end,
        eos_token_id=end, initializer_range=0.04,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}))
    model.save_pretrained(options.hf)
    backend.save(str(Path(options.hf) / "tokenizer.json"))
    (Path(options.hf) / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}))


def prepare_model(options, command) -> None:
    """Give --load and --hf a random model."""
    options.hf, options.load = f"{options.work}/hf", f"{options.work}/mcore"
    if not Path(options.load).exists():
        subprocess.run(command("make_model", options.peer_python), check=True)
        subprocess.run([sys.executable, ROOT / "convert_ckpt.py", "--load-model-type", "hf", "--save-model-type", "mg",
                        "--model-type-hf", "glm", "--load-dir", options.hf, "--save-dir", options.load], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", required=True, help="Python with the harness, torch and transformers")
    parser.add_argument("--mmlu", required=True, help="directory with dev/ and test/")
    parser.add_argument("--load", help="mcore checkpoint")
    parser.add_argument("--hf", help="Hugging Face directory of the same weights")
    parser.add_argument("--work", default="./evaluation_speed", help="directory for what is made")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--subjects", type=int, default=4)
    parser.add_argument("--questions", type=int, help="at most so many of each subject (default: all)")
    parser.add_argument("--batch", type=int, default=16, help="questions in a forward pass")
    parser.add_argument("--peer-batch", type=int, default=1, help="the peer's sequences in a forward pass")
    parser.add_argument("--isa", choices=LIMITS, help="as on a processor that has nothing newer")
    parser.add_argument("--steps", type=int, default=3, help="turns that count; two more warm up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--agreement", action="store_true", help="compare the answers alone")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.work, options.mmlu = os.path.abspath(options.work), os.path.abspath(options.mmlu)
    if options.worker == "make_model":
        make_model(options)
    elif options.worker:
        work(options)
    else:
        take_turns(options)


def take_turns(options) -> None:
    """Run the workers and print what they found."""
    def command(name, python):
        given = {"--mmlu": options.mmlu, "--work": options.work, "--hf": options.hf, "--load": options.load}
        return [python, __file__, *sys.argv[1:], *(word for pair in given.items() if pair[1] for word in pair),
                "--worker", name]

    if not (options.hf and options.load):
        prepare_model(options, lambda name, python: command(name, python))
    write_harness_tasks(Path(options.work) / "tasks", options)
    sides = {"ours": sys.executable, "peer": options.peer_python}
    sides |= {"bridge": options.peer_python} if options.agreement else {}
    environment = {**os.environ, **settings(options), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
                   "HF_DATASETS_CACHE": f"{options.work}/cache"}
    jobs = {name: subprocess.Popen(command(name, python), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                   env=environment) for name, python in sides.items()}
    results = {name: [] for name in jobs}
    for _ in range(1 if options.agreement else options.steps + 2):
        for name, job in jobs.items():
            job.stdin.write("turn\n")
            job.stdin.flush()
            results[name].append(json.loads(job.stdout.readline()))
    for job in jobs.values():
        job.stdin.close()
        job.wait()
    answers = {name: turns[-1]["log_probs"] for name, turns in results.items()}
    (Path(options.work) / f"answers_{options.dtype}.json").write_text(json.dumps(answers))
    wanted = answers.pop("ours")
    count = len(wanted)
    print(f"{options.isa or 'all instructions'}, {options.dtype}, {count} questions in {options.subjects} subjects, "
          f"batch {options.batch}, the peer's {options.peer_batch}")
    if not options.agreement:
        medians, speed = compared(results)
        for name, median in medians.items():
            print(f"{name}: median {median:.2f} s, {count / median:.2f} questions/s")
        print(speed)
    print(f"ours chooses A, B, C, D {[list(map(choice, wanted)).count(letter) for letter in range(4)]} times")
    for name, found in answers.items():
        print(f"ours and {name}: {agreement(wanted, found)}")
    exact = Path(options.work) / "answers_fp32.json"
    if options.dtype != "fp32" and exact.exists():  # of the same command in fp32
        exact = json.loads(exact.read_text())["ours"]
        for name, found in {"ours": wanted, **answers}.items():
            print(f"fp32 and {name}: {agreement(exact, found)}")


def choice(log_probs) -> int:
    """The likeliest of a question's options; of equals the first."""
    return max(range(len(log_probs)), key=log_probs.__getitem__)


def agreement(first, second) -> str:
    """How alike two lists of log-probabilities are, question by question."""
    pairs = list(zip(first, second, strict=True))
    gap = max(abs(x - y) for a, b in pairs for x, y in zip(a, b, strict=True))
    doubts = [a[choice(a)] - a[choice(b)] for a, b in pairs if choice(a) != choice(b)]
    told = (f"{len(pairs) - len(doubts)} of {len(pairs)} answers are the same, log-probabilities differ by {gap:.2e} at "
            "most")
    return told + (f"; where the answers differ, the two options do by {max(doubts):.2e} at most" if doubts else "")


if __name__ == "__main__":
    main()
