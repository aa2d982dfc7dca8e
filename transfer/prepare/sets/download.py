"""Downloads files, resuming after interruptions, and unpacks archives without leaving partial files."""

import hashlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from pretrain.common.console import Bar, duration
from pretrain.common.errors import UserError, brief, has_control, label
from pretrain.common.files import replacing
from pretrain.data.tar_index import FAULTS, content, members

BLOCK = 1 << 20  # bytes per read
TIMEOUT_S = 60  # without any data
ATTEMPTS = 5  # in a row that bring no new data
PAUSE_S = 2.0  # between them
GB, MB = 1e9, 10**6
_MOVED, _LINE = 0.5, 10.0  # seconds between two moves of a bar, and between two lines where none is shown
# Of a name in an archive: with some more of either, Python's own functions fail in the middle of unpacking.
_DEEPEST = 32  # folders
_LONGEST = 1000  # bytes
# RuntimeError and NotImplementedError: an encrypted zip, or one of an unknown compression
BROKEN = (*FAULTS, zipfile.BadZipFile, NotImplementedError, RuntimeError)


def fetch(url: str, path: Path, *, size: int | None = None, md5: str | None = None) -> Path:
    """Download `url` to `path`, resuming from `path.part` if an earlier run was interrupted. Return `path`.

    If the right file is already there, it is kept. `size` is in bytes, `md5` in hex digits; both are checked before the
    file gets its final name.

    Raises:
        UserError: no network, no such file, no space, or unexpected content; the message says which file to put where
            by hand.
    """
    by_hand = (
        f"run the same command again to resume, or put {url.rpartition('/')[2]} from {url} at {path} by hand"
    )
    if path.is_file():
        if wrong := difference(path, size=size, md5=md5):
            raise UserError(f"{path} {wrong}: remove it, then {by_hand}")
        return path
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        have = part.stat().st_size if part.is_file() else 0
        demand_space(path.parent, (size or 0) - have, f"downloading {path.name}")
        _download(url, part, size)
    except urllib.error.HTTPError as error:
        raise UserError(f"{url}: the server answered {error.code} {error.reason}; {by_hand}") from None
    except (OSError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
        reason = getattr(error, "reason", None) or error
        raise UserError(f"{url}: download failed ({reason}); {by_hand}") from None
    if wrong := difference(part, size=size, md5=md5):
        part.unlink()  # resuming it would end the same way
        raise UserError(f"{url}: the downloaded file {wrong}; {by_hand}")
    part.replace(path)
    return path


def difference(path: Path, *, size: int | None = None, md5: str | None = None) -> str:
    """Return how a file differs from the expected one ("has ..., not ..."), or "" if it does not."""
    found = path.stat().st_size
    if size is not None and found != size:
        return f"has {found} bytes, not {size}"
    if md5 is None:
        return ""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file, _progress(f"checking {path.name}", found) as advance:
        while block := file.read(BLOCK):
            digest.update(block)
            advance(len(block))
    return "" if digest.hexdigest() == md5 else f"has md5 {digest.hexdigest()}, not {md5}"


def unpack(archive: Path, folder: Path, *, leave_out: str | None = None) -> None:
    """Unpack the files of a tar, tar.gz, tar.xz or zip into `folder`. Existing files of the same size are kept.

    Files with `leave_out` in their path are skipped. All names and sizes, and the checksum of a compressed tar, are
    checked before the first file is written. A file is never left incomplete, so an interrupted run can just be
    repeated. Only plain files and folders are created: a name that leads outside `folder`, or a link, is refused. This
    is stricter than the filters of tarfile, which not every supported Python has.

    Raises:
        UserError: the archive is damaged or incomplete, the disk is full, or a name is refused.
    """
    try:
        is_zip = archive.suffix == ".zip" or _begins_like_a_zip(archive)
        needed = _bytes_to_unpack(archive, folder, is_zip)
        with _progress(f"unpacking {archive.name}", needed) as advance:
            for name, size, open_file in _zip_files(archive) if is_zip else _tar_files(archive):
                target = folder / name
                if not (_is_there(target, size) or (leave_out and leave_out in name)):
                    _copy(open_file, target)
                    advance(size)
    except BROKEN as error:
        reason = label(str(error).partition("\n")[0].rstrip(":"))
        raise UserError(
            f"{archive} is not a complete archive ({reason}): remove it, then run the same command again"
        ) from None
    except OSError as error:
        raise UserError(f"{archive} cannot be unpacked into {folder}: {label(str(error))}") from None


def demand_space(folder: Path, needed: int, purpose: str) -> None:
    """Raise UserError if the disk of `folder` (which need not exist yet) has less than `needed` bytes free."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise UserError(
            f"{folder}: {purpose} needs {needed / GB:.1f} GB, but only {free / GB:.1f} GB are free"
        )


def _download(url: str, part: Path, size: int | None) -> None:
    """Download to `part`. A broken connection is retried as long as the attempts bring new data."""
    attempts = 0
    while True:
        before = part.stat().st_size if part.is_file() else 0
        try:
            if _append(url, part, size):
                return
            problem: Exception = OSError("the connection closed early")
        except urllib.error.HTTPError as error:
            if error.code < 500:  # retrying does not help
                raise
            problem = error
        except (OSError, http.client.HTTPException) as error:
            problem = error
        grown = part.is_file() and part.stat().st_size > before
        attempts = 0 if grown else attempts + 1
        if attempts >= ATTEMPTS:
            raise problem
        time.sleep(PAUSE_S)


def _append(url: str, part: Path, size: int | None) -> bool:
    """Download the rest of `part`. Return whether it is complete."""
    have = part.stat().st_size if part.is_file() else 0
    if size is not None and have == size:
        return True
    request = urllib.request.Request(url, headers={"User-Agent": "prepare_data"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if (
            error.code != 416
        ):  # no bytes are left after those we have: the file is complete, or it is a different one
            raise
        if error.headers.get("Content-Range", "").rpartition("/")[2] == str(have):
            return True
        part.unlink()
        return False
    with response:
        starts = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
        resumed = response.status == 206 and starts == str(have)
        have = have if resumed else 0  # a server without support for Range sends everything again
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else size
        with part.open("ab" if resumed else "wb") as file, _progress(part.stem, total, have) as advance:
            while block := response.read(BLOCK):
                file.write(block)
                advance(len(block))
    return total is None or part.stat().st_size >= total


def _begins_like_a_zip(archive: Path) -> bool:
    """Return whether a file is a zip; `zipfile.is_zipfile` also finds zips in the last bytes of compressed tars."""
    with archive.open("rb") as file:
        return file.read(4) == b"PK\3\4"


def _bytes_to_unpack(archive: Path, folder: Path, is_zip: bool) -> int:
    """Check all names and sizes. Return the number of bytes that unpacking will write."""
    needed = 0
    files: set[str] = set()
    folders: set[str] = set()
    for name, size, _ in _zip_files(archive) if is_zip else _tar_files(archive):
        files.add(name)
        folders.update(map(str, PurePosixPath(name).parents))
        if not _is_there(folder / name, size):
            needed += size
            # At once, and not at the end: a compressed terabyte would have to be skipped first.
            demand_space(folder, needed, f"unpacking {archive.name}")
    if both := files & folders:
        raise UserError(f"{archive}: {label(min(both))} is both a file and a folder; nothing was unpacked")
    return needed


Found = Iterator[tuple[str, int, Callable[[], IO[bytes]]]]  # name, size in bytes, function that opens it


def _zip_files(archive: Path) -> Found:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            if not info.filename.endswith("/"):
                yield _inside(archive, info.filename), info.file_size, lambda info=info: opened.open(info)  # type: ignore[misc]


def _tar_files(archive: Path) -> Found:
    with archive.open("rb") as file:
        for tar, member in members(file, packed=True):
            if member.isdir():
                continue
            found = content(tar, member)
            if found is None:
                name = label(member.name)
                raise UserError(f"{archive}: {name} is a link, a device or a sparse file: unpack it by hand")
            yield _inside(archive, member.name), member.size, lambda found=found: found  # type: ignore[misc]


def _inside(archive: Path, name: str) -> str:
    path = PurePosixPath(name)
    longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    if longest > 255 or len(path.parts) > _DEEPEST or len(os.fsencode(name)) > _LONGEST:
        raise UserError(f"{archive}: {brief(name)} is too long or in too many folders; nothing was unpacked")
    if longest == 0 or has_control(name):
        raise UserError(f"{archive}: {brief(name)} is not the name of a file; it was not unpacked")
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in path.parts[0]:
        raise UserError(
            f"{archive}: {label(name)} would be written outside the data set's folder; it was not unpacked"
        )
    return str(path)


def _is_there(target: Path, size: int) -> bool:
    return target.is_file() and target.stat().st_size == size


def _copy(open_file: Callable[[], IO[bytes]], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with open_file() as source, replacing(target) as file:
        shutil.copyfileobj(source, file, BLOCK)


@contextmanager
def _progress(what: str, total: int | None, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Give a function to call with each number of bytes processed; it moves a bar, which counts megabytes.

    Where no bar is shown, or the total is unknown, it prints a line every ten seconds.
    """
    began = shown = time.monotonic()
    start, bar = done, Bar(total // MB, done // MB, what=what) if total else None

    def advance(count: int) -> None:
        nonlocal done, shown
        done += count
        now, drawn = time.monotonic(), bar is not None and bar.is_shown
        if now - shown < (_MOVED if drawn else _LINE):
            return
        shown, rate = now, (done - start) / (now - began)
        left = f"  ETA {duration((total - done) / max(rate, 1))}" if total else ""
        if bar is not None and drawn:
            bar.show(done // MB, f"{rate / MB:.1f} MB/s{left}")
        else:
            of = f" of {total / GB:.2f}" if total else ""
            print(f"{what}: {done / GB:.2f}{of} GB  {rate / MB:.1f} MB/s{left}", flush=True)

    try:
        yield advance
    finally:
        if bar is not None:
            bar.close()
