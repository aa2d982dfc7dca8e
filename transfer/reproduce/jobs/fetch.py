"""Downloads a released checkpoint: `python -m transfer.reproduce.jobs.fetch URL FILE [DIGEST]`."""

import sys
from pathlib import Path

from pretrain.common.errors import UserError, run_tool
from pretrain.common.files import file_digest
from transfer.convert.recognise import read_source
from transfer.prepare.sets import download


def fetch(url: str, path: Path, digest: str) -> str:
    """Download `url` to `path`, whole or not at all, verify it against `digest`, and read it. Return its SHA-256.

    Args:
        digest: "md5 b251726a" or "sha256 ...": the first characters, as the owners publish them; may be empty.
    Raises:
        UserError: no network, a different digest, or a file without weights (a login page); the file is then removed.
    """
    download.fetch(url, path)
    kind, _, wanted = digest.partition(" ")
    if wanted:
        found = file_digest(path, kind)
        if not found.startswith(wanted):
            path.unlink()
            raise UserError(
                f"{url}: this is not the released file: its {kind} is {found}, but should begin with {wanted}"
            )
    try:
        read_source(path)
    except UserError as error:
        path.unlink()
        raise UserError(
            f"{url}: the downloaded file was removed because it holds no weights: {error}"
        ) from None
    return file_digest(path)


def main() -> None:
    url, path, *digest = sys.argv[1:]
    print(f"{path}: sha256 {fetch(url, Path(path), *digest or [''])}")


if __name__ == "__main__":
    run_tool(main)
