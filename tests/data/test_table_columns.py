from __future__ import annotations

from typing import Any

import pytest
from datasets import ClassLabel, Features, Image, Sequence, Value

from feature_gan_kd.data.table import class_names_of, encode_labels, find_image_column, find_label_column
from feature_gan_kd.utils.errors import UserError

CIFAR = Features(
    img=Image(), fine_label=ClassLabel(names=["a", "b"]), coarse_label=ClassLabel(names=["c"]), label=Value("int64")
)
LISTED = r"img \(Image\), fine_label \(ClassLabel\), coarse_label \(ClassLabel\), label \(int64\)"


def test_cifar_columns_are_found_by_type() -> None:
    assert find_image_column(CIFAR, None, "train") == "img"
    assert find_label_column(CIFAR, None, "img", "train") == ("fine_label", ["coarse_label"])
    assert find_label_column(CIFAR, "coarse_label", "img", "train") == ("coarse_label", [])


@pytest.mark.parametrize(
    "feature",
    [
        Image(),
        Image(mode="RGB"),
        Value("binary"),
        Value("large_binary"),
        {"bytes": Value("binary"), "path": Value("string")},
    ],
)
def test_a_column_of_encoded_images_is_found(feature: Any) -> None:
    assert find_image_column({"text": Value("string"), "x": feature}, None, "train") == "x"


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["id", "target", "label"], ("label", ["target"])),
        (["id", "Class"], ("Class", [])),
        (["fine_label", "coarse_label"], ("fine_label", ["coarse_label"])),
        (["y", "label_source"], ("y", [])),
    ],
)
@pytest.mark.parametrize("kind", ["int64", "uint8", "string"])
def test_a_plain_column_is_found_by_its_name(columns: list[str], expected: tuple[str, list[str]], kind: str) -> None:
    features = {"image": Image(), **{name: Value(kind) for name in columns}}
    assert find_label_column(features, None, "image", "train") == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: find_image_column({"a": Value("int64")}, None, "s"),
            r"split 's' has no column of images; .* a \(int64\)",
        ),
        (lambda: find_image_column(CIFAR, "imgs", "s"), rf"no column 'imgs'; its columns are {LISTED}"),
        (
            lambda: find_image_column(CIFAR, "label", "s"),
            rf"column 'label' of split 's' holds no images; columns: {LISTED}",
        ),
        (lambda: find_label_column(CIFAR, "fine", "img", "s"), rf"no column 'fine'; its columns are {LISTED}"),
        (
            lambda: find_label_column(CIFAR, "img", "img", "s"),
            "label_column: column 'img' of split 's' holds the images: name another",
        ),
        (
            lambda: find_label_column({"image": Image(), "id": Value("int64")}, None, "image", "s"),
            r"that looks like labels; its columns are image \(Image\), id \(int64\): name one, or change its type",
        ),
    ],
)
def test_a_missing_column_is_one_line_that_lists_the_columns(call: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_names_come_from_the_type_or_from_the_texts() -> None:
    assert class_names_of(CIFAR["fine_label"], [0]) == ["a", "b"]
    assert class_names_of(Value("string"), ["dog", "cat", "dog"]) == ["cat", "dog"]
    assert class_names_of(Value("int64"), [1, 0]) is None
    assert class_names_of(Value("string"), [None, "cat", None]) == ["cat"]
    assert class_names_of(Value("null"), [None, None]) is None


def test_labels_become_indices() -> None:
    assert encode_labels(["dog", "cat"], "y", "s", ["cat", "dog"], None).tolist() == [1, 0]
    assert encode_labels([2, 0], "y", "s", None, None).tolist() == [2, 0]
    assert encode_labels([1, 0], "y", "s", None, 2).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("values", "names", "classes", "message"),
    [
        (
            [0, None],
            None,
            None,
            "image 1 of split 's' has no label in column 'y', expected a whole number from 0 to 99",
        ),
        ([0, 1, -1], ["a", "b"], None, "image 2 of split 's' has the label -1 in column 'y', expected 0 to 1"),
        ([-1], None, None, "image 0 .* the label -1 .* expected 0 to 999999"),
        ([0, 2], ["a", "b"], None, "image 1 .* the label 2 .* expected 0 to 1"),
        ([0, 10], None, 10, "image 1 .* the label 10 .* expected 0 to 9"),
        ([0, 1.5], None, None, "image 1 .* the label 1.5 .* expected a whole number"),
        ([float("nan")], None, None, "image 0 .* the label nan .*"),
        (["a", "c"], ["a", "b"], None, "image 1 .* the label 'c' .* expected one of the 2 classes"),
        ([[0, 1]], None, None, r"image 0 .* the label \[0, 1\]"),
        ([b"0123456789" * 99], None, None, r"image 0 .* the label b'0123.{20,30} in"),
        (["a", None], ["a", "b"], None, "image 1 .* no label .* expected one of the 2 classes"),
        ([0, 4_000_000_000], None, None, "image 1 .* the label 4000000000 .* expected 0 to 999999"),
    ],
)
def test_a_bad_label_is_named(values: list[Any], names: list[str] | None, classes: int | None, message: str) -> None:
    with pytest.raises(UserError, match=f"^labels: {message}") as caught:
        encode_labels(values, "y", "s", names, classes)
    assert "\n" not in str(caught.value)


def test_a_sequence_of_labels_is_no_label_column() -> None:
    with pytest.raises(UserError, match="looks like labels"):
        find_label_column({"image": Image(), "label": Sequence(Value("int64"))}, None, "image", "s")
