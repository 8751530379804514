"""What the user named as data, to a training split and an evaluation split."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch.utils.data

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.data.folders import load_folder_of_files, load_image_folder
from feature_gan_kd.utils.errors import UserError, reason
from feature_gan_kd.utils.offline import offline_without_internet

BUNDLED_DIGITS = Path(__file__).parent / "bundled" / "digits.parquet"
_EVAL_SPLITS = ("test", "validation", "valid", "val", "dev")
# Of data whose labels are not read.
_UNLABELED_SPLITS = ("unlabeled", "unlabelled", "train")
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
_FILES = {".parquet": "parquet", ".arrow": "arrow"}


@dataclass(frozen=True)
class Split:
    """The images to train on, or those to evaluate on.

    Attributes:
        data: a `datasets.Dataset` or `IterableDataset`, a map-style torch `Dataset` or a `DataLoader`.
        name: of the split, for messages.
        setting: that named the data (`data`, `eval_data` or `unlabeled_data`), with which an error line begins.
        others: further splits to evaluate on, the first of which with labels is taken where this one has none.
        named: whether the user named the data to evaluate on, which then must have labels.
    """

    data: Any
    name: str
    setting: str = "data"
    others: tuple[Split, ...] = ()
    named: bool = True


def choose_splits(
    train_data: Any, eval_data: Any, config: DistillConfig, notes: list[str]
) -> tuple[Split, Split | None]:
    """Opens the training split and the evaluation split, which is None where the data have none.

    Args:
        train_data: None means the bundled digits.
        eval_data: None means the evaluation split of `train_data`.
        config: may name the splits.
        notes: gets lines for the user.

    Raises:
        UserError: for data that do not exist or cannot be read, and for a split that does not exist.
    """
    opened = _open(BUNDLED_DIGITS if train_data is None else train_data, config, "data", notes, labels=config.labels)
    if isinstance(opened, Mapping):
        name = _train_split(opened, config.train_split)
        train = Split(opened[name], name)
        if eval_data is None:
            return train, _eval_split(opened, config.eval_split, "data", exclude=name)
    else:
        train = Split(opened, "train")
        if eval_data is None:
            if config.eval_split is not None:
                raise UserError(f"eval_split: the data have one split only, there is no {config.eval_split!r}")
            return train, None
    evaluation = choose_evaluation(eval_data, config, notes, setting="eval_data")
    if evaluation.name == train.name:  # lines about the two must tell them apart
        evaluation = replace(evaluation, name=f"{evaluation.name} of eval_data")
    return train, evaluation


def choose_evaluation(eval_data: Any, config: DistillConfig, notes: list[str], setting: str = "data") -> Split:
    """Opens the evaluation split of data that were named for evaluation.

    Args:
        eval_data: None means the bundled digits.
        config: may name the split.
        notes: gets lines for the user.
        setting: that named the data, for errors.

    Raises:
        UserError: as `choose_splits`.
    """
    opened = _open(BUNDLED_DIGITS if eval_data is None else eval_data, config, setting, notes, labels=config.labels)
    if not isinstance(opened, Mapping):
        return Split(opened, "evaluation", setting)
    split = _eval_split(opened, config.eval_split, setting, exclude=None)
    if split is not None:
        return replace(split, named=True)
    if len(opened) != 1:
        raise UserError(f"eval_split: name the split to evaluate on, there are {', '.join(opened) or 'none'}")
    (name,) = opened
    return Split(opened[name], name, setting)


def choose_unlabeled(data: Any, config: DistillConfig, notes: list[str]) -> list[Split]:
    """Opens images to train on without labels: the split unlabeled, else train, else all that there are.

    Args:
        data: a name, a path, or a data set or a mapping of splits of `datasets`.
        config: of the run.
        notes: gets lines for the user.

    Raises:
        UserError: as `choose_splits`, and for data of another kind.
    """
    setting = "unlabeled_data"
    opened = _open(data, config, setting, notes, labels=False)
    named = [name for name in _UNLABELED_SPLITS if isinstance(opened, Mapping) and name in opened][:1]
    splits = opened if isinstance(opened, Mapping) else {"train": opened}
    found = [Split(splits[name], name, setting) for name in named or splits]
    for split in found:
        check_joinable(split)
    if not found:
        raise UserError(f"{setting}: there is no split in it")
    return found


def check_joinable(split: Split) -> None:
    """Checks that images of a split can be joined to others: it must be a table, of which the columns are known.

    Raises:
        UserError: for a stream, a torch data set, a `DataLoader` and a data set with a transform of the user's own.
    """
    kind = type(split.data).__name__
    if is_hf_dataset(split.data) and has_transform(split.data):
        kind = "Dataset with a transform of its own"
    elif is_hf_dataset(split.data) and not is_stream(split.data):
        return
    raise UserError(
        f"unlabeled_data: {split.setting} is of the type {kind}, and only folders, files and a Dataset of datasets can "
        "be joined: give all images in one data set, with the label -1 where there is none"
    )


def has_transform(data: Any) -> bool:
    """Whether `data`, a data set of `datasets`, calls a function of the user's own when it is read."""
    return getattr(data, "format", {}).get("type") == "custom"


def is_hf_dataset(data: Any) -> bool:
    """Whether `data` is a data set of Hugging Face's `datasets`, or a mapping of such; does not import `datasets`."""
    return any(base.__module__.startswith("datasets.") for base in type(data).__mro__)


