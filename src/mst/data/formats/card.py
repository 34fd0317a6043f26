"""JPEGs decoded by a CUDA card, a few files at a time; whatever it cannot do, or may do otherwise, is left to the CPU.

Source: nvJPEG through torchvision's operator, called directly as its Python function warns of its own removal. Its
pixels differ from libjpeg's by a few grey levels, as colours are enlarged in another way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

import torch
import torchvision  # noqa: F401  (registers torch.ops.image)
from torch import Tensor

from mst.data.formats.jpeg import jpeg_orientation, segments, turned
from mst.errors import UsageError
from mst.runtime.images import MAX_PIXELS

AT_ONCE = 1 << 27
"""Bytes of the images that are decoded together."""
GREY, RGB = 1, 3  # torchvision.io.ImageReadMode
DECODE = getattr(torch.ops.image, "decode_jpegs_cuda", None)
"""(encoded images, mode, device) -> all images, uint8 [C, H, W], or an error; None where there is no such."""


class CardDecoder:
    """Decodes images of a source before they are asked for.

    Attributes:
        device: where the images are.
        on_card: images that the card decoded so far.
        on_cpu: images that were left to the CPU.
    """

    def __init__(self, device: torch.device, channels: int) -> None:
        """Decode to a device, to 1 or 3 channels."""
        self.device = device
        self.on_card = self.on_cpu = 0
        self._mode = GREY if channels == 1 else RGB
        self._coming: deque[int] = deque()
        self._ready: dict[int, Tensor | None] = {}

    def expect(self, positions: Iterable[int]) -> None:
        """Say which images will be taken, in their order; what was expected before and not taken is forgotten."""
        self._coming, self._ready = deque(positions), {}

    def take(self, read: Callable[[int], bytearray], position: int) -> Tensor | None:
        """Return an image, uint8 [C, H, W], on the device; None = it is the CPU's to decode, or to refuse.

        Args:
            read: returns a file by its position.
            position: of the image.
        """
        if position not in self._ready and position in self._coming:
            self._decode_some(read)
        image = self._ready.pop(position, None)
        if image is None:
            self.on_cpu += 1
        else:
            self.on_card += 1
        return image

    def _decode_some(self, read: Callable[[int], bytearray]) -> None:
        """Decode the next images that are expected."""
        positions, encoded, turns, size = list[int](), list[Tensor](), list[int](), 0
        while self._coming and size < AT_ONCE:
            position = self._coming.popleft()
            try:
                data = read(position)
            except OSError:  # the CPU's way says why
                data = bytearray()
            self._ready[position] = None
            if (plain := plain_size(data)) is not None:
                positions.append(position)
                encoded.append(torch.frombuffer(data, dtype=torch.uint8))
                turns.append(jpeg_orientation(data))
                size += 3 * plain[0] * plain[1]
        for position, image, turn in zip(positions, self._decoded(encoded), turns, strict=True):
            self._ready[position] = None if image is None else turned(image, turn)

    def _decoded(self, encoded: list[Tensor]) -> Sequence[Tensor | None]:
        """Return the images; None for those that the card refuses, of which its error does not say which they are."""
        if not encoded or DECODE is None:
            return [None] * len(encoded)
        try:
            return list(DECODE(encoded, self._mode, self.device))
        except RuntimeError:
            if len(encoded) == 1:
                return [None]
            return [image for one in encoded for image in self._decoded([one])]


def check_card(device: torch.device, *, channels: int, workers: int, colour: str) -> None:
    """Refuse `--runtime.decode device` where it cannot be.

    Raises:
        UsageError: no CUDA, no decoder for it, or settings that do not go with it.
    """
    if device.type != "cuda":
        raise UsageError(f"--runtime.decode device needs a CUDA device, the networks are on {device}: use cpu")
    if DECODE is None:
        raise UsageError("--runtime.decode device: this torchvision has no JPEG decoder for CUDA: use cpu")
    if channels not in {1, 3}:
        raise UsageError(f"--runtime.decode device decodes 1 or 3 channels, --data.channels is {channels}: use cpu")
    if workers > 0:
        raise UsageError(
            f"--runtime.workers {workers}: with --runtime.decode device one thread of this process reads: use 0 or -1"
        )
    if colour == "loader":
        raise UsageError("--runtime.colour loader: with --runtime.decode device the device has the crops: use auto")


def plain_size(data: bytes | bytearray) -> tuple[int, int] | None:
    """Return (H, W) of a JPEG that any decoder reads alike, else None (ITU-T T.81, annex B).

    That is: 8 bits, grey or YCbCr, ended by its marker (a decoder may fill a truncated one with grey and say nothing),
    of a size that is allowed.
    """
    if data[:3] != b"\xff\xd8\xff" or bytes(data[-64:]).rstrip(b"\0")[-2:] != b"\xff\xd9":
        return None
    for marker, at in segments(data):
        if at + 16 >= len(data):
            break
        if marker == 0xEE and data[at + 4 : at + 9] == b"Adobe" and data[at + 15] != 1:
            return None  # Adobe's word that its components are no YCbCr
        if marker in {0xC0, 0xC1, 0xC2}:
            height, width = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
            count, first = data[at + 9], data[at + 10]
            sound = data[at + 4] == 8 and count in {1, 3} and first != ord("R") and 0 < height * width <= MAX_PIXELS
            return (height, width) if sound else None
    return None
