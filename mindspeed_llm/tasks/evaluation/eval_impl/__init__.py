"""One short description per benchmark. The modules' paths appear in the log lines that users' tools read."""

from mindspeed_llm.tasks.evaluation.eval_impl import (agi_eval, bbh_eval, boolq_eval, ceval_exam, cmmlu_eval,
                                                      gsm8k_eval, hellaswag_eval, human_eval, mmlu_eval,
                                                      needlebench_eval)
from mindspeed_llm.tasks.evaluation.task import Task

TASKS: dict[str, Task] = {module.TASK.name: module.TASK for module in (
    mmlu_eval, ceval_exam, cmmlu_eval, boolq_eval, hellaswag_eval, gsm8k_eval, bbh_eval, agi_eval, human_eval,
    needlebench_eval)}
