"""Jobs to plan for: a tiny GLM4 and GLM4-9B, from flags."""

from mindspeed_llm.config.command_line import parse
from mindspeed_llm.tasks.planner.job import ASCEND, Job

TINY = ("--num-layers 8 --hidden-size 64 --ffn-hidden-size 96 --num-attention-heads 8 --kv-channels 8 "
        "--padded-vocab-size 512 --seq-length 64 --max-position-embeddings 64")
GLM4_9B = ("--num-layers 40 --hidden-size 4096 --ffn-hidden-size 13696 --num-attention-heads 32 --kv-channels 128 "
           "--padded-vocab-size 151552 --seq-length 8192 --max-position-embeddings 8192 --bf16 "
           "--use-distributed-optimizer")
COMMON = ("--group-query-attention --num-query-groups 2 --add-qkv-bias --untie-embeddings-and-output-weights "
          "--micro-batch-size 1 --train-iters 1 --data-path unread --dry-run")


def flags(shape: str, more: str = "") -> list[str]:
    """A command line; later flags win."""
    return f"{shape} {COMMON} --global-batch-size 64 {more}".split()


def job(shape: str = TINY, more: str = "", ranks: int = 1, target: str = ASCEND) -> Job:
    """The job of such a command line."""
    return Job(parse("pretrain", flags(shape, more)), ranks, target)


def mesh(tp: int = 1, pp: int = 1, cp: int = 1) -> str:
    """Flags of the parallel sizes."""
    return (f"--tensor-model-parallel-size {tp} --pipeline-model-parallel-size {pp} --context-parallel-size {cp}"
            + " --sequence-parallel" * (tp > 1))
