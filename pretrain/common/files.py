"""Writing files completely or not at all, and reading files that may be missing, damaged or incomplete."""

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from pretrain.common.errors import UserError, label

_OLD = 3600  # seconds
_CONTAINERS = frozenset((list, dict))
_DEEPEST = 64  # levels of lists and objects in JSON; COCO has 5
MAX_JSON = 8 << 30  # bytes; the annotations of Objects365 have 3 GB


def write_atomic(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Call `write(file)` on a temporary file, flush it to disk and rename it to `path`.

    If interrupted at any point, it leaves the old file or none, never an incomplete one. Raises `UserError` naming the
    file if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = _make_temporary(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(name, 0o644)  # mkstemp makes files private
            os.replace(name, path)  # while it is still locked
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        if isinstance(error, OSError):  # a full disk, or `path` is a folder
            raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
        raise


def lock(handle: int) -> bool:
    """Lock an open file for this process. Return False if another process holds the lock.

    The system releases it when the process ends, however it ends. Forked children do not inherit it; the process loses
    it when it closes any handle of the same file. Raises `OSError` if the file system has no locks.
    """
    try:
        import fcntl

        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # Windows
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK)) from None
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


def is_at(path: str | os.PathLike[str], handle: int) -> bool:
    """Return whether `path` still names the open file: it may have been removed or replaced meanwhile."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def _make_temporary(path: Path) -> tuple[int, str]:
    """Return handle and name of a temporary file, locked while it is open: unlocked ones are of dead processes."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            if lock(handle) and is_at(name, handle):
                return handle, name
        except OSError:  # no locks here: `remove_leftover` then decides by the file's age
            return handle, name
        os.close(handle)  # `remove_leftover` of another process was faster


