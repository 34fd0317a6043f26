"""Images in a folder that is going to be deleted are found, whatever way their names lead there."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.pictures import write_textures
from mst.data.inside import first_inside, refuse_inside
from mst.data.sources import ImageIndex, index_images
from mst.errors import UsageError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_textures(tmp_path / "run" / "kept", 2, size=8)
    write_textures(tmp_path / "photos" / "deep", 3, size=8)
    return tmp_path / "run"


def test_images_elsewhere_are_none(run: Path, tmp_path: Path) -> None:
    (tmp_path / "run2").mkdir()
    write_textures(tmp_path / "run2", 1, size=8)
    (run / "out").symlink_to(tmp_path / "photos")  # deleting the run deletes the link only
    assert first_inside(index_images([tmp_path / "photos", tmp_path / "run2", run / "out"]), run) is None
    assert first_inside(ImageIndex.of([]), run) is None
    assert first_inside(index_images(tmp_path / "photos"), tmp_path / "nowhere") is None


@pytest.mark.parametrize("kind", ["list", "folder link", "file link", "link to a link", "root by a link", "dots"])
def test_every_way_in(kind: str, run: Path, tmp_path: Path) -> None:
    image, photos = next((run / "kept").iterdir()), tmp_path / "photos"
    place = run
    if kind == "list":
        (tmp_path / "list.txt").write_text(f"{next((photos / 'deep').iterdir())}\n{image}\n")
    elif kind == "folder link":
        (photos / "more").symlink_to(run / "kept")
    elif kind == "file link":
        (photos / "deep" / "z.png").symlink_to(image)
    elif kind == "link to a link":
        (tmp_path / "between").symlink_to(image)
        (photos / "deep" / "z.png").symlink_to(tmp_path / "between")
    elif kind == "root by a link":
        (tmp_path / "latest").symlink_to(run)
        place = tmp_path / "latest"
        (photos / "more").symlink_to(run / "kept")
    else:
        (tmp_path / "list.txt").write_text(f"photos/../run/kept/{image.name}\n")
    source = tmp_path / "list.txt" if (tmp_path / "list.txt").exists() else photos
    with pytest.raises(UsageError, match=r"holds the image .*, which --overwrite would delete: name another folder"):
        refuse_inside(
            place, index_images(photos / "deep" / next((photos / "deep").iterdir()).name), index_images(source)
        )


def test_a_link_that_is_no_image_is_none(run: Path, tmp_path: Path) -> None:
    (run / "notes.txt").write_text("x")
    (tmp_path / "photos" / "deep" / "notes.txt").symlink_to(run / "notes.txt")
    assert first_inside(index_images(tmp_path / "photos"), run) is None
