"""Image files of all kinds: they are decoded as Pillow does, upright, or refused."""

import io
import os
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError
from torchvision.transforms import functional as tv

from pretrain.common.files import is_whole_jpeg
from pretrain.data.decode import (
    FORMATS,
    ImageFile,
    centre_view,
    open_image,
    plain_jpeg_size,
    shown_size,
)
from pretrain.data.folders import ImageFiles
from pretrain.data.pixel_ops import resized_crop
from tests.support.photographs import close, photograph, photographs


def encoded(picture: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def decoded(data: bytes) -> np.ndarray:
    file = ImageFile(data)
    pixels = file.decode()
    assert pixels.shape == (file.height, file.width, 3) and pixels.dtype == np.uint8
    return pixels


def by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}]
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpegs_come_out_as_pillow_decodes_them(mode: str, options: dict[str, object]) -> None:
    data = encoded(photograph("coffee").convert(mode), quality=90, **options)
    assert plain_jpeg_size(data) == photograph("coffee").size
    close([decoded(data)], [by_pillow(data)], mean=0.1, p99=1)  # equal if both use the same libjpeg


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_turns_the_picture_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photograph("rocket").resize((90, 60)), kind, exif=exif)
    assert plain_jpeg_size(data) is None
    close([decoded(data)], [by_pillow(data)], mean=0.1, p99=1)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "TIFF", "WEBP"])
