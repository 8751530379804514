"""Everything wrong that a user may hand in: how it comes about, and the command that meets it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

PAIR = "--models test_resnet test_vit --image-size 32 --batch-size 8 --epochs 1 --lr 0.01"
TRAIN = f"train {PAIR} --data data"
RESUME = f"{TRAIN} --output-dir run --resume"
LABELS = [0, 1] * 4
TEXTS = ["cat", "dog"] * 4
BAD_ROW = 3
Change = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """What is wrong.

    Attributes:
        args: of the command, run in a folder with good `data` (parquet), a finished `run` and a published model,
            `net`.
        change: what is done to that folder first.
        environment: of the command; given ones make it a process of its own.
    """

    args: str
    change: Change = lambda here: None
    environment: dict[str, str] | None = None


def train(options: str = "", change: Change = lambda here: None, **environment: str) -> Case:
    """A training that would begin a new run. A later option overrides an earlier one."""
    return Case(f"{TRAIN} --output-dir new {options}", change, environment or None)


def models(name: str, change: Change = lambda here: None) -> Case:
    """A training with another first model."""
    return Case(f"{TRAIN} --output-dir new".replace("test_resnet", name), change)


# Data.


def pictures(count: int = 8, seed: int = 0) -> list[Any]:
    """Random images of 12 x 12 pixels."""
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)) for _ in range(count)]


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """An image as a file's content."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def table(images: Sequence[Any] | None = None, labels: Sequence[Any] = LABELS, column: str = "label") -> Any:
    """A data set; an image is one of PIL's, the content of a file, or None."""
    images = pictures(len(labels)) if images is None else images
    contents = [encoded(one) if isinstance(one, Image.Image) else one for one in images]
    columns = {"image": [one if one is None else {"bytes": one, "path": None} for one in contents], column: labels}
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())


def write(folder: Path, **splits: Any) -> None:
    """A folder of parquet files in the place of what is there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, split in splits.items():
        split.to_parquet(folder / f"{name}-0.parquet")


def splits(**given: Any) -> Change:
    """The data: training and test images, good where not given."""
    return lambda here: write(here / "data", **{"train": table(), "test": table(), **given})


def one_split(split: Any) -> Change:
    """The data: training images alone."""
    return lambda here: write(here / "data", train=split)


def image(content: bytes | Image.Image | None) -> Change:
    """Row 3 of the training images is another."""
    images = pictures()
    return splits(train=table([*images[:BAD_ROW], content, *images[BAD_ROW + 1 :]]))


def labels(*values: Any, column: str = "label") -> Change:
    """Other labels of the training images."""
    return splits(train=table(labels=values, column=column))


def png(width: int, height: int) -> bytes:
    """The beginning of a PNG of any size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b""))


def content(name: str, data: bytes) -> Change:
    """A file."""
    return lambda here: (here / name).write_bytes(data)


def written(text: str, name: str = "run.yaml") -> Case:
    """A training by a run file."""

    def change(here: Path) -> None:
        (here / "files").mkdir()
        (here / "files" / name).write_text(text)

    return Case(f"train --config files/{name} --output-dir new", change)


def cut(name: str, last: int = 9) -> Change:
    """A file without its last bytes."""
    return lambda here: (here / name).write_bytes((here / name).read_bytes()[:-last])


def connection(name: str, target: str) -> Change:
    """A symbolic link in the place of what is there."""

    def change(here: Path) -> None:
        shutil.rmtree(here / name, ignore_errors=True)
        (here / name).symlink_to(target)

    return change


def paths(here: Path) -> None:
    """Images as paths of files that are not there."""
    split = datasets.Dataset.from_dict({"file": [f"{k}.png" for k in range(8)], "label": LABELS})
    write(here / "data", train=split, test=split)


def saved_to_disk(here: Path) -> None:
    """The data as `save_to_disk` writes them, cut short."""
    shutil.rmtree(here / "data")
    table().save_to_disk(here / "data")
    cut("data/data-00000-of-00001.arrow", 3000)(here)


