"""Opens images to evaluate on, without images to train on."""

from __future__ import annotations

from typing import Any

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.data.augmentation import (
    image_options,
)
from feature_gan_kd.data.batch_transforms import PixelNormaliser
from feature_gan_kd.data.image_sources import Source, build_source, note_resized
from feature_gan_kd.data.in_memory import MemoryImages
from feature_gan_kd.data.labelled import (
    LabelledSplit,
    ModelClasses,
    hold_out_fifth,
    read_split,
)
from feature_gan_kd.data.read_parts import limit_evaluation, read_evaluation
from feature_gan_kd.data.sources import choose_evaluation, choose_splits
from feature_gan_kd.data.table import Classes
from feature_gan_kd.models.normalisation import Normalisation
from feature_gan_kd.utils.errors import UserError


def open_evaluation(
    eval_data: Any,
    config: DistillConfig,
    *,
    image_size: int,
    in_chans: int,
    normalisation: Normalisation | None,
    takes_floats: bool = True,
    class_names: list[str] | None = None,
    num_classes: int | None = None,
    num_classes_given: bool = False,
    trained_on: bool = False,
) -> tuple[Source, list[str]]:
    """Opens images to evaluate on, without opening training images.

    Args:
        eval_data: as for `open_data`; None is the bundled digits, on which some models were trained.
        config: as for `open_data`.
        image_size: side in pixels.
        in_chans: 3 or 1.
        normalisation: of the images that the models take; None where it is not known.
        takes_floats: whether tensors of floats are known to have that normalisation.
        class_names: of the models, by class index; None where they are not known.
        num_classes: of the models.
        num_classes_given: as for `open_data`.
        trained_on: whether the models were trained on `eval_data`: if these have no split for evaluation, takes the
            fifth that training holds out.

    Returns:
        The images, and lines that tell the user what was chosen.

    Raises:
        UserError: as `open_data`; also for a class that the models do not have.
    """
    notes: list[str] = []
    options = image_options(config, image_size, in_chans, flip=False)
    known, classes = Classes(class_names, num_classes, "the models"), ModelClasses(num_classes, num_classes_given)
    evaluation: LabelledSplit | None
    if eval_data is None or trained_on:
        train_split, split = choose_splits(eval_data, None, config, notes)
        evaluation = read_evaluation(split, config, options, notes, classes, known)
        if evaluation is None:
            train = read_split(train_split, config, options.transform, notes, classes, known)
            _, evaluation = hold_out_fifth(train, notes, labels=config.labels)
    else:
        split = choose_evaluation(eval_data, config, notes)
        evaluation = read_evaluation(split, config, options, notes, classes, known)
    if evaluation is None:
        raise UserError("evaluate: no image of the training data is labelled and held out: give images with labels")
    evaluation = limit_evaluation(evaluation, config)
    source = build_source(evaluation, options, notes)
    note_resized(source, evaluation, image_size, notes)
    if not isinstance(source, MemoryImages):
        source.unlabeled.left_out = True
    if _normalises(source, normalisation, takes_floats=takes_floats):
        assert normalisation is not None
        source.normalise = PixelNormaliser(normalisation.mean, normalisation.std, config.channels_last)
    return source, notes


def _normalises(source: Source, normalisation: Normalisation | None, *, takes_floats: bool) -> bool:
    """Whether images to evaluate on are pixels, which are normalised, and not floats, see `open_evaluation`.

    Raises:
        UserError: where the models may take images of another normalisation, or that is not known.
    """
    floats = source.holds_floats()
    if floats and not takes_floats:
        raise UserError(
            "evaluate: the images are tensors of floats, those that the models were trained on were pixels: give mean "
            "and std to the distiller, which the floats were normalised with"
        )
    if not floats and normalisation is None:
        raise UserError(
            "evaluate: the images are pixels, and what the models' images are normalised with is not known: give mean "
            "and std to the distiller (0 and 1 for pixels / 255)"
        )
    return not floats
