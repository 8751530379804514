"""The HTML file as it is written; what a browser makes of it is the matter of `test_browser.py`."""

from __future__ import annotations

import os
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs

from feature_gan_kd import UserError
from feature_gan_kd.report import read_run, write_page
from feature_gan_kd.report.page import distinct_labels
from tests.report.fake_runs import change_description, read_lines, write_lines, write_run

HOSTILE = "</script><script>hacked=1</script><img src=x onerror=hacked=1>\"'"


class Elements(HTMLParser):
    """The start tags of a page, and the text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keeps it."""
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Keeps it, with single spaces."""
        if self.tags and self.tags[-1][0] not in ("script", "style"):
            self.text += " ".join([*data.split(), ""]) if data.strip() else ""

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [own for name, own in self.tags if name == tag and attributes.items() <= own.items()]


def page_of(*folders: Path) -> str:
    """The page without the library of the charts."""
    output = folders[0] / "report.html"
    write_page([read_run(folder) for folder in folders], output)
    text, library = output.read_text(), get_plotlyjs()
    assert text.count(library) == 1
    return text.replace(library, "")


def elements_of(*folders: Path) -> Elements:
    return Elements(page_of(*folders))


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    text = page_of(write_run(tmp_path / "a"), write_run(tmp_path / "b"))
    assert not re.findall(r"https?:|//[a-z]|@import|url\(", re.sub(r"^\s*// .*", "", text, flags=re.MULTILINE))
    elements = Elements(text)
    assert [own for _, own in elements.tags if {"src", "href", "action", "data"} & own.keys()] == []
    (policy,) = elements.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert str(policy["content"]).startswith("default-src 'none'; ")


def test_every_chart_has_words_and_a_table(tmp_path: Path) -> None:
    elements = elements_of(write_run(tmp_path))
    charts = elements.all("div", **{"class": "plot", "role": "img"})
    assert len(charts) == len(elements.all("figure")) == len(elements.all("details")) == 8
    assert str(charts[0]["aria-label"]).startswith("Top-1 accuracy on the evaluation images, in %. 0 cifar_resnet20")
    (graph,) = elements.all("svg", role="img")
    assert "0 cifar_resnet20 teaches 1 cifar_resnet32." in str(graph["aria-label"])
    assert all(own.get("aria-pressed") == "true" for own in elements.all("button"))
    assert "Figures as a table epoch 0 cifar_resnet20 1 cifar_resnet32 ensemble 1 62 62.25 71 2 64 " in elements.text


def test_a_run_in_which_no_model_teaches_has_no_arrow(tmp_path: Path) -> None:
    elements = elements_of(write_run(tmp_path, method="vanilla"))
    (drawing,) = elements.all("svg", role="img")
    assert drawing["aria-label"] == "Topology of 2 models: no model teaches another."
    assert elements.all("polygon") == elements.all("path") == []
    assert "No model teaches another: each learns from the labels alone." in elements.text
    assert "Each arrow" not in elements.text


def test_origin_stands_at_the_end(tmp_path: Path) -> None:
    change_description(
        write_run(tmp_path),
        command="feature-gan-kd train --models a b",
        versions={"torch": "2.15.0", "python": "3.11.7"},
        device="cpu",
        processes=2,
        data={"name": "uoft-cs/cifar100", "fingerprint": "67380bef"},
    )
    text = elements_of(tmp_path).text
    end = text[text.index("Command, settings, versions and data") :]
    for words in (
        "feature-gan-kd train --models a b",
        "fingerprint 67380bef",
        "torch 2.15.0",
        "device cpu, 2 processes",
        "batch_size 128",
        "method afd",
    ):
        assert words in end


def test_a_run_without_command_and_data(tmp_path: Path) -> None:
    change_description(write_run(tmp_path), data=None, frozen=[])
    text = elements_of(tmp_path).text
    assert "Command not recorded " in text
    assert "unnamed data" in text


class TestStates:
    @staticmethod
    def notices(folder: Path) -> list[str]:
        return re.findall(r'<p class="notice">(.*?)</p>', page_of(folder))

    def test_finished(self, tmp_path: Path) -> None:
        assert self.notices(write_run(tmp_path)) == []

    def test_still_going(self, tmp_path: Path) -> None:
        folder = write_run(tmp_path, epochs=2, planned=5)
        os.utime(folder / "metrics.jsonl", (1e9, 1e9))
        expected = "Not finished: 2 of 5 epochs, 16 updates. Last written 2001-09-09 01:46 UTC."
        assert self.notices(folder) == [expected]

    def test_killed_inside_its_last_line(self, tmp_path: Path) -> None:
        path = write_run(tmp_path, epochs=3) / "metrics.jsonl"
        path.write_text(path.read_text()[:-40])
        assert self.notices(tmp_path)[0].startswith("Not finished: 2 of 3 epochs, 24 updates.")

    def test_not_every_epoch_is_evaluated(self, tmp_path: Path) -> None:
        lines = read_lines(write_run(tmp_path, epochs=4, planned=4))
        write_lines(tmp_path, [line for line in lines if line["event"] == "step" or line["epoch"] % 2 == 0])
        assert self.notices(tmp_path) == []
        assert "4 of 4 epochs" in elements_of(tmp_path).text

    def test_ended_early(self, tmp_path: Path) -> None:
        lines = read_lines(write_run(tmp_path, epochs=2, planned=5))
        write_lines(tmp_path, [*lines[:-1], {**lines[-1], "stopped": True}])
        assert self.notices(tmp_path) == [
            "Stopped after epoch 2 of 5: early stopping, or another callback, ended the run."
        ]

    def test_before_the_first_epoch(self, tmp_path: Path) -> None:
        text = elements_of(write_run(tmp_path, epochs=0)).text
        assert "No epoch is evaluated yet." in text
        assert "Not finished: 0 of 3 epochs, 8 updates." in text

    def test_before_the_first_record(self, tmp_path: Path) -> None:
        (write_run(tmp_path) / "metrics.jsonl").unlink()
        assert self.notices(tmp_path) == ["Nothing is recorded yet."]

    def test_not_finite(self, tmp_path: Path) -> None:
        lines = read_lines(write_run(tmp_path))
        for line in lines[:4]:
            line["metrics"] |= {"train/kl/0": float("nan"), "train/skipped": 0.25}
        write_lines(tmp_path, lines)
        assert self.notices(tmp_path) == [
            "3 updates skipped: a loss or gradient was not finite.",
            "train/kl/0: 3 records not finite, the first at update 4; not drawn.",
        ]
        assert not re.search(r"\b(NaN|nan|inf|Infinity)\b", page_of(tmp_path))


class TestSeveralRuns:
    def test_differences(self, tmp_path: Path) -> None:
        text = elements_of(write_run(tmp_path / "a"), write_run(tmp_path / "b", method="logit", seed=4)).text
        assert "2 runs: a, b" in text
        assert "Settings that differ setting a b method afd logit adversarial_weight 1 0.0 seed 0 4 " in text
        assert "0 cifar_resnet20 a 62.00 64.00 2 b 62.00 +0.00 64.00 +0.00 2 " in text
        assert "Changes are percentage points above a." in text

    def test_the_same_settings(self, tmp_path: Path) -> None:
        text = elements_of(write_run(tmp_path / "a"), write_run(tmp_path / "b")).text
        assert "None: the runs have the same settings, data and versions." in text

    def test_all_kinds_together(self, tmp_path: Path) -> None:
        (write_run(tmp_path / "empty") / "metrics.jsonl").unlink()
        folders = [
            write_run(tmp_path / "pair"),
            tmp_path / "empty",
            write_run(tmp_path / "young", epochs=0, method="l1"),
            write_run(tmp_path / "four", names=list("abcd"), method="vanilla", epochs=1, planned=30),
        ]
        assert "4 runs: pair, empty, young, four" in elements_of(*folders).text

    def test_labels_are_as_long_as_they_have_to_be(self, tmp_path: Path) -> None:
        runs = [read_run(write_run(tmp_path / name)) for name in ("x/seed0", "y/seed0", "y/seed1")]
        assert distinct_labels(runs) == ["x/seed0", "y/seed0", "y/seed1"]
        assert distinct_labels(runs[1:]) == ["seed0", "seed1"]

    def test_one_folder_named_twice(self, tmp_path: Path) -> None:
        folder = write_run(tmp_path / "a")
        with pytest.raises(UserError, match="is named twice: name different runs"):
            write_page([read_run(folder), read_run(tmp_path / "a" / ".." / "a")], folder / "report.html")


def test_names_are_never_markup(tmp_path: Path) -> None:
    hostile, plain = (write_run(tmp_path / name, names=[name, "other"]) for name in ("hostile", "plain"))
    change_description(
        hostile,
        models=[{"name": HOSTILE}, {"name": "other"}],
        data={"name": HOSTILE, HOSTILE: 1},
        command=HOSTILE,
        versions={HOSTILE: HOSTILE},
        device=HOSTILE,
        config={**read_run(hostile).config.to_dict(), "train_split": HOSTILE},
        taps=[{"parameters": 1, "maps": [{"layer": HOSTILE, "shape": [HOSTILE]}]}] * 2,
    )
    change_description(plain, taps=[{"parameters": 1, "maps": [{"layer": "x", "shape": [1]}]}] * 2)
    for folders in ((hostile,), (plain, hostile)):
        elements = elements_of(*folders)
        assert len(elements.all("script")) == 3
        assert elements.all("img") == []
        assert [own for _, own in elements.tags if "onerror" in own] == []
        assert HOSTILE in elements.text


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    folder = change_description(write_run(tmp_path), command="train --output-dir \udcff")
    assert "train --output-dir ?" in elements_of(folder).text


class TestErrors:
    @pytest.mark.parametrize("module", ["plotly", "jinja2"])
    def test_without_the_extra(self, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        run = read_run(write_run(tmp_path))
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.delitem(sys.modules, "plotly.offline", raising=False)
        with pytest.raises(UserError) as caught:
            write_page([run], tmp_path / "report.html")
        assert str(caught.value) == f"report: {module} is not installed: pip install 'feature-gan-kd[report]'"
        assert not (tmp_path / "report.html").exists()

    def test_a_place_that_cannot_be_written(self, tmp_path: Path) -> None:
        run = read_run(write_run(tmp_path))
        with pytest.raises(UserError, match=r"output: .* cannot be written \(No such file or directory\)"):
            write_page([run], tmp_path / "missing" / "report.html")
        with pytest.raises(UserError, match=r"output: .* cannot be written"):
            write_page([run], tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "metrics.jsonl"]
