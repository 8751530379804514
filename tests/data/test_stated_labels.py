from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from feature_gan_kd.data.stated_labels import stated_labels

IMAGES = torch.zeros(4, 3, 8, 8)
TENSORS = TensorDataset(IMAGES, torch.tensor([2, 0, 1, 0]))


class Listed(Dataset[Any]):
    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("the images are not read")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (TENSORS, [2, 0, 1, 0]),
        (Subset(TENSORS, [2, 0]), [1, 2]),
        (ConcatDataset([TENSORS, Subset(TENSORS, [1])]), [2, 0, 1, 0, 0]),
        (Listed(targets=[1, np.int64(2), torch.tensor(3), 4]), [1, 2, 3, 4]),
        (Listed(labels=np.array([4, 3, 2, 1])), [4, 3, 2, 1]),
        (Listed(targets=torch.arange(4)), [0, 1, 2, 3]),
        (Listed(labels=list("abcd")), ["a", "b", "c", "d"]),
    ],
)
def test_labels_that_a_data_set_lists(data: Any, expected: list[Any]) -> None:
    assert stated_labels(data) == expected


@pytest.mark.parametrize(
    "data",
    [
        Listed(),
        Listed(targets=[1, 2]),
        Listed(targets=[object()] * 4),
        Listed(labels="abcd"),
        Listed(targets=np.zeros((4, 2))),
        TensorDataset(IMAGES, torch.zeros(4, 3)),
        ConcatDataset([TENSORS, Listed()]),
        Subset(Listed(), [0]),
    ],
)
def test_what_is_no_list_of_labels(data: Any) -> None:
    assert stated_labels(data) is None
