"""A real run of two epochs, for the tests that read one."""

from __future__ import annotations

from pathlib import Path

import pytest

from feature_gan_kd import OnlineAdversarialDistiller
from feature_gan_kd.training.history import History


@pytest.fixture(scope="package")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, History]:
    folder = tmp_path_factory.mktemp("runs") / "real"
    distiller = OnlineAdversarialDistiller(
        ["test_resnet", "test_vit"],
        num_classes=10,
        image_size=32,
        max_train_samples=96,
        max_eval_samples=40,
        log_every_steps=2,
    )
    return folder, distiller.fit(epochs=2, batch_size=32, output_dir=folder)
