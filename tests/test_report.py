"""The report against a real run's files and against records written here, whose table and lines are known."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from feature_gan_kd import OnlineAdversarialDistiller, UserError
from feature_gan_kd.config import DistillConfig
from feature_gan_kd.loop import History
from feature_gan_kd.report import curves, draw_curves, read_run, series, table

PAIR = ("cifar_resnet20", "cifar_resnet32")
LONG = (
    "convnextv2_atto_with_a_very_long_variant_name",
    "swinv2_cr_small_ns_224",
    "vit_small_patch16_dinov3_qkvb",
    "maxvit_rmlp_small_rw_256_windowed_memory_mlp",
)
KINDS = {
    "vanilla": (),
    "logit": ("logit",),
    "l1": ("logit", "l1"),
    "l2-only": ("l2",),
    "feature": ("adversarial", "discriminator"),
    "afd": ("logit", "adversarial", "discriminator"),
}
ALL_PANELS = ["accuracy", "cross-entropy", "logit", "answers", "adversarial", "rates"]


def write_run(
    folder: Path,
    *,
    names: Sequence[str] = PAIR,
    method: str = "afd",
    epochs: int = 3,
    planned: int = 3,
    updates: int = 8,
    log_every: int = 4,
    edges: Sequence[tuple[int, int]] | None = None,
    frozen: Sequence[int] = (),
) -> Path:
    """A run's folder with records like those of `fit`: accuracies rise, except in the last of several epochs."""
    count = len(names)
    edges = edges or [(k, (k + 1) % count) for k in range(count)]
    learners = [k for k in range(count) if k not in frozen]
    about = {
        "models": [{"name": name} for name in names],
        "frozen": list(frozen),
        "config": DistillConfig.from_dict({"method": method, "epochs": planned}).to_dict(),
        "data": {"name": "uoft-cs/cifar100", "train_images": 50000, "evaluation_images": 10000},
    }
    lines: list[dict[str, Any]] = []
    for step in range(log_every, max(epochs, 1) * updates + 1, log_every):
        epoch = (step - 1) // updates + 1
        metrics = {f"{kind}/{k}": (k + 1) / step for kind in ("cross_entropy", *KINDS[method]) for k in learners}
        if "discriminator" in KINDS[method]:
            metrics |= {f"real/{s}->{t}": 1 - 0.4 / step - 0.01 * t for s, t in edges}
            metrics |= {f"fake/{s}->{t}": 0.4 / step + 0.01 * t for s, t in edges}
        rates = {"logit": 0.1 / epoch}
        if set(KINDS[method]) - {"logit"}:
            rates |= {"feature": 2e-5, "discriminator": 2e-5}
        record = {"step": step, "epoch": epoch, "metrics": metrics, "lr": rates, "images_per_second": 900.0}
        lines.append({"event": "step", **record})
        if step % updates == 0 and epochs:
            gone = epoch - 2 if epoch == epochs > 1 else epoch
            accuracy = [60 + 2 * gone + k / 4 for k in range(count)]
            end = {"accuracy": accuracy, "ensemble": 70.0 + gone, "loss": [2.0 / epoch] * count, "seconds": 2.0}
            lines.append({"event": "epoch", **record, **end, "images_per_second": 100.0 * epoch})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(about))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def panel_names(figure: Figure) -> list[object]:
    return [axes.get_label() for axes in figure.axes]


def panel(figure: Figure, name: str) -> Axes:
    return next(axes for axes in figure.axes if axes.get_label() == name)


def lines_of(axes: Axes) -> dict[str, Line2D]:
    """The lines by their keys; what is not a series has a label that begins with an underscore."""
    return {str(line.get_label()): line for line in axes.lines if not str(line.get_label()).startswith("_")}


def words_of(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts if text.get_text()]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, History]:
    folder = tmp_path_factory.mktemp("runs") / "real"
    distiller = OnlineAdversarialDistiller(
        ["test_resnet", "test_vit"],
        num_classes=10,
        image_size=32,
        max_train_samples=96,
        max_eval_samples=40,
        log_every=2,
    )
    return folder, distiller.fit(epochs=2, batch_size=32, output_dir=folder)


