"""A wheel holds every file of the package, and works in an environment of its own, far from this folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, at: Path) -> str:
    """The output of a command, without what points to this folder."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    result = subprocess.run(
        list(map(str, command)), cwd=at, env=environment, capture_output=True, text=True, timeout=900
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is packaged: building leaves files beside it."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "feature_gan_kd", folder / "feature_gan_kd", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution, as a release is."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source, at=folder)
    assert len(list(folder.glob("*.tar.gz"))) == 1
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_holds_every_file(wheel: Path, source: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("feature_gan_kd/")}
        (metadata,) = [name for name in archive.namelist() if name.endswith("METADATA")]
        about = Parser().parsestr(archive.read(metadata).decode())
    expected = {str(path.relative_to(source)) for path in (source / "feature_gan_kd").rglob("*") if path.is_file()}
    assert held == expected
    assert "feature_gan_kd/data/bundled/digits.parquet" in held
    assert about["Requires-Python"] == ">=3.10"
    assert {"report", "onnx", "docs", "dev"} <= set(about.get_all("Provides-Extra") or [])


def environment(folder: Path) -> Path:
    """The programs of a fresh environment that sees the installed dependencies, but not this project."""
    venv.create(folder, with_pip=True)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


@pytest.mark.slow
@pytest.mark.parametrize("what", ["wheel", "folder"])
def test_a_fresh_environment(what: str, wheel: Path, source: Path, tmp_path: Path) -> None:
    """`pip install` resolves what the metadata ask for; a run, its page and its models need nothing else."""
    programs = environment(tmp_path / "venv")
    given = wheel if what == "wheel" else source
    run(programs / "python", "-m", "pip", "install", "--disable-pip-version-check", given, at=tmp_path)
    code = "import feature_gan_kd; print(feature_gan_kd.__file__, feature_gan_kd.__version__)"
    assert run(programs / "python", "-c", code, at=tmp_path).startswith(str(tmp_path / "venv"))
    command = programs / "feature-gan-kd"
    options = ("--epochs", "1", "--max-train-samples", "64", "--max-eval-samples", "50")
    run(command, "train", "--output-dir", "run", *options, at=tmp_path)
    run(command, "export", "run", "published", "--license", "mit", at=tmp_path)
    assert (tmp_path / "published" / "1-test_resnet" / "model.safetensors").exists()
    assert run(command, "report", "run", at=tmp_path).strip() == "run/report.html"
