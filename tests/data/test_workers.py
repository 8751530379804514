"""Where nobody says how many processes decode images, the cores of this process decide, and nothing depends on it."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from feature_gan_kd import DistillConfig
from feature_gan_kd.data import image_sources
from feature_gan_kd.data.lazy import LazyImages
from feature_gan_kd.data.open import open_data
from feature_gan_kd.data.workers import automatic_workers


@pytest.mark.parametrize(
    ("cores", "processes", "expected"), [(1, None, 1), (6, None, 6), (64, None, 8), (16, "4", 4), (2, "4", 0)]
)
def test_the_cores_are_divided_among_the_processes_of_a_host(
    cores: int, processes: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["fork", "spawn"])
    assert automatic_workers() == expected


@pytest.mark.parametrize("first", ["spawn", "forkserver"])
def test_there_are_none_where_a_script_must_be_written_for_them(first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: None)
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: [first, "fork"])
    assert automatic_workers() == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 20, 3), dtype=np.uint8)
    for split, start in (("train", 0), ("test", 8)):
        for number in range(start, start + 8 if split == "train" else start + 4):
            path = root / split / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[number]).save(path)
    return root


def opened(data: object, **settings: object) -> tuple[object, list[str]]:
    config = DistillConfig(**settings)  # type: ignore[arg-type]
    found = open_data(
        data, None, config, image_size=16, in_chans=3, stated=None, common=None, num_classes=2, num_classes_given=True
    )
    return found.train, found.notes


def test_a_run_says_how_many_and_the_images_are_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_sources, "automatic_workers", lambda: 2)
    settings = {"augmentation": "resized-crop", "aa": "rand-m9-mstd0.5"}
    train, notes = opened(str(folder), **settings)
    assert isinstance(train, LazyImages)
    assert train.num_workers == 2
    where = "decoded as it is read, in 2 worker processes, as the cores allow (--num-workers)"
    assert f"split 'train': {where}" in notes
    alone, notes = opened(str(folder), **settings, num_workers=0)
    assert isinstance(alone, LazyImages)
    assert "split 'train': decoded as it is read, in the training process (more with --num-workers)" in notes
    read, expected = (
        list(source.batches(batch_size=4, seed=1, epoch=2, device="cpu", train=True)) for source in (train, alone)
    )
    for one, other in zip(read, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_images_in_memory_and_code_of_ones_own_get_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_sources, "automatic_workers", lambda: 2)
    train, notes = opened(str(folder))
    assert not isinstance(train, LazyImages)
    assert not [note for note in notes if "worker" in note]
    train, _ = opened(TensorDataset(torch.zeros(8, 3, 16, 16, dtype=torch.uint8), torch.arange(8) % 2))
    assert isinstance(train, LazyImages)
    assert train.num_workers == 0