def remove_leftover(path: Path) -> None:
    """Remove a temporary file of `write_atomic` or `replacing`, unless the process that writes it is alive."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        try:
            if _is_dead(handle) and is_at(path, handle):
                path.unlink()
        finally:
            os.close(handle)


def _is_dead(handle: int) -> bool:
    try:
        return lock(handle)
    except OSError:  # no locks on this file system; in either direction, since clocks can be set back
        return abs(time.time() - os.fstat(handle).st_mtime) > _OLD


def copy(existing: Path, path: Path) -> None:
    """Make `path` an independent copy of a file, atomically; file systems that can share the blocks of both do so.

    Raises `UserError` naming the file if it cannot be read or written.
    """
    try:
        source = open(existing, "rb", buffering=0)  # noqa: SIM115  # unbuffered: its position is that of the handle
    except OSError as error:
        raise UserError(f"{existing}: cannot be read: {error.strerror or error}") from error
    with source:
        write_atomic(path, lambda target: _copy_content(source, target))


def _copy_content(source: IO[bytes], target: IO[bytes]) -> None:
    with contextlib.suppress(AttributeError, OSError):  # not Linux, or a file system that cannot do this
        while os.copy_file_range(source.fileno(), target.fileno(), 1 << 30):
            pass
    shutil.copyfileobj(source, target)  # what is left: both positions have moved; it also reports a full disk


def found(folder: Path, pattern: str) -> list[Path]:
    """Return the matches of `Path.glob`, or none if `folder` does not exist or cannot be looked at."""
    return list(folder.glob(pattern)) if os.path.isdir(folder) else []


JPEG_QUALITY = 90


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file to write, which becomes `path` at the end; it is not flushed to disk, unlike that of `write_atomic`.

    If killed, it leaves no incomplete file of that name; the next process that writes `path` uses its temporary file.
    """
    temporary, handle = _open_temporary(path)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.replace(temporary, path)  # while it is locked
            temporary = path  # on network disks, closing it can still fail
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _open_temporary(path: Path) -> tuple[Path, int]:
    """Open `.NAME.tmp`, or `.NAME.PID.tmp` if a living process uses that, or may use it on a disk without locks."""
    flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    shared = path.with_name(f".{path.name}.tmp")
    with contextlib.suppress(OSError):
        handle = os.open(shared, flags, 0o666)
        try:
            if lock(handle) and is_at(shared, handle):
                os.ftruncate(handle, 0)
                return shared, handle
        except OSError:
            shared.unlink(missing_ok=True)
        os.close(handle)
    own = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    return own, os.open(own, flags | os.O_TRUNC, 0o666)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`. If killed while writing, it leaves no incomplete file of that name."""
    with replacing(path) as file:
        file.write(content)


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
        with open_regular(path) as file:
            if file.read(len(begin)) != begin:
                return False
            file.seek(-len(end), os.SEEK_END)
            return file.read() == end
    except OSError:
        return False


def open_regular(
    path: str | os.PathLike[str], *, most: int | None = None, buffered: bool = True
) -> IO[bytes]:
    """Open a regular file, or a link to one, for reading, without ever waiting for a pipe or a device.

    `buffered`: False saves time if the whole file is read at once. Raises `OSError`, also for anything that is not a
    regular file or has more than `most` bytes, and `ValueError` for a name with a zero byte.
    """
    _check_regular(os.stat(path), most)  # first, since opening a device can have side effects
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        _check_regular(os.fstat(handle), most)  # it may have been replaced meanwhile
        return io.BufferedReader(io.FileIO(handle)) if buffered else io.FileIO(handle)
    except OSError:
        os.close(handle)
        raise


def _check_regular(status: os.stat_result, most: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
    if most is not None and status.st_size > most:
        raise OSError(errno.EFBIG, f"it has {status.st_size} bytes, more than the {most} that are read")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a user's file as `open_regular` does. Raises `UserError` if it cannot be opened, or read in the block."""
    try:
        file = open_regular(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # `ValueError` for a name with a zero byte
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    with file:
        try:
            yield file
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
        except MemoryError:
            raise UserError(f"{path}: this machine does not have enough memory to read it") from None


def missing_folder(key: str, folder: str, advice: str = "") -> str:
    """Return the message for a folder that does not exist.

    It names the command that makes the folder if it is one of a known data set; otherwise it ends with `advice`.
    """
    parts = Path(folder).parts
    for i, part in enumerate(parts):
        root = label(os.path.join(*parts[:i], "") if i else ".").rstrip("/") or "/"
        # the sets that tools/prepare_data.py makes for these tools
        if part in ("demo_quick", "demo_standard", "demo_full"):
            command = f"demo --size {part.removeprefix('demo_')}"
        elif part == "imagenet":
            command = part
        else:
            continue
        return f"{key}: no such folder: {label(folder)}; run 'python tools/prepare_data.py {command} --root {root}'"
    return f"{key}: no such folder: {label(folder)}{advice}"


def read_regular(path: Path, *, most: int, what: str = "what it should be") -> bytes:
    """Return the content of a file as `opened` opens it. Raises `UserError` if it has more than `most` bytes."""
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        # Nothing of a file that is too large: a sparse one of any size takes no space on disk.
        data = file.read(size + 1) if size <= most else b""
    if max(size, len(data)) > most:
        raise UserError(f"{path}: has more than {most} bytes, too many for {what}")
    return data


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text of at most `_DEEPEST` levels. Raises `ValueError` with a reason in one line."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("lists or objects are nested too deeply") from None
    except MemoryError:
        raise ValueError("this machine does not have enough memory for it") from None
    level: list[Any] = [[value]]
    for _ in range(_DEEPEST + 1):
        level = _containers(level)
    if level:  # Python 3.12 and newer parse thousands of levels, with which recursive functions fail
        raise ValueError("lists or objects are nested too deeply")
    return value


def _containers(level: list[Any]) -> list[Any]:
    """Return the lists and dicts in those of a level. Most lists hold only numbers, and are passed over quickly."""
    found: list[Any] = []
    for each in level:
        parts = each.values() if type(each) is dict else each
        if not _CONTAINERS.isdisjoint(map(type, parts)):
            found += [part for part in parts if type(part) in _CONTAINERS]
    return found


def load_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises `UserError` if it cannot be read or parsed."""
    try:
        return parse_json(read_regular(path, most=MAX_JSON))
    except ValueError as error:
        raise UserError(f"{path}: not a complete JSON file: {label(str(error))}") from None


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty dict if the file is missing or holds no JSON object."""
    try:
        content = load_json(path)
    except UserError:
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
