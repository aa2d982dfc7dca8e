"""The demo's data sets, composed from photographs, in `ROOT/demo_SIZE/`:

pretrain/{object,photo}/*.jpg        unlabelled, for MoCo
knn/{train,val}/CLASS/*.jpg          for the kNN monitor; val shows unseen objects on unseen backgrounds
train/*.jpg  val/*.jpg               for detection, with annotations/instances_{train,val}.json
CREDITS.txt  demo.json
"""

import errno
import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pretrain.common.errors import UserError
from pretrain.common.files import file_digest, write_bytes, write_json
from transfer.prepare.demo import build, coco_json, cutouts, fallback, photo_list, streams
from transfer.prepare.demo.build import FALLBACK, PACKAGES, Job
from transfer.prepare.demo.recipe import RECIPES, Recipe

VERSION = 1  # increase it when the same recipe produces different images
SOURCES = ("auto", "packages", "fallback")
HONEST = {
    PACKAGES: "composed: photographed objects on photographed grounds; those of val are not in train",
    FALLBACK: "composed: painted shapes on the 14 photographs inside scikit-image and scikit-learn. "
    "That shows that the chain runs; it cannot show that pre-training transfers",
}


def build_demo(
    root: Path, *, size: str = "standard", seed: int = 0, workers: int = 1, debs: tuple[Path, ...] = (),
    source: str = "auto",
) -> Path:  # fmt: skip
    """Build or finish the set and return its folder. With `source` auto, packages are used if possible."""
    folder = root / f"demo_{size}"
    try:
        if is_complete(folder, size=size, seed=seed, source="packages" if debs else source):
            print(f"{folder} is already complete (--check checks every file)")
            if (read_state(folder) or {})["source"] == FALLBACK:
                print(
                    "it is made from the fallback photographs; --source packages builds it again from packages"
                )
            return folder
        cache = root / "cache"
        origin, notes = _choose_source(cache, list(debs), source, classes=RECIPES[size].classes)
        job = Job(folder, cache, origin, recipe_of(size, origin), seed)
        _claim(job, notes)
        began = time.monotonic()
        made = build.build_images(job, workers)
        _finish(job, notes)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT, errno.ENOTDIR):
            raise UserError(f"cannot write to {error.filename or folder}: {error.strerror}") from None
        raise
    print(f"{folder}: {made} images made in {time.monotonic() - began:.0f} s from {origin}")
    print(HONEST[origin])
    return folder


def recipe_of(size: str, source: str) -> Recipe:
    """Return the recipe of a size, with the classes of the source."""
    recipe = RECIPES[size]
    return recipe.of_classes(fallback.SHAPE_CLASSES) if source == FALLBACK else recipe


def read_state(folder: Path) -> dict[str, Any] | None:
    """Return the content of `demo.json`, or None if it is missing or unreadable."""
    try:
        state = json.loads((folder / "demo.json").read_text())
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) and {"key", "source", "complete"} <= state.keys() else None


def is_complete(folder: Path, *, size: str, seed: int, source: str) -> bool:
    """Return whether `folder` holds exactly this set, with no image missing (judged by file names)."""
    state = read_state(folder)
    if not state or not state["complete"] or source not in ("auto", _short(state["source"])):
        return False
    recipe = recipe_of(size, state["source"])
    if state["key"] != set_key(recipe, seed) or not all(
        (folder / name).is_file() for name in state["digests"]
    ):
        return False
    present = {
        path.relative_to(folder) for stream in streams.STREAMS for path in (folder / stream).rglob("*.jpg")
    }
    return all(
        streams.path(stream, index, recipe) in present
        for stream in streams.STREAMS
        for index in range(streams.count(stream, recipe))
    )


def _short(source: str) -> str:
    return "packages" if source == PACKAGES else "fallback"


def set_key(recipe: Recipe, seed: int) -> dict[str, Any]:
    """Return everything that determines the images, in the form in which JSON reads it back."""
    order = list(recipe.classes)  # gives the category ids; comparing dicts ignores the order of keys
    key = {"version": VERSION, "seed": seed, "order": order, "recipe": asdict(recipe)}
    return json.loads(json.dumps(key))


