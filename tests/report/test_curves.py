"""The picture against a real run's files and against records written here, whose lines are known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from feature_gan_kd import UserError
from feature_gan_kd.report import collect_series, curves_figure, read_run, write_curves
from feature_gan_kd.report.panels import PANELS, split_name
from feature_gan_kd.training.history import History
from tests.report.fake_runs import LONG, write_run

ALL_PANELS = ["accuracy", "cross-entropy", "kl", "answers", "adversarial", "learning rates"]


def panel_names(figure: Figure) -> list[object]:
    return [axes.get_label() for axes in figure.axes]


def panel(figure: Figure, name: str) -> Axes:
    return next(axes for axes in figure.axes if axes.get_label() == name)


def lines_of(axes: Axes) -> dict[str, Line2D]:
    """The lines by their keys; what is not a series has a label that begins with an underscore."""
    return {str(line.get_label()): line for line in axes.lines if not str(line.get_label()).startswith("_")}


def words_of(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts if text.get_text()]


class TestRealRun:
    def test_every_metric_is_drawn(self, real: tuple[Path, History]) -> None:
        run = read_run(real[0])
        figure = curves_figure(run)
        assert panel_names(figure) == ALL_PANELS
        drawn = {key: line for axes in figure.axes for key, line in lines_of(axes).items()}
        kinds = {kind for panel in PANELS if panel.in_curves for kind in panel.kinds}
        recorded = {name for name in run.steps[0]["metrics"] if split_name(name)[0] in kinds}
        assert len(recorded) == 15
        assert recorded <= drawn.keys()
        for key in recorded:
            x, y = drawn[key].get_data()
            assert list(x) == pytest.approx([2 / 3, 1, 4 / 3, 2])
            assert list(y) == pytest.approx([one["metrics"][key] for one in run.steps])

    def test_png(self, real: tuple[Path, History], tmp_path: Path) -> None:
        run, path = read_run(real[0]), tmp_path / "curves.png"
        path.write_text("an old one")
        with path.open() as reader:
            write_curves(run, path)
            assert reader.read() == "an old one", "the old file was written into, not replaced"
        with Image.open(path) as image:
            image.verify()
            assert image.format == "PNG"
            assert image.size == tuple(int(side) for side in curves_figure(run).bbox.size)
            assert image.width == 1650
        assert [one.name for one in tmp_path.iterdir()] == ["curves.png"]


class TestPanels:
    @pytest.mark.parametrize(
        ("method", "expected"),
        [
            ("vanilla", ["accuracy", "cross-entropy", "learning rates"]),
            ("logit", ["accuracy", "cross-entropy", "kl", "learning rates"]),
            ("l1", ["accuracy", "cross-entropy", "kl", "l1", "learning rates"]),
            ("l2-only", ["accuracy", "cross-entropy", "l2", "learning rates"]),
            ("feature", ["accuracy", "cross-entropy", "answers", "adversarial", "learning rates"]),
            ("afd", ALL_PANELS),
        ],
    )
    def test_only_what_is_recorded(self, method: str, expected: list[str], tmp_path: Path) -> None:
        figure = curves_figure(read_run(write_run(tmp_path, method=method)))
        assert panel_names(figure) == expected
        assert all(lines_of(axes) for axes in figure.axes)

    def test_title_names_method_models_and_data(self, tmp_path: Path) -> None:
        texts = [text.get_text() for text in curves_figure(read_run(write_run(tmp_path))).texts]
        assert texts[0] == "afd: cifar_resnet20 and cifar_resnet32 on uoft-cs/cifar100"
        assert texts[1].startswith("3 of 3 epochs · 50,000 training images")

    def test_accuracy_marks_and_names_last_and_best(self, tmp_path: Path) -> None:
        axes = panel(curves_figure(read_run(write_run(tmp_path))), "accuracy")
        assert {key: list(line.get_ydata()) for key, line in lines_of(axes).items()} == {
            "eval/accuracy/0": [62, 64, 62],
            "eval/accuracy/1": [62.25, 64.25, 62.25],
            "eval/accuracy/ensemble": [71, 72, 71],
        }
        marks = [(line.get_label(), *line.get_xydata()[0]) for line in axes.lines if line.get_marker() == "o"]
        assert ("_best", 2, 64.25) in marks
        assert ("_last", 3, 62.25) in marks
        assert len(marks) == 6
        words = words_of(axes)
        assert words[words.index("1  cifar_resnet32") + 1] == "last 62.25, best 64.25 in epoch 2"
        assert words[words.index("ensemble") + 1] == "last 71.00, best 72.00 in epoch 2"

    def test_answers_of_the_discriminators(self, tmp_path: Path) -> None:
        axes = panel(curves_figure(read_run(write_run(tmp_path))), "answers")
        styles = {key: line.get_linestyle() for key, line in lines_of(axes).items()}
        assert styles == {
            "train/real/0->1": "-",
            "train/real/1->0": "-",
            "train/fake/0->1": "--",
            "train/fake/1->0": "--",
        }
        assert axes.get_ylim() == (0, 1)
        (undecided,) = [line for line in axes.lines if line.get_label() == "_undecided"]
        assert list(undecided.get_ydata()) == [0.5, 0.5]
        assert "0→1 real 0.97" in words_of(axes)

    def test_a_model_has_one_colour_everywhere(self, tmp_path: Path) -> None:
        figure = curves_figure(read_run(write_run(tmp_path, names=LONG)))
        colors: dict[str, set[object]] = {}
        for axes in figure.axes:
            for key, line in lines_of(axes).items():
                kind, owner = split_name(key)
                if kind != "lr":
                    colors.setdefault(owner.split("->")[-1], set()).add(line.get_color())
        assert colors.keys() == {"0", "1", "2", "3", "ensemble"}
        assert [len(own) for own in colors.values()] == [1] * 5
        assert len(set.union(*colors.values())) == 5

    def test_rates_are_logarithmic_and_zero_is_left_out(self, tmp_path: Path) -> None:
        run = read_run(write_run(tmp_path))
        run.steps[0]["metrics"]["lr/logit"] = 0.0  # as in the first update of a warm-up
        axes = panel(curves_figure(run), "learning rates")
        assert axes.get_yscale() == "log"
        assert list(lines_of(axes)["lr/logit"].get_ydata()) == pytest.approx([0.1, 0.05, 0.05, 0.1 / 3, 0.1 / 3])

    def test_before_the_first_epoch_time_is_in_updates(self, tmp_path: Path) -> None:
        figure = curves_figure(read_run(write_run(tmp_path, epochs=0)))
        assert panel_names(figure) == ALL_PANELS[1:]
        assert {axes.get_xlabel() for axes in figure.axes} == {"update"}
        assert list(lines_of(figure.axes[0])["train/cross_entropy/0"].get_xdata()) == [4, 8]

    def test_what_is_not_finite_is_left_out(self, tmp_path: Path) -> None:
        run = read_run(write_run(tmp_path, method="logit"))
        for position, one in enumerate(run.steps):
            one["metrics"]["train/kl/0"] = math.nan
            one["metrics"]["train/cross_entropy/1"] = math.inf if position > 1 else 3.0
        recorded = collect_series(run)
        assert "train/kl/0" not in recorded
        assert recorded["train/cross_entropy/1"] == ([0.5, 1.0], [3.0, 3.0])
        assert list(lines_of(panel(curves_figure(run), "kl"))) == ["train/kl/1"]

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"epochs": 0},
            {"epochs": 1, "log_every_steps": 8},
            {"names": LONG, "epochs": 300, "planned": 300},
            {"names": LONG, "edges": [(s, t) for s in range(4) for t in range(4) if s != t]},
            {"names": [f"model{k}_of_many" for k in range(12)]},
            {"names": ["a$b_$c", r"d\e^{f}"], "method": "vanilla"},
        ],
    )
    def test_no_label_covers_another_or_leaves_the_page(self, options: dict[str, Any], tmp_path: Path) -> None:
        figure = curves_figure(read_run(write_run(tmp_path, **options)))
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw(renderer)
        width, height = figure.bbox.size
        boxes = [
            (text.get_text(), text.get_window_extent(renderer))
            for owner in (figure, *figure.axes)
            for text in owner.texts
            if text.get_text()
        ]
        assert [text for text, box in boxes if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height] == []
        pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :]]
        assert [(a[0], b[0]) for a, b in pairs if a[1].overlaps(b[1])] == []


def test_png_that_cannot_be_written(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"))
    (tmp_path / "taken").mkdir()
    for path in (tmp_path / "missing" / "curves.png", tmp_path / "taken"):
        with pytest.raises(UserError, match="cannot be written") as caught:
            write_curves(run, path)
        assert "\n" not in str(caught.value)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["run", "taken"]