def test_the_size_is_that_of_the_upright_picture(kind: str, orientation: int) -> None:
    """Pillow's `size` is that of the upright picture for a TIFF in some versions, and never for other formats."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(photograph("rocket").resize((90, 60)), kind, exif=exif, **options)
    file = ImageFile(data)
    assert (file.width, file.height) == ((90, 60) if orientation < 5 else (60, 90))
    close([decoded(data)], [by_pillow(data)], mean=0.1, p99=1)
    if kind in ("PNG", "TIFF", "WEBP"):  # lossless
        turns = {1: 0, 3: 2, 6: 3, 8: 1}[orientation]
        assert np.array_equal(decoded(data), np.rot90(photograph("rocket").resize((90, 60)), turns))


@pytest.mark.parametrize(("kind", "mode"), [("JPEG", "CMYK"), ("PNG", "P"), ("PNG", "RGBA"), ("PNG", "LA"),
                                             ("PNG", "1"), ("GIF", "P"), ("WEBP", "RGB"), ("BMP", "RGB"),
                                             ("TIFF", "CMYK"), ("MPO", "RGB")])  # fmt: skip
def test_other_formats_are_decoded_by_pillow(kind: str, mode: str) -> None:
    data = encoded(photograph("chelsea").convert(mode), kind)
    assert np.array_equal(decoded(data), by_pillow(data))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_become_the_upper_eight(kind: str) -> None:
    values = np.arange(256, dtype=np.uint16).repeat(4).reshape(16, 64) * 256 + 77
    pixels = decoded(encoded(Image.fromarray(values), kind))
    assert np.array_equal(pixels[..., 0], values >> 8)


RAMP = np.arange(256).repeat(4).reshape(16, 64)


@pytest.mark.parametrize(
    "values",
    [
        RAMP.astype(np.int32),
        (RAMP * 256 + 77).astype(np.int32),
        RAMP.astype(np.float32),
        (RAMP / 255).astype(np.float32),
    ],
    ids=["8 in 32 bits", "16 in 32 bits", "floats to 255", "floats to 1"],
)
def test_thirty_two_bits_are_scaled_as_they_are_meant(values: np.ndarray) -> None:
    pixels = decoded(encoded(Image.fromarray(values), "TIFF"))
    assert np.array_equal(pixels, np.stack([RAMP] * 3, axis=-1))


@pytest.mark.parametrize("value", [65536, -1, 255.5, -0.1, float("nan"), float("inf")])
def test_values_that_are_no_colours_are_refused(value: float) -> None:
    values = RAMP.astype(np.float32 if isinstance(value, float) else np.int32)
    values[3, 5] = value
    with pytest.raises(ValueError, match="are not colours"):
        decoded(encoded(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_of_an_animation_the_first_picture_counts(kind: str) -> None:
    frames = [picture.resize((80, 60)) for picture in photographs()]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert len(list(ImageSequence.Iterator(Image.open(io.BytesIO(data))))) == len(frames)
    close([decoded(data)], [np.asarray(frames[0])], mean=12, p99=50)  # 256 colours, or lossy
    assert np.abs(decoded(data).astype(int) - np.asarray(frames[1])).mean() > 30


def test_broken_files_are_refused() -> None:
    exif = Image.Exif()
    exif[0x0112] = 1
    plain = encoded(photograph("coffee"), quality=90)
    thumbnail = encoded(photograph("coffee").resize((60, 40)))
    start = plain.index(b"\xff\xdb")
    nested = plain[:start] + b"\xff\xe2" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail + plain[start:]
    assert decoded(nested).shape == (400, 600, 3)
    files = {
        "empty": b"",
        "text": b"no image",
        "start": plain[:2],
        "header": plain[: plain.index(b"\xff\xda")],
    }
    for name, data in {
        "plain": plain, "exif": encoded(photograph("coffee"), exif=exif), "thumbnail": nested,
        "gray": encoded(photograph("coffee").convert("L")), "PNG": encoded(photograph("coffee"), "PNG"),
        "progressive": encoded(photograph("coffee"), progressive=True),
    }.items():  # fmt: skip
        files |= {f"{name} {share}": data[: int(share * len(data))] for share in (0.3, 0.6, 0.95)}
        files[f"{name}, zeros at the end"] = data[: len(data) // 2] + bytes(len(data) // 2)
    assert [name for name, data in files.items() if is_decoded(data)] == []


def is_decoded(data: bytes) -> bool:
    try:
        decoded(data)
    except AssertionError:
        raise
    except Exception:  # Pillow raises a dozen classes
        return False
    return True


def test_what_follows_the_end_of_a_jpeg_does_no_harm() -> None:
    data = encoded(photograph("coffee"))
    assert np.array_equal(decoded(data + b"appendix"), by_pillow(data))


def png_header(width: int, height: int) -> bytes:
    """A PNG of one bit per pixel without any pixels."""
    chunks = b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0), b"IDAT"
    body = b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def jpeg_header(width: int, height: int) -> bytes:
    """A JPEG whose header states another size."""
    data = bytearray(encoded(Image.new("RGB", (16, 16))))
    frame = data.index(b"\xff\xc0") + 5
    data[frame : frame + 4] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # pytest resets our filter
@pytest.mark.parametrize("header", [png_header, jpeg_header])
def test_pictures_of_too_many_pixels_are_refused_by_their_header(
    header: Callable[[int, int], bytes], tmp_path: Path
) -> None:
    assert open_image(io.BytesIO(header(10_000, 13_000))).size == (10_000, 13_000)  # aerial photographs
    expected = (
        r"Image size \(176890000 pixels\) exceeds limit of 134217728 pixels: reduce it, or cut it into parts"
    )
    with pytest.raises(ValueError, match=expected):
        ImageFile(header(13_300, 13_300))
    path = tmp_path / "a.png"
    path.write_bytes(header(13_300, 13_300))
    with pytest.raises(ValueError, match=expected):
        shown_size(path)


def tiled(side: int) -> bytes:
    """A TIFF of 16 x 16 pixels in one tile that claims to be larger."""
    tile = zlib.compress(bytes(16 * 16))
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 8, 325: len(tile)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(tile)) + tile + directory


def test_tiles_are_bounded_like_pictures() -> None:
    assert np.array_equal(decoded(tiled(16)), np.zeros((16, 16, 3)))
    with pytest.raises(ValueError, match="its tiles have 1600000000 pixels"):
        ImageFile(tiled(40_000))


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 60 60\n%%EndComments\nshowpage\n%%EOF\n"


def test_only_formats_of_image_files_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would start Ghostscript for the first of them."""
    monkeypatch.setattr(subprocess, "Popen", None)
    picture = photograph("coffee").resize((30, 20))
    icon = encoded(picture, "ICO", sizes=[(16, 16)])
    for data in (POSTSCRIPT, icon, encoded(picture, "SGI"), encoded(picture.convert("L"), "SPIDER")):
        Image.open(io.BytesIO(data))
        with pytest.raises(UnidentifiedImageError, match="its content is none of JPEG, PNG"):
            ImageFile(data)
    path = tmp_path / "x.jpg"
    path.write_bytes(POSTSCRIPT)
    with pytest.raises(ValueError, match="not a readable image: its content is none of JPEG, PNG"):
        shown_size(path)
    for kind in FORMATS:
        assert decoded(encoded(picture, kind)).shape == (20, 30, 3)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "sparse"])
