"""The instruction sets to which our kernels and MindSpore's oneDNN can be held, and what a processor needs for each."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class InstructionSet:
    """`name` is MINDSPEED_LLM_ISA, `onednn` is ONEDNN_MAX_CPU_ISA, `flags` those of /proc/cpuinfo that both need."""

    name: str
    onednn: str
    flags: frozenset[str]

    def missing(self) -> frozenset[str]:
        """What this processor lacks."""
        return self.flags - processor_flags()

    def environment(self) -> dict[str, str]:
        """The variables that hold a process to this instruction set."""
        return {"MINDSPEED_LLM_ISA": self.name, "ONEDNN_MAX_CPU_ISA": self.onednn}


def processor_flags() -> frozenset[str]:
    """The processor's features as Linux names them; empty where it does not say."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))


_AVX512 = frozenset({"avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl"})
# From the oldest to the newest; each processor has all up to its own.
INSTRUCTION_SETS = (
    InstructionSet("base", "SSE41", frozenset({"sse4_1"})),
    InstructionSet("avx2", "AVX2", frozenset({"avx2", "fma"})),
    InstructionSet("avx512", "AVX512_CORE", _AVX512),
    InstructionSet("avx512_bf16", "AVX512_CORE_BF16", _AVX512 | {"avx512_bf16"}),
    InstructionSet("amx", "AVX512_CORE_AMX", _AVX512 | {"avx512_bf16", "amx_tile", "amx_bf16", "amx_int8"}),
)