class TestRealRun:
    def test_read(self, real: tuple[Path, History]) -> None:
        run = read_run(real[0])
        assert run.names == ["test_resnet", "test_vit"]
        assert [one["step"] for one in run.steps] == [2, 3, 4, 6]
        assert [one["accuracy"] for one in run.epochs] == [one["accuracy"] for one in real[1].epochs]
        assert (run.settings["method"], run.settings["epochs"]) == ("afd", 2)

    def test_table_agrees_with_the_history(self, real: tuple[Path, History]) -> None:
        folder, history = real
        rows = [line.split() for line in table(read_run(folder)).splitlines()]
        for k, name in enumerate(("test_resnet", "test_vit")):
            best = history.best[k]
            last = history.epochs[-1]["accuracy"][k]
            assert rows[k + 1] == [str(k), name, f"{last:.2f}", f"{best['accuracy']:.2f}", str(best["epoch"])]
        assert rows[3][:2] == ["ensemble", f"{history.epochs[-1]['ensemble']:.2f}"]
        assert "on bundled digits" in curves(read_run(folder)).texts[0].get_text()

    def test_every_metric_is_drawn(self, real: tuple[Path, History]) -> None:
        run = read_run(real[0])
        figure = curves(run)
        assert panel_names(figure) == ALL_PANELS
        drawn = {key: line for axes in figure.axes for key, line in lines_of(axes).items()}
        recorded = {key for key in run.steps[0]["metrics"] if not key.startswith("accuracy/")}
        assert recorded <= drawn.keys()
        for key in recorded:
            x, y = drawn[key].get_data()
            assert list(x) == pytest.approx([2 / 3, 1, 4 / 3, 2])
            assert list(y) == pytest.approx([one["metrics"][key] for one in run.steps])

    def test_png(self, real: tuple[Path, History], tmp_path: Path) -> None:
        run, path = read_run(real[0]), tmp_path / "curves.png"
        path.write_text("an old one")
        with path.open() as reader:
            draw_curves(run, path)
            assert reader.read() == "an old one", "the old file was written into, not replaced"
        with Image.open(path) as image:
            image.verify()
            assert image.format == "PNG"
            assert image.size == tuple(int(side) for side in curves(run).bbox.size)
            assert image.width == 1650
        assert [one.name for one in tmp_path.iterdir()] == ["curves.png"]


class TestTable:
    def test_exactly(self, tmp_path: Path) -> None:
        assert table(read_run(write_run(tmp_path))).splitlines() == [
            "network           last top-1 %  best top-1 %  in epoch",
            "0 cifar_resnet20         62.00         64.00         2",
            "1 cifar_resnet32         62.25         64.25         2",
            "ensemble                 71.00         72.00         2",
            "",
            "method afd · 3 of 3 epochs · 50,000 training images, 10,000 evaluation images · batch 128 · seed 0 · "
            "6.0 s · 200 images/s",
        ]

    def test_unfinished_with_a_frozen_teacher(self, tmp_path: Path) -> None:
        run = write_run(tmp_path, epochs=1, planned=30, frozen=[0], edges=[(0, 1)])
        lines = table(read_run(run)).splitlines()
        assert lines[1] == "0 cifar_resnet20 (frozen)         62.00         62.00         1"
        assert lines[-1].startswith("method afd · 1 of 30 epochs · ")

    def test_before_the_first_epoch_is_done(self, tmp_path: Path) -> None:
        lines = table(read_run(write_run(tmp_path, epochs=0))).splitlines()
        assert lines[1].split() == ["0", "cifar_resnet20", "-", "-", "-"]
        assert lines[-1].endswith("batch 128 · seed 0")


