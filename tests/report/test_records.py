"""Reading a run's files, whatever state they are in."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from feature_gan_kd import UserError
from feature_gan_kd.report import collect_series, read_run
from feature_gan_kd.report.records import EPOCH_SPEED, UPDATE_SPEED, count_nonfinite, count_skipped_updates
from feature_gan_kd.training.history import History
from tests.report.fake_runs import change_description, read_lines, write_lines, write_run


class TestRealRun:
    def test_read(self, real: tuple[Path, History]) -> None:
        run = read_run(real[0])
        assert run.names == ["test_resnet", "test_vit"]
        assert [one["step"] for one in run.steps] == [2, 3, 4, 6]
        assert [one["metrics"] for one in run.epochs] == [one["metrics"] for one in real[1].epochs]
        assert (run.config.method, run.config.epochs) == ("afd", 2)


class TestSeries:
    def test_long_runs_are_averaged_by_updates(self, tmp_path: Path) -> None:
        run = read_run(write_run(tmp_path, epochs=30, planned=30, updates=50, log_every_steps=5))
        del run.steps[0]  # so the first record counts for twice the updates of the second
        x, y = collect_series(run)["train/cross_entropy/0"]
        assert len(run.steps) == 299
        assert len(x) == 150
        assert x[0] == 15 / 50
        assert y[0] == pytest.approx((1 / 10 * 10 + 1 / 15 * 5) / 15)
        assert (x[-1], y[-1]) == (30, pytest.approx(1 / 1500))

    def test_what_few_records_have_is_averaged_over_these(self, tmp_path: Path) -> None:
        lines = read_lines(write_run(tmp_path, epochs=30, planned=30, updates=50, log_every_steps=5))
        steps = [line for line in lines if line["event"] == "step"]
        for line in steps[::4]:  # in every second group of two
            line["metrics"]["train/update_logit/0"] = line["step"] / 10
        write_lines(tmp_path, lines)
        x, y = collect_series(read_run(tmp_path))["train/update_logit/0"]
        assert len(x) == 75
        assert (x[:2], y[:2]) == ([10 / 50, 30 / 50], [0.5, 2.5])

    def test_speed_of_a_group_is_images_over_seconds(self, tmp_path: Path) -> None:
        run = read_run(write_run(tmp_path, epochs=30, planned=30, updates=50, log_every_steps=5))
        run.steps[0]["metrics"][UPDATE_SPEED] = 100.0
        run.steps[1]["metrics"][UPDATE_SPEED] = 300.0
        assert collect_series(run)[UPDATE_SPEED][1][0] == pytest.approx(10 / (5 / 100 + 5 / 300))

    def test_time_is_in_updates_where_it_has_to_be(self, tmp_path: Path) -> None:
        run = read_run(write_run(tmp_path))
        assert collect_series(run)["eval/accuracy/0"][0] == [1, 2, 3]
        assert collect_series(run, 1)["eval/accuracy/0"][0] == [8, 16, 24]

    def test_the_rate_of_a_group_is_its_last(self, tmp_path: Path) -> None:
        run = read_run(write_run(tmp_path, epochs=30, planned=30, updates=50, log_every_steps=5))
        run.steps[0]["metrics"]["lr/logit"] = 7.0
        assert collect_series(run)["lr/logit"][1][0] == 0.1

    def test_similarity_of_an_epoch(self, tmp_path: Path) -> None:
        lines = read_lines(write_run(tmp_path))
        for line in lines:
            if line["event"] == "epoch":
                line["metrics"]["eval/similarity/0->1"] = 0.1 * line["epoch"]
        write_lines(tmp_path, lines)
        x, y = collect_series(read_run(tmp_path))["eval/similarity/0->1"]
        assert (x, y) == ([1, 2, 3], pytest.approx([0.1, 0.2, 0.3]))

    def test_what_an_epoch_repeats_of_its_last_update_counts_once(self, tmp_path: Path) -> None:
        series = collect_series(read_run(write_run(tmp_path)))
        assert {name: len(times) for name, (times, _) in series.items() if not name.startswith("eval/")} == {
            **dict.fromkeys(read_lines(tmp_path)[0]["metrics"], 6),
            EPOCH_SPEED: 3,
        }

    def test_what_is_not_finite_is_counted(self, tmp_path: Path) -> None:
        lines = read_lines(write_run(tmp_path))
        lines[1]["metrics"]["train/kl/0"] = math.nan
        lines[3]["metrics"]["train/kl/0"] = math.inf
        lines[-1]["metrics"]["eval/cross_entropy/1"] = math.nan
        lines[-1]["metrics"]["train/kl/1"] = math.nan  # the epoch's copy of what its last update's record has
        write_lines(tmp_path, lines)
        run = read_run(tmp_path)
        assert count_nonfinite(run) == {"train/kl/0": (2, 8), "eval/cross_entropy/1": (1, 24)}
        counts = [len(collect_series(run)[name][0]) for name in ("train/kl/0", "train/kl/1", "eval/cross_entropy/1")]
        assert counts == [4, 6, 2]

    def test_skipped_updates_are_counted(self, tmp_path: Path) -> None:
        lines = read_lines(write_run(tmp_path))
        assert count_skipped_updates(read_run(tmp_path)) == 0
        lines[0]["metrics"]["train/skipped"] = 0.25
        lines[3]["metrics"]["train/skipped"] = 0.5
        write_lines(tmp_path, lines)
        assert count_skipped_updates(read_run(tmp_path)) == 3


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

    @pytest.mark.parametrize(
        ("line", "name"),
        [
            (-1, "eval/accuracy/1"),
            (-1, "eval/accuracy/ensemble"),
            (-1, "eval/cross_entropy/0"),
            (-1, EPOCH_SPEED),
            (0, UPDATE_SPEED),
        ],
    )
    def test_records_that_lack_a_metric(self, line: int, name: str, tmp_path: Path) -> None:
        lines = read_lines(write_run(tmp_path))
        del lines[line]["metrics"][name]
        write_lines(tmp_path, lines)
        assert "are damaged (KeyError)" in self.line(tmp_path)

    @pytest.mark.parametrize("key", ["metrics", "epoch", "seconds"])
    def test_records_that_lack_something_else(self, key: str, tmp_path: Path) -> None:
        lines = read_lines(write_run(tmp_path))
        del lines[-1][key]
        write_lines(tmp_path, lines)
        assert "are damaged (KeyError)" in self.line(tmp_path)

    @pytest.mark.parametrize("seconds", [0, -1.0, math.inf, math.nan, "2", None])
    def test_an_epoch_without_duration(self, seconds: Any, tmp_path: Path) -> None:
        lines = read_lines(write_run(tmp_path))
        lines[-1]["seconds"] = seconds
        write_lines(tmp_path, lines)
        assert "are damaged" in self.line(tmp_path)

    @pytest.mark.parametrize("change", [{"topology": [[0, 2]]}, {"topology": [3]}, {"models": [{"name": "alone"}]}])
    def test_a_description_of_another_run(self, change: dict[str, Any], tmp_path: Path) -> None:
        assert "are damaged" in self.line(change_description(write_run(tmp_path), **change))

    def test_more_models_than_are_named(self, tmp_path: Path) -> None:
        lines = read_lines(write_run(tmp_path))
        lines[-1]["metrics"]["eval/accuracy/2"] = 50.0
        write_lines(tmp_path, lines)
        assert "are damaged (ValueError)" in self.line(tmp_path)

    @pytest.mark.parametrize("settings", [{"metod": "afd"}, {"method": "adf"}, {"epochs": 0}, []])
    def test_settings_of_another_version(self, settings: Any, tmp_path: Path) -> None:
        message = self.line(change_description(write_run(tmp_path), config=settings))
        assert "are not those of this version (" in message
        assert message.endswith("): read the run with the version that wrote it")

    @pytest.mark.parametrize("text", [None, "", '{"event": "st'])
    def test_nothing_recorded_yet(self, text: str | None, tmp_path: Path) -> None:
        folder = write_run(tmp_path)
        (folder / "metrics.jsonl").unlink()
        if text is not None:
            (folder / "metrics.jsonl").write_text(text)
        run = read_run(folder)
        assert (run.steps, run.epochs, run.updates, collect_series(run)) == ([], [], 0, {})

    def test_a_last_line_cut_short_is_left_out(self, tmp_path: Path) -> None:
        path = write_run(tmp_path) / "metrics.jsonl"
        whole = read_run(tmp_path)
        path.write_text(path.read_text()[:-40])
        cut = read_run(tmp_path)
        assert cut.steps == whole.steps
        assert cut.epochs == whole.epochs[:-1]


def test_neither_torch_nor_pyplot_is_loaded(tmp_path: Path) -> None:
    write_run(tmp_path)
    script = f"""
import sys
from pathlib import Path
from feature_gan_kd.report import read_run, results_table, write_curves, write_page
assert not {{"matplotlib", "plotly", "jinja2"}} & sys.modules.keys()
run = read_run(Path({str(tmp_path)!r}))
results_table(run)
write_curves(run, Path({str(tmp_path)!r}) / "curves.png")
write_page([run], Path({str(tmp_path)!r}) / "report.html")
loaded = {{"torch", "timm", "accelerate", "datasets", "matplotlib.pyplot"}} & sys.modules.keys()
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)
    assert (tmp_path / "curves.png").stat().st_size > 10_000
