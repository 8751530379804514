"""The loss of the labels as the settings ask for it."""

from __future__ import annotations

from torch import Tensor

from feature_gan_kd.config.method_settings import LossSettings
from feature_gan_kd.method import losses
from feature_gan_kd.utils.errors import UserError


class LabelLoss:
    """The loss of logits and labels, see `losses.label_loss`.

    Args:
        settings: smoothing, binary cross-entropy and class weights.
    """

    def __init__(self, settings: LossSettings) -> None:
        self.settings = settings
        self._class_weights: Tensor | None = None

    def weigh_classes(self, weights: Tensor) -> None:
        """Sets the weights of the classes.

        Args:
            weights: (classes,), on the device of the logits.
        """
        if self._class_weights is None:
            self._class_weights = weights
        else:
            self._class_weights.copy_(weights)  # in place: CUDA graphs that are recorded see it

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the loss, a scalar.

        Args:
            logits: (batch, classes).
            labels: (batch,) class indices, -1 for an image without a label, or (batch, classes) probabilities.

        Raises:
            UserError: for class weights where no training images have told them.
        """
        settings = self.settings
        if settings.class_weights and self._class_weights is None:
            raise UserError(
                "class_weights: only fit counts the training images: leave it out, and draw the batches of your own "
                "loop so that the classes are balanced"
            )
        return losses.label_loss(
            logits,
            labels,
            smoothing=settings.smoothing,
            binary=settings.bce_loss,
            weights=self._class_weights if settings.class_weights else None,
        )
