"""The user's own COCO-format data: a thorough check, a repaired copy, and a reproducible subset."""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from pretrain.common.errors import UserError
from pretrain.common.files import file_digest, write_atomic
from transfer.data import subset
from transfer.data.coco import entries
from transfer.data.coco import problems as coco_problems
from transfer.data.coco.problems import Problem, size_differences

_CLASSES_SHOWN = 100  # categories that are printed
SMALL, LARGE = 32**2, 96**2  # square pixels: COCO's limits for APs, APm and APl


SHOWN = 20  # problems that are printed
PASSES = 3  # a box can be compared with its image only after the size of that image is repaired
LABELS = ("masks", "keypoints")
FLAGS = {"DATASETS.FRACTION": "--fraction", "DATASETS.SHOTS": "--shots", "DATASETS.SUBSET_SEED": "--seed"}

Content = dict[str, Any]


def build(root: Path, args: argparse.Namespace) -> None:
    """Print what `args.json` holds and what is wrong with it; write `args.output` if a change is requested.

    `args.repair` repairs what it can; `args.fraction`, `args.shots` and `args.seed` choose a subset of the images
    (`transfer.data.subset`). Both are recorded in the output's "info".

    Raises:
        UserError: there are problems without `args.repair`, or one that cannot be repaired.
    """
    _check_flags(args)
    content, found = _report(args)
    if found and not args.repair:
        raise UserError(_verdict(args, found))
    record: Content = {"file": args.json.name, "sha256": file_digest(args.json)}
    if args.repair:
        content, record["repaired"] = _repair(content, found, args)
        for what, count in sorted(record["repaired"].items()):
            print(f"{count} {what}")
    if args.fraction != 1 or args.shots:
        content = _part(content, args)
        record |= {"fraction": args.fraction, "shots": args.shots, "seed": args.seed}
    if args.output is None:
        print(f"{args.json}: no problem was found")
        return
    info = content["info"] if isinstance(content.get("info"), dict) else {}
    data = json.dumps({**content, "info": {**info, "made_from": record}}).encode()
    write_atomic(args.output, lambda file: file.write(data))
    print(f"wrote {args.output}: {len(content['images'])} images, {len(content['annotations'])} annotations")


def check(root: Path, args: argparse.Namespace) -> str:
    """Print the same report and write nothing. Raise `UserError` if there is any problem."""
    if args.repair or args.output or args.fraction != 1 or args.shots:
        raise UserError("--check writes nothing: leave out --repair, --output, --fraction and --shots")
    _check_flags(args)
    _, found = _report(args)
    if found:
        raise UserError(_verdict(args, found))
    return f"{args.json}: no problem was found"


def _check_flags(args: argparse.Namespace) -> None:
    if not args.json.is_file():
        raise UserError(f"--json {args.json}: no such file")
    if not args.images.is_dir():
        raise UserError(f"--images {args.images}: no such folder")
    changes = args.repair or args.fraction != 1 or args.shots
    if changes and args.output is None:
        raise UserError("--repair, --fraction and --shots write a new file: name it with --output")
    if args.output is not None and not changes:
        raise UserError(
            "--output: there is nothing to change; leave it out, or add --repair, --fraction or --shots"
        )
    if args.output is not None and args.output.resolve() == args.json.resolve():
        raise UserError(
            f"--output {args.output} is the file of --json, which is never overwritten; name another file"
        )


