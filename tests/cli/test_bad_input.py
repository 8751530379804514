"""docs/errors.md, row by row: one line, exit status 2, nothing written and nothing lost."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import load_file

from feature_gan_kd import DistillConfig
from feature_gan_kd.cli import main
from feature_gan_kd.data import open_data
from feature_gan_kd.data.rng import permutation
from feature_gan_kd.models.normalisation import Normalisation
from tests.helpers.bad_inputs import BAD_ROW, CASES, PAIR, READ, TRAIN, Case, pictures, splits, table, write

ROOT = Path(__file__).parents[2]
PAGE, LATER = (ROOT / "docs" / "errors.md").read_text().split("## While a run trains")
# The line of every case; `…` stands for the words of a library, or for a path.
LINES = dict(
    row.split(" | ", 1) for row in (ROOT / "tests" / "helpers" / "bad_input_lines.txt").read_text().splitlines()
)
# The section of the page on each kind of case.
SECTIONS = {
    "image": "Images",
    "label": "Labels",
    "column": "Columns",
    "split": "Splits",
    "setting": "Settings",
    "run file": "Run files",
    "path": "Paths and data",
    "stream": "Streams",
    "predict": "Predict",
    "embed": "Features",
    "probe": "Features",
    "pictures": "Grad-CAM",
    "checkpoint": "Checkpoints",
    "weights": "Weights",
    "name": "Names",
    "device": "Devices and ports",
    "port": "Devices and ports",
}
WHILE_TRAINING = "image: cut short, found while training"


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good data, a finished run on them and a model that it published; no test may change them."""
    folder = tmp_path_factory.mktemp("good")
    write(folder / "data", train=table(), test=table())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        passes(f"{TRAIN} --output-dir run")
    shutil.copytree(folder / "run" / "networks" / "0-test_resnet", folder / "net")
    return folder


