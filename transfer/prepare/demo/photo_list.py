"""The list of photographs that the demo uses, and the cache that holds them unpacked.

`data/demo_photos.json` names every file. They were selected by hand, without drawings, renderings, mirrored duplicates
and photographs with foreign objects, so no rule can replace the list.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pretrain.common.errors import UserError
from pretrain.common.files import write_json
from transfer.prepare.demo import debian_packages

LIST = Path(__file__).parent / "data" / "demo_photos.json"


@dataclass(frozen=True)
class Photo:
    """A picture in a package; `kind` is the class of a cut-out, "ground" (without such objects) or "scene"."""

    package: str
    path: str  # inside the package, or inside its resource file `rcc`
    rcc: str
    kind: str
    how: str  # how to cut it out: "" (by its alpha), "left half", "white ground", "bright rim"
    sha1: str  # first 12 hex digits of the file

    @property
    def cached(self) -> Path:
        """Its path in the cache, relative to the cache folder."""
        return Path(self.package, Path(self.rcc).stem, self.path)


@dataclass(frozen=True)
class Listing:
    licences: dict[str, str]  # package -> licence
    cutouts: list[Photo]
    photos: list[Photo]

    def of_package(self, package: str) -> list[Photo]:
        return [photo for photo in self.cutouts + self.photos if photo.package == package]


@lru_cache
def load_listing() -> Listing:
    """Read the list that comes with this package."""
    raw = json.loads(LIST.read_text())

    def photo(entry: dict[str, str]) -> Photo:
        return Photo(
            entry["package"],
            entry["path"],
            entry.get("rcc", ""),
            entry["kind"],
            entry.get("how", ""),
            entry["sha1"],
        )

    return Listing(raw["licences"], [photo(e) for e in raw["cutouts"]], [photo(e) for e in raw["photos"]])


def fill_cache(cache: Path, debs: list[Path]) -> list[str]:
    """Unpack the listed photographs into `cache/PACKAGE/`, from `debs` or else from packages that apt-get downloads.

    A folder `cache/PACKAGE` only appears when it is complete. Returns notes on files that are missing or differ from
    the list (in another release of the package). Raises UserError if a package can be neither read nor downloaded.
    """
    cache.mkdir(parents=True, exist_ok=True)
    listing = load_listing()
    given = {debian_packages.package_name(deb): deb for deb in debs}
    if stray := sorted(set(given) - set(listing.licences)):
        raise UserError(f"--deb: {stray[0]} is not needed; the demo uses {', '.join(listing.licences)}")
    absent = [name for name in listing.licences if not _is_filled(cache / name, listing.of_package(name))]
    with tempfile.TemporaryDirectory(dir=cache, prefix="fetch-") as folder:
        to_fetch = [name for name in absent if name not in given]
        if to_fetch:
            print(f"downloading {', '.join(to_fetch)} with apt-get (221 MB for all three)", flush=True)
            given |= {
                debian_packages.package_name(deb): deb
                for deb in debian_packages.fetch(to_fetch, Path(folder))
            }
        for name in absent:
            print(f"unpacking {given[name].name}", flush=True)
            _unpack(given[name], listing.of_package(name), cache / name)
    notes: list[str] = []
    for name in listing.licences:
        notes += json.loads((cache / name / "contents.json").read_text())["notes"]
    return notes


def _wanted_digest(photos: list[Photo]) -> str:
    text = "\n".join(f"{photo.cached} {photo.sha1}" for photo in photos)
    return hashlib.sha1(text.encode()).hexdigest()


def _is_filled(folder: Path, photos: list[Photo]) -> bool:
    contents = folder / "contents.json"
    return contents.is_file() and json.loads(contents.read_text())["wanted"] == _wanted_digest(photos)


def _unpack(deb: Path, photos: list[Photo], folder: Path) -> None:
    """Write the listed photos of a package, its copyright file and `contents.json` to `folder`, all or nothing."""
    name = folder.name
    licence = ("", f"usr/share/doc/{name}/copyright")
    by_place = {(photo.rcc, photo.path): photo for photo in photos}
    notes = []
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{name}-") as scratch:
        for place, content in _listed_files(deb, {licence, *by_place}):
            photo = by_place.pop(place, None)
            target = Path(scratch, photo.cached if photo else Path(name, "copyright"))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            if photo and hashlib.sha1(content).hexdigest()[:12] != photo.sha1:
                notes.append(f"{name}: {photo.path} differs from the listed one")
        notes += [f"{name}: {path} is not in {deb.name}" for _, path in by_place]
        filled = Path(scratch, name)
        filled.mkdir(exist_ok=True)
        write_json(
            filled / "contents.json",
            {"deb": deb.name, "notes": notes, "wanted": _wanted_digest(photos)},
            indent=None,
            sort_keys=True,
        )
        shutil.rmtree(folder, ignore_errors=True)
        filled.replace(folder)


def _listed_files(deb: Path, places: set[tuple[str, str]]) -> Iterator[tuple[tuple[str, str], bytes]]:
    """Yield the files at `places` = (resource file or "", path), with their content."""
    plain = {path for rcc, path in places if not rcc}
    for outer, content in debian_packages.read_deb(deb, plain | {rcc for rcc, _ in places if rcc}):
        if outer in plain:
            yield ("", outer), content
            continue
        try:
            for path, inner in debian_packages.read_rcc(
                content, {path for rcc, path in places if rcc == outer}
            ):
                yield (outer, path), inner
        except ValueError:  # the format of another release: its photos count as missing
            continue
