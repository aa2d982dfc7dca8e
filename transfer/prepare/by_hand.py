"""What only the user can fetch, with an account; and short checks that several data sets share."""

import argparse
from pathlib import Path

from pretrain.common.errors import UserError
from transfer.prepare.archives import Archive
from transfer.prepare.download import difference


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
