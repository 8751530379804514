"""Which lines stand in which chart, in what colours, and what the words and tables beside them say."""

from __future__ import annotations

from pathlib import Path

import pytest

from feature_gan_kd.report import read_run
from feature_gan_kd.report.charts import Chart, build_charts
from feature_gan_kd.report.panels import PANELS
from tests.report.fake_runs import KINDS, LONG, read_lines, write_lines, write_run

COMPLETE = [(s, t) for s in range(4) for t in range(4) if s != t]
AFD = [
    "accuracy",
    "training accuracy",
    "cross-entropy",
    "kl",
    "answers",
    "adversarial",
    "learning rates",
    "throughput",
]
RECORDED = ["right answers", "similarity", "gradients", "updates", "directions", "discriminators"]


def charts_by_panel(*folders: Path) -> dict[str, list[Chart]]:
    runs = [read_run(folder) for folder in folders]
    return {panel.name: charts for panel, charts in build_charts(runs, [folder.name for folder in folders])}


class TestOneRun:
    def test_every_panel_has_one_chart(self, tmp_path: Path) -> None:
        found = charts_by_panel(write_run(tmp_path))
        assert list(found) == AFD
        assert {len(charts) for charts in found.values()} == {1}
        assert {chart.title for charts in found.values() for chart in charts} == {""}
        assert {chart.time for charts in found.values() for chart in charts} == {"epoch"}

    @pytest.mark.parametrize("method", KINDS)
    def test_every_recorded_series_is_drawn(self, method: str, tmp_path: Path) -> None:
        found = charts_by_panel(write_run(tmp_path, method=method))
        metrics = read_lines(tmp_path)[0]["metrics"]
        drawn = sum(len(chart.lines) for charts in found.values() for chart in charts)
        assert drawn == len(metrics) + 1 + 3 + 2  # the speed of epochs, accuracies, evaluation losses

    def test_what_is_recorded_when_asked_for_has_charts_of_its_own(self, tmp_path: Path) -> None:
        found = charts_by_panel(write_run(tmp_path, layers=[""]))
        assert list(found) == [*AFD[:6], *RECORDED, *AFD[6:]]
        assert [(line.name, line.dashes) for line in found["gradients"][0].lines[:3]] == [
            ("0 cifar_resnet20 logit", 0),
            ("0 cifar_resnet20 feature", 1),
            ("0 cifar_resnet20 decay", 2),
        ]
        assert [line.name for line in found["discriminators"][0].lines[:2]] == ["1 → 0 gradient", "1 → 0 decay"]
        (line, _) = found["right answers"][0].lines
        assert (line.values[0], found["right answers"][0].to_json()["level"]) == (90, 50)
        assert [name for name in RECORDED if found[name][0].to_json()["logarithmic"]] == [
            "gradients",
            "updates",
            "discriminators",
        ]

    def test_confident_targets_have_a_chart_where_they_are_recorded(self, tmp_path: Path) -> None:
        lines = read_lines(write_run(tmp_path, method="logit"))
        for line in lines:
            line["metrics"]["train/confident/1"] = 40.0
        write_lines(tmp_path, lines)
        (line,) = charts_by_panel(tmp_path)["confident targets"][0].lines
        assert set(line.values) == {40}

    def test_similarity_at_several_layers_has_a_chart_per_layer(self, tmp_path: Path) -> None:
        charts = charts_by_panel(write_run(tmp_path, layers=["@0", "@1"]))["similarity"]
        assert [chart.title for chart in charts] == ["layer 0", "layer 1"]
        assert [line.name for line in charts[1].lines] == ["1 → 0 CKA", "1 → 0 cosine", "0 → 1 CKA", "0 → 1 cosine"]

    def test_a_zero_has_no_place_on_a_logarithmic_axis(self, tmp_path: Path) -> None:
        lines = read_lines(write_run(tmp_path, layers=[""]))
        for number, line in enumerate(lines):
            line["metrics"] |= {"train/gradient_feature/0": 0.0, "train/gradient_feature/1": float(number)}
        write_lines(tmp_path, lines)
        drawn = {line.name: line.values for line in charts_by_panel(tmp_path)["gradients"][0].lines}
        assert "0 cifar_resnet20 feature" not in drawn
        assert len(drawn["1 cifar_resnet32 feature"]) == 5

    def test_similarity_has_a_chart_where_it_is_recorded(self, tmp_path: Path) -> None:
        lines = read_lines(write_run(tmp_path))
        for line in lines[2::3]:
            line["metrics"] |= {"eval/similarity/0->1": 0.4, "eval/similarity/1->0": 0.5}
        write_lines(tmp_path, lines)
        (chart,) = charts_by_panel(tmp_path)["similarity"]
        assert [(line.name, line.values) for line in chart.lines] == [
            ("1 → 0 CKA", [0.5] * 3),
            ("0 → 1 CKA", [0.4] * 3),
        ]

    def test_a_model_has_one_colour_and_a_kind_one_dash(self, tmp_path: Path) -> None:
        found = charts_by_panel(write_run(tmp_path))
        styles = [(line.name, line.color, line.dashes) for line in found["answers"][0].lines]
        assert styles == [
            ("1 → 0 real", "0", 0),
            ("1 → 0 fake", "0", 1),
            ("0 → 1 real", "1", 0),
            ("0 → 1 fake", "1", 1),
        ]
        styles = [(line.name, line.color, line.dashes) for line in found["accuracy"][0].lines]
        assert styles == [("0 cifar_resnet20", "0", 0), ("1 cifar_resnet32", "1", 0), ("ensemble", "ink", 0)]
        styles = [(line.name.split(",")[0], line.color, line.dashes) for line in found["learning rates"][0].lines]
        assert styles == [("models", "ink", 0), ("extractors", "ink", 1), ("discriminators", "ink", 2)]

    def test_many_edges_have_a_chart_per_learner(self, tmp_path: Path) -> None:
        charts = charts_by_panel(write_run(tmp_path, names=LONG, edges=COMPLETE))["answers"]
        assert [chart.title.split()[:2] for chart in charts] == [["learner", str(k)] for k in range(4)]
        assert [(line.name, line.color) for line in charts[1].lines] == [
            ("0 → 1 real", "0"),
            ("0 → 1 fake", "0"),
            ("2 → 1 real", "2"),
            ("2 → 1 fake", "2"),
            ("3 → 1 real", "3"),
            ("3 → 1 fake", "3"),
        ]

    def test_before_the_first_epoch_time_is_in_updates(self, tmp_path: Path) -> None:
        found = charts_by_panel(write_run(tmp_path, epochs=0))
        assert list(found) == AFD[1:]
        (chart,) = found["cross-entropy"]
        assert (chart.time, chart.lines[0].times) == ("update", [4, 8])


