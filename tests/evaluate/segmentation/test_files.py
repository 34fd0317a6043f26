"""Class lists and masks as people have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluate.common.test_content import write_pairs
from mst.errors import DataError
from mst.evaluate.segmentation.folder import segmentation_folder


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_class_lists_in_any_unicode(tmp_path: Path, encoding: str) -> None:
    (write_pairs(tmp_path) / "classes.json").write_text('["x", "ü"]', encoding=encoding)
    assert segmentation_folder(tmp_path).classes == ("x", "ü")


def test_a_word_is_no_list_of_classes(tmp_path: Path) -> None:
    (write_pairs(tmp_path) / "classes.json").write_text('{"classes": "abc"}')
    with pytest.raises(DataError, match=r'classes\.json: expected \["name"'):
        segmentation_folder(tmp_path)


def test_masks_of_one_bit(tmp_path: Path) -> None:
    data = segmentation_folder(write_pairs(tmp_path))
    before = data.train.read(0)[1]
    Image.fromarray(before.numpy().astype(np.uint8) * 255).convert("1").save(tmp_path / "masks" / "a.png")
    assert data.train.read(0)[1].tolist() == before.tolist()
