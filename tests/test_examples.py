"""Every file of docs/examples runs as it stands."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
PAGE = (EXAMPLES.parent / "examples.md").read_text()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the networks are tiny
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def output(request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What the example prints that the test is named after."""
    name = request.function.__name__.removeprefix("test_")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return capsys.readouterr().out


def test_three_lines(output: str, tmp_path: Path) -> None:
    assert output.splitlines()[-2:] == ["distilled/0-test_resnet", "distilled/1-test_vit"]
    assert (tmp_path / "distilled" / "1-test_vit" / "model.safetensors").exists()
