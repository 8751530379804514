"""Classifies images by the labels of their nearest neighbours among features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from feature_gan_kd.utils.errors import UserError

NEIGHBOURS, TEMPERATURE = 20, 0.07
"""k and the temperature, as DINO has them (Caron et al. 2021)."""

# Similarities that are held at once.
_CHUNK = 2**25
# Share of the probability that all classes get alike, so that one without a vote has a finite logarithm (ours).
_UNCERTAINTY = 0.01


def knn_classify(
    features: Tensor, labels: Tensor, queries: Tensor, *, k: int = NEIGHBOURS, temperature: float = TEMPERATURE
) -> Tensor:
    """Classifies by weighted k-nearest neighbours (Wu et al. 2018, section 3.4; k as DINO, Caron et al. 2021).

    Each of the k nearest neighbours of a query, by the cosine of their features, votes for its class with the weight
    exp(cosine / temperature). Of classes with equal votes the first is taken.

    Args:
        features: of labelled images, (images, features).
        labels: their classes, int64 (images,), from 0.
        queries: features to classify, (queries, features), of the same type.
        k: neighbours that vote.
        temperature: above 0; the lower, the more the nearest count.

    Returns:
        A class for each query, int64 (queries,).

    Raises:
        UserError: for a temperature that is not above 0, and a k below 1 or above the number of labelled images.
    """
    check_neighbours(k, temperature, len(features))
    known = F.normalize(features, dim=1)
    classes = int(labels.max()) + 1
    found = []
    for chunk in torch.split(F.normalize(queries, dim=1), max(1, _CHUNK // len(known))):
        found.append(_votes(chunk @ known.T, labels, classes, k, temperature).argmax(1))
    return torch.cat(found) if found else labels[:0]


def classify_among(features: Tensor, labels: Tensor, own: range, classes: int) -> Tensor:
    """Classifies images by their nearest neighbours among all the others (weights as `knn_classify`).

    Args:
        features: of all images, (images, features).
        labels: their classes, int64 (images,).
        own: positions of the images to classify.
        classes: number of classes.

    Returns:
        Log-probabilities, (len(own), classes): the shares of the votes, of which every class gets one in a hundred in
        advance.

    Raises:
        UserError: for a single image.
    """
    if len(features) < 2:
        raise UserError("evaluation data: it holds one image, which has no neighbours: give more")
    k = min(NEIGHBOURS, len(features) - 1)
    known = F.normalize(features, dim=1)
    found = []
    positions = torch.arange(own.start, own.stop, device=known.device)
    for rows in torch.split(positions, max(1, _CHUNK // len(known))):
        cosines = known[rows] @ known.T
        cosines[torch.arange(len(rows), device=rows.device), rows] = -torch.inf  # nobody votes for itself
        votes = _votes(cosines, labels, classes, k, TEMPERATURE)
        found.append(((1 - _UNCERTAINTY) * votes / votes.sum(1, keepdim=True) + _UNCERTAINTY / classes).log())
    return torch.cat(found) if found else known.new_zeros((0, classes))


def _votes(cosines: Tensor, labels: Tensor, classes: int, k: int, temperature: float) -> Tensor:
    """Votes (queries, classes) of the k nearest by their cosines (queries, images)."""
    nearest_cosines, nearest = cosines.topk(k, dim=1)
    # Less the largest, which changes no answer: at a low temperature exp(1 / temperature) has no finite value.
    weights = ((nearest_cosines - nearest_cosines[:, :1]) / temperature).exp()
    return weights.new_zeros((len(cosines), classes)).scatter_add_(1, labels[nearest], weights)


def check_neighbours(k: int, temperature: float, images: int) -> None:
    """Checks what `knn_classify` is asked for.

    Args:
        k: neighbours.
        temperature: of their weights.
        images: that are labelled.

    Raises:
        UserError: where it cannot be done.
    """
    if k < 1:
        raise UserError(f"--k: {k} is not allowed, expected a whole number of at least 1")
    if not temperature > 0:
        raise UserError(f"--temperature: {temperature:g} is not allowed, expected a number above 0")
    if k > images:
        raise UserError(f"--k: {k} neighbours of {images} labelled images: give at most {images}, or more images")
