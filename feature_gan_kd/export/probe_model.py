"""Measures the features of a model that is named, on labelled images that are named."""

from __future__ import annotations

from typing import Any

from feature_gan_kd.analysis.features import FeatureExtractor
from feature_gan_kd.analysis.probe import measure_features
from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.data import open_data
from feature_gan_kd.distributed.launch import usable_accelerator
from feature_gan_kd.export.open_model import open_model
from feature_gan_kd.export.preprocessing import data_form
from feature_gan_kd.models.tapped_model import Layer
from feature_gan_kd.training.neighbours import NEIGHBOURS, TEMPERATURE, check_neighbours


def probe_model(
    model: str,
    data: Any,
    config: DistillConfig,
    *,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    layer: Layer | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Measures features by nearest neighbours and by a linear probe.

    Args:
        model: a name, see `open_model`.
        data: labelled images, see `open_data`; they are prepared as the model states.
        config: columns, splits and limits of the data.
        k: nearest neighbours that vote.
        temperature: of their votes.
        layer: whose output is taken; None for the vector before the classifier.

    Returns:
        What `measure_features` gives, and lines that tell the user what was chosen.

    Raises:
        UserError: for a model or data that cannot be used, or features that are not finite.
    """
    found = open_model(model, graphs=False)
    form = data_form(found)
    accelerator = usable_accelerator(None)
    module, size = found.module.to(accelerator.device), (form.channels, form.size, form.size)
    extractor = FeatureExtractor(module, model, size, layer)
    opened = open_data(
        data,
        None,
        config.replace(**form.settings),
        image_size=form.size,
        in_chans=form.channels,
        stated=form.normalisation,
        for_training=False,
    )
    assert opened.evaluation is not None  # the config has labels
    check_neighbours(k, temperature, len(opened.train))
    result = measure_features(
        extractor, opened.train, opened.evaluation, k=k, temperature=temperature, device=accelerator.device
    )
    return result, opened.notes
