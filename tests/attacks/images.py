"""Small sound image files of every format, and ways to damage them, drawn from a number."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from attacks.watch import Case
from data.pictures import encoded, texture
from mst.data.decoding import UnreadableImage, decode_image
from mst.data.survey import inspect_images
from mst.errors import DataError, MissingExtra
from mst.runtime.images import image_header

EXTREMES = (0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
SEPARATE = ({"planarconfig": "separate"}, {"planarconfig": "contig"})


def pillow_files() -> Iterator[tuple[str, bytes]]:
    """Yield (suffix, content) of what Pillow writes."""
    rgb = texture(3, 37, 45)
    grey, alpha = rgb.convert("L"), rgb.copy()
    alpha.putalpha(grey)
    frames: dict[str, Any] = {"save_all": True, "append_images": [texture(4, 37, 45), texture(5, 37, 45)]}
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    real = Image.fromarray((np.asarray(grey) / 255).astype(np.float32))
    wide = Image.fromarray(np.asarray(grey).astype(np.int32))
    for options in ({}, {"progressive": True}, {"exif": exif}, {"subsampling": 2, "quality": 30}, {"optimize": True}):
        yield "jpg", encoded(rgb, "JPEG", **options)
    for other in (grey, rgb.convert("CMYK"), rgb.convert("YCbCr")):
        yield "jpg", encoded(other, "JPEG")
    for image in (rgb, grey, alpha, deep, grey.convert("1"), rgb.convert("P"), alpha.convert("LA")):
        yield "png", encoded(image, "PNG")
    for colours in (2, 4, 16):
        yield "png", encoded(rgb.quantize(colours), "PNG")
    yield "png", encoded(rgb, "PNG", exif=exif)
    yield "png", encoded(rgb.quantize(9), "PNG", transparency=bytes(range(9)))
    for form, suffix in (("PNG", "png"), ("WEBP", "webp"), ("GIF", "gif"), ("TIFF", "tif"), ("AVIF", "avif")):
        with suppress(KeyError, OSError):
            yield suffix, encoded(rgb, form, **frames)
    for options in ({}, {"lossless": True}, {"exif": exif}):
        yield "webp", encoded(rgb, "WEBP", **options)
    yield "webp", encoded(alpha, "WEBP")
    for image in (rgb, grey, alpha, deep, real, wide, grey.convert("1"), rgb.convert("P"), rgb.convert("CMYK")):
        for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits"):
            yield "tif", encoded(image, "TIFF", compression=compression)
    for options in ({"compression": "jpeg"}, {"big_tiff": True}, {"exif": exif}, {"compression": "tiff_lzw"}):
        yield "tif", encoded(rgb, "TIFF", **options)
    yield "tif", encoded(grey.convert("1"), "TIFF", compression="group4")
    for image in (rgb, grey, grey.convert("1"), rgb.convert("P"), alpha):
        yield "bmp", encoded(image, "BMP")
    for image in (rgb, grey, grey.convert("1"), deep, real):
        yield "ppm", encoded(image, "PPM")
    yield "gif", encoded(rgb, "GIF")
    for image in (rgb, grey, alpha):
        with suppress(KeyError, OSError):
            yield "avif", encoded(image, "AVIF")
        with suppress(KeyError, OSError):
            yield "jp2", encoded(image, "JPEG2000")
    with suppress(KeyError, OSError):
        yield "jp2", encoded(rgb, "JPEG2000", no_jp2=True, tile_size=(16, 16))


def tifffile_files() -> Iterator[tuple[str, bytes]]:
    """Yield what tifffile writes, where it is installed."""
    try:
        import tifffile
    except ImportError:
        return
    draws = np.random.default_rng(1)
    types = (np.uint8, np.uint16, np.uint32, np.int8, np.int16, np.float16, np.float32, np.float64)

    def written(shape: tuple[int, ...], kind: Any, **options: Any) -> tuple[str, bytes]:
        stream = io.BytesIO()
        values = draws.random(shape) if np.issubdtype(kind, np.floating) else draws.integers(0, 120, shape)
        tifffile.imwrite(stream, values.astype(kind), **options)
        return "tif", stream.getvalue()

    for kind in types:
        yield written((21, 34), kind, photometric="minisblack")
        yield written((3, 21, 34), kind, photometric="rgb", planarconfig="separate")
        yield written((21, 34, 3), kind, photometric="rgb")
        yield written((2, 21, 34), kind, photometric="minisblack")
    for kind in (np.uint8, np.uint16):
        yield written((5, 21, 34), kind, photometric="minisblack", planarconfig="separate")
        yield written((21, 34, 4), kind, photometric="minisblack", planarconfig="contig")
        yield written((21, 34, 4), kind, photometric="rgb", extrasamples=["unassalpha"], byteorder=">")
        yield written((21, 34), kind, photometric="miniswhite", bigtiff=True)
        for more in ({"tile": (16, 16)}, {"rowsperstrip": 3}, {"bigtiff": True, "byteorder": ">"}):
            yield written((21, 34, 3), kind, photometric="rgb", **more)
        with suppress(ImportError, ValueError, KeyError):
            for compression in ("lzw", "zlib", "zstd", "lzma", "packbits"):
                yield written((21, 34, 3), kind, photometric="rgb", compression=compression)
                yield written((3, 21, 34), kind, photometric="rgb", planarconfig="separate", compression=compression)
            for compression in ("jpeg2000", "png", "webp"):
                yield written((21, 34, 3), np.uint8, photometric="rgb", compression=compression)


def array_files() -> Iterator[tuple[str, bytes]]:
    """Yield .npy files of many types and layouts."""
    draws = np.random.default_rng(2)
    kinds = (*("u1", "<u2", ">u2", "<u4", "<u8", "i1", "<i2", ">i4", "<i8", "<f2", "<f4", ">f4", "<f8", "?", "<c8"),)
    for kind in (*kinds, "S3", "<U2", "<M8[s]"):
        values = draws.integers(0, 2, (13, 17, 3)).astype(kind)
        for shaped in (values, np.ascontiguousarray(values[..., 0]), np.asfortranarray(values.transpose(2, 0, 1))):
            stream = io.BytesIO()
            np.save(stream, shaped)
            yield "npy", stream.getvalue()


def sound_files() -> list[tuple[str, bytes]]:
    """Return (suffix, content) of some two hundred sound files."""
    return [*pillow_files(), *tifffile_files(), *array_files()]


def damaged_image(content: bytes, other: bytes, draw: random.Random) -> bytes:
    """Return a damaged copy; some damages take bytes of another file."""
    changed = content
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        changed = draw.choice(DAMAGES)(changed or content, other, draw)
    return changed


def _bits(content: bytes, _: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 2, 8, 40))):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _header_bits(content: bytes, _: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4))):
        changed[draw.randrange(min(len(changed), 200))] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
    return bytes(changed)


def _cut(content: bytes, _: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def _lengths(content: bytes, _: bytes, draw: random.Random) -> bytes:
    """Put extreme numbers of 2, 4 or 8 bytes anywhere, most of them near the start or, as in TIFFs, the end."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 3))):
        size, order = draw.choice((2, 4, 4, 8)), draw.choice(("little", "big"))
        span = draw.choice((64, 256, len(changed)))
        at = draw.randrange(max(1, min(span, len(changed)) - size + 1))
        at = max(0, len(changed) - size - at) if draw.random() < 0.3 else at
        number = draw.choice(EXTREMES) % (1 << 8 * size) if draw.random() < 0.8 else draw.getrandbits(8 * size)
        changed[at : at + size] = number.to_bytes(size, order)
    return bytes(changed)


