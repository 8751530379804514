from __future__ import annotations

from typing import Any

import pytest
from datasets import ClassLabel, Features, Image, Sequence, Value

from feature_gan_kd.data.columns import find_image_column, find_label_column
from feature_gan_kd.utils.errors import UserError

CIFAR = Features(
    img=Image(), fine_label=ClassLabel(names=["a", "b"]), coarse_label=ClassLabel(names=["c"]), area=Value("int64")
)
LISTED = r"img \(Image\), fine_label \(ClassLabel\), coarse_label \(ClassLabel\), area \(int64\)"


def test_cifar_columns_are_found_by_type() -> None:
    assert find_image_column(CIFAR, None, "train") == ("img", [])
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
    assert find_image_column({"text": Value("string"), "x": feature}, None, "train") == ("x", [])


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["id", "target", "label"], ("label", ["target"])),
        (["id", "Class"], ("Class", [])),
        (["fine_label", "coarse_label"], ("fine_label", ["coarse_label"])),
        (["y", "label_source"], ("y", [])),
        (["label_quality", "breed_label"], ("breed_label", [])),
        (["class_weight", "class_id"], ("class_id", [])),
        (["superclass", "num_classes", "labels"], ("labels", ["superclass"])),
    ],
)
@pytest.mark.parametrize("kind", ["int64", "uint8", "string", "large_string"])
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
            lambda: find_image_column(CIFAR, "area", "s"),
            rf"column 'area' of split 's' holds no images; columns: {LISTED}",
        ),
        (lambda: find_label_column(CIFAR, "fine", "img", "s"), rf"no column 'fine'; its columns are {LISTED}"),
        (
            lambda: find_label_column(CIFAR, "img", "img", "s"),
            "label_column: column 'img' of split 's' holds the images: name another",
        ),
        (
            lambda: find_label_column({"image": Image(), "id": Value("int64")}, None, "image", "s"),
            r"that looks like labels; its columns are image \(Image\), id \(int64\): name one, change its type, or",
        ),
    ],
)
def test_a_missing_column_is_one_line_that_lists_the_columns(call: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_sequence_of_labels_is_no_label_column() -> None:
    with pytest.raises(UserError, match="looks like labels"):
        find_label_column({"image": Image(), "label": Sequence(Value("int64"))}, None, "image", "s")


@pytest.mark.parametrize("kind", ["int64", "string", "large_string"])
@pytest.mark.parametrize("name", ["label_quality", "class_weight", "n_classes", "is_label", "labelled", "target_size"])
def test_what_only_speaks_of_labels_is_no_label_column(name: str, kind: str) -> None:
    with pytest.raises(UserError, match="looks like labels"):
        find_label_column({"image": Image(), name: Value(kind)}, None, "image", "s")


def test_a_usual_name_comes_before_any_other_and_the_others_are_named() -> None:
    features = Features(
        mask=Image(), image=Image(), sex=ClassLabel(names=["f", "m"]), fine_label=ClassLabel(names=["a"])
    )
    assert find_image_column(features, None, "s") == ("image", ["mask"])
    assert find_image_column(Features(mask=Image(), depth=Image()), None, "s") == ("mask", ["depth"])
    assert find_label_column(features, None, "image", "s") == ("fine_label", ["sex"])
    plain = Features(**features, label=Value("int64"))
    assert find_label_column(plain, None, "image", "s") == ("label", ["sex", "fine_label"])


@pytest.mark.parametrize("kind", ["int64", "string"])
@pytest.mark.parametrize("name", ["y", "category", "classes", "targets", "class_id"])
def test_declared_classes_come_before_a_plain_column_that_may_mean_something_else(name: str, kind: str) -> None:
    features = Features({"image": Image(), name: Value(kind), "species": ClassLabel(names=["a", "b"])})
    assert find_label_column(features, None, "image", "s") == ("species", [name])
    both = Features(**features, category_id=ClassLabel(names=["c"]), Y=ClassLabel(names=["d"]))
    assert find_label_column(both, None, "image", "s")[0] == "Y"
    for sure in ("label", "Labels", "class", "target"):
        plain = Features(**features, **{sure: Value(kind)})
        assert find_label_column(plain, None, "image", "s")[0] == sure
