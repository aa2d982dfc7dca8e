"""Decoding image files: bytes -> RGB pixels, upright; the same rules for pre-training and for `transfer`.

OpenCV decodes ordinary JPEGs, in a third less time than Pillow and with the same pixels. Pillow decodes everything
else, because it knows every common format and raises on a truncated file, where OpenCV fills in grey.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TILELENGTH, TILEWIDTH, TiffImageFile

from pretrain.common.errors import UserError, label
from pretrain.common.files import open_regular
from pretrain.data.folders import MAX_BYTES

# Pillow's names of the formats that files with an ending of an image have. It would also try those that start programs
# (Ghostscript for EPS). TGA is tried late, since nothing marks its files; AVIF last, since an old Pillow lacks it.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "JPEG2000", "TGA", "AVIF")
# Of a picture that is decoded, such as 11 500 x 11 500: aerial photographs have 100 million, and decoding this many
# takes about 1.5 GB. Pillow compares the header with twice its own number, and warns from that number on.
MAX_PIXELS = 1 << 27
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_ORIENTATION = 0x0112  # EXIF tag; values 5 to 8 rotate the picture by 90 degrees
_END = b"\xff\xd9"  # the last marker of a JPEG; a file that ends otherwise is truncated or has extra data
_RGB = getattr(cv2, "IMREAD_COLOR_RGB", cv2.IMREAD_COLOR)  # OpenCV before 4.11 only has BGR
_FLAGS = {
    1: _RGB,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_MIRROR = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}  # codes of cv2.flip: 1 left-right, 0 top-bottom, -1 both
_LONGEST = 100  # times the short side: see `centre_view`
_MARGIN = 2.0  # a JPEG is decoded at no less than this many times the wanted size: see `ImageFile.decode`


class ImageFile:
    """An image file given as bytes, of which only the header is read at first.

    Raises Pillow's exceptions if the bytes are not an image, and `ValueError` if it has more than MAX_PIXELS.

    Attributes:
        width, height: size of the upright picture, after EXIF rotation.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._orientation = data, 1
        self._pillow: Image.Image | None = None
        size = plain_jpeg_size(data)
        if size is None:
            self._pillow = open_image(io.BytesIO(data))
            if self._pillow.format == "JPEG":
                self._orientation = self._pillow.getexif().get(_ORIENTATION, 1)
            else:  # whether Pillow's `size` is after rotation depends on format and version
                self._pillow = _upright(self._pillow)
            size = self._pillow.size
        turned = self._orientation in range(5, 9)
        self.width, self.height = size[::-1] if turned else size

    def decode(self, *, shrink: float = 1.0) -> np.ndarray:
        """Return the pixels, (H, W, 3) uint8 RGB, upright.

        Args:
            shrink: factor by which the picture will be reduced later. A large JPEG is decoded at 1/2, 1/4 or 1/8 if at
                least twice the wanted size remains. With less it would be blurred twice: on photographs the view would
                then differ by 1.5/255 in the mean and 10/255 at the 99th percentile from that of the full decoding,
                compared with 0.3 and 2.3 here.
        Raises:
            Exception: of Pillow or OpenCV, or `ValueError` for pixel values that are not colours.
        """
        factor = next((f for f in (8, 4, 2) if shrink >= f * _MARGIN), 1)
        image = self._pillow
        usual = image is None or (image.format == "JPEG" and image.mode in ("RGB", "L"))
        if usual and self._data.endswith(_END):
            pixels = _opencv(self._data, factor)
            if pixels is not None:
                return _turn(pixels, self._orientation)
        image = image or open_image(io.BytesIO(self._data))
        if image.format == "JPEG":
            if factor > 1:
                image.draft("RGB", (image.width // factor, image.height // factor))
            image = _upright(image)
        return np.array(eight_bits(image).convert("RGB"))


def open_image(file: IO[bytes]) -> Image.Image:
    """Return the image in an open file, of which only the header is read.

    Raises Pillow's exceptions if it is not an image of FORMATS, and `ValueError` if it has more than MAX_PIXELS.
    """
    try:
        image = Image.open(file, formats=FORMATS)
    except (UnidentifiedImageError, KeyError):  # `KeyError`: Pillow lacks a format
        raise UnidentifiedImageError(f"its content is none of {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{str(error).partition(',')[0]}: reduce it, or cut it into parts") from None
    if isinstance(image, TiffImageFile):  # whose tiles may be larger than the image, and are decoded whole
        width, length = image.tag_v2.get(TILEWIDTH, 1), image.tag_v2.get(TILELENGTH, 1)
        if width * length > MAX_PIXELS:
            raise ValueError(f"its tiles have {width * length} pixels, more than {MAX_PIXELS}: save it again")
    return image


@contextmanager
def image_at(path: str | Path) -> Iterator[Image.Image]:
    """Yield the image in a regular file, of which only the header is read.

    Raises `ValueError`, with the reason in one line, if it cannot be opened, or not be decoded inside the `with` block.
    """
    try:
        with open_regular(path, most=MAX_BYTES) as file, open_image(file) as image:
            yield image
    except UserError:
        raise
    except Exception as error:  # Pillow raises a dozen classes for damaged files
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        text = label(" ".join(reason.split())) or type(error).__name__
        raise ValueError(f"not a readable image: {text}") from None


def plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height of an 8-bit JPEG with one or three channels and no EXIF; None for all else.

    This takes a tenth of the time of Pillow, which parses the whole header.
    """
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    position, end = 2, len(data) - 10
    while position < end and data[position] == 0xFF:
        marker = data[position + 1]
        if 0xC0 <= marker <= 0xC2:  # start of a frame: baseline, extended or progressive
            bits, channels = data[position + 4], data[position + 9]
            height = data[position + 5] << 8 | data[position + 6]
            width = data[position + 7] << 8 | data[position + 8]
            usual = bits == 8 and channels in (1, 3) and 0 < width * height <= MAX_PIXELS
            return (width, height) if usual else None
        if marker == 0xE1 or not (marker in (0xC4, 0xDB, 0xDD, 0xFE) or 0xE0 <= marker <= 0xEF):
            return None  # EXIF, or a segment that ordinary headers do not have
        position += 2 + (data[position + 2] << 8 | data[position + 3])
    return None


def _opencv(data: bytes, factor: int) -> np.ndarray | None:
    flags = _FLAGS[factor]
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is not None and flags & cv2.IMREAD_COLOR:
        cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)
    return pixels


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply the EXIF orientation: 5 to 8 exchange the axes, then 2 to 8 mirror one axis, both or none."""
    if orientation not in range(2, 9):
        return pixels
    if orientation >= 5:
        pixels = cv2.transpose(pixels)
    return cv2.flip(pixels, _MIRROR[orientation]) if orientation in _MIRROR else pixels


def _upright(image: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF data say; broken EXIF data are ignored, as in detectron2."""
    try:
        return ImageOps.exif_transpose(image)
    except SyntaxError:
        return image


def eight_bits(image: Image.Image) -> Image.Image:
    """Reduce greyscale of more than 8 bits to 8: Pillow would clip it to white, or leave [0, 1] black.

    Integers are taken as 16-bit unless all fit in 8 bits; floats as in [0, 1], or in [0, 255] if one is above 1. Raises
    `ValueError` for other values, such as heights or depths, for which black and white are not defined.
    """
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if not 0 <= low <= high <= (255 if image.mode == "F" else 65535):  # NaN is refused too
        raise ValueError(f"values from {low} to {high} are not colours")
    if image.mode == "F":
        values = np.rint(values * 255 if high <= 1 else values)
    elif high > 255:
        values = values >> 8
    return Image.fromarray(values.astype(np.uint8))


def shown_size(path: Path) -> tuple[int, int]:
    """Return (width, height) of an image as it is shown: rotated as its EXIF data say.

    Only the header is read, unless the values may not be colours (32-bit integers and floats). Raises `ValueError` as
    `image_at` does, also for the values that `eight_bits` refuses.
    """
    with image_at(path) as image:
        width, height = image.size
        if image.mode in ("I", "F"):
            eight_bits(image)
        return (height, width) if _is_turned(image) else (width, height)


def _is_turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(_ORIENTATION) in range(5, 9)
    except SyntaxError:  # see `_upright`
        return False


def centre_view(data: bytes, size: int) -> np.ndarray:
    """Return the central square on which the authors' linear protocol tests: (size, size, 3) uint8.

    The pixels are those of torchvision's Resize(8/7 of `size`) and CenterCrop(size), 256 and 224 there, on the upright
    `PIL.Image`. A picture more than a hundred times as long as wide is cut first, or the resized one would fill memory.
    """
    image = Image.fromarray(ImageFile(data).decode())
    longest = _LONGEST * min(image.size)
    if max(image.size) > longest:
        image = ImageOps.fit(image, (min(image.width, longest), min(image.height, longest)))
    short = round(size * 8 / 7)
    width, height = (short * side // min(image.size) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((left, top, left + size, top + size)))