def test_only_regular_files_are_read(kind: str, tmp_path: Path) -> None:
    """Opening a pipe would wait for ever, and a device or a file of holes fill the memory."""
    path = tmp_path / "x.jpg"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path.touch()
        os.truncate(path, 1 << 40)
    reason = "it has 1099511627776 bytes" if kind == "sparse" else "it is not a regular file"
    with pytest.raises(OSError, match=reason):
        ImageFiles([str(path)]).read(0)
    with pytest.raises(ValueError, match=f"not a readable image: {reason}"):
        shown_size(path)
    assert not is_whole_jpeg(path)


def test_large_jpegs_are_decoded_smaller_where_it_cannot_be_seen() -> None:
    ours, whole = [], []
    for picture in photographs():
        data = encoded(picture.resize((1600, 1200), Image.Resampling.BICUBIC), quality=92)
        file = ImageFile(data)
        box = (203, 101, 901, 899)
        assert file.decode(shrink=3.9).shape == (1200, 1600, 3)
        for size in (96, 160, 224):
            small = file.decode(shrink=899 / size)
            factor = {96: 4, 160: 2, 224: 2}[size]
            assert small.shape == (1200 // factor, 1600 // factor, 3)
            ours.append(resized_crop(small, box, size, scale=1 / factor))
            original = Image.open(io.BytesIO(data))
            whole.append(np.asarray(tv.resized_crop(original, 101, 203, 899, 901, [size, size])))
    close(ours, whole)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize(
    ("width", "height"), [(451, 300), (301, 457), (33, 47), (256, 256), (1001, 255), (9, 5), (1200, 1600)]
)
def test_central_view_is_torchvisions(width: int, height: int, kind: str) -> None:
    """It is Resize(256), CenterCrop(224) of the linear protocol, pixel for pixel, and the same at other sizes."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    picture = Image.open(io.BytesIO(data))
    for size, short in ((224, 256), (64, 73), (32, 37)):
        theirs = np.asarray(tv.center_crop(tv.resize(picture, short), [size, size]))
        ours = centre_view(data, size)
        if kind == "PNG":
            assert np.array_equal(ours, theirs)
        else:
            close([ours], [theirs], mean=0.1, p99=1)  # equal if both use the same libjpeg


def test_central_view_of_a_turned_picture_and_of_a_line() -> None:
    picture = photograph("chelsea").crop((0, 0, 301, 200))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by 90 degrees
    file = io.BytesIO()
    picture.save(file, "PNG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(file))
    assert upright.size == (200, 301)
    theirs = tv.center_crop(tv.resize(upright, 73), [64, 64])
    assert np.array_equal(centre_view(file.getvalue(), 64), np.asarray(theirs))
    line = encoded(Image.new("RGB", (30_000, 1), (200, 30, 60)), "PNG")  # 6 GB at a height of 256
    assert np.array_equal(centre_view(line, 224), np.full((224, 224, 3), (200, 30, 60)))
