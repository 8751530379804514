"""What the page says of the classes that the models confuse, from a run's own `evaluation.json`."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from feature_gan_kd import OnlineAdversarialDistiller, UserError
from feature_gan_kd.report import read_run
from feature_gan_kd.report.mistakes import read_mistakes
from feature_gan_kd.report.page import render_page
from tests.helpers.small_models import GroupNormModel


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes") / "run"
    distiller = OnlineAdversarialDistiller(
        [GroupNormModel(4, 10), GroupNormModel(6, 10)],
        num_classes=10,
        image_size=8,
        epochs=1,
        max_train_samples=60,
        max_eval_samples=50,
        batch_size=20,
    )
    distiller.fit(output_dir=folder)
    return folder


def test_they_are_those_of_the_last_evaluation(run: Path) -> None:
    found = read_mistakes(read_run(run))
    assert found is not None
    record = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["metrics"]
    assert [found.epoch, found.classes, len(found.models)] == [1, 10, 3]
    for owner, model in zip(("0", "1", "ensemble"), found.models, strict=True):
        # Every class has five images: the mean of the right shares is the accuracy.
        right = [cell.share for cell in model.cells if cell.is_right]
        assert 100 * sum(right) / 10 == pytest.approx(record[f"eval/accuracy/{owner}"])
        assert sum(cell.share for cell in model.cells) == pytest.approx(10)
    assert len(found.samples) == 12
    shares = [float(shares[-1]) for _, _, shares in found.hardest]
    assert shares == sorted(shares)


def test_samples_are_evaluation_images_with_the_models_answers(run: Path) -> None:
    found = read_mistakes(read_run(run))
    assert found is not None
    answers = json.loads((run / "evaluation.json").read_text())["samples"]
    for sample, written in zip(found.samples, answers, strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(sample.data_url.partition(",")[2]))))
        assert pixels.shape == (8, 8, 3)
        assert pixels.std() > 0
        assert [right for *_, right in sample.answers] == [one == written["label"] for one, _ in written["answers"]]


def test_the_page_shows_them(run: Path) -> None:
    text = render_page([read_run(run)])
    assert "Where the models err" in text
    assert text.count('<svg class="confusion') == 3
    assert text.count('alt="an image of class') == 12


def test_damaged(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("config.json", "metrics.jsonl"):
        (copy / name).write_bytes((run / name).read_bytes())
    assert read_mistakes(read_run(copy)) is None
    content = json.loads((run / "evaluation.json").read_text())
    content["samples"][0]["image"] = "https://example.org/a.png"
    for text in ("{", json.dumps(content), json.dumps({**content, "models": content["models"][:1]})):
        (copy / "evaluation.json").write_text(text)
        with pytest.raises(UserError, match=r"evaluation.json is damaged"):
            read_mistakes(read_run(copy))
