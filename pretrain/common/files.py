"""Writing files completely or not at all, and reading files that may be missing, damaged or incomplete."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from pretrain.common.errors import UserError


def write_atomic(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Call `write(file)` on a temporary file, flush it to disk and rename it to `path`.

    If interrupted at any point, it leaves the old file or none, never an incomplete one. Raises `UserError` naming the
    file if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp makes files private
        os.replace(name, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        if isinstance(error, OSError):  # a full disk, or `path` is a folder
            raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
        raise


def link(existing: Path, path: Path) -> None:
    """Make `path` a hard link to `existing`, or a copy where the file system has no hard links."""
    temporary = path.with_name(f".{path.name}.link")
    try:
        temporary.unlink(missing_ok=True)
        os.link(existing, temporary)
        os.replace(temporary, path)
    except OSError:
        with open(existing, "rb") as source:
            write_atomic(path, lambda file: shutil.copyfileobj(source, file))


def found(folder: Path, pattern: str) -> list[Path]:
    """Return the matches of `Path.glob`, or none if `folder` does not exist or cannot be looked at."""
    return list(folder.glob(pattern)) if os.path.isdir(folder) else []


JPEG_QUALITY = 90


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`. If killed while writing, it leaves no incomplete file of that name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_jpeg(path: Path, image: np.ndarray) -> None:
    """Write an RGB image, uint8 (H, W, 3)."""
    import cv2  # here, since every tool imports this module and few write pictures

    done, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise OSError(f"cannot encode {path.name} as JPEG")
    write_bytes(path, data.tobytes())


def is_whole_jpeg(path: Path) -> bool:
    """Return whether `path` begins and ends like a JPEG: a fast check that detects truncated files."""
    return _is_between(path, b"\xff\xd8", b"\xff\xd9")


def is_whole_png(path: Path) -> bool:
    """Return whether `path` begins and ends like a PNG, whose last chunk is an empty IEND with its checksum."""
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


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty dict if the file is missing or holds no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def write_text(path: Path, text: str, *, errors: str = "strict") -> None:
    """Write UTF-8 text atomically. `errors` is that of `str.encode`, for text with names of foreign files."""
    write_atomic(path, lambda file: file.write(text.encode(errors=errors)))


def write_json(path: Path, content: Any, *, indent: int | None = 2, sort_keys: bool = False) -> None:
    """Write JSON atomically. With `sort_keys`, equal content always makes equal bytes.

    Raises `ValueError` for infinite values and NaN, which JSON does not have.
    """
    write_text(path, json.dumps(content, indent=indent, sort_keys=sort_keys, allow_nan=False) + "\n")


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the digest of a file's content, in hexadecimal. `algorithm` is one of hashlib's names."""
    result = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            result.update(block)
    return result.hexdigest()