def _zeros(content: bytes, _: bytes, draw: random.Random) -> bytes:
    at, span = draw.randrange(len(content)), draw.randint(1, 1 + len(content) // 2)
    return content[:at] + bytes([draw.choice((0, 0, 255))]) * min(span, len(content) - at) + content[at + span :]


def _other_body(content: bytes, other: bytes, draw: random.Random) -> bytes:
    at = draw.choice((4, 8, 16, 33, 64, 200, draw.randrange(len(content))))
    return content[:at] + other[draw.choice((0, at, draw.randrange(len(other)))) :]


def _appended(content: bytes, other: bytes, draw: random.Random) -> bytes:
    junk = draw.choice((other, draw.randbytes(draw.randint(1, 3000)), bytes(draw.randint(1, 70000)), content))
    return content + junk if draw.random() < 0.7 else junk + content


def _pieces(content: bytes, _: bytes, draw: random.Random) -> bytes:
    """Double, drop, shift or swap a span of bytes."""
    one, two = sorted(draw.randrange(len(content)) for _ in range(2))
    three = draw.randrange(two, len(content) + 1)
    head, first, second, rest = content[:one], content[one:two], content[two:three], content[three:]
    return head + draw.choice((first + first, b"", second + first, first * 20, bytes(draw.randrange(5)) + first)) + rest


def _chunks(content: bytes, other: bytes, draw: random.Random) -> bytes:
    """Double, drop, swap or change chunks of a PNG, with right checksums; other files: see `_lengths`."""
    if not content.startswith(b"\x89PNG"):
        return _lengths(content, other, draw)
    chunks, at = [], 8
    while at + 12 <= len(content) and len(chunks) < 99:
        (length,) = struct.unpack(">I", content[at : at + 4])
        chunks.append([content[at + 4 : at + 8], content[at + 8 : at + 8 + length]])
        at += 12 + length
    if not chunks:
        return _lengths(content, other, draw)
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(len(chunks))
        kind, body = chunks[place]
        match draw.randrange(5):
            case 0:
                chunks.insert(draw.randrange(len(chunks)), [kind, body])
            case 1 if len(chunks) > 1:
                del chunks[place]
            case 2:
                chunks.append(chunks.pop(place))
            case 3:
                chunks[place] = [kind, _lengths(body, other, draw)] if body else [kind, draw.randbytes(9)]
            case _:
                chunks[place] = [draw.choice((b"IDAT", b"PLTE", b"tRNS", b"fcTL", b"fdAT", b"acTL", b"IEND")), body]
    written = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return content[:8] + b"".join(written)


def _tags(content: bytes, other: bytes, draw: random.Random) -> bytes:
    """Change entries of a classic TIFF's first directory: tag, type, count or value."""
    if content[:4] not in {b"II*\0", b"MM\0*"} or len(content) < 16:
        return _lengths(content, other, draw)
    order = "<" if content[:2] == b"II" else ">"
    (at,) = struct.unpack(order + "I", content[4:8])
    if at + 2 > len(content):
        return _lengths(content, other, draw)
    (count,) = struct.unpack(order + "H", content[at : at + 2])
    changed = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        entry = at + 2 + 12 * draw.randrange(max(1, min(count, 30)))
        if entry + 12 > len(changed):
            continue
        tag, kind, number, value = struct.unpack(order + "HHII", changed[entry : entry + 12])
        match draw.randrange(5):
            case 0:
                tag = draw.choice((254, 256, 257, 258, 259, 262, 273, 274, 277, 278, 279, 284, 317, 320, 322, 338, 339))
            case 1:
                kind = draw.choice((0, 1, 2, 3, 4, 5, 7, 8, 9, 11, 12, 13, 16, 99))
            case 2:
                number = draw.choice(EXTREMES)
            case 3:
                value = draw.choice(EXTREMES)
            case _:
                value = draw.choice((at, 4, 8, len(changed), draw.randrange(300), draw.randrange(300) << 16))
        changed[entry : entry + 12] = struct.pack(order + "HHII", tag, kind, number, value)
    return bytes(changed)


DAMAGES: tuple[Callable[[bytes, bytes, random.Random], bytes], ...] = (
    *(_bits, _header_bits, _header_bits, _cut, _lengths, _lengths, _zeros, _other_body, _appended, _pieces),
    *(_chunks, _tags, _tags),
)


def attack(folder: Path) -> Case:
    """Return the attack by one damaged image: decoded with 1, 3 and 4 channels, its header read, inspected."""
    files = sound_files()

    def case(number: int) -> str:
        draw = random.Random(number)
        (suffix, content), (_, other) = draw.choice(files), draw.choice(files)
        path = folder / f"{number}.{suffix}"
        path.write_bytes(damaged_image(content, other, draw))
        read = sum(decoded(path, channels) for channels in (1, 3, 4))
        with suppress(OSError, ValueError, SyntaxError):
            image_header(path)
        with suppress(DataError):
            row = inspect_images(path, channels=3, workers=1)
            assert row["images"] == 1, row
            assert all("\n" not in entry["reason"] for entry in row["unreadable"]), row
        path.unlink()
        return "decoded" if read else "refused"

    return case


def decoded(path: Path, channels: int) -> bool:
    """Decode a file and check what comes: a proper tensor, or a refusal of one line (False)."""
    try:
        image = decode_image(path, channels=channels)
    except (UnreadableImage, MissingExtra) as refusal:
        said = str(refusal)
    else:
        assert image.dtype == torch.uint8, image.dtype
        assert image.ndim == 3, image.shape
        assert image.shape[0] == channels, image.shape
        assert image.numel() > 0, image.shape
        return True
    assert "\n" not in said, said
    assert " at 0x" not in said, said
    return False
