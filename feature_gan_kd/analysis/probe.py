"""Measures a model's features on labelled images, without a classifier of its own."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from feature_gan_kd.analysis.features import FeatureExtractor, collect_features
from feature_gan_kd.analysis.linear_probe import linear_classify
from feature_gan_kd.data import ImageSource
from feature_gan_kd.training.neighbours import check_neighbours, knn_classify


def measure_features(
    extractor: FeatureExtractor,
    train: ImageSource,
    evaluation: ImageSource,
    *,
    k: int,
    temperature: float,
    device: torch.device,
) -> dict[str, Any]:
    """Measures features by weighted k-nearest neighbours and by a linear probe.

    Args:
        extractor: of the features.
        train: labelled images that both learn from.
        evaluation: labelled images that both are measured on.
        k: neighbours, see `knn_classify`.
        temperature: see there.
        device: of the model.

    Returns:
        The same on every process: `knn_accuracy`, `linear_accuracy`, `chance` (100 / classes) and `majority` (of always
        answering the most frequent class of the training images), in per cent of the evaluation images; `penalty` of
        the linear probe; the numbers of features, images and classes.

    Raises:
        UserError: for too few images, a single class, an image without a label, or features that are not finite.
    """
    features, labels = collect_features(extractor, train, device)
    queries, right = collect_features(extractor, evaluation, device)
    check_neighbours(k, temperature, len(labels))
    # float64 for the solver, which some accelerators do not have.
    place = device if device.type == "cuda" else torch.device("cpu")
    features, labels, queries, right = (one.to(place) for one in (features, labels, queries, right))
    linear, probe = linear_classify(features, labels, queries)
    if not probe.is_solved:
        warnings.warn(
            f"linear probe: the solver stopped at a gradient of {probe.gradient:.1e}, expected about 0: its accuracy "
            "may be too low",
            stacklevel=2,
        )
    classes, counts = torch.unique(labels, return_counts=True)
    return {
        "knn_accuracy": _accuracy(knn_classify(features, labels, queries, k=k, temperature=temperature), right),
        "linear_accuracy": _accuracy(linear, right),
        "chance": 100 / len(classes),
        "majority": _accuracy(classes[counts.argmax()].expand_as(right), right),
        "k": k,
        "temperature": temperature,
        "penalty": probe.penalty,
        "features": extractor.size,
        "train_images": len(labels),
        "eval_images": len(right),
        "classes": len(classes),
    }


def _accuracy(answers: Tensor, right: Tensor) -> float:
    return 100 * float((answers == right).double().mean())
