"""Every file of docs/examples runs as it stands, in an empty folder, and docs/examples.md shows each."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import nbclient
import nbformat
import pytest
import timm
from PIL import Image

from feature_gan_kd.report import read_run
from tests.helpers.launching import launch

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.fixture
def output(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    """The lines that the example prints which the test is named after; the present folder is where it ran."""
    name = request.function.__name__.removeprefix("test_")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return capsys.readouterr().out.splitlines()


@pytest.mark.slow
def test_three_lines(output: list[str]) -> None:
    assert output[-2:] == ["distilled/0-test_resnet", "distilled/1-test_vit"]
    assert timm.create_model(f"local-dir:{output[-1]}", pretrained=True).num_classes == 10
    assert read_run(Path("runs/three-lines")).epochs[-1]["metrics"]["eval/images"] == 359


@pytest.mark.slow
def test_own_loop(output: list[str]) -> None:
    assert [line.split()[0] for line in output[:3]] == ["0", "1", "2"]
    assert "adversarial/1" in output[0]
    assert output[-1] == "torch.Size([64, 10])"


@pytest.mark.slow
def test_own_discriminator(output: list[str]) -> None:
    text = "\n".join(output)
    assert text.count("PatchDiscriminator(") == 2
    answers = {name: float(value) for name, value in re.findall(r"'train/((?:real|fake)/\S+)': ([\d.]+)", output[-1])}
    assert sorted(answers) == ["fake/0->1", "fake/1->0", "real/0->1", "real/1->0"]
    assert all(0 < value < 1 for value in answers.values())


@pytest.mark.slow
def test_own_module(output: list[str]) -> None:
    assert any("SmallModel" in line and "features" in line for line in output)
    assert output[-1] == "True ['classifier.bias', 'classifier.weight']"


@pytest.mark.slow
def test_several_models(output: list[str]) -> None:
    assert output[0] == "0->1 1->2 2->0"
    assert len(re.findall(r"\d+\.\d+", output[1])) == 4
    assert [line.split("  ")[0] for line in output[-3:]] == [
        "test_resnet (0) -> test_vit (1)",
        "test_resnet (0) -> test_efficientnet (2)",
        "test_vit (1) -> test_resnet (0)",
    ]


@pytest.mark.slow
def test_frozen_teacher(output: list[str]) -> None:
    assert output == ["0->1", "True"]


@pytest.mark.slow
def test_several_taps(output: list[str]) -> None:
    text = "\n".join(output)
    assert text.count("compared maps") == 2
    assert text.count("parameters  ") - 2 == 8  # of eight discriminators, beside the heads of the two tables
    assert "layer3" in text


@pytest.mark.slow
def test_resume(output: list[str]) -> None:
    assert output[0] == "SIGTERM: stopped after step 4 of 6, its checkpoint is in runs/stopped"
    assert output[-1] == "True"


@pytest.mark.slow
def test_streaming(output: list[str]) -> None:
    assert output[0] == "4 shards"
    assert output[1] == "SIGTERM: stopped after step 6 of 8, its checkpoint is in runs/streaming"
    assert output[-1].startswith("[100, 100] ")


@pytest.mark.slow
def test_pretrained_image_folder(output: list[str]) -> None:
    assert output[-1].endswith("3 ['circle', 'line', 'square']")
    model = timm.create_model("local-dir:published/1-test_vit", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    image = transform(Image.open("shapes/test/circle/0.png"))
    assert model(image[None]).shape == (1, 3)


@pytest.mark.slow
def test_several_processes(tmp_path: Path) -> None:
    out, _ = launch(
        2, str(EXAMPLES / "several_processes.py"), env={"PYTHONPATH": str(EXAMPLES.parents[1])}, at=tmp_path
    )
    sums = re.findall(r"process \d of 2: weights add up to ([\d.]+)", out)
    assert len(sums) == 2
    assert len(set(sums)) == 1
    assert out.count("top-1 %:") == 1


@pytest.mark.slow
def test_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its first cell to its last, in a kernel of its own; what it draws is a picture."""
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parents[1]))
    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)  # what is committed holds no results
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert (tmp_path / "distilled" / "1-test_vit" / "model.safetensors").exists()


def test_every_example_is_tested_and_shown() -> None:
    page = (EXAMPLES.parent / "examples.md").read_text()
    names = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    assert {f"{name.removeprefix('test_')}" for name in globals() if name.startswith("test_")} >= {
        Path(name).stem for name in names
    }
    assert set(re.findall(r"examples/([\w.]+)", page)) >= names