def _report(args: argparse.Namespace) -> tuple[Content, list[Problem]]:
    """Read the file and print its summary, remarks and problems. Return its content and the problems."""
    try:
        content = json.loads(args.json.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{args.json}: not a complete JSON file: {error}") from None
    found = _problems(content, args)
    if _is_coco(content):
        print(f"{args.json}:")
        for line in (*summary(content), *(coco_problems.remarks(content) if not found else ())):
            print(f"  {line}")
    if found:
        print(f"{len(found)} problem(s):")
    for problem in found[:SHOWN]:
        print(f"  {problem.text}" + (f" (--repair: {problem.remedy})" if problem.repair else ""))
    if len(found) > SHOWN:
        print(f"  ... and {len(found) - SHOWN} more")
    return content, found


def _problems(content: Any, args: argparse.Namespace) -> list[Problem]:
    """Return what `transfer.data.coco.problems` finds, then sizes that differ from those of the image files."""
    if not _is_coco(content):
        return coco_problems.problems(content, args.images, masks=False, keypoints=False)
    learn = args.learn
    if learn is None:  # use whatever the file holds
        fields = zip(LABELS, ("segmentation", "keypoints"), strict=True)
        learn = [label for label, field in fields if holds(content, field)]
    found = coco_problems.problems(
        content, args.images, masks="masks" in learn, keypoints="keypoints" in learn
    )
    for index, text in size_differences(content["images"], args.images):
        name = f"image {content['images'][index].get('id', f'at position {index}')}"
        found.append(Problem(f"{name}: {text}", "images", index, "left out", entries.drop))
    return found


def _is_coco(content: Any) -> bool:
    return isinstance(content, dict) and all(
        isinstance(content.get(part), list) and all(isinstance(entry, dict) for entry in content[part])
        for part in ("images", "annotations", "categories")
    )


def _verdict(args: argparse.Namespace, found: list[Problem]) -> str:
    """Return the error message for a file with problems."""
    more = f", and {len(found) - 1} more problem(s)" if len(found) > 1 else ""
    if any(problem.repair is None for problem in found):
        first = next(problem for problem in found if problem.repair is None)
        return f"{args.json}: {first.text}{more}; this must be fixed by hand"
    return f"{args.json}: {found[0].text}{more}; --repair --output FILE writes a repaired copy"


def _repair(
    content: Content, found: list[Problem], args: argparse.Namespace
) -> tuple[Content, dict[str, int]]:
    """Return a copy without problems, and how often each kind of repair was made."""
    done: Counter[str] = Counter()
    for _ in range(PASSES):
        if any(problem.repair is None for problem in found):
            break
        if not found:
            return content, dict(done)
        content = coco_problems.repaired(content, found)
        done.update(f"{problem.part}: {problem.remedy}" for problem in found)
        found = _problems(content, args)
    if found:
        raise UserError(_verdict(args, found))
    return content, dict(done)


def _part(content: Content, args: argparse.Namespace) -> Content:
    """Return the subset that a training run with `DATASETS.FRACTION`, `SHOTS` and `SUBSET_SEED` would choose.

    It is chosen from the images with at least one object that is not a crowd, in the order of their ids. The chosen
    images keep all their annotations, and all categories are kept.
    """
    number = {category: n for n, category in enumerate(sorted(c["id"] for c in content["categories"]))}
    classes: dict[Any, list[int]] = {}
    for annotation in content["annotations"]:
        if not annotation["iscrowd"]:
            classes.setdefault(annotation["image_id"], []).append(number[annotation["category_id"]])
    images = sorted(
        (image for image in content["images"] if image["id"] in classes), key=lambda image: image["id"]
    )
    try:
        chosen = subset.choose(
            [classes[image["id"]] for image in images],
            fraction=args.fraction,
            shots=args.shots,
            seed=args.seed,
        )
    except UserError as error:
        text = str(error)
        for key, flag in FLAGS.items():
            text = text.replace(key, flag)
        raise UserError(text) from None
    kept = [images[index] for index in chosen]
    ids = {image["id"] for image in kept}
    return {
        **content,
        "images": kept,
        "annotations": [annotation for annotation in content["annotations"] if annotation["image_id"] in ids],
    }


def summary(content: Content) -> list[str]:
    """Return lines about images, annotations, masks, keypoints and sizes, and a table of the categories."""
    images, annotations = content["images"], content["annotations"]
    crowds = sum(annotation.get("iscrowd") == 1 for annotation in annotations)
    labelled = {_key(annotation.get("image_id")) for annotation in annotations}
    bare = sum(_key(image.get("id")) not in labelled for image in images)
    polygons = sum(bool(a.get("segmentation")) and isinstance(a["segmentation"], list) for a in annotations)
    rles = sum(bool(a.get("segmentation")) and isinstance(a["segmentation"], dict) for a in annotations)
    points = sum(bool(annotation.get("keypoints")) for annotation in annotations)
    lines = [
        f"{len(images)} images, {bare} of them without annotations",
        f"{len(annotations)} annotations, {crowds} of them crowds, in {len(content['categories'])} categories",
        f"masks: {_share(polygons + rles, len(annotations))} ({polygons} as polygons, {rles} as RLE)",
        f"keypoints: {_share(points, len(annotations))}",
    ]
    return [*lines, *_sizes(images), *_areas(annotations), *_categories(content)]


def holds(content: Content, field: str) -> bool:
    """Return whether any annotation has something in `field`: "segmentation" or "keypoints"."""
    return any(annotation.get(field) for annotation in content["annotations"])


def _share(part: int, whole: int) -> str:
    return "none" if not part else f"{part} of {whole} annotations"


def _sizes(images: list[Content]) -> list[str]:
    for side in ("width", "height"):
        if not all(isinstance(image.get(side), int) for image in images):
            return []
    if not images:
        return []
    sizes = Counter((image["width"], image["height"]) for image in images)
    (width, height), count = max(sizes.items(), key=lambda item: (item[1], item[0]))
    in_order = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    small, large = in_order[0], in_order[-1]
    return [
        f"image sizes: {len(sizes)}, from {small[0]} x {small[1]} to {large[0]} x {large[1]}; most frequent "
        f"{width} x {height} ({count} images)"
    ]


def _areas(annotations: list[Content]) -> list[str]:
    areas = [a["area"] for a in annotations if isinstance(a.get("area"), (int, float))]
    if not areas:
        return []
    small, large = sum(area < SMALL for area in areas), sum(area >= LARGE for area in areas)
    return [
        f"areas: {small} small (below 32 x 32 pixels), {len(areas) - small - large} medium, {large} large "
        "(96 x 96 and more)"
    ]


def _categories(content: Content) -> list[str]:
    """Return a table of id, name, annotations and images of each category, the most frequent first."""
    objects = Counter(_key(a.get("category_id")) for a in content["annotations"])
    pairs = {(_key(a.get("category_id")), _key(a.get("image_id"))) for a in content["annotations"]}
    images = Counter(category for category, _ in pairs)
    rows = [
        (str(c.get("id")), str(c.get("name")), objects[_key(c.get("id"))], images[_key(c.get("id"))])
        for c in content["categories"]
    ]
    rows.sort(key=lambda row: -row[2])
    lines = [f"{'id':>6}  {'category':<30} {'annotations':>11} {'images':>8}"]
    lines += [
        f"{number:>6}  {name:<30} {count:>11} {seen:>8}"
        for number, name, count, seen in rows[:_CLASSES_SHOWN]
    ]
    return lines + (
        [f"... and {len(rows) - _CLASSES_SHOWN} rarer categories"] if len(rows) > _CLASSES_SHOWN else []
    )


def _key(value: Any) -> Any:
    return value if isinstance(value, (int, str)) else repr(value)
