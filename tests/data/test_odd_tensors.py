from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.data import Data, open_data
from feature_gan_kd.models.normalisation import Normalisation
from feature_gan_kd.utils.errors import UserError

LABELS = torch.tensor([0, 1] * 3)


def opened(train: Any, evaluation: Any) -> Data:
    stated = Normalisation((0.0,) * 3, (1.0,) * 3)
    return open_data(train, evaluation, DistillConfig(), image_size=8, in_chans=3, num_classes=2, stated=stated)


@pytest.mark.parametrize("as_loader", [False, True])
def test_tensors_of_another_size_are_said(as_loader: bool) -> None:
    def of(side: int) -> Any:
        data = TensorDataset(torch.rand(6, 3, side, side), LABELS)
        return DataLoader(data, 3) if as_loader else data

    assert not any("resized" in note for note in opened(of(8), of(8)).notes)
    said = [note for note in opened(of(12), of(16)).notes if "resized" in note]
    assert said == [
        "split 'train': its tensors of 12 x 12 pixels are resized to 8 x 8",
        "split 'evaluation': its tensors of 16 x 16 pixels are resized to 8 x 8",
    ]


class Pictures(Dataset[tuple[Any, int]]):
    """PIL images of floats, of which it is not known what they mean."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return Image.fromarray(self.pixels[index].numpy()), int(LABELS[index])


def test_what_is_wrong_with_all_images_is_said_of_the_images() -> None:
    """Not that none has a label."""
    with pytest.raises(UserError, match=r"^images: image \d of split 'train' .*floats"):
        opened(Pictures(torch.full((6, 8, 8), 200.0)), None)
