"""Archives of data sets: downloaded or taken from a folder, verified, and unpacked."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pretrain.common.errors import UserError
from transfer.prepare.sets.download import difference, fetch, unpack


class Archive(NamedTuple):
    """A file that a data set is made from; its name is the last part of `url`."""

    url: str
    size: int | None = None  # bytes
    md5: str | None = None  # hex digits

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


def obtain(archive: Archive, root: Path, args: argparse.Namespace) -> Path:
    """Return the archive's file: from the folder `args.archives` if that is given, else downloaded to ROOT/downloads.

    With `args.no_checksum`, a file with a different size or checksum is accepted, such as a mirror's.

    Raises:
        UserError: the file is missing or wrong; the message says where it comes from.
    """
    size, md5 = (None, None) if args.no_checksum else (archive.size, archive.md5)
    if args.archives is None:
        return fetch(archive.url, root / "downloads" / archive.name, size=size, md5=md5)
    path: Path = args.archives / archive.name
    if not path.is_file():
        raise UserError(f"--archives: {path} is missing: it comes from {archive.url}")
    if wrong := difference(path, size=size, md5=md5):
        raise UserError(
            f"--archives: {path} {wrong}: download it again from {archive.url}, or pass --no-checksum to accept it"
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
    """Unpack the archive into `folder` unless `check()` already passes, that is, raises no UserError.

    Files with `leave_out` in their path are not unpacked. A downloaded archive is removed once `check()` passes, unless
    `args.keep_archives` is set; the user's own files are never removed.
    """
    try:
        check()
        print(f"{archive.name}: its files are already in {folder}")
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
    """Return the files of `archives`, which the user must have put into `args.archives` or else ROOT/downloads.

    Args:
        how: how to get them, for the error message.
    Raises:
        UserError: files are missing (the message names all of them), or one is not the right file.
    """
    folder = folder_for(root, args)
    if missing := [archive for archive in archives if not (folder / archive.name).is_file()]:
        folder.mkdir(parents=True, exist_ok=True)
        names = " and ".join(f"{a.name} ({a.size / 1e9:.1f} GB)" if a.size else a.name for a in missing)
        raise UserError(
            f"{folder} lacks {names}, for which an account is needed: {how}, or give another folder with --archives, "
            "then run this command again"
        )
    for archive in archives:
        size, md5 = (None, None) if args.no_checksum else (archive.size, archive.md5)
        if wrong := difference(folder / archive.name, size=size, md5=md5):
            raise UserError(
                f"{folder / archive.name} {wrong}: {how} again, or pass --no-checksum to accept it"
            )
    return [folder / archive.name for archive in archives]


def folder_for(root: Path, args: argparse.Namespace) -> Path:
    """Return the folder where the user puts archives."""
    return args.archives or root / "downloads"
