"""Files that are whole or absent: each is written beside its final name and then renamed."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np

JPEG_QUALITY = 90


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, never leaving half of it under that name, even if killed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any, *, indent: int | None = None) -> None:
    """Write JSON with sorted keys: the same content always makes the same bytes."""
    write_bytes(path, (json.dumps(content, sort_keys=True, indent=indent) + "\n").encode())


def write_jpeg(path: Path, image: np.ndarray) -> None:
    """Write an RGB image, uint8 (H, W, 3)."""
    done, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise OSError(f"cannot encode {path.name} as JPEG")
    write_bytes(path, data.tobytes())


def is_whole_jpeg(path: Path) -> bool:
    """Whether `path` begins and ends as a JPEG does: cheap, and finds what was cut off."""
    return _is_between(path, b"\xff\xd8", b"\xff\xd9")


def is_whole_png(path: Path) -> bool:
    """The same for a PNG, which ends with an empty chunk IEND and its checksum."""
    return _is_between(path, b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82")


def _is_between(path: Path, begin: bytes, end: bytes) -> bool:
    try:
        with path.open("rb") as file:
            if file.read(len(begin)) != begin:
                return False
            file.seek(-len(end), os.SEEK_END)
            return file.read() == end
    except OSError:
        return False


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
