"""Evaluates a single trained classifier, with the images as its users are told to prepare them."""

from __future__ import annotations

from typing import Any

from torch import nn

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.data import evaluation_batches, open_evaluation
from feature_gan_kd.distributed.collectives import all_reduce_sum
from feature_gan_kd.distributed.launch import usable_accelerator
from feature_gan_kd.export.open_model import OpenedModel
from feature_gan_kd.export.preprocessing import data_form
from feature_gan_kd.models.class_order import stated_class_names
from feature_gan_kd.training.evaluate import Processes, evaluate
from feature_gan_kd.training.scores import Evaluation
from feature_gan_kd.utils.errors import UserError

BATCH_SIZE = 256
"""Images of a process in one batch."""


def evaluate_classifier(
    classifier: OpenedModel, data: Any, *, eval_split: str | None, skip_bad_images: bool
) -> tuple[Evaluation, list[str] | None, list[str]]:
    """Evaluates a classifier on labelled images, in the size, the crop and the normalisation that it states.

    Args:
        classifier: with its weights.
        data: as `eval_data` of `fit`.
        eval_split: split to evaluate on; None takes test, else validation, else all images.
        skip_bad_images: leave out images that cannot be decoded.

    Returns:
        The scores, the names of the classes (None where the model states none), and lines that tell what was chosen.

    Raises:
        UserError: for a graph, a model that does not state the form of its images, or takes rectangles, and for data
            that cannot be used or have other classes.
    """
    form = data_form(classifier)
    module = classifier.model
    if not isinstance(module, nn.Module):
        raise UserError(f"{classifier.name}: a graph is not evaluated: name the folder of its weights")
    accelerator = usable_accelerator(None)
    classes = int(classifier.cfg["num_classes"])
    names = stated_class_names(module, classes)
    source, notes = open_evaluation(
        data,
        DistillConfig(eval_split=eval_split, skip_bad_images=skip_bad_images, **form.settings),
        image_size=form.size,
        in_chans=form.channels,
        normalisation=form.normalisation,
        class_names=names,
        num_classes=classes,
    )
    batches = evaluation_batches(source, BATCH_SIZE, accelerator.device)
    processes = Processes(all_reduce_sum)
    (found,) = evaluate(
        [[module.to(accelerator.device)]], batches, classes, processes=processes, device=accelerator.device
    )
    return found, names, notes
