"""The `metadata.csv` of an image folder: every value is what the file says, so that class 007 is not class 7.

`datasets` reads such a file by pandas, which guesses: 007 and 7 become one number, and the class NA a missing value.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from feature_gan_kd.data.labels import TEXTS_OF_MISSING
from feature_gan_kd.utils.errors import UserError

Columns = dict[str, list[str | None]]
"""The values of each column as the file writes them; None where it writes nothing."""

_FILE_NAME = "file_name"
# A number is written in one way only; of whole ones, those that int64 holds.
_WHOLE, _FRACTION = (
    re.compile(r"0|-?[1-9][0-9]{0,17}"),
    re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"),
)
# What stands for no value among numbers; among texts it is a text.
_MISSING = ("NA", *TEXTS_OF_MISSING)


def read_metadata(path: Path, files: Mapping[str, Sequence[str]], setting: str) -> dict[str, Any]:
    """Reads the images and the values that metadata files name.

    A column is numbers if all its values are written as numbers are, and texts otherwise; in all splits alike.

    Args:
        path: of the image folder.
        files: the metadata files of each split, relative to the folder.
        setting: that named the folder, for errors.

    Returns:
        A `datasets.Dataset` for each split.

    Raises:
        UserError: for a split without such a file, one without images, or a file that cannot be understood.
    """
    read = {split: _read_split(path, own, split, setting) for split, own in files.items()}
    names = dict.fromkeys(name for columns in read.values() for name in columns)
    types = {name: _type_of(value for columns in read.values() for value in columns.get(name, [])) for name in names}
    return {split: _dataset(columns, types) for split, columns in read.items()}


def _read_split(path: Path, files: Sequence[str], split: str, setting: str) -> Columns:
    if not files:
        raise UserError(f"{setting}: split {split!r} of {path} has no metadata.csv, but another has one: add it")
    read = [_read_file(path / file, setting) for file in files]
    names = dict.fromkeys(name for columns in read for name in columns)
    lengths = [len(next(iter(columns.values()))) for columns in read]
    return {
        name: [
            value for columns, count in zip(read, lengths, strict=True) for value in columns.get(name, [None] * count)
        ]
        for name in names
    }


def _read_file(file: Path, setting: str) -> Columns:
    """Reads one file; the names of images become their paths."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.reader(lines)
            header = next(reader, [])
            rows = [(reader.line_num, row) for row in reader if row]
    except UnicodeDecodeError:
        raise UserError(f"{setting}: {file} is not text in UTF-8: save it as such") from None
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{setting}: the first line of {file} has {twice!r} twice: rename one of the columns")
    if not any(_is_file_name(name) for name in header):
        raise UserError(f"{setting}: {file} has no column file_name, expected one that names the images beside it")
    for line, row in rows:
        if len(row) != len(header):
            raise UserError(
                f"{setting}: line {line} of {file} has {len(row)} values, its first line has {len(header)} names: "
                "quote values with commas"
            )
    columns: Columns = {}
    for k, name in enumerate(header):
        values = [row[k] or None for _, row in rows]
        is_path = _is_file_name(name)
        columns[name] = [value and _path_of(file, value, setting) if is_path else value for value in values]
    return columns


def _is_file_name(name: str) -> bool:
    return name == _FILE_NAME or name.endswith(f"_{_FILE_NAME}")


def _path_of(file: Path, name: str, setting: str) -> str:
    """Returns the path of an image, which must lie beside the metadata file or below."""
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or "://" in name:
        raise UserError(f"{setting}: {file} names {name!r}, expected a file beside it or in a folder there")
    return os.path.join(file.parent.absolute(), parts)


def _type_of(values: Iterable[str | None]) -> type[int] | type[float] | type[str]:
    """Returns how the values of a column are written."""
    present = {value for value in values if value is not None}
    numbers = present.difference(_MISSING)
    if numbers and all(_WHOLE.fullmatch(value) for value in numbers):
        return int
    fractions = [value for value in numbers if _FRACTION.fullmatch(value)]
    # 007 is no way to write a number; 0.5 beside it makes it one.
    is_float = fractions and len(fractions) == len(numbers) and any(re.search("[.eE]", value) for value in numbers)
    return float if is_float else str


def _dataset(columns: Columns, types: Mapping[str, type[int] | type[float] | type[str]]) -> Any:
    import datasets

    kinds = {int: "int64", float: "float64", str: "string"}
    features: dict[str, Any] = {}
    values: dict[str, list[Any]] = {}
    for name, written in columns.items():
        if _is_file_name(name):  # as `datasets` calls them
            image = name.removesuffix(_FILE_NAME).removesuffix("_") or "image"
            features[image], values[image] = datasets.Image(), written
            continue
        kind = types[name]
        missing = () if kind is str else _MISSING
        features[name] = datasets.Value(kinds[kind])
        values[name] = [None if one is None or one in missing else kind(one) for one in written]
    return datasets.Dataset.from_dict(values, features=datasets.Features(features))
