"""`metadata.csv` of an image folder that cannot be understood: one line that names the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from feature_gan_kd import UserError
from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.data import count_classes


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"file_name,label,label\n0.png,a,x\n1.png,b,y\n", "the first line of {} has 'label' twice: rename one"),
        ("file_name,label\n0.png,caf\u00e9\n1.png,b\n".encode("latin-1"), "{} is not text in UTF-8: save it as such"),
        ("file_name,label\n0.png,a\n1.png,b\n".encode("utf-16"), "{} is not text in UTF-8: save it as such"),
    ],
)
def test_refused(content: bytes, line: str, tmp_path: Path) -> None:
    for k in range(2):
        Image.new("RGB", (8, 8), (100 * k,) * 3).save(tmp_path / f"{k}.png")
    file = tmp_path / "metadata.csv"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        count_classes(str(tmp_path), DistillConfig())
    assert line.format(file) in str(caught.value)
