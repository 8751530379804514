"""Grad-CAM pictures of real runs: drawn by the command, kept in the run's folder, shown on the page."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from feature_gan_kd import OnlineAdversarialDistiller, UserError
from feature_gan_kd.cli import main
from feature_gan_kd.report import read_run
from feature_gan_kd.report.gradcam import read_grad_cam
from feature_gan_kd.training.history import History
from feature_gan_kd.training.run import open_evaluation_images
from tests.report.fake_runs import write_run


@pytest.fixture(scope="module")
def drawn(real: tuple[Path, History], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the real run with pictures of the images 7 and 2."""
    folder = tmp_path_factory.mktemp("drawn") / "run"
    shutil.copytree(real[0], folder)
    main(["report", str(folder), "--grad-cam", "7", "2", "7"])
    return folder


def pixels(path: Path) -> Any:
    return np.asarray(Image.open(path)).astype(int)


class TestDrawing:
    def test_a_picture_per_image_and_model(self, drawn: Path) -> None:
        names = sorted(path.name for path in (drawn / "grad-cam").iterdir())
        assert names == sorted([*(f"{n}{k}.png" for n in (2, 7) for k in ("", "-0", "-1")), "grad-cam.json"])
        assert {pixels(drawn / "grad-cam" / name).shape for name in names[:-1]} == {(160, 160, 3)}

    def test_no_picture_is_the_image_or_another(self, drawn: Path) -> None:
        found = {path.name: pixels(path) for path in (drawn / "grad-cam").glob("*.png")}
        for name, shown in found.items():
            assert shown.std() > 10
            assert [other for other in found if other != name and np.array_equal(found[other], shown)] == []
        heat = found["7-1.png"][..., 0] - found["7-1.png"][..., 2]  # the image is grey: red and blue are of the heat
        assert heat.std() > 20

    def test_the_image_is_the_one_of_that_number(self, drawn: Path, real: tuple[Path, History]) -> None:
        distiller = OnlineAdversarialDistiller.from_checkpoint(sorted((real[0] / "checkpoints").iterdir())[-1])
        images, labels = next(iter(open_evaluation_images(distiller.group, None).batches(
            batch_size=40, seed=0, epoch=0, device="cpu", train=False
        )))  # fmt: skip
        mean, std = distiller.group.normalisation().mean[0], distiller.group.normalisation().std[0]
        shown = pixels(drawn / "grad-cam" / "7.png")
        assert shown[2::5, 2::5, 0] == pytest.approx((images[7, 0] * std + mean).clamp(0, 1).numpy() * 255, abs=1)
        about = json.loads((drawn / "grad-cam" / "grad-cam.json").read_text())
        assert [(one["number"], one["label"]) for one in about["images"]] == [
            (7, str(int(labels[7]))), (2, str(int(labels[2])))
        ]  # fmt: skip

    def test_the_answers_are_those_of_the_best_models(self, drawn: Path) -> None:
        about = json.loads((drawn / "grad-cam" / "grad-cam.json").read_text())
        assert [(one["layer"], one["grid"]) for one in about["layers"]] == [
            ("layer4", [1, 1]),
            ("blocks.5.norm1", [2, 2]),
        ]
        assert all(0 < seen["probability"] < 1 for one in about["images"] for seen in one["models"])

    def test_new_pictures_take_the_place_of_the_old(self, drawn: Path, tmp_path: Path) -> None:
        folder = tmp_path / "run"
        shutil.copytree(drawn, folder)
        main(["report", str(folder), "--grad-cam", "0"])
        assert sorted(path.name for path in (folder / "grad-cam").glob("*.png")) == ["0-0.png", "0-1.png", "0.png"]
        assert not list(folder.glob(".*"))

    def test_a_run_that_is_going_on_and_does_not_look_at_maps(self, tmp_path: Path) -> None:
        """The models that its last evaluation published; other images; a class without a name."""

        class StopError(Exception):
            """Ends the run."""

        distiller = OnlineAdversarialDistiller(
            ["test_resnet", "test_vit"],
            num_classes=10,
            image_size=32,
            method="vanilla",
            max_train_samples=64,
            max_eval_samples=20,
            checkpoint_every_steps=1,
        )
        distiller.models[0].register_forward_pre_hook(lambda *_: stop(distiller.step.number, StopError))
        with pytest.raises(StopError):
            distiller.fit(epochs=3, batch_size=32, output_dir=tmp_path / "run")
        main(["report", str(tmp_path / "run"), "--grad-cam", "3"])
        assert (tmp_path / "run" / "grad-cam" / "3-1.png").exists()

    def test_models_that_cannot_be_built_again(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        from tests.helpers.runs import build

        build(epochs=1).fit(output_dir=tmp_path / "run")
        capsys.readouterr()
        with pytest.raises(SystemExit, match="2"):
            main(["report", str(tmp_path / "run"), "--grad-cam", "3"])
        assert len(capsys.readouterr().err.splitlines()) == 1
        assert not (tmp_path / "run" / "grad-cam").exists()


def stop(number: int, error: type[Exception]) -> None:
    if number == 3:
        raise error


class TestPage:
    def test_pictures_with_what_they_show(self, drawn: Path) -> None:
        page = (drawn / "report.html").read_text()
        images = re.findall(r'<td><img src="data:image/png;base64,([^"]+)" alt="([^"]+)">', page)
        assert len(images) == 6
        assert images[1][1].startswith("where model 0 test_resnet sees ")
        names = ["7.png", "7-0.png", "7-1.png", "2.png", "2-0.png", "2-1.png"]
        for (content, _), name in zip(images, names, strict=True):
            assert base64.b64decode(content) == (drawn / "grad-cam" / name).read_bytes()
            Image.open(io.BytesIO(base64.b64decode(content))).verify()
        assert "at layer4, 1x1: too coarse to show a place" in page
        assert "at blocks.5.norm1, 2x2" in page

    def test_later_reports_and_those_of_several_runs_show_them_too(self, drawn: Path, tmp_path: Path) -> None:
        other = write_run(tmp_path / "other")
        main(["report", str(other), str(drawn), "--output", str(tmp_path / "both.html")])
        page = (tmp_path / "both.html").read_text()
        assert page.count("<td><img ") == 6
        assert page.count("Grad-CAM: where the models see the right class: run") == 1

    def test_a_run_without_pictures(self, tmp_path: Path) -> None:
        assert read_grad_cam(read_run(write_run(tmp_path))) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["layers", "images", "number", "label", "models", "layer", "grid"]), inner)
    ),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("spoiled") / "run")
    (folder / "grad-cam").mkdir()
    return folder


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=20))
def test_whatever_is_said_of_the_pictures(spoiled: Path, text: bytes) -> None:
    (spoiled / "grad-cam" / "grad-cam.json").write_bytes(text)
    run = read_run(spoiled)
    try:
        rows = [] if (found := read_grad_cam(run)) is None else found.rows
    except UserError as error:
        rows = re.findall(r"^grad_cam: the pictures in .* are damaged \(\w+\): .*$", str(error))[1:]
    assert rows == []