class TestSeveralRuns:
    def test_a_chart_per_model_with_a_line_per_run(self, tmp_path: Path) -> None:
        found = charts_by_panel(write_run(tmp_path / "a"), write_run(tmp_path / "b", epochs=2))
        charts = found["accuracy"]
        assert [chart.title for chart in charts] == ["0 cifar_resnet20", "1 cifar_resnet32", "ensemble"]
        lines = [(line.name, line.color, line.dashes, line.values) for line in charts[0].lines]
        assert lines == [("a", "0", 0, [62.0, 64.0, 62.0]), ("b", "1", 0, [62.0, 60.0])]
        names = [line.name for line in found["answers"][0].lines]
        assert names == ["a real", "b real", "a fake", "b fake"]
        assert [line.dashes for line in found["answers"][0].lines] == [0, 0, 1, 1]

    def test_other_models_methods_and_numbers_of_models(self, tmp_path: Path) -> None:
        found = charts_by_panel(
            write_run(tmp_path / "a", method="logit"),
            write_run(tmp_path / "b", names=["cifar_resnet20", "wrn", "vit"], method="l2-only"),
        )
        titles = [chart.title for chart in found["accuracy"]]
        assert titles == ["0 cifar_resnet20", "model 1", "2 vit", "ensemble"]
        assert [[line.name for line in chart.lines] for chart in found["l2"]] == [["b"]] * 3
        assert [[line.name for line in chart.lines] for chart in found["kl"]] == [["a"]] * 2

    def test_layers_are_charts_of_their_own(self, tmp_path: Path) -> None:
        folders = [write_run(tmp_path / name, layers=["@0", "@1"]) for name in "ab"]
        charts = charts_by_panel(*folders)["similarity"]
        assert [chart.title for chart in charts] == [
            f"{edge}, layer {k}" for k in (0, 1) for edge in ("1 → 0", "0 → 1")
        ]
        assert [line.name for line in charts[0].lines] == ["a CKA", "b CKA", "a cosine", "b cosine"]

    def test_all_in_updates_where_one_has_no_epoch_yet(self, tmp_path: Path) -> None:
        found = charts_by_panel(write_run(tmp_path / "a"), write_run(tmp_path / "b", epochs=0))
        assert {chart.time for charts in found.values() for chart in charts} == {"update"}
        assert [line.times[-1] for line in found["cross-entropy"][0].lines] == [24, 8, 24]


