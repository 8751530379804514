"""Writes the features of images and the names of their files into one file: safetensors, npy or parquet."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feature_gan_kd.utils.errors import UserError
from feature_gan_kd.utils.files import atomic_file

Features = NDArray[np.float32]
"""(images, features)."""


def write_features(file: Path, names: Sequence[str], features: Features, about: Mapping[str, str]) -> None:
    """Writes a file, whole or not at all.

    safetensors: the tensor `features`; its metadata have `about`, a JSON object that also has the list `files`. npy: an
    array of records with the fields `file` and `features`. parquet: the columns `file` and `features`; its metadata
    hold `about`.

    Args:
        file: whose ending says the format; an existing one is replaced.
        names: of the images' files, in the order of the rows.
        features: float32 (images, features).
        about: what else is to be known, such as the name of the model.

    Raises:
        UserError: where it cannot be written, or a name holds bytes that are no text and the format is parquet.
    """
    try:
        with atomic_file(file) as temporary:
            temporary.touch()
            mode = temporary.stat().st_mode
            _WRITERS[file.suffix](temporary, names, features, about)
            temporary.chmod(mode)  # safetensors makes its file readable by the owner alone
    except OSError as error:
        raise UserError(
            f"--output: {file} cannot be written ({error.strerror or error}): make room or name another file"
        ) from None


def _write_safetensors(file: Path, names: Sequence[str], features: Features, about: Mapping[str, str]) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    # One entry: safetensors writes several in a random order, and equal features would give different files.
    metadata = {"about": json.dumps({**about, "files": list(names)})}
    try:
        save_file({"features": features}, file, metadata=metadata)
    except SafetensorError as error:
        raise OSError(str(error)) from None


def _write_npy(file: Path, names: Sequence[str], features: Features, about: Mapping[str, str]) -> None:
    longest = max(map(len, names))
    table = np.empty(len(names), [("file", f"U{longest}"), ("features", np.float32, (features.shape[1],))])
    table["file"], table["features"] = names, features
    with file.open("wb") as out:
        np.save(out, table, allow_pickle=False)


def _write_parquet(file: Path, names: Sequence[str], features: Features, about: Mapping[str, str]) -> None:
    import pyarrow
    from pyarrow import parquet

    try:
        column = pyarrow.array(names, pyarrow.string())
    except UnicodeEncodeError as error:
        name = str(error.object).encode(errors="replace").decode()
        raise UserError(
            f"--output: the name of {name} holds bytes that are no text, which parquet cannot hold: name a file that "
            "ends in .safetensors or .npy"
        ) from None
    vectors = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(features.reshape(-1)), features.shape[1])
    table: Any = pyarrow.table({"file": column, "features": vectors})
    parquet.write_table(table.replace_schema_metadata(dict(about)), file)


_WRITERS: dict[str, Callable[[Path, Sequence[str], Features, Mapping[str, str]], None]] = {
    ".safetensors": _write_safetensors,
    ".npy": _write_npy,
    ".parquet": _write_parquet,
}
