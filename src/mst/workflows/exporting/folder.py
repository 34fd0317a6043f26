"""The new folder of an export: it appears only when everything in it has been measured."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mst.errors import RunFailure, UsageError
from mst.paths import user_path
from mst.runtime.storage.files import check_folder, may_write, write_atomic

PARITY = "parity.json"


def new_folder(out: str | Path) -> Path:
    """Return where the export goes.

    Raises:
        UsageError: something is there already, or nothing can be written there.
    """
    folder = user_path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"--out {folder} exists and is not an empty folder: name a new one")
    check_folder(folder, "--out")
    try:
        os.path.abspath(folder).encode()
    except UnicodeEncodeError:
        raise UsageError(f"--out {folder}: timm opens no folder whose name is not UTF-8: name another") from None
    if not may_write():
        raise UsageError("mst export runs in one process: start it without torchrun or srun")
    return folder


def fill(folder: Path, write: Callable[[Path], list[dict[str, Any]]], said: dict[str, Any]) -> list[dict[str, Any]]:
    """Let `write` fill a folder beside the new one, add parity.json, and rename it; after an error nothing is left.

    Args:
        folder: from `new_folder`.
        write: writes into a folder and returns a row for each file that was measured.
        said: what parity.json says before these rows.

    Returns:
        The rows.

    Raises:
        RunFailure: the disk refused, or `write` did.
    """
    place = Path(tempfile.mkdtemp(prefix=f".{folder.name[:100]}-", dir=_parent(folder)))
    try:
        rows = write(place)
        write_atomic(place / PARITY, json.dumps({**said, "measured": rows}, indent=2) + "\n")
        os.chmod(place, 0o777 & ~_umask())
        if folder.is_dir():
            folder.rmdir()  # empty, as was checked
        place.rename(folder)
    except OSError as error:
        raise RunFailure(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return rows


def _parent(folder: Path) -> Path:
    parent = folder.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFailure(f"cannot make {parent}: {error.strerror or error}") from error
    return parent


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def push(folder: Path, name: str) -> None:
    """Upload a folder to the hub, with the user's own login.

    Raises:
        RunFailure: the hub refuses it; the folder stays.
    """
    from huggingface_hub import HfApi

    try:
        HfApi().create_repo(name, exist_ok=True)
        HfApi().upload_folder(repo_id=name, folder_path=str(folder))
    except Exception as error:  # network, login, name
        reason = " ".join(str(error).split())[:200]
        raise RunFailure(f"--push {name}: {reason}; {folder} is complete, push it again with `hf upload`") from error