def image_folder(here: Path) -> None:
    """The data as a folder of images per class, one of them no image."""
    shutil.rmtree(here / "data")
    for k, picture in enumerate(pictures(20)):
        place = here / "data" / ("cat", "dog")[k % 2] / f"{k:02}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        picture.save(place)
    (here / "data" / "cat" / "04.png").write_bytes(b"no image")


def folder_of(*files: str, metadata: str | None = None) -> Change:
    """The data as a folder of image files."""

    def change(here: Path) -> None:
        shutil.rmtree(here / "data")
        for name, picture in zip(files, pictures(len(files)), strict=True):
            (here / "data" / name).parent.mkdir(parents=True, exist_ok=True)
            picture.save(here / "data" / name)
        if metadata is not None:
            (here / "data" / "metadata.csv").write_text(metadata)

    return change


def closed(here: Path) -> None:
    """A folder that nobody may write to."""
    (here / "closed").mkdir(mode=0o500)
    if os.access(here / "closed", os.W_OK):  # as root, for whom only the system's own folders are closed
        (here / "closed").rmdir()
        (here / "closed").symlink_to("/proc")


# Checkpoints and weights.

STEP = Path("run/checkpoints/step-1")
WEIGHTS = "model-0.safetensors"


def flip(name: Path | str, at: int | bytes, bit: int = 1) -> Change:
    """A file with one bit changed, at a position or in the first byte of what is found there."""

    def change(here: Path) -> None:
        data = bytearray((here / name).read_bytes())
        data[at if isinstance(at, int) else data.index(at)] ^= bit
        (here / name).write_bytes(data)

    return change


def manifest(edit: Callable[[dict[str, Any]], object], *, sealed: bool = True) -> Change:
    """Another manifest; a sealed one is as if the program had written it."""

    def change(here: Path) -> None:
        path = here / STEP / "manifest.json"
        values = json.loads(path.read_text())
        edit(values)
        if sealed:
            values["files"] = {
                name: hashlib.sha256((here / STEP / name).read_bytes()).hexdigest() for name in values["files"]
            }
            del values["digest"]
            values["digest"] = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
        path.write_text(json.dumps(values))

    return change


def described(**changes: Any) -> Change:
    """A checkpoint whose first model is described otherwise."""
    return manifest(lambda values: values["signature"]["models"][0].update(changes))


def tensors(path: Path | str, edit: Callable[[torch.Tensor], torch.Tensor], then: Change = lambda here: None) -> Change:
    """Another first convolution in a file of weights."""

    def change(here: Path) -> None:
        found = {key: value.clone() for key, value in load_file(here / path).items()}
        found["conv1.0.weight"] = edit(found["conv1.0.weight"])
        save_file(found, here / path)
        then(here)

    return change


def with_nan(weights: torch.Tensor) -> torch.Tensor:
    """The same, one of them NaN."""
    weights.view(-1)[5] = torch.nan
    return weights


def infinite(weights: torch.Tensor) -> torch.Tensor:
    """Weights with an infinite value, of which every feature is NaN or infinite."""
    weights.view(-1)[5] = torch.inf
    return weights


def lying(path: str) -> Change:
    """Weights whose header says that it is a terabyte long."""
    return lambda here: (here / path).write_bytes(struct.pack("<Q", 2**40) + (here / path).read_bytes()[8:])


def elsewhere(path: str) -> Change:
    """Weights whose header says that a tensor is longer than it is."""

    def change(here: Path) -> None:
        data = (here / path).read_bytes()
        end = 8 + struct.unpack("<Q", data[:8])[0]
        head = json.loads(data[8:end])
        head["conv1.0.weight"]["data_offsets"][1] += 10**9
        text = json.dumps(head).encode()
        (here / path).write_bytes(struct.pack("<Q", len(text)) + text + data[end:])

    return change


class Bomb:
    """Its pickle runs code: reading it leaves a file, `boom`."""

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        """Called when it is read."""
        return Path.touch, (Path("boom"),)


