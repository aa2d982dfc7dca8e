"""Checks every file of a finished demo set."""

import json
from pathlib import Path

from pycocotools import mask as rle

from pretrain.common.errors import UserError
from pretrain.common.files import file_digest
from pretrain.data.decode import image_at
from transfer.prepare.demo import demo_set, streams
from transfer.prepare.demo.recipe import Recipe


def check_set(folder: Path, size: str) -> str:
    """Verify digests, names, every image and every annotation. Return a one-line summary.

    Raises UserError, which names the first wrong file.
    """
    again = f"run 'python tools/prepare_data.py demo --size {size}' again"
    state = demo_set.read_state(folder)
    if not state or not state["complete"]:
        raise UserError(f"{folder} does not hold a finished demo set: {again}")
    recipe = demo_set.recipe_of(size, state["source"])
    if state["key"] != demo_set.set_key(recipe, state["key"]["seed"]):
        raise UserError(f"{folder}/demo.json: the set was made with another recipe: {again}")
    for name, digest in state["digests"].items():
        if not (folder / name).is_file() or file_digest(folder / name) != digest:
            raise UserError(f"{folder / name} has changed since it was written: remove it, then {again}")
    for split in streams.DETECTION:
        _check_annotations(folder, split, recipe)
    for stream in streams.STREAMS:
        _check_images(folder, stream, recipe, again)
    counts = ", ".join(f"{stream} {streams.count(stream, recipe)}" for stream in streams.STREAMS)
    return f"{folder} is complete, from {state['source']}: {counts}"


def _check_annotations(folder: Path, split: str, recipe: Recipe) -> None:
    """Check that the json lists exactly the split's images, and that each box and area matches its mask."""
    file = folder / "annotations" / f"instances_{split}.json"
    content = json.loads(file.read_text())
    expected = [streams.path(split, index, recipe).name for index in range(streams.count(split, recipe))]
    if [image["file_name"] for image in content["images"]] != expected:
        raise UserError(
            f"{file} does not list the images of {folder / split}: remove {folder} and build it again"
        )
    for annotation in content["annotations"]:
        mask = annotation["segmentation"]
        if rle.area(mask) != annotation["area"] or list(rle.toBbox(mask)) != annotation["bbox"]:
            raise UserError(f"{file}: annotation {annotation['id']} has a box or area that is not its mask's")


def _check_images(folder: Path, stream: str, recipe: Recipe, again: str) -> None:
    """Check that every image can be decoded and has the right size, and that there are no others."""
    side = recipe.small_side
    size = (recipe.width, recipe.height) if stream in streams.DETECTION else (side, side)
    expected = {
        folder / streams.path(stream, index, recipe) for index in range(streams.count(stream, recipe))
    }
    if stray := sorted(set((folder / stream).rglob("*.jpg")) - expected):
        raise UserError(f"{stray[0]} is not part of the set: remove it")
    for path in sorted(expected):
        try:
            with image_at(path) as image:
                image.load()
                found = image.size
        except ValueError as error:
            if not path.exists():
                raise UserError(f"{path} is missing: {again}") from None
            raise UserError(f"{path} is broken ({error}): remove it, then {again}") from None
        if found != size:
            raise UserError(
                f"{path} is {found[0]}x{found[1]}, not {size[0]}x{size[1]}: remove it, then {again}"
            )
