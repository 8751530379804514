"""One thread a process, cheap fsync, and the runs that several test modules share."""

from __future__ import annotations

import os

# Read when torch is imported, here and in the processes that tests start: the models are tiny, the workers are many.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
import torch

from tests.helpers.launching import launch
from tests.helpers.shared import made_once
from tests.helpers.worker import CASES, OTHERS, begin_alone, run

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_the_disk() -> Iterator[None]:
    """Makes `os.fsync` do nothing: no test cuts the power, and those of durability record which calls are made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def by_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `tests.helpers.worker` does in one process: a folder per case."""

    def train(folder: Path) -> None:
        for case in CASES:
            run(case, folder / case)

    return made_once(tmp_path_factory, "one", train)


@pytest.fixture(scope="session")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in two processes, with everything else that tests ask of two: a launch takes longer than a case."""

    def train(folder: Path) -> None:
        begin_alone(folder / "begun by one")
        launch(2, "-m", "tests.helpers.worker", str(folder), *OTHERS, *CASES)

    return made_once(tmp_path_factory, "two", train)


@pytest.fixture(scope="session")
def by_three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cases in three processes."""
    names = ("norms", *CASES)
    return made_once(
        tmp_path_factory, "three", lambda folder: launch(3, "-m", "tests.helpers.worker", str(folder), *names)
    )


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as the working directory: what users type is tried there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / ".cache")
    return tmp_path
