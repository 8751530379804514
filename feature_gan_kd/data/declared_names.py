"""The class names that a torch data set carries: used only where they are sure to belong to its labels."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, DataLoader, Subset

from feature_gan_kd.data.labels import first_difference
from feature_gan_kd.data.sources import Split
from feature_gan_kd.utils.errors import UserError

_Found = tuple[list[str] | None, str | None]
"""Names, and why those that there are are not used."""


def declared_names(split: Split, notes: list[str]) -> list[str] | None:
    """Returns the names by class index that a torch data set or the one that it wraps carries, as torchvision's do.

    The attribute `classes` counts: a sequence of names, or a mapping between names and class indices. It is looked for
    in the data set, then in the one that a `DataLoader` or `Subset` reads, and in all parts of a `ConcatDataset`.

    Args:
        split: holds the data set.
        notes: gets a line where there are names that are not used.

    Raises:
        UserError: for parts of a `ConcatDataset` with different names.
    """
    names, problem = _find_names(split.data, split)
    if problem is not None:
        notes.append(f"split {split.name!r}: its class names are not used, because {problem}")
    return names


def _find_names(data: Any, split: Split) -> _Found:
    """Returns the names, or why those that there are are not used; twice None where there are none."""
    kind = type(data).__name__
    if inspect.getattr_static(data, "classes", None) is not None:  # not one that `__getattr__` passes on
        changed_by = _label_transform(data)
        if changed_by is not None:
            return None, f"its labels are changed by the {changed_by} of {kind}"
        names = _as_names(data.classes)
        if names is None:
            expected = "expected distinct names, or a mapping of each name to its index"
            return None, f"the attribute classes of {kind} does not list them: {expected}"
        if not _agrees(data.classes, getattr(data, "class_to_idx", None)):
            return None, f"the attributes classes and class_to_idx of {kind} give them different indices"
        return names, None
    if isinstance(data, ConcatDataset):
        return _common_names([_find_names(part, split) for part in data.datasets], split)
    if not hasattr(data, "dataset"):
        return None, None
    names, problem = _find_names(data.dataset, split)
    changed_by = _batch_maker(data) if isinstance(data, DataLoader) else None if _is_subset(data) else kind
    if names is None or changed_by is None:
        return names, problem
    return None, f"its labels may be changed by {changed_by}: give {kind} the attribute classes"


def _label_transform(data: Any) -> str | None:
    """Returns the name of a transform that the data set applies to labels; None where it has none."""
    if getattr(data, "target_transform", None) is not None:
        return "target_transform"
    # A class that takes the names from torchvision's, and makes the items itself.
    kind = type(data)
    names_from = next((one for one in kind.__mro__ if "find_classes" in vars(one) or "classes" in vars(one)), None)
    items_from = next((one for one in kind.__mro__ if "__getitem__" in vars(one)), kind)
    inherits = any(one.__module__.startswith("torchvision.") for one in kind.__mro__)
    if inherits and not items_from.__module__.startswith("torchvision.") and names_from is not items_from:
        return "__getitem__"
    # Of images and labels together, as torchvision's newer data sets take it; they wrap one of images alone.
    both = getattr(data, "transforms", None)
    alone = both is None or type(both).__module__ == "torchvision.datasets.vision"
    return None if alone else "transforms"


def _batch_maker(loader: DataLoader[Any]) -> str | None:
    """Returns what makes the batches of a loader, if it is the user's own and may change labels; None for torch's."""
    kind = type(loader)
    if kind.__iter__ is not DataLoader.__iter__:
        return kind.__name__
    own: Any = loader.collate_fn
    known = own is None or getattr(own, "__module__", "").startswith("torch.utils.data")
    return None if known else "its collate_fn"


def _is_subset(data: Any) -> bool:
    """Whether the items of a data set are those of the one that it wraps, and not made of them."""
    kind = type(data)
    return isinstance(data, Subset) and (kind.__getitem__, kind.__getitems__) == (
        Subset.__getitem__,
        Subset.__getitems__,
    )


def _common_names(found: list[_Found], split: Split) -> _Found:
    """Returns the names that all parts of a `ConcatDataset` have."""
    first = next((names for names, _ in found if names is not None), None)
    for part, (names, _) in enumerate(found):
        if names is not None and first is not None and names != first:
            at = first_difference(first, names)
            difference = (
                f"{len(names)} classes and another {len(first)}"
                if at == min(len(first), len(names))
                else f"{names[at]!r} as class {at} and another {first[at]!r}"
            )
            raise UserError(
                f"{split.setting}: part {part} of the ConcatDataset of split {split.name!r} has {difference}, so its "
                "labels mean other classes: map them to one list of classes, and give it to the ConcatDataset as its "
                "attribute classes"
            )
    problem = next((problem for _, problem in found if problem is not None), None)
    if first is None or problem is not None:
        return None, problem
    if any(names is None for names, _ in found):
        return None, "not all parts of the ConcatDataset have them"
    return first, None


def _as_names(classes: Any) -> list[str] | None:
    """Returns the names that an attribute `classes` lists by index; None where it lists none, or not in order."""
    if isinstance(classes, Mapping):
        classes = _by_index(classes)
    elif isinstance(classes, np.ndarray) and classes.ndim == 1:
        classes = classes.tolist()
    if not isinstance(classes, Sequence) or isinstance(classes, (str, bytes)):
        return None
    if not all(isinstance(name, (str, int, tuple)) for name in classes):  # tuples of synonyms: torchvision's ImageNet
        return None
    names = [str(name) for name in classes]
    return names if names and len(set(names)) == len(names) else None


def _agrees(classes: Any, indices: Any) -> bool:
    """Whether `class_to_idx`, by which torchvision's data sets make labels, gives listed names their own places."""
    if not isinstance(indices, Mapping) or isinstance(classes, Mapping):
        return True
    places = [(name, k) for k, names in enumerate(classes) for name in (names if isinstance(names, tuple) else [names])]
    return all(indices[name] == k for name, k in places if name in indices)


def _by_index(classes: Mapping[Any, Any]) -> list[Any] | None:
    """Returns the names of a mapping {name: index} or {index: name}; None for one of other indices."""
    for pairs in ([(index, name) for name, index in classes.items()], list(classes.items())):
        if all(isinstance(index, (int, np.integer)) and isinstance(name, str) for index, name in pairs):
            by_index = {int(index): name for index, name in pairs}
            if sorted(by_index) == list(range(len(pairs))):
                return [by_index[index] for index in range(len(pairs))]
    return None