class TestPanels:
    @pytest.mark.parametrize(
        ("method", "expected"),
        [
            ("vanilla", ["accuracy", "cross-entropy", "rates"]),
            ("logit", ["accuracy", "cross-entropy", "logit", "rates"]),
            ("l1", ["accuracy", "cross-entropy", "logit", "l1", "rates"]),
            ("l2-only", ["accuracy", "cross-entropy", "l2", "rates"]),
            ("feature", ["accuracy", "cross-entropy", "answers", "adversarial", "rates"]),
            ("afd", ALL_PANELS),
        ],
    )
    def test_only_what_is_recorded(self, method: str, expected: list[str], tmp_path: Path) -> None:
        figure = curves(read_run(write_run(tmp_path, method=method)))
        assert panel_names(figure) == expected
        assert all(lines_of(axes) for axes in figure.axes)

    def test_title_names_method_networks_and_data(self, tmp_path: Path) -> None:
        texts = [text.get_text() for text in curves(read_run(write_run(tmp_path))).texts]
        assert texts[0] == "afd: cifar_resnet20 and cifar_resnet32 on uoft-cs/cifar100"
        assert texts[1].startswith("3 of 3 epochs · 50,000 training images")

    def test_accuracy_marks_and_names_last_and_best(self, tmp_path: Path) -> None:
        axes = panel(curves(read_run(write_run(tmp_path))), "accuracy")
        assert {key: list(line.get_ydata()) for key, line in lines_of(axes).items()} == {
            "top-1/0": [62, 64, 62],
            "top-1/1": [62.25, 64.25, 62.25],
            "top-1/ensemble": [71, 72, 71],
        }
        marks = [(line.get_label(), *line.get_xydata()[0]) for line in axes.lines if line.get_marker() == "o"]
        assert ("_best", 2, 64.25) in marks
        assert ("_last", 3, 62.25) in marks
        assert len(marks) == 6
        words = words_of(axes)
        assert words[words.index("1  cifar_resnet32") + 1] == "last 62.25, best 64.25 in epoch 2"
        assert words[words.index("ensemble") + 1] == "last 71.00, best 72.00 in epoch 2"

    def test_answers_of_the_discriminators(self, tmp_path: Path) -> None:
        axes = panel(curves(read_run(write_run(tmp_path))), "answers")
        styles = {key: line.get_linestyle() for key, line in lines_of(axes).items()}
        assert styles == {"real/0->1": "-", "real/1->0": "-", "fake/0->1": "--", "fake/1->0": "--"}
        assert axes.get_ylim() == (0, 1)
        (undecided,) = [line for line in axes.lines if line.get_label() == "_undecided"]
        assert list(undecided.get_ydata()) == [0.5, 0.5]
        assert "0→1 real 0.97" in words_of(axes)

    def test_a_network_has_one_colour_everywhere(self, tmp_path: Path) -> None:
        figure = curves(read_run(write_run(tmp_path, names=LONG)))
        colors: dict[str, set[object]] = {}
        for axes in figure.axes:
            for key, line in lines_of(axes).items():
                kind, whose = key.split("/")
                if kind != "rate":
                    colors.setdefault(whose.split("->")[-1], set()).add(line.get_color())
        assert colors.keys() == {"0", "1", "2", "3", "ensemble"}
        assert [len(own) for own in colors.values()] == [1] * 5
        assert len(set.union(*colors.values())) == 5

    def test_rates_are_logarithmic_and_zero_is_left_out(self, tmp_path: Path) -> None:
        run = read_run(write_run(tmp_path))
        run.steps[0]["lr"]["logit"] = 0.0  # as in the first update of a warm-up
        axes = panel(curves(run), "rates")
        assert axes.get_yscale() == "log"
        assert list(lines_of(axes)["rate/logit"].get_ydata()) == pytest.approx([0.1, 0.05, 0.05, 0.1 / 3, 0.1 / 3])

    def test_before_the_first_epoch_time_is_in_updates(self, tmp_path: Path) -> None:
        figure = curves(read_run(write_run(tmp_path, epochs=0)))
        assert panel_names(figure) == ALL_PANELS[1:]
        assert {axes.get_xlabel() for axes in figure.axes} == {"update"}
        assert list(lines_of(figure.axes[0])["cross_entropy/0"].get_xdata()) == [4, 8]

    def test_what_is_not_finite_is_left_out(self, tmp_path: Path) -> None:
        run = read_run(write_run(tmp_path, method="logit"))
        for position, one in enumerate(run.steps):
            one["metrics"]["logit/0"] = math.nan
            one["metrics"]["cross_entropy/1"] = math.inf if position > 1 else 3.0
        recorded = series(run)
        assert "logit/0" not in recorded
        assert recorded["cross_entropy/1"] == ([0.5, 1.0], [3.0, 3.0])
        assert list(lines_of(panel(curves(run), "logit"))) == ["logit/1"]

    def test_long_runs_are_averaged_by_updates(self, tmp_path: Path) -> None:
        run = read_run(write_run(tmp_path, epochs=30, planned=30, updates=50, log_every=5))
        del run.steps[0]  # so the first record counts for twice the updates of the second
        x, y = series(run)["cross_entropy/0"]
        assert len(run.steps) == 299
        assert len(x) == 150
        assert x[0] == 15 / 50
        assert y[0] == pytest.approx((1 / 10 * 10 + 1 / 15 * 5) / 15)
        assert (x[-1], y[-1]) == (30, pytest.approx(1 / 1500))

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"epochs": 0},
            {"epochs": 1, "log_every": 8},
            {"names": LONG, "epochs": 300, "planned": 300},
            {"names": LONG, "edges": [(s, t) for s in range(4) for t in range(4) if s != t]},
            {"names": [f"network{k}_of_many" for k in range(12)]},
            {"names": ["a$b_$c", r"d\e^{f}"], "method": "vanilla"},
        ],
    )
    def test_no_label_covers_another_or_leaves_the_page(self, options: dict[str, Any], tmp_path: Path) -> None:
        figure = curves(read_run(write_run(tmp_path, **options)))
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