def pickled(here: Path) -> None:
    """The published model with a pickle in place of its weights, under the name that such files have."""
    (here / PUBLISHED).unlink()
    (here / "net/pytorch_model.bin").write_bytes(pickle.dumps({"conv1.0.weight": Bomb()}))


def pickled_by_torch(here: Path) -> None:
    """The same in torch's own container."""
    (here / PUBLISHED).unlink()
    torch.save({"conv1.0.weight": Bomb()}, here / "net/pytorch_model.bin")


def with_config(**changes: Any) -> Change:
    """The published model with another `config.json`."""
    path = Path("net/config.json")
    return lambda here: (here / path).write_text(json.dumps({**json.loads((here / path).read_text()), **changes}))


def picture(here: Path) -> None:
    """A good image file."""
    pictures(1)[0].save(here / "good.png")


def also(change: Change) -> Change:
    """The change, and a good image file."""
    return lambda here: (picture(here), change(here))


PUBLISHED = "net/model.safetensors"
BEST = "run/networks/0-test_resnet-best/model.safetensors"

CASES = {
    # Images.
    "image: cut short": train(change=image(encoded(pictures(1)[0])[:60])),
    "image: zero bytes": train(change=image(b"")),
    "image: text in its place": train(change=image(b"no image")),
    "image: none in the row": train(change=image(None)),
    "image: 400 million pixels": train(change=image(png(20_000, 20_000))),
    "image: a file of an image folder is none": train(change=image_folder),
    "image: 12 bits in a file of 16": train(
        change=image(Image.fromarray(np.arange(144, dtype=np.uint16).reshape(12, 12)))
    ),
    "image: floats above 1": train(change=image(encoded(Image.new("F", (12, 12), 200.0), "TIFF"))),
    "image: a path that leads nowhere": train("--image-column file", paths),
    # Labels.
    "label: fractions": train(change=labels(*[0.0, 1.0] * 4)),
    "label: fractions, in a column that is named": train("--label-column label", labels(*[0.0, 1.0] * 4)),
    "label: missing in every row": train(change=one_split(table(labels=[None] * 8))),
    "label: -1 in every row": train(change=labels(*[-1] * 8)),
    "label: -1 in every row that is evaluated on": train("--eval-split test", splits(test=table(labels=[-1] * 8))),
    "label: missing where labels are mixed": train("--mixup 0.2", labels(0, 1, None, *[1] * 5)),
    "label: missing where classes are balanced": train("--balanced-sampling", labels(0, 1, None, *[1] * 5)),
    "label: a share of a batch where none is missing": train("--labeled-fraction 0.5"),
    "label: a share that is less than one image": train("--labeled-fraction 0.01", labels(0, 1, -1, *[1] * 5)),
    "label: negative": train(change=labels(0, 1, -2, *[1] * 5)),
    "label: outside the classes": train("--num-classes 2", labels(0, 1, 5, *[1] * 5)),
    "label: an identifier in place of a class": train(change=labels(0, 1, 4_000_000_000, *[1] * 5)),
    "label: several to an image": train("--label-column label", one_split(table(labels=[[0, 1], [1]] * 4))),
    "label: one class only": train(change=splits(train=table(labels=[1] * 8), test=table(labels=[1] * 8))),
    "label: one class beside -1": train(change=labels(*[-1, 1] * 4)),
    "label: a text that may mean none": train(change=labels("cat", "dog", "nan", *["dog"] * 5)),
    "label: two of one file": train(
        change=folder_of("0.png", "1.png", metadata="file_name,label\n0.png,cat\n1.png,dog\n0.png,dog\n")
    ),
    "label: an empty text": train(change=labels("cat", "dog", "", *["dog"] * 5)),
    "label: texts that differ in letter case": train(change=labels("cat", "dog", "Dog ", *["dog"] * 5)),
    "label: a text that training does not have": train(
        change=splits(train=table(labels=TEXTS), test=table(labels=["cat", "cow"] * 4))
    ),
    # Columns and splits.
    "column: none of images": train(change=one_split(table().remove_columns("image"))),
    "column: none of labels": train(change=one_split(table(column="id"))),
    "column: images alone": train(change=one_split(table().remove_columns("label"))),
    "column: a name that is not there": train("--label-column klass"),
    "column: labels named as images": train("--image-column label"),
    "column: images named as labels": train("--label-column image"),
    "column: other ones in another split": train(change=splits(test=table(column="klass"))),
    "split: a name that is not there": train("--train-split tarin"),
    "split: evaluated is what was trained on": train("--train-split test --eval-split test"),
    "split: no rows": train(change=splits(train=table().select([]))),
    "split: no rows to evaluate on": train(change=splits(test=table().select([]))),
    "split: too few rows for similarity": train("--similarity-images 4", splits(test=table().select(range(3)))),
    "split: one row": train(change=splits(train=table().select([0]))),
    "split: too few rows to hold some out": train(change=one_split(table().select([0, 1]))),
    # Settings.
    "run file: a key that is unknown": written("models: [a, b]\nconfig:\n  epochs: 1\n  epoch: 1\n"),
    "run file: a wrong type": written("models: [a, b]\nconfig: {epochs: 3, lr: fast}\n"),
    "run file: another version": written("version: 2\n"),
    "run file: YAML that builds objects": written("models: !!python/object/apply:os.system ['touch made']\n"),
    "run file: a setting at the top": written("models: [a, b]\nlr: 0.1\n"),
    "run file: a setting that all models share": written("models:\n  - a\n  - {model: b, epochs: 3}\n"),
    "run file: a key given twice": written("frozen: [0]\nmodels: [a, b]\nfrozen: [1]\n"),
    "run file: no YAML": written("models: [a\nconfig: 3\n"),
    "run file: another ending": Case("train --config run/metrics.jsonl --output-dir new"),
    "run file: not there": Case("train --config none/run.yaml --output-dir new"),
    "run file: a run on an object": written('{"versions": {}, "models": ["test_resnet", "test_vit"]}', "config.json"),
    "setting: unknown": train("--epoch 3"),
    "setting: wrong type": train("--epochs many"),
    "setting: negative": train("--lr -0.1"),
    "setting: not a number": train("--lr nan"),
    "setting: infinite": train("--temperature inf"),
    "setting: not one of the choices": train("--topology ring"),
    "setting: more parts than images": train("--grad-accum-steps 9"),
    "setting: fp16 on a CPU": train("--mixed-precision fp16"),
    "setting: fp16 in recordings": train("--mixed-precision fp16 --cuda-graphs"),
    "setting: milestones that fall": train("--milestones 0.75 0.5"),
    "setting: an augmentation that timm does not know": train("--aa randaug-m9"),
    "setting: an augmentation with a part that timm passes over": train("--aa rand-m9-loud"),
    "setting: an augmentation where none is wanted": train("--augmentation none --aa rand-m9"),
    "setting: crops of images that are not cropped at random sizes": train("--scale 0.3 1"),
    "setting: bounds in the wrong order": train("--augmentation resized-crop --scale 1 0.3"),
    "setting: jitter beside what replaces it": train("--aa rand-m9 --color-jitter 0.4"),
    "setting: a negative jitter": train("--color-jitter -0.4"),
    "setting: a probability above one": train("--reprob 1.5"),
    "setting: how to erase where nothing is erased": train("--remode const"),
    "setting: all of the label smoothed away": train("--smoothing 1"),
    "setting: classes balanced twice": train("--class-weights --balanced-sampling"),
    "setting: mixed images under a loss that asks for their class": train("--logit-loss decoupled --cutmix 1"),
    "setting: a norm of discriminators without one": train("--discriminator-classes --discriminator-norm group"),
    "setting: a warm-up stated twice": train("--warmup-epochs 0.5 --warmup-fraction 0.5"),
    "setting: a warm-up as long as the run": train("--warmup-epochs 1"),
    "setting: no model learns": train("--frozen 0 1"),
    "setting: another number of classes than the data": train(
        "--num-classes 7", splits(train=table(labels=TEXTS), test=table(labels=TEXTS))
    ),
    "setting: a tracker that is not known": train("--log-with tensorbord"),
    "setting: one model": Case("train --models test_resnet --data data --output-dir new"),
    "setting: an empty value": Case("train --output-dir="),
    # Paths.
    "path: no such data": train("--data nowhere/to/be/found"),
    "path: no such images without labels": train("--unlabeled nowhere/to/be/found"),
    "path: another folder of that name was read before": train("--data Data"),
    "path: a link in a circle": train("--data circle", connection("circle", "circle")),
    "path: a folder without data": train("--data empty", lambda here: (here / "empty").mkdir()),
    "path: a file of no known kind": train("--data data.csv", content("data.csv", b"image,label\n")),
    "path: an empty file": train("--data data.parquet", content("data.parquet", b"")),
    "path: a file cut short": train(change=cut("data/train-0.parquet")),
    "path: images in no folder of a class": train(change=folder_of("train/1.png", "test/cat/1.png")),
    "path: a folder that may be a split or a class": train(change=folder_of("train/cat/1.png", "car/2021/1.png")),
    "path: two folders of one split": train(change=folder_of("val/cat/1.png", "valid/cat/1.png")),
    "path: one metadata file for several splits": train(
        change=folder_of("train/1.png", "test/1.png", metadata="file_name,label\ntrain/1.png,0\n")
    ),
    "stream: of unknown length": train("--streaming"),
    "stream: images without labels beside it": train(
        "--streaming --max-train-samples 8 --num-classes 2 --unlabeled data"
    ),
    "stream: nothing to evaluate on": train("--streaming --max-train-samples 8 --num-classes 2", one_split(table())),
    "stream: classes of equal size": train(
        "--streaming --max-train-samples 8 --max-eval-samples 8 --balanced-sampling"
    ),
    "stream: texts as labels": train("--streaming --max-train-samples 8", splits(train=table(labels=TEXTS))),
    "stream: what save_to_disk wrote": train("--streaming", lambda here: table().save_to_disk(here / "data")),
    "path: what save_to_disk wrote, cut short": train(change=saved_to_disk),
    "path: no such evaluation data": train("--eval-data other.parquet"),
    "path: a file where the run is to be": train("--output-dir file", content("file", b"")),
    "path: a run where the run is to be": train("--output-dir run"),
    "path: a closed folder where the run is to be": train("--output-dir closed/run", closed),
    "path: a link in a circle where the run is to be": train("--output-dir circle", connection("circle", "circle")),
    "path: a folder where a file of the run is to be": train(
        "--output-dir odd", lambda here: (here / "odd" / "metrics.jsonl").mkdir(parents=True)
    ),
    "path: no such run": Case("evaluate nowhere"),
    "path: no such run, its best weights": Case("evaluate nowhere --which best"),
    "path: no such run to publish": Case("export nowhere out"),
    "path: a file in place of a run": Case("evaluate file", content("file", b"")),
    "path: a published model in place of a run": Case("report net"),
    "path: a file of the run where a page is to be": Case("report run --output run/config.json"),
    "path: a file where models are to be": Case("export run file", content("file", b"")),
    "path: the run's own models where models are to be": Case("export run run/networks --which best"),
    # What is published, put to use.
    "predict: no such model": Case("predict nowhere good.png", picture),
    "predict: a run in place of a model": Case("predict run good.png", picture),
    "predict: no such image": Case("predict net image.png"),
    "predict: a folder without images": Case("predict net data"),
    "predict: an empty folder": Case("predict net void", lambda here: (here / "void").mkdir()),
    "predict: a timm name without weights": Case("predict cifar_resnet20 good.png", picture),
    "predict: weights that timm does not have": Case("predict resnet18.own good.png", picture),
    "predict: a name that is unknown": Case("predict resnet51 good.png", picture),
    "predict: a table and lines": Case("predict net good.png --json --csv out.csv", picture),
    "predict: a table where no folder is": Case("predict net good.png --csv nowhere/out.csv", picture),
    "predict: a table in place of an image": Case("predict net good.png --csv good.png", picture),
    "predict: a text in place of an image": Case("predict net text.png", content("text.png", b"no image")),
    "predict: no class at all": Case("predict net good.png --top 0", picture),
    "predict: a graph that is none": Case("predict net good.png", also(content("net/model.onnx", b"no graph"))),
    "predict: a file that can run code": Case("predict net good.png", also(content("net/model.pt2", b"code"))),
    "predict: a description that is cut short": Case("predict net good.png", also(cut("net/config.json"))),
    "embed: no such model": Case("embed nowhere good.png -o out.npy", picture),
    "embed: no such layer": Case("embed net good.png -o out.npy --layer layer9", picture),
    "embed: features that are not finite": Case("embed net good.png -o out.npy", also(tensors(PUBLISHED, infinite))),
    "embed: a file of no known kind": Case("embed net good.png -o out.csv", picture),
    "embed: a file where no folder is": Case("embed net good.png -o nowhere/out.npy", picture),
    "embed: a file in place of an image": Case("embed net out.npy -o out.npy", content("out.npy", b"")),
    "embed: a graph": Case("embed net good.png -o out.npy", also(content("net/model.onnx", b"no graph"))),
    "embed: no image at once": Case("embed net good.png -o out.npy --batch-size 0", picture),
    "embed: a text in place of an image": Case("embed net text.png -o out.npy", content("text.png", b"no image")),
    "probe: more neighbours than labelled images": Case("probe net --data data"),
    "probe: a single class": Case(
        "probe net --data data --k 3", splits(train=table(labels=[1] * 8), test=table(labels=[1] * 8))
    ),
    "probe: images without labels": Case(
        "probe net --data data --k 3",
        splits(train=table().remove_columns("label"), test=table().remove_columns("label")),
    ),
    "probe: features that are not finite": Case("probe net --data data --k 3", tensors(PUBLISHED, infinite)),
    "probe: no such layer": Case("probe net --data data --k 3 --layer layer9"),
    "probe: a temperature of zero": Case("probe net --data data --k 3 --temperature 0"),
    "probe: no neighbours": Case("probe net --data data --k 0"),
    "probe: no such split": Case("probe net --data data --k 3 --train-split dev"),
    "probe: a graph": Case("probe net --data data --k 3", content("net/model.pt2", b"code")),
    # Pictures.
    "pictures: before the first evaluation": Case(
        "report run --grad-cam 0", lambda here: shutil.rmtree(here / "run" / "networks")
    ),
    "pictures: of an image that is not there": Case("report run --grad-cam 3 8"),
    "pictures: of no image": Case("report run --grad-cam"),
    "pictures: data for none": Case("report run --data data"),
    "pictures: damaged": Case("report run", lambda here: (here / "run" / "grad-cam").mkdir()),
    # Checkpoints.
    "checkpoint: cut short": Case("evaluate run", cut(f"{STEP}/{WEIGHTS}")),
    "checkpoint: a bit flipped": Case(RESUME, flip(STEP / WEIGHTS, -1)),
    "checkpoint: a bit flipped in the manifest": Case("export run out", flip(STEP / "manifest.json", b"test_resnet")),
    "checkpoint: a file is missing": Case("evaluate run", lambda here: (here / STEP / WEIGHTS).unlink()),
    "checkpoint: half written": Case(RESUME, lambda here: (here / STEP / "manifest.json").unlink()),
    "checkpoint: of another architecture": Case(RESUME.replace("test_vit", "test_resnet")),
    "checkpoint: of another order": Case(RESUME.replace("test_resnet test_vit", "test_vit test_resnet")),
    "checkpoint: of another number of classes": Case(RESUME, labels(*[0, 1, 2, 3] * 2)),
    "checkpoint: of other settings": Case(f"{RESUME} --weight-decay 0.5"),
    "checkpoint: of other images": Case(RESUME, splits(train=table(pictures(8, seed=5)))),
    "checkpoint: of a newer format": Case("evaluate run", manifest(lambda values: values.update(format=2))),
    "checkpoint: NaN inside": Case(RESUME, tensors(STEP / WEIGHTS, with_nan, manifest(lambda values: None))),
    "checkpoint: a tensor of another shape": Case(
        "evaluate run", tensors(STEP / WEIGHTS, lambda weights: weights[:1].clone(), manifest(lambda values: None))
    ),
    "checkpoint: a path for a name": Case("export run out", described(name="x/../../../outside")),
    "checkpoint: a model that would load files": Case("evaluate run", described(architecture="local-dir:net")),
    "checkpoint: an argument that would load files": Case(
        "evaluate run", described(model_args={"checkpoint_path": "net/model.pth"})
    ),
    # Weights.
    "weights: of another shape": models("local-dir:net", tensors(PUBLISHED, lambda weights: weights[:1].clone())),
    "weights: NaN inside": models("local-dir:net", tensors(PUBLISHED, with_nan)),
    "weights: a header that lies about itself": models("local-dir:net", lying(PUBLISHED)),
    "weights: a header that lies about a tensor": models("local-dir:net", elsewhere(PUBLISHED)),
    "weights: a pickle that would run code": models("local-dir:net", pickled),
    "weights: a pickle of torch's that would run code": models("local-dir:net", pickled_by_torch),
    "weights: an empty file": models("local-dir:net", content(PUBLISHED, b"")),
    "weights: cut short": models("local-dir:net", cut(PUBLISHED)),
    "weights: a description that is no JSON": models("local-dir:net", content("net/config.json", b"{")),
    "weights: a description of the wrong kind": models("local-dir:net", with_config(model_args=[1])),
    "weights: the best ones cut short": Case("export run out --which best", cut(BEST)),
    "weights: NaN in the best ones": Case("export run out --which best", tensors(BEST, with_nan)),
    # Names.
    "name: no such model": models("resnt18"),
    "name: a path in place of a model": models("../../net"),
    "name: a path out of the hub's cache": models("hf-hub:../../net"),
    "name: of no source that is known": models("ftp:net"),
    "name: a path out of the hub's data sets": train("--data user/../../data"),
    "name: an address in place of data": train("--data https://example.com/data"),
    # The launch.
    "device: graphs of CUDA on a CPU": train("--cuda-graphs", ACCELERATE_USE_CPU="1"),
    "device: one that is not there": train(ACCELERATE_TORCH_DEVICE="cuda:99"),
    "device: a GPU number that is not there": train(CUDA_VISIBLE_DEVICES="99", ACCELERATE_USE_CPU="0"),
    "port: in use": train(
        RANK="0", LOCAL_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="PORT", ACCELERATE_USE_CPU="1"
    ),
}

