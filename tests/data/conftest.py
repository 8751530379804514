from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from tests.data.image_samples import make


@pytest.fixture(autouse=True, scope="session")
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """A folder with a training and a test split."""
    folder = tmp_path / "both"
    folder.mkdir()
    make(20).to_parquet(folder / "train-00000-of-00001.parquet")
    make(6, seed=1).to_parquet(folder / "test-00000-of-00001.parquet")
    return folder
