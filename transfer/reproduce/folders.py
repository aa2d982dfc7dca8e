"""A digest of a folder of class folders by the names in it: ImageNet's 1.3 million files are not opened."""

import contextlib
import hashlib
import json
import os
from pathlib import Path

from transfer.reproduce import json_files
from transfer.results import write_json


def names_digest(folder: Path, cache: Path | None = None) -> str:
    """SHA-256 of all names in a folder and in its folders; where it lies does not matter.

    Args:
        cache: JSON file that keeps digests, each with the times at which its folders were changed.
    """
    known, stamp = json_files.read(cache) if cache else {}, _stamp(folder)
    found = known.get(str(folder))
    if isinstance(found, list) and len(found) == 2 and found[0] == stamp:
        return str(found[1])
    digest = hashlib.sha256()
    for place in _folders(folder):
        digest.update(json.dumps([place.name if place != folder else "", sorted(os.listdir(place))]).encode())
    if cache:
        with contextlib.suppress(OSError):  # a folder that cannot be written to: it is made again next time
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_json(cache, {**known, str(folder): [stamp, digest.hexdigest()]})
    return digest.hexdigest()


def _folders(folder: Path) -> list[Path]:
    """The folder itself and those in it, by name."""
    with os.scandir(folder) as entries:
        return [folder, *(folder / name for name in sorted(e.name for e in entries if e.is_dir()))]


def _stamp(folder: Path) -> str:
    """Changes with every file that is added to a class folder, removed or renamed."""
    times = [[place.name, place.stat().st_mtime_ns] for place in _folders(folder)]
    return hashlib.sha256(json.dumps(times).encode()).hexdigest()
