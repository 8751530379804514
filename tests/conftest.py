"""What several test modules share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
import torch

from tests.helpers.launching import launch
from tests.helpers.worker import CASES, run


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
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder, which is the present one: what users type is tried there, on one thread."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / ".cache")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are tiny
    yield tmp_path
    torch.set_num_threads(threads)
