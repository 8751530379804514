"""Folders of image files: which split and which class each file belongs to.

Only folders decide. The folders at the top are splits if all of them are named as splits are; the folder directly below
a split, or below the top where there are no splits, is the class of all images in it, at any depth. Names of files and
of deeper folders decide nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feature_gan_kd.data.labels import check_class_names
from feature_gan_kd.data.metadata_csv import read_metadata
from feature_gan_kd.data.rng import permutation
from feature_gan_kd.utils.errors import UserError
from feature_gan_kd.utils.image_files import extension, left_out_note, real_paths, walk

SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "dev", "val"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
# Files that hold images themselves. Where they outnumber the image files of a folder, it is no image folder.
_CONTAINERS = (".parquet", ".arrow", ".zip", ".tar", ".tgz", ".gz")
# A stream reads the files of a folder in this many parts, which its shuffling puts into another order.
_STREAM_PARTS = 64


@dataclass(frozen=True)
class _Listing:
    """The files of a folder, as paths relative to it with `/`, sorted.

    Attributes:
        images: image files.
        metadata: files that give images labels, as `datasets` reads them.
        others: all other files but hidden ones.
    """

    images: list[str]
    metadata: list[str]
    others: list[str]

    def is_image_folder(self) -> bool:
        """Whether there are images, and not at least as many files that hold images themselves."""
        containers = sum(extension(name) in _CONTAINERS for name in self.others)
        return containers < len(self.images)

    def note_others(self, path: Path, notes: list[str]) -> None:
        """Notes the files that are left out, as images may be whose names have another ending or none."""
        if self.others:
            notes.append(left_out_note(path, self.others))


def load_image_folder(
    path: Path, setting: str, notes: list[str], *, streaming: bool, labels: bool = True
) -> dict[str, Any] | None:
    """Reads a folder of image files; None for a folder of another kind, which `datasets` reads by itself.

    Args:
        path: of the folder.
        setting: that named it, for errors.
        notes: gets a line about files that are no images by their names, one about images that are in no split, and
            one about those that no metadata file names.
        streaming: read from front to back.
        labels: whether each image must be in the folder of its class. Otherwise the images of a split have no labels if
            one of them lies directly in its folder, or all of them in one folder.

    Returns:
        `datasets.Dataset` or `IterableDataset` by the name of the split: train, validation and test, as there are.

    Raises:
        UserError: where the split or the class of an image is not known.
    """
    if _card_states(path, "configs"):
        return None
    listing = _list_files(path)
    if not listing.is_image_folder():
        return None
    listing.note_others(path, notes)
    at_top = any("/" not in image for image in listing.images)
    splits = {} if at_top and not labels and not listing.metadata else _split_folders(path, listing, setting)
    if listing.metadata:
        tables = _load_with_metadata(path, splits, listing, setting, streaming=streaming)
        _note_unnamed(path, listing, tables, notes)
        return tables
    if not splits:
        files = {"train": _class_files(path, "", listing.images, setting, labels)}
    else:
        files = {
            name: _class_files(
                path, f"{folder}/", [image for image in listing.images if _top(image) == folder], setting, labels
            )
            for folder, name in splits.items()
        }
        stray = [image for image in listing.images if "/" not in image]
        if stray:
            notes.append(f"{len(stray)} image files of {path} are in no split folder and left out; one is {stray[0]}")
    class_names = _names_by_split(files)
    for name, classes in class_names.items() if labels else ():
        check_class_names(classes, f"the folders of split {name!r} of {path}")
    return _as_streams({name: _dataset(path, files[name], class_names[name]) for name in files}, streaming=streaming)


def load_folder_of_files(path: Path, setting: str, *, streaming: bool) -> dict[str, Any]:
    """Reads a folder of another kind by `datasets`, as one whose card says which files make up which split.

    Args:
        path: of the folder.
        setting: that named it, for errors.
        streaming: read from front to back.

    Returns:
        As `load_image_folder`; the splits have the names that the card gives them.

    Raises:
        UserError: for a metadata.csv that cannot be understood.
    """
    import datasets
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    builder = datasets.load_dataset_builder(str(path))
    files = builder.config.data_files
    metadata = {name: [file for file in own if os.path.basename(file) in _METADATA] for name, own in files.items()}
    named = [file for own in metadata.values() for file in own]
    of_csv = bool(named) and all(extension(file) == ".csv" for file in named)
    is_plain = isinstance(builder, ImageFolder) and not builder.config.drop_metadata
    if of_csv and is_plain and not _card_states(path, "dataset_info"):
        return _as_streams(read_metadata(path, metadata, setting), streaming=streaming)
    # Of a card that names files, `datasets` takes what it cached of another folder of this name, or of earlier files.
    stated = files if _card_states(path, "configs") else None
    return dict(datasets.load_dataset(str(path), data_files=stated, streaming=streaming))


def _card_states(path: Path, what: str) -> bool:
    """Whether the folder has a card, as those of the hub, that states this: `configs` are the files of its splits."""
    try:
        lines = (path / "README.md").read_text(errors="replace").splitlines()
    except OSError:
        return False
    if lines[:1] != ["---"] or "---" not in lines[1:]:
        return False
    return any(line.startswith(f"{what}:") for line in lines[: lines.index("---", 1)])


def _list_files(path: Path) -> _Listing:
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    kinds, images, metadata, others = frozenset(ImageFolder.EXTENSIONS), [], [], []
    for name in walk(str(path)):
        if extension(name) in kinds:
            images.append(name)
        elif name.rpartition("/")[2] in _METADATA:
            metadata.append(name)
        else:
            others.append(name)
    return _Listing(sorted(images), sorted(metadata), sorted(others))


def _top(file: str) -> str:
    """Returns the folder at the top that a file is in; empty for a file that is in none."""
    return file.partition("/")[0] if "/" in file else ""


def _split_folders(path: Path, listing: _Listing, setting: str) -> dict[str, str]:
    """Returns the splits' names by the names of their folders; empty where the folders at the top are classes."""
    folders = sorted({_top(image) for image in listing.images} - {""})
    named = {folder: SPLIT_FOLDERS[folder.lower()] for folder in folders if folder.lower() in SPLIT_FOLDERS}
    if not named:
        return {}
    others = [folder for folder in folders if folder not in named]
    if others:
        holds_images = {_top(image) for image in listing.images if image.count("/") == 1}
        if holds_images.intersection(named):
            return {}
        raise UserError(
            f"{setting}: folder {next(iter(named))!r} of {path} is named as a split and {others[0]!r} is not, so it is "
            "not known whether they are splits or classes: rename one, or name the folder of a split itself"
        )
    for name in set(named.values()):
        same = [folder for folder in named if named[folder] == name]
        if len(same) > 1:
            raise UserError(
                f"{setting}: the folders {same[0]!r} and {same[1]!r} of {path} both mean split {name!r}: keep one"
            )
    return named