@pytest.fixture
def here(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present folder, with copies of what is good."""
    place = tmp_path / "here"
    shutil.copytree(good, place)
    monkeypatch.chdir(place)
    return place


def passes(command: str) -> str:
    """What a command that is right prints on stderr."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as printed:
        main(command.split())
    return printed.getvalue()


def contents(folder: Path) -> dict[str, bytes | str | None]:
    """Every file below a folder with its bytes, every link with its target, every folder with None."""
    found: dict[str, bytes | str | None] = {}
    for path in sorted(folder.rglob("*")):
        target = os.readlink(path) if path.is_symlink() else None
        found[str(path.relative_to(folder))] = target or (path.read_bytes() if path.is_file() else None)
    return found


def run_apart(case: Case) -> tuple[int, str]:
    """Exit status and stderr of a command in a process of its own; PORT in its environment is a port in use."""
    with socket.create_server(("", 0)) as server:
        port = str(server.getsockname()[1])
        given = {key: value.replace("PORT", port) for key, value in (case.environment or {}).items()}
        result = subprocess.run(
            [sys.executable, "-m", "feature_gan_kd", *case.args.split()],
            env={**os.environ, "OMP_NUM_THREADS": "1", **given},
            capture_output=True,
            text=True,
            timeout=120,
        )
    return result.returncode, result.stderr


def run_here(case: Case, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit status and stderr of a command in this process."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(case.args.split())
    return int(stop.value.code or 0), capsys.readouterr().err


def kind(name: str) -> tuple[str, bool]:
    """What is wrong, and whether that is a matter of a process of its own."""
    return name.split(":")[0], bool(CASES[name].environment)


def by_tier() -> Iterator[object]:
    """Every case; the first three of a kind that run here, and the first in a process of its own, are fast."""
    seen: Counter[tuple[str, bool]] = Counter()
    for name in CASES:
        seen[kind(name)] += 1
        most = 1 if CASES[name].environment else 3
        yield pytest.param(name, marks=[] if seen[kind(name)] <= most else pytest.mark.slow)


@pytest.mark.parametrize("name", list(by_tier()))
def test_one_line_and_nothing_written(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = CASES[name]
    if "CUDA_VISIBLE_DEVICES" in (case.environment or {}) and torch.version.cuda is None:
        pytest.skip("torch is built without CUDA, which the variable is for")
    case.change(here)
    before = contents(here.parent)
    status, printed = run_apart(case) if case.environment else run_here(case, capsys)
    agrees(name, printed)
    assert status == 2
    assert contents(here.parent) == before


def agrees(name: str, printed: str) -> None:
    """What was printed is the one line of the case; `…` stands for anything."""
    (line,) = printed.splitlines()
    pattern = re.escape(LINES[name]).replace("…", ".+")
    assert re.fullmatch(f"feature-gan-kd: error: {pattern}", line), f"{line}\n{LINES[name]}"


def section(title: str) -> str:
    """The text of the page below one heading."""
    _, _, rest = PAGE.partition(f"\n## {title}\n")
    assert rest, title
    return rest.partition("\n## ")[0]


def test_every_case_has_its_line_and_is_counted() -> None:
    assert sorted(LINES) == sorted([*CASES, WHILE_TRAINING])
    assert len(CASES) >= 40
    figures = f"{len(CASES)} mistakes refused, {len(READ)} odd images read, and one found while training"
    assert figures in (ROOT / "docs" / "reliability.md").read_text()


def test_the_page_says_where_every_line_points() -> None:
    """Each section names the options and parts of the input with which the lines of its cases begin."""
    assert set(SECTIONS.values()) == set(re.findall(r"^## (.+)$", PAGE, flags=re.MULTILINE))
    for name, line in LINES.items():
        where = line.split(": ")[0]
        if not re.search("[/…]", where) and where not in ("run", "nowhere"):  # a file or folder of the case's own
            assert re.search(rf"`{where}\b", section(SECTIONS[name.split(": ")[0]])), name


def test_the_page_says_how_every_odd_image_is_read() -> None:
    for name in READ:
        assert f"\n| {name.removeprefix('image: ')} | " in section("Images")


def test_the_lines_that_come_later_begin_as_the_code_has_it() -> None:
    sources = "".join(path.read_text() for path in sorted((ROOT / "feature_gan_kd").rglob("*.py")))
    beginnings = re.findall(r"^\| [^|]+ \| (?:a warning: )?`(\w+)` \|", LATER, flags=re.MULTILINE)
    assert beginnings == ["memory", "training", "discriminator", "discriminator"]
    assert [one for one in beginnings if not re.search(rf'"{one}(: | \{{)', sources)] == []


# Odd images that are no mistake.


def centre(name: str, size: int, augmentation: str) -> list[int]:
    """The colour of the odd image when it is read."""
    config = DistillConfig(augmentation=augmentation)  # type: ignore[arg-type]
    data = open_data("data", None, config, image_size=size, in_chans=3, stated=Normalisation((0.0,) * 3, (1.0,) * 3))
    images, _ = next(iter(data.evaluation.batches(batch_size=8, seed=0, epoch=0, device="cpu", train=False)))
    pixel = images[BAD_ROW, :, size // 2, size // 2] * 255
    return [round(value) for value in pixel.tolist()]


@pytest.mark.parametrize("name", READ)
def test_an_odd_image_is_read(name: str, here: Path) -> None:
    content, color = READ[name]
    images = pictures()
    splits(test=table([*images[:BAD_ROW], content, *images[BAD_ROW + 1 :]]))(here)
    for augmentation in ("crop", "resized-crop"):  # in memory, and decoded as they are read
        assert centre(name, 16, augmentation) == pytest.approx(color, abs=1)


def test_a_run_on_odd_images(here: Path) -> None:
    odd = [content for content, _ in READ.values()]
    splits(train=table([*odd, *pictures(1)]))(here)
    assert "epoch 1/1" in passes(f"{TRAIN} --output-dir new")


# Images that cannot be decoded are passed over where that is asked for.


def test_bad_images_are_left_out_and_counted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = pictures()
    train, test = table([b"", *images[1:]]), table([*images[:5], b"no image", None, images[7]])
    write(here / "data", train=train, test=test)
    printed = passes(f"{TRAIN} --output-dir new --skip-bad-images").splitlines()
    assert "images that cannot be decoded: 1, left out; the first is image 0 of split 'train'" in printed
    assert "images that cannot be decoded: 2, left out; the first is image 5 of split 'test'" in printed
    about = json.loads((here / "new" / "config.json").read_text())["data"]
    assert (about["train_images"], about["evaluation_images"], about["skipped_images"]) == (7, 6, 3)
    status, line = run_here(Case("evaluate new"), capsys)
    assert (status, "image 5 of split 'test' cannot be decoded" in line) == (2, True)
    main(["evaluate", "new", "--json", "--skip-bad-images"])
    assert json.loads(capsys.readouterr().out)["images"] == 6


def test_a_bad_image_while_training(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was trained before is kept; with the option the run goes on as one that had it from the beginning."""
    count = 520
    looked_at = set(torch.linspace(0, count - 1, 500).long().tolist())  # for mean and std, before the training
    third_batch = permutation(count, 0, 0)[2 * 128 : 3 * 128].tolist()
    bad = next(row for row in third_batch if row not in looked_at)
    images = pictures(count)
    train = table([*images[:bad], b"no image", *images[bad + 1 :]], [k % 2 for k in range(count)])
    write(here / "data", train=train, test=table())
    options = (
        f"{PAIR.replace('--batch-size 8', '--batch-size 128')} --augmentation resized-crop --checkpoint-every-steps 2"
    )
    command = f"train {options} --data data --output-dir"
    status, printed = run_here(Case(f"{command} new"), capsys)
    assert status == 2
    agrees(WHILE_TRAINING, printed.splitlines()[-1].replace(f"image {bad} ", "image 301 "))
    assert [path.name for path in (here / "new" / "checkpoints").iterdir()] == ["step-2"]
    said = f"images that cannot be decoded: 1, replaced by the next; the first is image {bad} of split 'train'\n"
    printed = passes(f"{command} new --resume --skip-bad-images")
    assert "resuming after step 2 of 5" in printed
    assert printed.count(said) == 1
    passes(f"{command} whole --skip-bad-images")
    for name in ("0-test_resnet", "1-test_vit"):
        one, other = (load_file(here / run / "networks" / name / "model.safetensors") for run in ("new", "whole"))
        assert all(torch.equal(one[key], other[key]) for key in one)
