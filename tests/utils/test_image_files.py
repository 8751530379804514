"""Which files below a folder are images, and in which order."""

from __future__ import annotations

from pathlib import Path

import pytest

from feature_gan_kd.utils.errors import UserError
from feature_gan_kd.utils.image_files import list_images


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_images_at_any_depth_sorted(tmp_path: Path) -> None:
    make(
        tmp_path,
        "b/1.png",
        "a.JPEG",
        "c.tif",
        "b/0/x.webp",
        "b/.x.png",
        ".b/1.png",
        "__MACOSX/1.png",
        "s.svg",
        "Makefile",
    )
    found, notes = list_images([tmp_path])
    assert [str(path.relative_to(tmp_path)) for path in found] == ["a.JPEG", "b/0/x.webp", "b/1.png", "c.tif"]
    (note,) = notes
    assert note == (
        f"{tmp_path}: 2 files are left out, since the ending of the name is none of an image; the first is Makefile"
    )


def test_a_file_is_taken_whatever_its_name(tmp_path: Path) -> None:
    make(tmp_path, "noending", ".hidden")
    named = [tmp_path / ".hidden", tmp_path / "noending"]
    assert list_images(named) == (named, [])


@pytest.mark.parametrize(
    ("names", "holds"),
    [((), "it is empty"), ((".a.png",), "it is empty"), (("b.txt", "a.txt"), "only files with other .*first is a.txt")],
)
def test_a_folder_without_images(names: tuple[str, ...], holds: str, tmp_path: Path) -> None:
    make(tmp_path, *names)
    with pytest.raises(UserError, match=f"image: the folder .* holds no images \\({holds}"):
        list_images([tmp_path])


def test_links_that_lead_back_are_not_followed(tmp_path: Path) -> None:
    make(tmp_path, "a/1.png")
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    found, _ = list_images([tmp_path / "a"])
    assert [path.name for path in found] == ["1.png"]
