from __future__ import annotations

import pickle
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.pictures import DAMAGES, claim_size, damaged, decode_or_refuse, encoded, texture, write_textures
from mst.data.decoding import UnreadableImage, decode_image
from mst.data.formats import jpeg
from mst.data.formats import large as large_images
from mst.data.formats.jpeg import Detail, jpeg_header
from mst.runtime import images

RGB = texture()
RED = Image.new("RGB", (56, 40), (200, 30, 60))


def pixels(image: Image.Image) -> torch.Tensor:
    values = np.array(image)
    return torch.from_numpy(values[None] if values.ndim == 2 else values.transpose(2, 0, 1).copy())


def write(path: Path, image: Image.Image, form: str, **options: object) -> Path:
    path.write_bytes(encoded(image, form, **options))
    return path


MODES = {
    "JPEG": ("L", "RGB", "CMYK", "YCbCr"),
    "PNG": ("1", "L", "P", "LA", "RGB", "RGBA"),
    "WEBP": ("RGB", "RGBA"),
    "TIFF": ("1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "YCbCr"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "GIF": ("L", "P"),
    "PPM": ("1", "L", "RGB"),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("form", "mode"), [(form, mode) for form, modes in MODES.items() for mode in modes])
def test_every_form_and_mode_gives_the_shape_asked_for(tmp_path: Path, form: str, mode: str, channels: int) -> None:
    path = write(tmp_path / "a.img", RGB.convert(mode), form)
    image = decode_image(path, channels=channels)
    assert image.dtype == torch.uint8
    assert image.shape == (channels, 40, 56)
    assert image.permute(1, 2, 0).is_contiguous()
    image.add_(0)  # writable


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP", "WEBP"])
def test_lossless_forms_give_the_exact_pixels(tmp_path: Path, form: str) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    assert torch.equal(decode_image(write(tmp_path / "a", RGB, form, **options)), pixels(RGB))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 100}])
@pytest.mark.parametrize("channels", [1, 3])
def test_native_jpeg_agrees_with_pillow(
    tmp_path: Path, options: dict[str, object], channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.jpg", RGB, "JPEG", **options)
    native = decode_image(path, channels=channels).int()
    monkeypatch.setattr(jpeg, "NATIVE_JPEG", None)
    assert (native - decode_image(path, channels=channels).int()).abs().max() <= 3


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("enough", "reduction"), [((10**7, 1), 1), ((1000, 1), 8), ((1000, 60), 4), ((4000, 50), 4)])
def test_a_large_jpeg_is_decoded_at_a_part_of_its_size(
    tmp_path: Path, enough: tuple[int, int], reduction: int, channels: int
) -> None:
    path = write(tmp_path / "a.jpg", RGB.resize((400, 304), Image.Resampling.BICUBIC), "JPEG", quality=95)
    whole = decode_image(path, channels=channels)
    part = decode_image(path, channels=channels, enough=Detail(*enough))
    assert part.shape == (channels, 304 // reduction, 400 // reduction)
    small = torch.nn.functional.interpolate(whole[None].float(), part.shape[1:], mode="area")[0]
    assert (part - small).abs().mean() < 2


def test_only_jpegs_are_reduced_and_they_stay_upright(tmp_path: Path) -> None:
    large, few = RGB.resize((400, 240)), Detail(100, 4)
    assert decode_image(write(tmp_path / "a.png", large, "PNG"), enough=few).shape == (3, 240, 400)
    assert decode_image(write(tmp_path / "b.jpg", large.convert("CMYK"), "JPEG"), enough=few).shape == (3, 240, 400)
    turned = Image.Exif()
    turned[0x0112] = 6
    assert decode_image(write(tmp_path / "c.jpg", large, "JPEG", exif=turned), enough=few).shape == (3, 50, 30)


def test_cmyk_jpeg_keeps_its_colour(tmp_path: Path) -> None:
    image = decode_image(write(tmp_path / "a.jpg", RED.convert("CMYK"), "JPEG", quality=100))
    assert (image.float().mean((1, 2)) - torch.tensor([200.0, 30.0, 60.0])).abs().max() < 4


def test_palette_keeps_its_colour(tmp_path: Path) -> None:
    image = decode_image(write(tmp_path / "a.png", RED.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"))
    assert torch.equal(image, pixels(RED))


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_transparent_pixels_lie_over_white(tmp_path: Path, form: str) -> None:
    clear = RED.copy()
    clear.putalpha(Image.fromarray(np.where(np.arange(56) < 28, 0, 255).astype(np.uint8)[None].repeat(40, 0)))
    options = {"lossless": True} if form == "WEBP" else {}
    image = decode_image(write(tmp_path / "a", clear, form, **options))
    assert (image[:, :, :28] == 255).all()
    assert torch.equal(image[:, :, 28:], pixels(RED)[:, :, 28:])


def test_transparent_colour_of_a_palette_lies_over_white(tmp_path: Path) -> None:
    image = Image.new("P", (8, 6), 1)
    image.putpalette([0, 0, 0, 200, 30, 60])
    path = write(tmp_path / "a.png", image, "PNG", transparency=1)
    assert (decode_image(path) == 255).all()
    path = write(tmp_path / "b.png", image, "PNG", transparency=b"\xff\x80")
    assert decode_image(path)[:, 0, 0].tolist() == pytest.approx([227, 142, 157], abs=2)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_scaled_over_their_full_range(tmp_path: Path, form: str, channels: int) -> None:
    values = np.linspace(0, 65535, 48, dtype=np.uint16).reshape(6, 8)
    image = decode_image(write(tmp_path / "a", Image.fromarray(values), form), channels=channels)
    expected = np.rint(values / 257).astype(np.uint8)
    assert np.array_equal(image[0].numpy(), expected)
    assert (image == image[:1]).all()


@pytest.mark.parametrize(("scale", "factor"), [(1.0, 255), (255.0, 1)])
def test_float_images_are_understood(tmp_path: Path, scale: float, factor: int) -> None:
    values = np.linspace(0, scale, 48, dtype=np.float32).reshape(6, 8)
    image = decode_image(write(tmp_path / "a.tif", Image.fromarray(values), "TIFF"), channels=1)
    assert np.array_equal(image[0].numpy(), np.rint(values * factor).astype(np.uint8))


@pytest.mark.parametrize("bad", [-1.0, 300.0, float("nan")])
def test_float_images_of_unknown_range_are_refused(tmp_path: Path, bad: float) -> None:
    values = np.full((4, 4), bad, dtype=np.float32)
    with pytest.raises(UnreadableImage, match=r"float pixels"):
        decode_image(write(tmp_path / "a.tif", Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, object] = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(form, {})
    image = decode_image(write(tmp_path / "a", RGB, form, exif=exif.tobytes(), **options))
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # tag value -> Image.Transpose
    upright = RGB if orientation == 1 else RGB.transpose(Image.Transpose(turn[orientation]))
    assert image.shape == (3, upright.height, upright.width)
    assert image.permute(1, 2, 0).is_contiguous()
    assert (image.int() - pixels(upright).int()).abs().float().mean() < 2


@pytest.mark.parametrize("form", ["PNG", "WEBP", "GIF", "TIFF"])
def test_first_frame_of_an_animation(tmp_path: Path, form: str) -> None:
    other = Image.new("RGB", RED.size, (0, 0, 255))
    options = {"lossless": True} if form == "WEBP" else {}
    image = decode_image(write(tmp_path / "a", RED, form, save_all=True, append_images=[other], **options))
    assert (image.int() - pixels(RED).int()).abs().max() <= 8


def test_pages_of_a_tiff_are_channels(tmp_path: Path) -> None:
    planes = [texture(seed).convert("L") for seed in range(5)]
    path = write(tmp_path / "a.tif", planes[0], "TIFF", save_all=True, append_images=planes[1:])
    image = decode_image(path, channels=5)
    assert torch.equal(image, torch.cat([pixels(plane) for plane in planes]))
    with pytest.raises(UnreadableImage, match=r"has 5 channels, 4 are asked for"):
        decode_image(path, channels=4)


def test_bands_as_stored(tmp_path: Path) -> None:
    image = texture(3).convert("CMYK")
    assert torch.equal(decode_image(write(tmp_path / "a.tif", image, "TIFF"), channels=4), pixels(image))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP"])
@pytest.mark.parametrize("name", ["a.jpg", "a.PNG", "a.tiff", "a"])
def test_content_counts_not_the_extension(tmp_path: Path, form: str, name: str) -> None:
    assert decode_image(write(tmp_path / name, RGB, form)).shape == (3, 40, 56)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "GIF"])
@pytest.mark.parametrize("size", [(65_535, 65_535), (60_000, 4_000)])
def test_a_huge_claimed_size_is_refused_before_decoding(tmp_path: Path, form: str, size: tuple[int, int]) -> None:
    path = tmp_path / "a"
    path.write_bytes(claim_size(encoded(RGB, form), *size))
    with pytest.raises(UnreadableImage, match="pixels"):
        decode_image(path)


def test_the_guard_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jpg", RGB, "JPEG")
    monkeypatch.setattr(jpeg, "MAX_PIXELS", 40 * 56)
    assert decode_image(path).shape == (3, 40, 56)
    for module in (jpeg, images):
        monkeypatch.setattr(module, "MAX_PIXELS", 40 * 56 - 1)
    with pytest.raises(UnreadableImage, match="claims 56x40 pixels, at most 2239"):
        decode_image(path)


def test_no_file_folder_empty_text(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="No such file"):
        decode_image(tmp_path / "missing.jpg")
    with pytest.raises(UnreadableImage, match="directory"):
        decode_image(tmp_path)
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(UnreadableImage, match="empty file"):
        decode_image(tmp_path / "empty.jpg")
    (tmp_path / "text.jpg").write_text("not a picture")
    with pytest.raises(UnreadableImage, match="not an image in a known format"):
        decode_image(tmp_path / "text.jpg")


def test_the_exception_is_one_line_and_travels() -> None:
    error = UnreadableImage("/x/a.jpg", "two\nlines ")
    assert str(error) == "/x/a.jpg: two lines"
    again = pickle.loads(pickle.dumps(error))
    assert (again.name, again.reason) == (error.name, error.reason)


def test_many_threads_decode_at_once_and_leave_the_warning_filters_alone(tmp_path: Path) -> None:
    before = list(warnings.filters)
    path = write(tmp_path / "a.png", RGB, "PNG")
    with ThreadPoolExecutor(8) as pool:
        assert all(torch.equal(image, pixels(RGB)) for image in pool.map(decode_image, [path] * 200))
    assert list(warnings.filters) == before


def test_remarks_of_pillow_are_not_heard(tmp_path: Path) -> None:
    data = bytearray(encoded(RGB, "TIFF"))
    data[4:8] = struct.pack("<I", len(data))  # a second directory, with a broken entry count, at the end
    path = tmp_path / "a.tif"
    path.write_bytes(data)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        decode_or_refuse(path)
        for seed in range(200):
            path.write_bytes(
                damaged(encoded(RGB, "TIFF", compression="tiff_lzw"), "bit_flipped", np.random.default_rng(seed))
            )
            decode_or_refuse(path)
    assert not heard


def test_damaged_exif_still_gives_the_pixels(tmp_path: Path) -> None:
    exif = (
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0" + b"\x00\x01\x02\x00\xff\xff\xff\x7f"
    )
    for form in ("JPEG", "PNG", "WEBP"):
        assert decode_image(write(tmp_path / "a", RGB, form, exif=exif)).shape[0] == 3


def test_jpeg_header() -> None:
    data = encoded(RGB, "JPEG")
    assert jpeg_header(data) == (40, 56, 3)
    assert jpeg_header(encoded(RGB.convert("L"), "JPEG", progressive=True)) == (40, 56, 1)
    assert jpeg_header(encoded(RGB.convert("CMYK"), "JPEG")) == (40, 56, 4)
    assert jpeg_header(encoded(RGB, "PNG")) is None
    assert all(jpeg_header(data[:cut]) in {None, (40, 56, 3)} for cut in range(len(data)))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_damaged_files_give_a_tensor_or_unreadable(tmp_path: Path, form: str) -> None:
    data = encoded(RGB, form)
    draws = np.random.default_rng(0)
    path = tmp_path / "a.jpg"
    for kind in DAMAGES:
        for channels in (1, 3, 3, 4):
            for _ in range(6):
                path.write_bytes(damaged(data, kind, draws))
                decode_or_refuse(path, channels)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_every_truncation_is_unreadable(tmp_path: Path, form: str) -> None:
    data = encoded(texture(1, 16, 16), form)
    path = tmp_path / "a"
    kept = len(data) if form == "JPEG" else len(data) - 32  # a PNG ends with checksums and a chunk without pixels
    for cut in range(0, kept, 7):
        path.write_bytes(data[:cut])
        with pytest.raises(UnreadableImage):
            decode_image(path)


def test_written_textures_are_readable(tmp_path: Path) -> None:
    for path in write_textures(tmp_path / "x", 2):
        assert decode_image(path).shape == (3, 24, 24)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "1", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("extra", ["", "turned", "transparent", "remark"])
def test_large_pngs_have_the_pixels_of_small_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, channels: int, extra: str
) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (31, 22, 4), np.uint8)
    if mode == "I;16":
        picture = Image.fromarray(noise[..., 0] * np.uint16(200))
    else:
        picture = Image.fromarray(noise if mode.endswith("A") else noise[..., :3]).convert(mode)
    said: dict[str, object] = {}
    if extra == "turned":
        exif = Image.Exif()
        exif[0x0112] = 8
        said["exif"] = exif
    if extra == "transparent" and mode in {"RGB", "L"}:
        said["transparency"] = picture.getpixel((3, 4))
    if extra == "remark":
        said["icc_profile"] = b"no profile"
    picture.save(tmp_path / "x.png", **said)
    small = decode_image(tmp_path / "x.png", channels=channels)
    with monkeypatch.context() as patched:
        patched.setattr(large_images, "LARGE", 200)
        large = decode_image(tmp_path / "x.png", channels=channels)
    assert torch.equal(small, large)
    if channels == 3:
        assert small.stride() == large.stride()
    large[0, 0, 0] = 7  # it may be written into


@pytest.mark.parametrize("cut", [40, 200, -1, -12, -20])
def test_damaged_large_pngs_are_refused_as_small_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int, capfd: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (31, 22, 3), np.uint8)).save(tmp_path / "x.png")
    whole = (tmp_path / "x.png").read_bytes()
    for content in (whole[:cut], whole[:500] + bytes([whole[500] ^ 255]) + whole[501:]):
        (tmp_path / "x.png").write_bytes(content)
        said = []
        for large in (1 << 24, 100):
            monkeypatch.setattr(large_images, "LARGE", large)
            try:
                said.append(str(decode_image(tmp_path / "x.png").float().mean()))
            except UnreadableImage as problem:
                said.append(problem.reason)
        assert said[0] == said[1]
    assert capfd.readouterr().err == ""
