"""The archives that a data set comes in: taken from the network or from a folder, unpacked where they are needed."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pretrain.common.errors import UserError
from transfer.prepare.sets.download import difference, fetch, unpack


class Archive(NamedTuple):
    """A file that a data set is made of, under the name that its `url` ends with."""

    url: str
    size: int | None = None  # bytes
    md5: str | None = None  # hex digits

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


def obtain(archive: Archive, root: Path, args: argparse.Namespace) -> Path:
    """The archive's file: from the folder `args.archives` if that is given, else downloaded to ROOT/downloads.

    `args.no_checksum` takes a file of another size or checksum, such as a mirror's.

    Raises:
        UserError: which file is missing or wrong, and where it comes from.
    """
    size, md5 = (None, None) if args.no_checksum else (archive.size, archive.md5)
    if args.archives is None:
        return fetch(archive.url, root / "downloads" / archive.name, size=size, md5=md5)
    path: Path = args.archives / archive.name
    if not path.is_file():
        raise UserError(f"--archives: {path} is missing: it comes from {archive.url}")
    if wrong := difference(path, size=size, md5=md5):
        raise UserError(
            f"--archives: {path} {wrong}: get it from {archive.url} again, or pass --no-checksum for a mirror's"
        )
    return path


def install(
    archive: Archive,
    folder: Path,
    args: argparse.Namespace,
    *,
    check: Callable[[], object],
    leave_out: str | None = None,
) -> None:
    """Unpack the archive into `folder` unless `check()` passes already, that is, raises no UserError.

    Files with `leave_out` in their path are not unpacked.

    A downloaded file is removed once `check()` passes, unless `args.keep_archives`; one of the user's never.
    """
    try:
        check()
        print(f"{archive.name}: its files are in {folder} already")
        return
    except UserError:
        pass
    path = obtain(archive, args.root, args)
    print(f"unpacking {path} into {folder}", flush=True)
    unpack(path, folder, leave_out=leave_out)
    check()
    if args.archives is None and not args.keep_archives:
        path.unlink()


def given(archives: list[Archive], root: Path, args: argparse.Namespace, *, how: str) -> list[Path]:
    """The files of `archives`, which the user has put into `args.archives` or else ROOT/downloads.

    Args:
        how: says how to get them, for the error.
    Raises:
        UserError: all the files that are missing and where to put them, or the first that is not the right one.
    """
    folder = folder_for(root, args)
    if missing := [archive for archive in archives if not (folder / archive.name).is_file()]:
        folder.mkdir(parents=True, exist_ok=True)
        names = " and ".join(f"{a.name} ({a.size / 1e9:.1f} GB)" if a.size else a.name for a in missing)
        raise UserError(
            f"{folder} lacks {names}, for which an account is needed: {how}, or give another folder by --archives, "
            "then run this again"
        )
    for archive in archives:
        size, md5 = (None, None) if args.no_checksum else (archive.size, archive.md5)
        if wrong := difference(folder / archive.name, size=size, md5=md5):
            raise UserError(
                f"{folder / archive.name} {wrong}: {how} again, or pass --no-checksum for a mirror's"
            )
    return [folder / archive.name for archive in archives]


def folder_for(root: Path, args: argparse.Namespace) -> Path:
    """Where the user puts archives."""
    return args.archives or root / "downloads"
