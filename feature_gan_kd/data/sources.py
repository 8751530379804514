"""What the user named, to a training part and an evaluation part."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.utils.data

from feature_gan_kd.config.settings import DistillConfig
from feature_gan_kd.utils.errors import UserError, reason
from feature_gan_kd.utils.offline import offline_without_internet

BUNDLED = Path(__file__).parent / "bundled" / "digits.parquet"
_EVAL_SPLITS = ("test", "validation", "valid", "val", "dev")
# What folders of splits are called, as `datasets` reads it.
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "dev", "val"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
_FILES = {".parquet": "parquet", ".arrow": "arrow"}


@dataclass(frozen=True)
class Part:
    """The images of one role.

    Attributes:
        data: a `datasets.Dataset` or `IterableDataset`, a map-style torch `Dataset` or a `DataLoader`.
        split: its name, for messages.
    """

    data: Any
    split: str


def choose_parts(train_data: Any, eval_data: Any, config: DistillConfig) -> tuple[Part, Part | None]:
    """The training part, and the evaluation part or None where the data have no split for it.

    Raises:
        UserError: for data that are not there or of a kind that cannot be read, and for a split not there.
    """
    opened = _opened(BUNDLED if train_data is None else train_data, config.streaming)
    if isinstance(opened, Mapping):
        name = _train_split(opened, config.train_split)
        train = Part(opened[name], name)
        if eval_data is None:
            taken = _eval_split(opened, config.eval_split, exclude=name)
            return train, Part(opened[taken], taken) if taken else None
    else:
        train = Part(opened, "train")
        if eval_data is None:
            if config.eval_split is not None:
                raise UserError(f"eval_split: the data have one split only, there is no {config.eval_split!r}")
            return train, None
    return train, choose_evaluation(eval_data, config)


def choose_evaluation(eval_data: Any, config: DistillConfig) -> Part:
    """The evaluation part of data that were named for evaluation (None: the bundled digits).

    Raises:
        UserError: as `choose_parts`.
    """
    opened = _opened(BUNDLED if eval_data is None else eval_data, config.streaming)
    if not isinstance(opened, Mapping):
        return Part(opened, "evaluation")
    taken = _eval_split(opened, config.eval_split, exclude=None)
    if taken is None and len(opened) != 1:
        raise UserError(f"eval_split: name the split to evaluate on, there are {', '.join(opened) or 'none'}")
    taken = taken or next(iter(opened))
    return Part(opened[taken], taken)


def is_of_datasets(data: Any) -> bool:
    """Whether `data` is a data set of `datasets`, or a mapping of some; asked without importing it."""
    return any(base.__module__.startswith("datasets.") for base in type(data).__mro__)


def is_stream(data: Any) -> bool:
    """Whether `data`, one of `datasets`, is read from front to back only."""
    return not hasattr(data, "num_rows")


def _train_split(splits: Mapping[str, Any], named: str | None) -> str:
    if named is not None and named not in splits:
        raise UserError(f"train_split: there is no split {named!r}; the splits are {', '.join(splits)}")
    if named is not None:
        return named
    if not splits:
        raise UserError("data: there is no split in it")
    if "train" in splits or len(splits) == 1:
        return "train" if "train" in splits else next(iter(splits))
    raise UserError(f"train_split: there is no split 'train'; name one of {', '.join(splits)}")


def _eval_split(splits: Mapping[str, Any], named: str | None, exclude: str | None) -> str | None:
    if named is not None and named not in splits:
        raise UserError(f"eval_split: there is no split {named!r}; the splits are {', '.join(splits)}")
    return named or next((name for name in _EVAL_SPLITS if name in splits and name != exclude), None)


def _opened(data: Any, streaming: bool) -> Any:
    """A mapping of splits, a data set of `datasets`, a torch `Dataset` or a `DataLoader`."""
    if isinstance(data, (str, os.PathLike)):
        return _loaded(os.fspath(data), streaming)
    if is_of_datasets(data):
        return data
    if isinstance(data, torch.utils.data.IterableDataset):
        raise UserError(
            "data: torch's IterableDataset has no order to resume: give a map-style Dataset, or a stream of datasets"
        )
    if isinstance(data, (torch.utils.data.DataLoader, torch.utils.data.Dataset)):
        return data
    raise UserError(
        f"data: {type(data).__name__} cannot be read: expected a hub name, a folder or file, a Dataset, a "
        "DatasetDict or a DataLoader"
    )


def _loaded(name: str, streaming: bool) -> Any:
    import datasets

    path = Path(name).expanduser()
    with _quiet():
        try:
            exists = path.exists()
        except OSError as error:
            raise UserError(f"data: {name} cannot be read ({error.strerror})") from error
        if path.is_symlink() and not exists:
            raise UserError(f"data: the link {name} leads nowhere: mend it or name what it led to")
        if not exists:
            return _fetched(name, streaming)
        try:
            if path.is_file():
                return _file(path, streaming)
            if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
                if streaming:
                    raise UserError(f"streaming: {name} is read as it is needed in any case: leave it out")
                return datasets.load_from_disk(str(path))
            return datasets.load_dataset(str(path), data_files=_own_splits(path), streaming=streaming)
        except UserError:
            raise
        except Exception as error:  # datasets and pyarrow raise a wide family
            empty = re.match('Instruction "(.+)" corresponds to no data', str(error))
            if empty:
                raise UserError(f"data: split {empty[1]!r} of {name} is empty") from error
            raise UserError(f"data: {name} holds no images that can be read ({_origin(error)})") from error


def _own_splits(path: Path) -> dict[str, str] | None:
    """The splits of a folder, as patterns of files, where `datasets` would see others; None where it sees them well.

    It looks for words such as `train` and `test` in every name, in lower case alone: of the classes `train` and `car`
    it would take the first for a split, and the folders `Train` and `Val` for one split.
    """
    folders = [entry for entry in sorted(path.iterdir()) if entry.is_dir() and entry.name[0] not in "._"]
    named = {folder.name: _SPLITS[folder.name.lower()] for folder in folders if folder.name.lower() in _SPLITS}
    if folders and len(named) == len(folders) == len(set(named.values())):
        capital = any(name != name.lower() for name in named)
        return {split: f"{name}/**" for name, split in named.items()} if capital else None
    like_a_split = re.compile(rf"(^|[-._ 0-9])({'|'.join(_SPLITS)})([-._ 0-9]|$)")
    classes = not any(entry.is_dir() for folder in folders for entry in os.scandir(folder))
    described = any((path / f"metadata.{kind}").exists() for kind in ("csv", "jsonl", "parquet"))
    if any(like_a_split.search(folder.name) for folder in folders) and classes and not described:
        return {"train": "**"}
    return None


def _file(path: Path, streaming: bool) -> Any:
    import datasets

    if path.suffix not in _FILES:
        raise UserError(f"data: {path} is of no known kind, expected {' or '.join(_FILES)}, or a folder")
    return datasets.load_dataset(_FILES[path.suffix], data_files=str(path), streaming=streaming)


def _fetched(name: str, streaming: bool) -> Any:
    """A data set of the hub, or of the hub's local cache."""
    import datasets

    if not _HUB_NAME.fullmatch(name) or ".." in name or Path(name).suffix in _FILES:
        raise UserError(f"data: there is no file or folder {name!r}")
    try:
        with offline_without_internet():
            if "/" not in name and _is_of_a_folder(name):
                raise FileNotFoundError(name)
            return datasets.load_dataset(name, streaming=streaming)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise UserError(f"data: {name!r} is neither a local folder nor a data set of the hub") from error
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"data: {name!r} is no local folder and could not be fetched (no internet access?): name a local folder, "
            f"or download it first where there is one with: hf download {name} --repo-type dataset --local-dir DIR"
        ) from error
    except Exception as error:
        raise UserError(f"data: {name!r} could not be read ({_origin(error)})") from error


def _is_of_a_folder(name: str) -> bool:
    """Whether `datasets` would answer with the images of some folder of that name that were read before.

    It keeps them beside those of the hub, in lower case, and takes them where the hub has none: with a misspelled path
    a run would train on other images. Those of the hub are kept under the 40 digits of their commit.
    """
    import datasets
    from datasets.packaged_modules.cache.cache import Cache

    builder = datasets.load_dataset_builder(name)
    return isinstance(builder, Cache) and len(builder.hash) != 40


def _origin(error: BaseException) -> str:
    """What the first error of a chain says: `datasets` wraps it in ones that say nothing."""
    from datasets.table import CastError

    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, CastError):
        details = error.details().rstrip(".")
        return f"its files have different columns: {details}"
    return reason(error, 300)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars where nobody watches, and no log lines beside our own."""
    import datasets

    level, bars = datasets.logging.get_verbosity(), not datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(50)
    if bars and not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if bars:
            datasets.enable_progress_bars()