GREEN, RED = (10, 200, 30), (200, 20, 30)


def plain(mode: str = "RGB", color: Any = GREEN) -> Image.Image:
    """An image of one colour."""
    return Image.new(mode, (12, 12), color)


def wide() -> Image.Image:
    """Green in the middle, red beside it."""
    image = Image.new("RGB", (20_000, 64), RED)
    image.paste(GREEN, (9_968, 0, 10_032, 64))
    return image


# Odd images that are read: the content of a file, and the colour that it has.
READ: dict[str, tuple[bytes, tuple[int, int, int]]] = {
    "image: CMYK": (encoded(plain("CMYK", (255, 0, 0, 0)), "JPEG", quality=100), (0, 255, 255)),
    "image: RGBA": (encoded(plain("RGBA", (*GREEN, 0))), GREEN),
    "image: 16 bits": (encoded(Image.fromarray(np.full((12, 12), 40_000, np.uint16))), (156, 156, 156)),
    "image: a palette": (encoded(plain().convert("P", palette=Image.Palette.ADAPTIVE)), GREEN),
    "image: animated": (encoded(plain(), "GIF", save_all=True, append_images=[plain(color=RED)]), GREEN),
    "image: one pixel": (encoded(plain().resize((1, 1))), GREEN),
    "image: 20,000 pixels wide": (encoded(wide()), GREEN),
}
