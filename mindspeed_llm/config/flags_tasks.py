"""Flags of data, conversion, generation and evaluation, and those accepted without effect."""

from mindspeed_llm.config import flag_kinds as kind
from mindspeed_llm.config.flag_kinds import ENTRYPOINTS, RUN, TRAIN, Flag

_DATA = "data"
_CONVERT = "conversion"
_GENERATE = "generation"
_EVALUATE = "evaluation"
_NO_EFFECT = "accepted without effect"
PREPROCESS = ("preprocess",)

DATA_FLAGS = (
    Flag("--data-path", kind.words(), ("data.data_path",), TRAIN,
         "prefix of .bin/.idx files, or several, or weighted: 0.3 a 0.7 b", _DATA),
    Flag("--split", kind.shares(), ("data.split",), TRAIN, "shares of training, validation and test", _DATA),
    Flag("--tokenizer-type", kind.choice("PretrainedFromHF"), ("data.tokenizer_type",), RUN + PREPROCESS,
         "a tokenizer in a Hugging Face directory", _DATA),
    Flag("--tokenizer-name-or-path", kind.path(), ("data.tokenizer_name_or_path",), RUN + PREPROCESS,
         "directory with the tokenizer's files", _DATA),
    Flag("--tokenizer-model", kind.path(), ("cli.tokenizer_model",), RUN + PREPROCESS,
         "a tokenizer file; its directory is used when --tokenizer-name-or-path is not given", _DATA, default="none"),
    Flag("--prompt-type", kind.text(), ("data.prompt_type",), PREPROCESS + ("inference", "evaluation"),
         "chat template of instruction data and prompts, such as glm4; tuning reads data that have it already", _DATA),
    Flag("--is-instruction-dataset", kind.switch(), ("data.is_instruction_dataset",), TRAIN,
         "--data-path holds packed instruction data", _DATA),
    Flag("--no-pad-to-seq-lengths", kind.switch(), ("data.no_pad_to_seq_lengths",), TRAIN,
         "pad a batch to its longest sample, not to --seq-length", _DATA),
    Flag("--pad-to-multiple-of", kind.integer(1), ("data.pad_to_multiple_of",), TRAIN,
         "with --no-pad-to-seq-lengths: lengths are rounded up to a multiple of this", _DATA),
    Flag("--input", kind.path(), ("data.input",), PREPROCESS,
         "file or directory: parquet, csv, json, jsonl, txt, arrow", _DATA),
    Flag("--output-prefix", kind.path(), ("data.output_prefix",), PREPROCESS, "start of the names of the output files",
         _DATA),
    Flag("--json-keys", kind.words(), ("data.json_keys",), PREPROCESS, "columns or keys that hold the text", _DATA),
    Flag("--workers", kind.integer(1), ("data.workers",), PREPROCESS, "processes", _DATA),
    Flag("--log-interval", kind.integer(1), ("data.log_interval",), PREPROCESS, "documents between progress lines",
         _DATA),
    Flag("--handler-name", kind.choice("GeneralPretrainHandler", "AlpacaStyleInstructionHandler",
                                       "SharegptStyleInstructionHandler", "AlpacaStylePairwiseHandler",
                                       "SharegptStylePairwiseHandler"), ("data.handler_name",), PREPROCESS,
         "what a row of the input means", _DATA),
    Flag("--pack", kind.switch(), ("data.pack",), PREPROCESS, "join samples up to --seq-length", _DATA),
    Flag("--append-eod", kind.switch(), ("data.append_eod",), PREPROCESS, "end every document with the end token",
         _DATA),
)

CONVERT_FLAGS = (
    Flag("--load-model-type", kind.choice("hf", "mg"), ("convert.load_model_type",), ("convert",),
         "layout that is read: Hugging Face or mcore", _CONVERT),
    Flag("--save-model-type", kind.choice("mg", "hf"), ("convert.save_model_type",), ("convert",),
         "layout that is written", _CONVERT),
    Flag("--model-type-hf", kind.choice("chatglm3", "glm", "glm4", "qwen3"), ("convert.model_type_hf",), ("convert",),
         "Hugging Face layout: chatglm3 is GLM-4-9B's own (transformer.*), the others are the native ones", _CONVERT),
    Flag("--model-type", kind.choice("GPT"), (), ("convert",), "a decoder-only model", _CONVERT, default="always so"),
    Flag("--load-dir", kind.path(), ("convert.load_dir",), ("convert",), "directory that is read", _CONVERT,
         default="required"),
    Flag("--save-dir", kind.path(), ("convert.save_dir",), ("convert",),
         "directory that is written; for mg -> hf without --hf-dir it is the original HF directory, and the output "
         "goes into its mg2hf/", _CONVERT, default="required"),
    Flag("--hf-dir", kind.path(), ("convert.hf_dir",), ("convert",),
         "for mg -> hf: the original HF directory (config and tokenizer come from it); with it the output goes to "
         "--save-dir itself", _CONVERT, default="--save-dir"),
    Flag("--hf-cfg-dir", kind.path(), ("convert.hf_dir",), ("convert",), "MindSpeed-LLM's other name of --hf-dir",
         _CONVERT, default="--hf-dir"),
    Flag("--params-dtype", kind.choice("fp32", "bf16", "fp16"), ("convert.params_dtype",), ("convert",),
         "dtype that is written", _CONVERT, default="the source's"),
    Flag("--target-tensor-parallel-size", kind.integer(1), ("convert.target_tensor_parallel_size",), ("convert",),
         "tensor-parallel size of the mcore checkpoint that is written", _CONVERT),
    Flag("--target-pipeline-parallel-size", kind.integer(1), ("convert.target_pipeline_parallel_size",), ("convert",),
         "pipeline-parallel size of the mcore checkpoint that is written", _CONVERT),
)

