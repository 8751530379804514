"""The processor of this machine: its name, the instructions that matter, and the precision that is fast on it."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Literal

CPUINFO = Path("/proc/cpuinfo")
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")
Precision = Literal["bf16", "fp32"]


def fast_precision() -> Precision:
    """Returns `bf16` where the processor multiplies in it; elsewhere torch emulates bf16, up to nine times slower."""
    return "bf16" if set(BF16_INSTRUCTIONS) & set(instructions()) else "fp32"


def instructions() -> list[str]:
    """Names the processor's instructions that decide how fast it multiplies matrices, in fp32 and in bf16."""
    flags = {*_field("flags").split(), *_field("Features").split()}
    return [name for name in ("avx2", "avx512f", "asimd", *BF16_INSTRUCTIONS) if name in flags]


def processor_name() -> str:
    """Returns the processor's model; where the system does not tell it, the machine's architecture."""
    return _field("model name") or platform.machine()


def emulates_bf16() -> bool:
    """Whether this processor is known to lack bf16 instructions; False where the system does not tell."""
    return bool(instructions()) and fast_precision() == "fp32"


def mixed_precision(precision: Precision) -> Literal["bf16", "no"]:
    """Returns the value of the setting `mixed_precision` that computes in a precision."""
    return "bf16" if precision == "bf16" else "no"


def _field(name: str) -> str:
    """Reads a field of the first core; empty where there is none, as on macOS."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    fields = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in fields if key.strip() == name), "")
