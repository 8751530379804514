from __future__ import annotations

from typing import Any

import datasets
import pytest
import torch

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.data.decode import decode_images
from feature_gan_kd.data.sources import Split
from feature_gan_kd.data.table import Classes, Table, read_table
from feature_gan_kd.utils.errors import UserError
from tests.data.image_samples import encoded, make, plain, random_images


def table(data: Any, train: Classes | None = None, classes: int | None = None, **settings: Any) -> Table:
    return read_table(Split(data, "s"), DistillConfig(**settings), [], classes, train)


def pixels_of(part: Table) -> torch.Tensor:
    return decode_images(part.undecoded_images(3), [part.describe_image(k) for k in range(len(part))], 8, 3)[0]


def test_labels_and_images_of_declared_columns() -> None:
    notes: list[str] = []
    part = read_table(Split(make(7), "s"), DistillConfig(), notes, None)
    assert part.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert (part.class_names, part.num_classes, part.split) == (["cat", "dog"], 2, "s")
    assert torch.equal(pixels_of(part), torch.stack([torch.from_numpy(image) for image in random_images(7)]))
    assert notes == [
        "split 's': 7 images of 2 classes in column 'img', labels in 'fine_label' "
        "(also there: coarse_label; choose with --label-column)"
    ]


def test_columns_by_name() -> None:
    part = table(make(4), label_column="coarse_label", image_column="img")
    assert part.class_names == ["all", "none"]


@pytest.mark.parametrize("kind", ["struct", "binary"])
def test_parquet_that_datasets_did_not_write(kind: str) -> None:
    values = [encoded(image) for image in random_images(3)]
    column = values if kind == "struct" else [value["bytes"] for value in values]
    part = table(datasets.Dataset.from_dict({"x": column, "label": [0, 1, 0]}))
    assert torch.equal(pixels_of(part), torch.stack([torch.from_numpy(image) for image in random_images(3)]))


def test_a_format_of_the_users_does_not_matter() -> None:
    assert table(make(4).with_format("torch")).labels.tolist() == [0, 1, 0, 1]
    shuffled = make(4).select([3, 0])
    assert table(shuffled).labels.tolist() == [1, 0]


def test_plain_numbers_and_texts() -> None:
    assert table(plain([1, 0])).num_classes == 2
    assert table(plain([3, 0]), classes=10).num_classes == 10
    texts = table(plain(["dog", "cat", "dog"]))
    assert (texts.labels.tolist(), texts.class_names) == ([1, 0, 1], ["cat", "dog"])


def test_a_selection_remembers_where_its_rows_stood() -> None:
    part = table(make(9)).select(torch.tensor([8, 2, 5])).select(torch.tensor([0, 2]))
    assert part.labels.tolist() == [0, 1]
    assert (part.describe_image(0), part.describe_image(1)) == ("image 8 of split 's'", "image 5 of split 's'")
    images = random_images(9)
    assert torch.equal(pixels_of(part), torch.stack([torch.from_numpy(images[8]), torch.from_numpy(images[5])]))


NAMED = Classes(["cat", "dog"], 2, "split 'train'")
SORTED = Classes(["cat", "dog"], 2, "split 'train'", order_declared=False)
COUNTED = Classes(None, 2, "split 'train'")


def test_an_evaluation_part_takes_the_training_classes() -> None:
    assert table(make(4), NAMED).class_names == ["cat", "dog"]
    assert table(make(4), COUNTED).class_names == ["cat", "dog"]
    assert table(plain([0, 0]), NAMED).num_classes == 2
    assert table(plain(["dog", "dog"]), NAMED).labels.tolist() == [1, 1]
    assert table(plain(["dog", "dog"]), SORTED).labels.tolist() == [1, 1]
    assert table(make(4), SORTED).labels.tolist() == [0, 1, 0, 1]
    numbers = Classes(["1", "10", "2"], 3, "split 'train'", order_declared=False)
    assert table(plain([2, 10]), numbers).labels.tolist() == [2, 1]
    assert (table(make(4)).order_declared, table(plain(["dog", "cat"])).order_declared) == (True, False)
    assert table(plain(["dog", "dog"]), Classes(None, None, "split 'train'")).class_names == ["dog"]


WIDE = Classes(["bee", "cat", "dog", "eel"], 4, "the models")


@pytest.mark.parametrize(
    ("names", "labels", "how"),
    [
        (("cat", "dog"), [1, 2, 1], "2 of the 4 classes of the models, matched by name; it has no 'bee', 'eel'"),
        (("dog", "cat"), [2, 1, 2], "2 of the 4 classes of the models, matched by name; it has no 'bee', 'eel'"),
        (
            ("eel", "dog", "cat", "bee"),
            [3, 2, 1],
            "4 of the 4 classes of the models, matched by name; they are in an",
        ),
    ],
)
def test_some_of_the_classes_or_another_order(names: tuple[str, ...], labels: list[int], how: str) -> None:
    notes: list[str] = []
    part = read_table(Split(make(3, names=names), "s"), DistillConfig(), notes, None, WIDE)
    assert (part.labels.tolist(), part.class_names, part.num_classes) == (labels, WIDE.names, 4)
    assert notes[0].startswith(f"split 's': {how}")


@pytest.mark.parametrize(
    ("data", "train", "message"),
    [
        (make(4).select([]), None, "^data: split 's' is empty"),
        (
            make(4, names=("cat", "dog", "eel")),
            NAMED,
            r"^labels: class 'eel' of split 's' is not among the 2 classes of split 'train' \('cat', 'dog'\): leave",
        ),
        (make(4, names=("cat", "eel")), NAMED, r"^labels: class 'eel' of split 's' is not among the 2 classes of"),
        (
            make(4, names=("cat",)),
            Classes(["cat", "cat"], 2, "the models"),
            r"^labels: class 'cat' of split 's' stands for several of the 2 classes of the models",
        ),
        (make(4, names=("cat", "dog", "eel")), COUNTED, "split 's' has 3 classes, expected 2 as in split 'train'"),
        (plain(["a", "b", "c"]), COUNTED, "split 's' has 3 classes, expected 2 as in split 'train'"),
        (
            plain([0, 1]),
            SORTED,
            r"^labels: split 's' has plain numbers, and it is not known which of the classes of split 'train' "
            r"\('cat', 'dog'\) each means: give both the same names, or cast",
        ),
        (plain(["dog", "eel"]), NAMED, "image 1 of split 's' has the label 'eel'"),
        (plain([1, 2]), COUNTED, "image 1 of split 's' has the label 2 in column 'label', expected 0 to 1"),
        (plain([0.5, 1.0]), None, "image 0 of split 's' has the label 0.5"),
        (plain([0, -2]), None, "image 1 of split 's' has the label -2"),
    ],
)
def test_bad_tables_are_one_line(data: Any, train: Classes | None, message: str) -> None:
    settings = {"label_column": "label"} if "label" in data.features else {}
    with pytest.raises(UserError, match=message) as caught:
        table(data, train, **settings)
    assert "\n" not in str(caught.value)
