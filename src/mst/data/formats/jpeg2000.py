"""JPEG 2000 by its header: which depths Pillow gives right."""

from __future__ import annotations

SIZES = b"\xff\x4f\xff\x51"
"""Start of the codestream and of its first segment, SIZ (ISO/IEC 15444-1, A.4.1 and A.5.1)."""
COUNT, FIRST, EACH = 40, 42, 3
"""Places from there: number of components, depth of the first one, and from one depth to the next."""


def depths(data: bytes | bytearray) -> tuple[int, ...]:
    """Return the bits of each component; empty where the header is damaged."""
    at = data.find(SIZES)
    count = int.from_bytes(data[at + COUNT : at + FIRST], "big")
    found = data[at + FIRST : at + FIRST + EACH * count : EACH]
    return tuple((bits & 0x7F) + 1 for bits in found) if at >= 0 and len(found) == count else ()


def check_depth(data: bytes | bytearray) -> None:
    """Refuse depths that Pillow rounds wrongly: white becomes black, or less than white.

    Right are 8 bits, and 10 to 16 of grey.

    Raises:
        ValueError: another depth.
    """
    found = depths(data)
    right = {8, *range(10, 17)} if len(found) == 1 else {8}
    if not set(found) <= right:
        bits = "/".join(map(str, dict.fromkeys(found)))
        raise ValueError(
            f"a JPEG 2000 of {len(found)} component{'s' * (len(found) != 1)} with {bits} bits, which Pillow decodes "
            "wrongly: convert it to TIFF or PNG"
        )