def _class_files(
    path: Path, prefix: str, images: list[str], setting: str, labels: bool
) -> list[tuple[str | None, str]]:
    """Returns the image files of one split with their classes, sorted by class and then by path.

    Without `labels` the class of all is None where one image is in no folder of a class, or all are in the same.
    """
    direct = next((image for image in images if "/" not in image[len(prefix) :]), None)
    if not labels and (direct is not None or len({image[len(prefix) :].partition("/")[0] for image in images}) == 1):
        return [(None, image) for image in images]
    if direct is not None:
        where = path / prefix if prefix else path
        raise UserError(
            f"{setting}: {direct} lies directly in {where}, expected one folder per class there: move each image to "
            "the folder of its class, describe the images in a metadata.csv, or set labels=False (--no-labels)"
        )
    return sorted((image[len(prefix) :].partition("/")[0], image) for image in images)


def _names_by_split(files: dict[str, list[tuple[str | None, str]]]) -> dict[str, list[str]]:
    """Returns the sorted class names of each split.

    Splits with a class in common have all their classes together, so that a class without an image in one of them
    keeps its index. A split with none in common, such as unsorted test images in a folder `images`, adds none.
    """
    classes = {name: {kind for kind, _ in entries if kind is not None} for name, entries in files.items()}
    for _ in classes:  # a class in common may join splits one after the other
        for one in classes:
            for other in classes:
                if classes[one] & classes[other]:
                    classes[one] = classes[other] = classes[one] | classes[other]
    return {name: sorted(kinds) for name, kinds in classes.items()}


def _dataset(path: Path, files: list[tuple[str | None, str]], class_names: list[str]) -> Any:
    import datasets

    root, index = path.absolute(), {name: position for position, name in enumerate(class_names)}
    images = [os.path.join(root, image) for _, image in files]
    if not class_names:
        return datasets.Dataset.from_dict({"image": images}, features=datasets.Features(image=datasets.Image()))
    columns = {"image": images, "label": [index[kind] for kind, _ in files if kind is not None]}
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=class_names))
    return datasets.Dataset.from_dict(columns, features=features)


def _load_with_metadata(
    path: Path, splits: dict[str, str], listing: _Listing, setting: str, *, streaming: bool
) -> dict[str, Any]:
    """Reads images whose labels are in metadata files, with the splits that the folders say.

    A file of CSV is read here, see `read_metadata`; `datasets` reads the others, in which values have types.
    """
    import datasets

    at_top = next((name for name in listing.metadata if "/" not in name), None)
    if splits and at_top is not None:
        raise UserError(
            f"{setting}: {path / at_top} describes the images of several splits, each of which would get all of them: "
            "put a metadata file into the folder of each split"
        )
    if all(extension(name) == ".csv" for name in listing.metadata):
        if not splits:
            files = {"train": listing.metadata}
        else:
            files = {
                name: [file for file in listing.metadata if _top(file) == folder] for folder, name in splits.items()
            }
        return _as_streams(read_metadata(path, files, setting), streaming=streaming)
    patterns = {name: f"{folder}/**" for folder, name in splits.items()} or {"train": "**"}
    found = datasets.load_dataset("imagefolder", data_dir=str(path), data_files=patterns, streaming=streaming)
    return dict(found)


def _note_unnamed(path: Path, listing: _Listing, tables: dict[str, Any], notes: list[str]) -> None:
    """Notes the image files that no metadata file names; not of streams, which are not read beforehand."""
    import datasets

    if any(isinstance(table, datasets.IterableDataset) for table in tables.values()):
        return
    named: set[str] = set()
    for table in tables.values():
        for column in [name for name, feature in table.features.items() if isinstance(feature, datasets.Image)]:
            images = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))[:][column]
            named.update(real_paths(image["path"] for image in images if image and image["path"]))
    files = real_paths(os.path.join(path, image) for image in listing.images)
    left_out = [image for image, file in zip(listing.images, files, strict=True) if file not in named]
    if left_out:
        notes.append(
            f"{len(left_out)} image files of {path} are in no metadata file and left out; one is {left_out[0]}"
        )


def _as_streams(tables: dict[str, Any], *, streaming: bool) -> dict[str, Any]:
    """Returns each `datasets.Dataset` as a stream where that is asked for.

    Its order is mixed: sorted by class, the images that a stream mixes would all be of a few classes.
    """
    if not streaming:
        return tables
    mixed = {name: table.select(permutation(len(table), 0, 0).tolist()) for name, table in tables.items()}
    return {name: table.to_iterable_dataset(num_shards=min(len(table), _STREAM_PARTS)) for name, table in mixed.items()}
