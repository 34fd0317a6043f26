"""What an image file is called and how it begins, and which names are never anybody's images."""

from __future__ import annotations

import os
from pathlib import Path

COMMON = ("bmp", "jpeg", "jpg", "png", "tif", "tiff", "webp")
RARE = (
    *("apng", "avif", "dds", "dib", "gif", "j2c", "j2k", "jfif", "jp2", "jpc", "jpe", "jpf", "jpx", "mpo"),
    *("pbm", "pcx", "pgm", "pnm", "ppm", "psd", "qoi", "ras", "sgi", "tga"),
)
EXTENSIONS = frozenset(name.encode() for name in (*COMMON, *RARE))
"""Extensions of images, lower case."""
ARRAY = b"npy"
"""Searched for only where images are neither grey nor RGB: beside photographs such files hold masks or features."""
ZIPPED_ARRAYS = b"npz"
BY_CONTENT = b"*"
"""Among the wanted extensions: other files are opened, and taken where they begin as an image does."""

SYSTEM = frozenset(
    {b"@eadir", b"#recycle", b"#snapshot", b"@recycle", b"@recently-snapshot", b"$recycle.bin", b"recycler"}
    | {b"system volume information", b"__macosx", b"lost+found", b"thumbs.db", b"ehthumbs.db", b"desktop.ini"}
)
"""Names, in lower case, that file servers and systems give to their own files and folders."""

BESIDE = frozenset(
    {"txt", "json", "jsonl", "xml", "csv", "tsv", "md", "html", "htm", "yaml", "yml", "toml", "ini", "log", "rst"}
    | {"npy", "npz", "pt", "pth", "safetensors", "parquet", "zip", "tar", "gz", "py", "sh", "pdf", "url", "db"}
)
"""Extensions of what usually lies beside images: counted, but not worth a line in every run."""

MAGIC = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF87a",
    b"GIF89a",
    b"II*\0",
    b"MM\0*",
    b"II+\0",
    b"MM\0+",
    b"\0\0\0\x0cjP  \r\n\x87\n",
    b"\xff\x4f\xff\x51",
    b"\x93NUMPY",
    b"qoif",
    b"8BPS\0\1",
    b"DDS |\0\0\0",
    b"\x01\xda\0",
    b"\x01\xda\1",
    b"\x59\xa6\x6a\x95",
)
"""First bytes: JPEG, PNG, GIF, TIFF, BigTIFF, JPEG 2000 (boxed and bare), NumPy, QOI, PSD, DDS, SGI, Sun raster."""
NETPBM = tuple(b"P%d" % kind for kind in range(1, 7))
ENOUGH = 32
"""Bytes that tell."""


def extension(name: bytes) -> bytes:
    """Return what follows the last dot, in lower case; nothing where there is no dot."""
    return name.rpartition(b".")[2].lower() if b"." in name else b""


def begins_as_image(head: bytes) -> bool:
    """Return whether a file that begins so holds an image (or an array)."""
    if head.startswith(MAGIC):
        return True
    if head[:2] in NETPBM and head[2:3].isspace():
        return True
    if head[:2] == b"BM":  # two letters are little: the four reserved bytes are zero, the header's size is known
        return head[6:10] == bytes(4) and head[14:18] in {bytes([size, 0, 0, 0]) for size in (12, 40, 52, 56, 108, 124)}
    if head[:1] == b"\n" and head[2:3] == b"\1":  # PCX: version, run lengths, bits of a plane
        return head[1:2] in {b"\0", b"\2", b"\3", b"\5"} and head[3:4] in {b"\1", b"\2", b"\4", b"\x08"}
    if head[:4] == b"RIFF":
        return head[8:12] == b"WEBP"
    return head[4:8] == b"ftyp" and head[8:12] in {b"avif", b"avis"}


def beginning(path: bytes | Path, most: int = ENOUGH) -> bytes:
    """Return a file's first bytes, at most so many; a pipe is not waited for.

    Raises:
        OSError: it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        return os.read(descriptor, most)
    finally:
        os.close(descriptor)


def listed_names(extensions: frozenset[bytes]) -> str:
    """Return extensions for a message, the common ones first."""
    known = [name for name in (*COMMON, *RARE, ARRAY.decode()) if name.encode() in extensions]
    return ", ".join(known)
