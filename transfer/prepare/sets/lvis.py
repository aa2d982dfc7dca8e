"""LVIS v0.5 (used by the MoCo paper) and v1: separate annotations on the images of COCO 2017.

Sources: the addresses and v1's counts are those of https://www.lvisdataset.org/dataset; the counts of v0.5 are in
the LVIS paper (arXiv:1908.03195, "57k" train images); the categories are the built-in ones of detectron2.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from pretrain.common.errors import UserError, label
from pretrain.common.files import load_json
from transfer.data.on_disk import (
    COCO_IMAGES,
    LVIS_VERSIONS,
    demand,
    lvis_again,
    lvis_json,
    lvis_url,
    names_in,
    prepare_command,
)
from transfer.prepare.sets.archives import Archive, install


def build(root: Path, args: argparse.Namespace) -> None:
    """Download the annotations of `args.version` to ROOT/lvis. COCO's images must already be there.

    Raises:
        UserError: a download failed, or a file is missing.
    """
    for split in LVIS_VERSIONS[args.version].images:
        # It is enough that the file exists: `unpack` never leaves half a file.
        file = lvis_json(root, args.version, split)
        install(
            _archive(args.version, split), root / "lvis", args, check=partial(demand, file, "the archive")
        )
    print(check(root, args))


def check(root: Path, args: argparse.Namespace) -> str:
    """Check the annotations of `args.version` and look for every image. Return a summary.

    This needs about 7 times as much memory as the json is large.
    """
    present = {name: names_in(root / "coco" / name) for name in COCO_IMAGES}
    counts = []
    for split in LVIS_VERSIONS[args.version].images:
        content = _load(root, args.version, split)
        _check_content(lvis_json(root, args.version, split), content)
        for image in content["images"]:
            folder, name = image["coco_url"].split("/")[-2:]
            if name not in present.get(folder, ()):
                raise UserError(
                    f"{root / 'coco' / folder / name} is missing: {prepare_command('coco', root)}"
                )
        counts.append(
            f"{split} {len(content['images'])} images with {len(content['annotations'])} annotations"
        )
    return f"{root / 'lvis'}: LVIS {args.version} is complete: {', '.join(counts)}"


def _archive(version: str, split: str) -> Archive:
    return Archive(lvis_url(version, split))


def _load(root: Path, version: str, split: str) -> dict[str, Any]:
    """Return the parsed file. Raise `UserError` unless its counts are those of the version."""
    file, wanted = lvis_json(root, version, split), LVIS_VERSIONS[version]
    demand(file, f"{lvis_url(version, split)}: {lvis_again(root, version)}")
    try:
        content = load_json(file)
        images, categories = len(content["images"]), [category["id"] for category in content["categories"]]
        len(content["annotations"])
    except (UserError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is not a complete LVIS file ({label(str(error))}): remove it, then {lvis_again(root, version)}"
        ) from None
    if images < wanted.images[split]:
        raise UserError(
            f"{file} has {images} images, not {wanted.images[split]}: remove it, then {lvis_again(root, version)}"
        )
    if sorted(categories) != list(range(1, wanted.categories + 1)):
        raise UserError(
            f"{file}: its {len(categories)} category ids are not 1 to {wanted.categories}, those of {version}: "
            f"remove it, then {lvis_again(root, version)}"
        )
    return content


def _check_content(file: Path, content: dict[str, Any]) -> None:
    """Check what detectron2's loader relies on: references, the images' URLs, and masks as polygons."""
    images = {image["id"] for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    seen: set[Any] = set()
    for image in content["images"]:
        if image.get("coco_url", "").count("/") < 2:
            raise UserError(
                f"{file}: image {label(image['id'])} has no coco_url, which is needed to find its file"
            )
    for annotation in content["annotations"]:
        name = f"{file}: annotation {label(annotation.get('id'))}"
        if annotation.get("id") in seen or annotation.get("id") is None:
            raise UserError(f"{name}: its id is missing or used twice")
        seen.add(annotation["id"])
        if annotation.get("image_id") not in images or annotation.get("category_id") not in categories:
            raise UserError(f"{name}: its image_id or category_id is not in the file")
        polygons = annotation.get("segmentation")
        if not polygons or any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
            raise UserError(f"{name}: its mask has no polygon, or one of fewer than 3 points")
        if len(annotation.get("bbox", ())) != 4 or "area" not in annotation:
            raise UserError(f"{name}: its box or its area is missing")