def is_stream(data: Any) -> bool:
    """Whether `data`, a data set of `datasets`, can only be read from front to back."""
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


def _eval_split(splits: Mapping[str, Any], named: str | None, setting: str, exclude: str | None) -> Split | None:
    """Returns the named split, else the first of those that are usual to evaluate on, with the others."""
    if named is not None and named not in splits:
        raise UserError(f"eval_split: there is no split {named!r}; the splits are {', '.join(splits)}")
    if named is not None:
        return Split(splits[named], named, setting)
    usual = [name for name in _EVAL_SPLITS if name in splits and name != exclude]
    found = [Split(splits[name], name, setting, named=False) for name in usual]
    return replace(found[0], others=tuple(found[1:])) if found else None


def _open(data: Any, config: DistillConfig, setting: str, notes: list[str], *, labels: bool) -> Any:
    """Returns a mapping of splits, a data set of `datasets`, a torch `Dataset` or a `DataLoader`."""
    if isinstance(data, (str, os.PathLike)):
        return _load(os.fspath(data), config.streaming, setting, notes, labels=labels)
    if is_hf_dataset(data):
        return data
    if isinstance(data, torch.utils.data.IterableDataset):
        raise UserError(
            f"{setting}: torch's IterableDataset has no order to resume: give a map-style Dataset, or a stream of "
            "datasets"
        )
    if isinstance(data, (torch.utils.data.DataLoader, torch.utils.data.Dataset)):
        return data
    raise UserError(
        f"{setting}: {type(data).__name__} cannot be read: expected a hub name, a folder or file, a Dataset, a "
        "DatasetDict or a DataLoader"
    )


def _load(name: str, streaming: bool, setting: str, notes: list[str], *, labels: bool) -> Any:
    """Loads a local file or folder, or a data set of the hub, by its name."""
    path = Path(name).expanduser()
    with _quiet_datasets():
        try:
            exists = path.exists()
        except OSError as error:
            raise UserError(f"{setting}: {name} cannot be read ({error.strerror})") from error
        if path.is_symlink() and not exists:
            raise UserError(f"{setting}: the link {name} leads nowhere: repair it or name its target")
        if not exists:
            return _load_from_hub(name, streaming, setting)
        try:
            return _load_path(path, streaming, setting, notes, labels=labels)
        except UserError:
            raise
        except Exception as error:  # datasets and pyarrow raise exceptions of many kinds
            empty = re.match('Instruction "(.+)" corresponds to no data', str(error))
            if empty:
                raise UserError(f"{setting}: split {empty[1]!r} of {name} is empty") from error
            raise UserError(f"{setting}: {name} holds no images that can be read ({_root_cause(error)})") from error


def _load_path(path: Path, streaming: bool, setting: str, notes: list[str], *, labels: bool) -> Any:
    import datasets

    if path.is_file():
        if path.suffix not in _FILES:
            raise UserError(f"{setting}: {path} is of no known kind, expected {' or '.join(_FILES)}, or a folder")
        return datasets.load_dataset(_FILES[path.suffix], data_files=str(path), streaming=streaming)
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        if streaming:
            raise UserError(f"streaming: {path} is read as it is needed in any case: leave it out")
        return datasets.load_from_disk(str(path))
    folder = load_image_folder(path, setting, notes, streaming=streaming, labels=labels)
    return load_folder_of_files(path, setting, streaming=streaming) if folder is None else folder


def _load_from_hub(name: str, streaming: bool, setting: str) -> Any:
    """Loads a data set of the hub, or of the hub's local cache."""
    import datasets

    if not _HUB_NAME.fullmatch(name) or ".." in name or Path(name).suffix in _FILES:
        raise UserError(f"{setting}: there is no file or folder {name!r}")
    try:
        with offline_without_internet():
            if "/" not in name and _is_cached_folder(name):
                raise FileNotFoundError(name)
            return datasets.load_dataset(name, streaming=streaming)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise UserError(f"{setting}: {name!r} is neither a local folder nor a data set of the hub") from error
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"{setting}: {name!r} is no local folder and could not be fetched (no internet access?): name a local "
            f"folder, or download it first where there is one with: hf download {name} --repo-type dataset "
            "--local-dir DIR"
        ) from error
    except Exception as error:
        raise UserError(f"{setting}: {name!r} could not be read ({_root_cause(error)})") from error


def _is_cached_folder(name: str) -> bool:
    """Whether `datasets` would answer with cached images of a local folder of that name that was read earlier.

    It caches those beside the data sets of the hub, in lower case, and takes them where the hub has none of that name:
    a run with a misspelled path would train on other images. Data sets of the hub are cached under the 40 digits of
    their commit.
    """
    import datasets
    from datasets.packaged_modules.cache.cache import Cache

    builder = datasets.load_dataset_builder(name)
    return isinstance(builder, Cache) and len(builder.hash) != 40


def _root_cause(error: BaseException) -> str:
    """Returns what the first error of a chain says: `datasets` wraps it in others that say nothing."""
    from datasets.table import CastError

    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, CastError):
        details = error.details().rstrip(".")
        return f"its files have different columns: {details}"
    return reason(error, 300)


@contextlib.contextmanager
def _quiet_datasets() -> Iterator[None]:
    """Turns off the log lines of `datasets`, and its progress bars unless stderr is a terminal."""
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