INFERENCE_FLAGS = (
    Flag("--task", kind.words("greedy", "do_sample", "beam_search", "chat"), ("inference.task",), ("inference",),
         "one or several ways to generate", _GENERATE),
    Flag("--prompt", kind.repeated_text(), ("inference.prompts",), ("inference",),
         "a prompt; may be repeated", _GENERATE, default="a few built-in ones"),
    Flag("--max-new-tokens", kind.integer(1), ("inference.max_new_tokens",), ("inference",),
         "longest answer, in tokens", _GENERATE),
    Flag("--temperature", kind.number(above=0.0), ("inference.temperature",), ("inference",),
         "divides the logits before sampling", _GENERATE),
    Flag("--top-k", kind.integer(0), ("inference.top_k",), ("inference",),
         "sample among the k likeliest tokens; 0: among all", _GENERATE),
    Flag("--top-p", kind.number(above=0.0, high=1.0), ("inference.top_p",), ("inference",),
         "sample among the likeliest tokens that make up this probability", _GENERATE),
    Flag("--num-beams", kind.integer(1), ("inference.num_beams",), ("inference",), "beams of beam_search", _GENERATE),
    Flag("--no-chat-template", kind.switch(), ("inference.no_chat_template", "evaluation.no_chat_template"),
         ("inference", "evaluation"), "the prompt is given to the model as it is", _GENERATE),
)

EVALUATION_FLAGS = (
    Flag("--task", kind.single_word("mmlu"), ("evaluation.task",), ("evaluation",), "benchmark", _EVALUATE),
    Flag("--task-data-path", kind.single_word(), ("evaluation.task_data_path",), ("evaluation",),
         "directory of the benchmark's test files; dev/ lies beside it", _EVALUATE, default="required"),
    Flag("--evaluation-batch-size", kind.integer(1), ("evaluation.evaluation_batch_size",), ("evaluation",),
         "questions in one forward pass", _EVALUATE),
    Flag("--max-eval-samples", kind.integer(1), ("evaluation.max_eval_samples",), ("evaluation",),
         "at most so many questions of each subject", _EVALUATE, default="all"),
    Flag("--num-shots", kind.integer(0, 5), ("evaluation.num_shots",), ("evaluation",),
         "answered examples before each question, from dev/", _EVALUATE),
    Flag("--broadcast", kind.switch(), ("evaluation.broadcast",), ("evaluation",),
         "rank 0 reads the questions and sends them to the others", _EVALUATE),
    Flag("--alternative-prompt", kind.switch(), ("evaluation.alternative_prompt",), ("evaluation",),
         "the second form of the prompt", _EVALUATE),
    Flag("--output-dir", kind.path(), ("evaluation.output_dir",), ("evaluation",), "write every answer here",
         _EVALUATE),
)

_KERNELS = "kernels are chosen for the device target"


def _ignored(name: str, value_kind: kind.Kind, why: str) -> Flag:
    return Flag(name, value_kind, (), ENTRYPOINTS, why, _NO_EFFECT, default="", why_ignored=why)


NO_EFFECT_FLAGS = (
    _ignored("--use-mcore-models", kind.switch(), "there is one model"),
    _ignored("--use-flash-attn", kind.switch(), _KERNELS),
    _ignored("--use-fused-rmsnorm", kind.switch(), _KERNELS),
    _ignored("--use-fused-swiglu", kind.switch(), _KERNELS),
    _ignored("--use-fused-rotary-pos-emb", kind.switch(), _KERNELS),
    _ignored("--no-rope-fusion", kind.switch(), _KERNELS),
    _ignored("--no-bias-swiglu-fusion", kind.switch(), _KERNELS),
    _ignored("--no-masked-softmax-fusion", kind.switch(), _KERNELS),
    _ignored("--no-gradient-accumulation-fusion", kind.switch(), _KERNELS),
    _ignored("--no-create-attention-mask-in-dataloader", kind.switch(), "a causal mask is never built"),
    _ignored("--variable-seq-lengths", kind.switch(),
             "every stage knows how long a micro-batch is: they may always differ"),
    _ignored("--use-cp-send-recv-overlap", kind.switch(), "ring attention always sends while it computes"),
    _ignored("--enable-thinking", kind.switch(), "no prompt template here has a thinking part"),
    _ignored("--tokenizer-not-use-fast", kind.switch(),
             "the ids are the same either way: a slow tokenizer's own code is never run"),
    _ignored("--distributed-backend", kind.choice("nccl", "hccl"), "collectives follow the device target"),
    _ignored("--ckpt-format", kind.choice("torch"), "there is one checkpoint format"),
    _ignored("--ai-framework", kind.choice("mindspore"), "there is one framework"),
)
