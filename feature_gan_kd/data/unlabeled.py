"""What becomes of images without a label where a label is needed, and is not known before the images are read."""

from __future__ import annotations

import sys

from torch import Tensor

from feature_gan_kd.data.batches import Batch
from feature_gan_kd.utils.errors import UserError


class UnlabeledRule:
    """Leaves images without a label out of an evaluation, and refuses them in a training that cannot do with them.

    Args:
        split: its name, for messages.

    Attributes:
        left_out: whether the images are evaluated on, so that those without a label are left out; the run sets it.
        refused_by: the setting that needs the label of every training image, None for none; the run sets it.
    """

    def __init__(self, split: str) -> None:
        self.split = split
        self.left_out = False
        self.refused_by: str | None = None
        self._count: int | None = 0  # of the images that were left out; None once it was said

    def apply(self, images: Tensor, labels: Tensor, *, train: bool) -> Batch:
        """Returns the images (n, ...) and labels (n,), both on the CPU, that are used of a batch.

        Raises:
            UserError: for an image without a label in a training that needs it.
        """
        missing = int((labels < 0).sum())
        if train and self.refused_by is not None and missing:
            raise refuse_unlabeled(self.refused_by, f"a training image of split {self.split!r} has no label")
        if train or not self.left_out or not missing:
            return images, labels
        if self._count is not None:
            self._count += missing
        return images[labels >= 0], labels[labels >= 0]

    def report(self, rank: int, world_size: int) -> None:
        """Says on stderr how many images were left out, after the first whole pass."""
        if self._count:
            whose = f" by process {rank}, of its share" if world_size > 1 else ""
            note = f"split {self.split!r}: {self._count} images without a label, left out of the evaluation{whose}"
            print(note, file=sys.stderr)
            self._count = None


def refuse_unlabeled(setting: str, found: str) -> UserError:
    """Makes the error for a `setting` that needs the label of every training image, where that is not `found`."""
    return UserError(f"{setting}: {found}, and it mixes the labels of all: leave it out, or give labels to all")
