from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Value

from feature_gan_kd.data.labels import class_names_of, encode_labels, is_missing, numbers_as_names
from feature_gan_kd.utils.errors import UserError


def names_of(values: list[Any], kind: Any = None, num_classes: int | None = None) -> list[str] | None:
    return class_names_of(kind or Value("string"), values, "column 'y'", num_classes)


def test_names_come_from_the_type_or_from_the_texts() -> None:
    assert names_of([0], ClassLabel(names=["a", "b"])) == ["a", "b"]
    assert names_of(["dog", "cat", "dog"]) == ["cat", "dog"]
    assert names_of([None, "cat", None]) == ["cat"]
    assert names_of([None, None], Value("null")) is None


@pytest.mark.parametrize(
    ("values", "num_classes", "names"),
    [
        ([1, 0], None, None),
        ([True, False], None, None),
        ([10, 40, 10], None, ["10", "40"]),
        ([10, 9, 1], None, ["1", "9", "10"]),
        ([10, 40], 2, ["10", "40"]),
        ([10, 40], 41, None),
        ([10, 40], 7, None),
        ([3, 0], 4, None),
        ([3, 0], None, ["0", "3"]),
        ([-2, 5], None, None),
        ([0, 4_000_000_000], None, None),
    ],
)
def test_whole_numbers_are_indices_or_names(
    values: list[int], num_classes: int | None, names: list[str] | None
) -> None:
    assert names_of(values, Value("int64"), num_classes) == names


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["cat", ""], "column 'y' has the empty label ''"),
        (["cat", " "], "column 'y' has the empty label ' '"),
        (["Cat", "dog", "cat"], "column 'y' has 'Cat' and 'cat', which differ only in letter case, spaces"),
        (["dog", "dog "], "column 'y' has 'dog' and 'dog ', which"),
        (["caf\u00e9", "cafe\u0301"], "column 'y' has .* and .*, which"),
    ],
)
def test_texts_that_nobody_can_tell_apart_are_refused(values: list[str], message: str) -> None:
    with pytest.raises(UserError, match=f"^labels: {message}"):
        names_of(values)


def test_labels_become_indices() -> None:
    assert encode_labels(["dog", "cat"], "y", "s", ["cat", "dog"], None).tolist() == [1, 0]
    assert encode_labels([2, 0], "y", "s", None, None).tolist() == [2, 0]
    assert encode_labels([1, 0], "y", "s", None, 2).tolist() == [1, 0]


def test_none_minus_one_and_nan_are_no_label_and_no_class() -> None:
    assert encode_labels(["dog", None, "cat"], "y", "s", ["cat", "dog"], None).tolist() == [1, -1, 0]
    values = [-1, 2, None, float("nan"), np.float32("nan")]
    assert encode_labels(values, "y", "s", None, 3).tolist() == [-1, 2, -1, -1, -1]
    assert names_of([10, -1, 40, None], Value("int64")) == ["10", "40"]
    assert names_of([0, -1, 1], Value("int64")) is None
    assert names_of(["b", None, "a"]) == ["a", "b"]
    assert numbers_as_names([7, -1, None, "x"]) == ["7", -1, None, "x"]
    assert is_missing("-1")
    assert not any(is_missing(label) for label in (0, "", "-2", [-1], torch.tensor([-1, -1]), False))


@pytest.mark.parametrize(
    ("values", "names", "classes", "message"),
    [
        ([0, 1, -2], ["a", "b"], None, "image 2 of split 's' has the label -2 in column 'y', expected 0 to 1"),
        ([-2], None, None, "image 0 .* the label -2 .* expected 0 to 999999"),
        ([0, 2], ["a", "b"], None, "image 1 .* the label 2 .* expected 0 to 1"),
        ([0, 10], None, 10, "image 1 .* the label 10 .* expected 0 to 9"),
        ([0, 1.5], None, None, "image 1 .* the label 1.5 .* expected a whole number"),
        (["a", "c"], ["a", "b"], None, "image 1 .* the label 'c' .* expected one of the 2 classes"),
        ([[0, 1]], None, None, r"image 0 .* the label \[0, 1\]"),
        ([b"0123456789" * 99], None, None, r"image 0 .* the label b'0123.{20,30} in"),
        (["a", ""], ["a", "b"], None, "image 1 .* the label '' .* expected one of the 2 classes"),
        ([0, 4_000_000_000], None, None, "image 1 .* the label 4000000000 .* expected 0 to 999999"),
    ],
)
def test_a_bad_label_is_named(values: list[Any], names: list[str] | None, classes: int | None, message: str) -> None:
    with pytest.raises(UserError, match=f"^labels: {message}") as caught:
        encode_labels(values, "y", "s", names, classes)
    assert "\n" not in str(caught.value)
