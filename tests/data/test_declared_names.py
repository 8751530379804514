from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder

from feature_gan_kd.data.declared_names import declared_names
from feature_gan_kd.data.sources import Split
from feature_gan_kd.utils.errors import UserError

NAMES = ["cat", "dog", "eel"]


class Wrapper(Dataset[Any]):
    """Gives what another data set gives, with other labels."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Any:
        image, label = self.dataset[index]
        return image, 2 - label


class Remapped(Subset[Any]):
    def __getitem__(self, index: Any) -> Any:
        image, label = self.dataset[self.indices[index]]
        return image, 2 - label

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[index] for index in indices]


class OwnLoader(DataLoader[Any]):
    def __iter__(self) -> Any:
        return ((images, 2 - labels) for images, labels in super().__iter__())


def data(classes: Any = None, **attributes: Any) -> Any:
    images = TensorDataset(torch.zeros(3, 3, 8, 8), torch.arange(3))
    for name, value in {"classes": classes, **attributes}.items():
        setattr(images, name, value)
    return images


def found(images: Any) -> tuple[list[str] | None, list[str]]:
    notes: list[str] = []
    return declared_names(Split(images, "train", "data"), notes), notes


@pytest.mark.parametrize(
    "classes",
    [
        NAMES,
        tuple(NAMES),
        np.array(NAMES),
        {"dog": 1, "eel": 2, "cat": 0},
        {"dog": np.int64(1), "eel": np.int64(2), "cat": np.int64(0)},
        {2: "eel", 0: "cat", 1: "dog"},
    ],
)
def test_a_name_has_the_index_that_the_data_set_gives_it(classes: Any) -> None:
    assert found(data(classes)) == (NAMES, [])


@pytest.mark.parametrize(
    "classes",
    [
        set(NAMES),
        ["cat", "cat", "dog"],
        lambda: NAMES,
        3,
        torch.arange(3),
        "abc",
        {"cat": 1, "dog": 2},
        {"cat": 0, "dog": 0},
        {"cat": 0.0},
        [],
        np.zeros((2, 2)),
    ],
)
def test_classes_of_another_kind_are_no_names(classes: Any) -> None:
    names, notes = found(data(classes))
    assert names is None
    assert notes == [
        "split 'train': its class names are not used, because the attribute classes of TensorDataset does not list "
        "them: expected distinct names, or a mapping of each name to its index"
    ]


def test_names_are_not_used_where_labels_may_be_changed() -> None:
    assert found(Wrapper(data())) == (None, [])
    for images, who in (
        (data(NAMES, target_transform=lambda label: 2 - label), "are changed by the target_transform of TensorDataset"),
        (Subset(data(NAMES, target_transform=abs), [0]), "are changed by the target_transform of TensorDataset"),
        (Wrapper(data(NAMES)), "may be changed by Wrapper: give Wrapper the"),
        (DataLoader(Wrapper(data(NAMES))), "may be changed by Wrapper: give Wrapper the"),
        (Remapped(data(NAMES), [0]), "may be changed by Remapped: give"),
        (data(NAMES, transforms=lambda image, label: (image, 0)), "are changed by the transforms of TensorDataset"),
        (DataLoader(data(NAMES), collate_fn=list), "may be changed by its collate_fn: give DataLoader the attribute"),
        (OwnLoader(data(NAMES)), "may be changed by OwnLoader: give OwnLoader the attribute classes"),
    ):
        names, notes = found(images)
        assert names is None
        assert len(notes) == 1
        assert "its class names are not used, because its labels " in notes[0]
        assert who in notes[0]
    assert found(Subset(data(NAMES, target_transform=None), [0])) == (NAMES, [])
    named = Wrapper(data(NAMES))
    named.classes = NAMES[::-1]  # type: ignore[attr-defined]
    assert found(named) == (NAMES[::-1], [])


def test_parts_of_one_data_set_have_the_same_classes() -> None:
    both: Any = ConcatDataset([data(NAMES), Subset(data({name: k for k, name in enumerate(NAMES)}), [0])])
    assert found(both) == (NAMES, [])
    assert found(DataLoader(both)) == (NAMES, [])
    assert found(ConcatDataset([data(), data()])) == (None, [])
    names, notes = found(ConcatDataset([data(NAMES), data()]))
    assert names is None
    assert notes == [
        "split 'train': its class names are not used, because not all parts of the ConcatDataset have them"
    ]
    for classes, difference in (
        (["cat", "eel", "dog"], "'eel' as class 1 and another 'dog'"),
        (NAMES[:2], "2 classes and another 3"),
    ):
        with pytest.raises(
            UserError, match=f"^data: part 1 of the ConcatDataset of split 'train' has {difference}, so"
        ):
            found(ConcatDataset([data(NAMES), data(classes)]))
    mapped: Any = ConcatDataset([data(NAMES), data(["x"])])
    mapped.classes = NAMES
    assert found(mapped) == (NAMES, [])


def test_names_that_torchvision_gives_other_indices_are_not_used() -> None:
    for classes, indices in (
        (NAMES, {"cat": 0, "dog": 1, "eel": 2}),
        ([("cat", "tom"), ("dog",)], {"cat": 0, "tom": 0, "dog": 1}),
        (NAMES, None),
    ):
        assert found(data(classes, class_to_idx=indices))[1] == []
    for classes, indices in ((NAMES, {"cat": 2, "dog": 1, "eel": 0}), ([("cat", "tom"), ("dog",)], {"tom": 1})):
        names, notes = found(data(classes, class_to_idx=indices))
        assert names is None
        assert notes == [
            "split 'train': its class names are not used, because the attributes classes and class_to_idx of "
            "TensorDataset give them different indices"
        ]


def test_a_loader_may_state_the_names_of_its_own_labels() -> None:
    loader: Any = DataLoader(data(NAMES), collate_fn=list)
    loader.classes = NAMES[::-1]
    assert found(loader) == (NAMES[::-1], [])
    assert found(DataLoader(data(NAMES), batch_size=None)) == (NAMES, [])


def test_the_images_transform_of_torchvision_leaves_names(tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).mkdir()
        PIL.Image.new("RGB", (8, 8)).save(tmp_path / name / "1.png")
    assert found(ImageFolder(str(tmp_path), transform=lambda image: image)) == (NAMES, [])
    changed = ImageFolder(str(tmp_path), target_transform=lambda label: 2 - label)
    assert found(changed)[0] is None


class Reversed(ImageFolder):
    """Takes the names from torchvision's class, and makes the labels itself."""

    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        return image, 2 - label


class Passing:
    """Passes on what it lacks to the data set that it wraps, with other labels."""

    def __init__(self, images: Any) -> None:
        self.images = images

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["images"], name)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        image, label = self.images[index]
        return image, 2 - label


def test_names_that_another_class_stated_are_not_used(tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).mkdir()
        PIL.Image.new("RGB", (8, 8)).save(tmp_path / name / "1.png")
    names, notes = found(Reversed(str(tmp_path)))
    assert names is None
    assert "its labels are changed by the __getitem__ of Reversed" in notes[0]
    assert found(Passing(ImageFolder(str(tmp_path))))[0] is None