def _choose_source(
    cache: Path, debs: list[Path], source: str, *, classes: dict[str, tuple[str, ...]]
) -> tuple[str, list[str]]:
    """Fill the cache, or fall back if allowed. Return the source's name and notes on what is missing."""
    if source == "fallback":
        fallback.photo_files()
        return FALLBACK, []
    try:
        notes = photo_list.fill_cache(cache, debs)
        for note in notes:
            print(f"note: {note}")
        cutouts.demand_enough(cache, classes)
    except UserError as error:
        if source == "packages" or debs:
            raise
        fallback.photo_files()
        print(f"no Debian packages: {error}")
        print("falling back to the photographs inside scikit-image and scikit-learn")
        return FALLBACK, [f"Debian packages: {error}"]
    return PACKAGES, notes


def _claim(job: Job, notes: list[str]) -> None:
    """Mark the folder as holding this set, unfinished. A different demo set is removed, but never foreign files."""
    state = read_state(job.folder)
    if state is None and job.folder.exists() and any(job.folder.iterdir()):
        raise UserError(f"{job.folder} exists and is not a demo set: remove it, or use another --root")
    if state and (state["key"], state["source"]) != (set_key(job.recipe, job.seed), job.source):
        print(f"{job.folder} holds a set with another seed, recipe or source: building it again")
        for name in ("pretrain", "knn", "train", "val", "annotations", ".work"):
            shutil.rmtree(job.folder / name, ignore_errors=True)
    job.folder.mkdir(parents=True, exist_ok=True)
    _write_state(job, notes, complete=False)


def _write_state(job: Job, notes: list[str], **more: Any) -> None:
    state = {
        "key": set_key(job.recipe, job.seed),
        "source": job.source,
        "missing": notes,
        "size": job.recipe.size,
    }
    write_json(job.folder / "demo.json", state | {"seed": job.seed} | more, indent=1, sort_keys=True)


def _finish(job: Job, notes: list[str]) -> None:
    """Write the annotations and credits, and mark the set as complete."""
    recipe = job.recipe
    (job.folder / "annotations").mkdir(exist_ok=True)
    digests = {}
    for split in streams.DETECTION:
        content = coco_json.dataset(
            build.read_annotations(job, split), classes=list(recipe.classes), width=recipe.width,
            height=recipe.height, about=f"{split} split, {HONEST[job.source]}; see CREDITS.txt",
        )  # fmt: skip
        name = f"annotations/instances_{split}.json"
        write_json(job.folder / name, content, indent=None, sort_keys=True)
        digests[name] = file_digest(job.folder / name)
    write_bytes(job.folder / "CREDITS.txt", _credits(job).encode())
    counts = {stream: streams.count(stream, recipe) for stream in streams.STREAMS}
    _write_state(job, notes, complete=True, counts=counts, digests=digests, classes=list(recipe.classes))
    shutil.rmtree(job.folder / ".work")
    for left_over in job.folder.rglob(".*.*"):  # left by a run that was killed
        left_over.unlink()


def _credits(job: Job) -> str:
    """Return the text of CREDITS.txt: the files that the images derive from, and their licences."""
    head = "The images here are composed from the following photographs, and are derivatives of them.\n"
    if job.source == FALLBACK:
        names = "\n".join(f"  {file.name}" for file in fallback.photo_files())
        return f"{head}\nInside scikit-image and scikit-learn (their licences apply):\n{names}\n"
    parts = [head]
    listed = photo_list.load_listing()
    for package, licence in listed.licences.items():
        version = json.loads((job.cache / package / "contents.json").read_text())["deb"]
        files = [f"  {p.path}" for p in listed.of_package(package) if (job.cache / p.cached).is_file()]
        parts.append(
            f"\nDebian package {package} ({version})\nLicence: {licence}\n" + "\n".join(files) + "\n"
        )
    for package in listed.licences:
        copyright_file = job.cache / package / "copyright"
        if copyright_file.is_file():
            parts.append(f"\n{'=' * 40}\nThe copyright file of {package}:\n\n{copyright_file.read_text()}")
    return "".join(parts)
