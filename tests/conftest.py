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
from tests.helpers.worker import CASES, run

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
    folder = tmp_path_factory.mktemp("one")
    for case in CASES:
        run(case, folder / case)
    return folder


@pytest.fixture(scope="session")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in two processes, with what their norms and their check of weights found."""
    folder = tmp_path_factory.mktemp("two")
    launch(2, "-m", "tests.helpers.worker", str(folder), "norms", "spoiled", *CASES)
    return folder


@pytest.fixture(scope="session")
def by_three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in three processes."""
    folder = tmp_path_factory.mktemp("three")
    launch(3, "-m", "tests.helpers.worker", str(folder), "norms", *CASES)
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as the working directory: what users type is tried there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / ".cache")
    return tmp_path
