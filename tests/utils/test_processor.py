"""The precision that benchmarks choose, by what the processor says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from feature_gan_kd.utils import processor

CORE = "processor\t: 0\nmodel name\t: AMD EPYC 7B13\nbugs\t\t: avx512_bf16\nflags\t\t: fpu sse2 {}\n\n"


@pytest.mark.parametrize(
    ("flags", "precision"),
    [
        ("avx2 avx512f avx512_bf16", "bf16"),
        ("avx2 amx_bf16 amx_tile", "bf16"),
        ("avx2", "fp32"),
        ("avx2 avx512f avx512_bf16_new", "fp32"),
    ],
)
def test_bf16_only_where_the_processor_computes_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, precision: str
) -> None:
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    processor.CPUINFO.write_text(CORE.format(flags) * 2)
    assert processor.fast_precision() == precision
    assert processor.processor_name() == "AMD EPYC 7B13"
    known = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    assert processor.instructions() == [flag for flag in flags.split() if flag in known]


def test_a_machine_that_does_not_tell_computes_in_fp32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "nothing")
    assert processor.fast_precision() == "fp32"
    assert processor.instructions() == []
    assert processor.processor_name()