class TestErrors:
    @staticmethod
    def line(folder: Path) -> str:
        with pytest.raises(UserError) as caught:
            read_run(folder)
        message = str(caught.value)
        assert "\n" not in message
        assert str(folder) in message
        return message

    def test_no_run_there(self, tmp_path: Path) -> None:
        assert "holds no run (there is no config.json)" in self.line(tmp_path)
        assert "holds no run" in self.line(tmp_path / "missing")

    @pytest.mark.parametrize("text", ["{", "[]", '{"models": [{}], "config": {}}', '{"models": []}', "\udcff"])
    def test_damaged_description(self, text: str, tmp_path: Path) -> None:
        folder = write_run(tmp_path)
        (folder / "config.json").write_bytes(text.encode(errors="surrogateescape"))
        assert "are damaged" in self.line(folder)

    def test_damaged_records(self, tmp_path: Path) -> None:
        folder = write_run(tmp_path)
        (folder / "metrics.jsonl").write_bytes(b"\xff\n")
        assert "are damaged (UnicodeDecodeError)" in self.line(folder)

    @pytest.mark.parametrize("text", [None, "", '{"event": "st'])
    def test_nothing_recorded(self, text: str | None, tmp_path: Path) -> None:
        folder = write_run(tmp_path)
        (folder / "metrics.jsonl").unlink()
        if text is not None:
            (folder / "metrics.jsonl").write_text(text)
        assert "holds no records" in self.line(folder)

    def test_a_last_line_cut_short_is_left_out(self, tmp_path: Path) -> None:
        path = write_run(tmp_path) / "metrics.jsonl"
        whole = read_run(tmp_path)
        path.write_text(path.read_text()[:-40])
        cut = read_run(tmp_path)
        assert cut.steps == whole.steps
        assert cut.epochs == whole.epochs[:-1]

    def test_png_that_cannot_be_written(self, tmp_path: Path) -> None:
        run = read_run(write_run(tmp_path / "run"))
        (tmp_path / "taken").mkdir()
        for path in (tmp_path / "missing" / "curves.png", tmp_path / "taken"):
            with pytest.raises(UserError, match="cannot be written") as caught:
                draw_curves(run, path)
            assert "\n" not in str(caught.value)
        assert sorted(one.name for one in tmp_path.iterdir()) == ["run", "taken"]


def test_neither_torch_nor_pyplot_is_loaded(tmp_path: Path) -> None:
    write_run(tmp_path)
    script = f"""
import sys
from pathlib import Path
from feature_gan_kd.report import draw_curves, read_run, table
assert "matplotlib" not in sys.modules
run = read_run(Path({str(tmp_path)!r}))
table(run)
draw_curves(run, Path({str(tmp_path)!r}) / "curves.png")
loaded = {{"torch", "timm", "accelerate", "datasets", "matplotlib.pyplot"}} & sys.modules.keys()
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)
    assert (tmp_path / "curves.png").stat().st_size > 10_000
