"""Damaged images of every format: a picture or one line, no other program started, bounded time and memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from attacks.images import attack, decoded, sound_files
from attacks.watch import watch


def test_most_of_the_files_are_sound(tmp_path: Path) -> None:
    read = []
    for number, (suffix, content) in enumerate(sound_files()):
        path = tmp_path / f"{number}.{suffix}"
        path.write_bytes(content)
        read.append(sum(decoded(path, channels) for channels in (1, 3, 4)) > 0)
    assert sum(read) > 0.7 * len(read)


def test_damaged_images() -> None:
    found = watch(attack, range(150))
    print(f"\ndamaged images: {found}")
    assert not found.findings, "\n".join(found.findings)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("part", range(10))
def test_twenty_thousand_damaged_images(part: int) -> None:
    found = watch(attack, range(1000 + 2000 * part, 3000 + 2000 * part))
    print(f"\ndamaged images: {found}")
    assert not found.findings, "\n".join(found.findings)
