"""What several test modules wait for once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launching import launch
from tests.worker import CASES, run


@pytest.fixture(scope="session")
def by_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `tests.worker` does in one process: a folder per case."""
    folder = tmp_path_factory.mktemp("one")
    for case in CASES:
        run(case, folder / case)
    return folder


@pytest.fixture(scope="session")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in two processes, with what their norms and their check of weights found."""
    folder = tmp_path_factory.mktemp("two")
    launch(2, "-m", "tests.worker", str(folder), "norms", "spoiled", *CASES)
    return folder


@pytest.fixture(scope="session")
def by_three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in three processes."""
    folder = tmp_path_factory.mktemp("three")
    launch(3, "-m", "tests.worker", str(folder), "norms", *CASES)
    return folder