class TestWords:
    @pytest.fixture
    def found(self, tmp_path: Path) -> dict[str, list[Chart]]:
        return charts_by_panel(write_run(tmp_path))

    def test_the_text_alternative_has_first_last_and_best(self, found: dict[str, list[Chart]]) -> None:
        assert found["accuracy"][0].alt_text() == (
            "Top-1 accuracy on the evaluation images, in %. "
            "0 cifar_resnet20: first 62.00, last 62.00 at epoch 3, best 64.00 at epoch 2. "
            "1 cifar_resnet32: first 62.25, last 62.25 at epoch 3, best 64.25 at epoch 2. "
            "ensemble: first 71.00, last 71.00 at epoch 3, best 72.00 at epoch 2."
        )
        words = found["cross-entropy"][0].alt_text()
        assert "0 cifar_resnet20 train: first 0.250, last 0.0417 at epoch 3, best 0.0417 at epoch 3." in words
        assert "best" not in found["answers"][0].alt_text()

    def test_the_legend_has_the_last_value(self, found: dict[str, list[Chart]]) -> None:
        accuracy, answers = found["accuracy"][0], found["answers"][0]
        assert accuracy.legend_figures(accuracy.lines[1]) == "last 62.25, best 64.25 (epoch 2)"
        assert answers.legend_figures(answers.lines[0]) == "0.98"

    def test_the_table_has_every_figure(self, found: dict[str, list[Chart]]) -> None:
        rows = found["cross-entropy"][0].table_rows()
        assert rows == [
            ["0.5", "0.25", "", "0.5", ""],
            ["1", "0.125", "2", "0.25", "2"],
            ["1.5", "0.083333", "", "0.16667", ""],
            ["2", "0.0625", "1", "0.125", "1"],
            ["2.5", "0.05", "", "0.1", ""],
            ["3", "0.041667", "0.66667", "0.083333", "0.66667"],
        ]

    def test_the_figure_marks_the_best_where_more_is_better(self, found: dict[str, list[Chart]]) -> None:
        assert [line["best"] for line in found["accuracy"][0].to_json()["lines"]] == [1, 1, 1]
        assert {line["best"] for line in found["cross-entropy"][0].to_json()["lines"]} == {None}
        assert found["answers"][0].to_json()["limits"] == (0, 1)
        assert [name for name in found if found[name][0].to_json()["logarithmic"]] == ["learning rates"]


def test_formats_of_the_panels_are_ones_that_the_script_reads_too() -> None:
    assert all(panel.digits.strip("#") in (".2f", ".3f", ".2g", ".3g", ",.0f") for panel in PANELS)
