"""The user's data for a comparison: the same picture in both parts, and a part of the training images held out."""

import hashlib
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.common.errors import UserError, label
from pretrain.common.files import file_digest, write_json
from transfer.data.coco.read import read

_NAMED = 3  # pairs that an error names


def refuse_leaks(train: Path, train_images: Path, test: Path, test_images: Path) -> None:
    """Raise `UserError` if a picture is in both parts, by the content of its file and not only by its name."""
    parts = [_files(*part) for part in ((train, train_images), (test, test_images))]
    sizes = [{path.stat().st_size for path in part} for part in parts]
    shared = sizes[0] & sizes[1]  # only files of equal size can be equal
    digests = [{file_digest(path): path for path in part if path.stat().st_size in shared} for part in parts]
    both = sorted(digests[0].keys() & digests[1].keys(), key=lambda digest: str(digests[0][digest]))
    if both:
        pairs = [f"{label(digests[0][each].name)} = {label(digests[1][each].name)}" for each in both[:_NAMED]]
        more = f" and {len(both) - _NAMED} more" if len(both) > _NAMED else ""
        raise UserError(
            f"--train and --test: {len(both)} picture(s) are in both ({', '.join(pairs)}{more}), so the test would "
            "reward memory: remove them from one of the two"
        )


def _files(json: Path, images: Path) -> list[Path]:
    content, _, _ = read(json)
    found = (images / image["file_name"] for image in content["images"])
    return [path for path in found if path.is_file()]


def hold_out(
    json: Path, share: float, folder: Path, *, flag: str = "", seed: int = 0
) -> tuple[Path, Path, str]:
    """Split the images of a COCO file into a file to train on and one to test on, and write both to `folder`.

    Images are grouped by their rarest class, and the same share of each group is held out, so that rare classes are
    in both parts where they have two images or more. This is a pure function of file, share and seed.

    Args:
        flag: what the user gave for this, to be named in messages; `--holdout SHARE` if empty.
    Returns:
        The paths of both files, and a sentence that says what was done.
    Raises:
        UserError: a part would be empty.
    """
    flag = flag or f"--holdout {share:g}"
    content, _, _ = read(json)
    kinds = Counter(each["category_id"] for each in content["annotations"])
    of_image: dict[Any, set[Any]] = defaultdict(set)
    for each in content["annotations"]:
        of_image[each["image_id"]].add(each["category_id"])
    groups: dict[Any, list[Any]] = defaultdict(list)
    for image in content["images"]:
        found = of_image[image["id"]]
        groups[min(found, key=lambda kind: (kinds[kind], str(kind)), default=None)].append(image["id"])
    held: set[Any] = set()
    for kind in sorted(groups, key=str):
        members = groups[kind]
        digest = hashlib.sha256(f"{seed} {kind}".encode()).digest()
        order = np.random.default_rng(int.from_bytes(digest[:8], "big")).permutation(len(members))
        held |= {members[place] for place in order[: round(share * len(members))].tolist()}
    if not held or len(held) == len(content["images"]):
        raise UserError(
            f"{flag}: of {len(content['images'])} images, {len(held)} would be held out: it needs "
            "more images, or another share"
        )
    paths = folder / "train.json", folder / "test.json"
    for path, is_held in zip(paths, (False, True), strict=True):
        images = [image for image in content["images"] if (image["id"] in held) == is_held]
        notes = [each for each in content["annotations"] if (each["image_id"] in held) == is_held]
        write_json(path, {**content, "images": images, "annotations": notes}, indent=None)
    rest = len(content["images"]) - len(held)
    said = f"{flag}: {len(held)} images are only tested on, {rest} are trained on (seed {seed}): {folder}"
    return *paths, said
