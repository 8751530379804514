"""What a run needs from the folders above training/."""

from __future__ import annotations

import functools

from feature_gan_kd.analysis import similarity
from feature_gan_kd.analysis.model_tables import describe_taps
from feature_gan_kd.export import save_models
from feature_gan_kd.training.peer_group import PeerGroup
from feature_gan_kd.training.run import RunServices


def services_of(group: PeerGroup) -> RunServices:
    """Publishing, similarity and the tables of taps, for the models of a group."""
    return RunServices(
        publish=functools.partial(save_models.save_if_changed, group),
        similarity=functools.partial(similarity.measure_group, group),
        check_similarity_images=similarity.check_image_count,
        taps=describe_taps(group.tapped),
    )
