"""The user's own COCO-format data: a thorough check, a repaired copy, and a reproducible subset."""

import argparse
import re
from collections import Counter
from pathlib import Path
from typing import Any

from pretrain.common.console import say
from pretrain.common.errors import UserError, label
from pretrain.common.files import file_digest, write_json
from transfer.data import subset
from transfer.data.coco import box_formats, whole_file
from transfer.data.coco import problems as coco_problems
from transfer.data.coco.image_files import size_differences
from transfer.data.coco.problems import Problem
from transfer.data.coco.read import is_coco, read
from transfer.data.coco.remarks import remarks
from transfer.data.coco.values import drop, hashable, is_size

_CLASSES_SHOWN = 100  # categories that are printed
SMALL, LARGE = 32**2, 96**2  # square pixels: COCO's limits for APs, APm and APl


SHOWN_OF_A_KIND, SHOWN = 10, 500  # problems that are printed
DETAILS = re.compile(r"'[^']*'|\[.*\]|\S*/\S*|[-+.\d]+")  # what differs between two problems of one kind
PASSES = 3  # a box can be compared with its image only after the size of that image is repaired
FIELDS = {"masks": "segmentation", "keypoints": "keypoints"}
# A file in which more than this share of the annotations has no mask mixes boxes and masks on purpose; below it, masks
# were forgotten.
FEW = 0.1
CHANGES = ("--repair", "--box-format", "--category-shift", "--fraction", "--shots")
FLAGS = {"DATASETS.FRACTION": "--fraction", "DATASETS.SHOTS": "--shots", "DATASETS.SUBSET_SEED": "--seed"}

Content = dict[str, Any]


def build(root: Path, args: argparse.Namespace) -> None:
    """Print what `args.json` holds and what is wrong with it; write `args.output` if a change is requested.

    `args.box_format` and `args.category_shift` say how the file differs from COCO's format, and are applied first.
    `args.repair` repairs what it can; `args.fraction`, `args.shots` and `args.seed` choose a subset of the images
    (`transfer.data.subset`). All are recorded in the output's "info".

    Raises:
        UserError: there are problems without `args.repair`, or one that cannot be repaired.
    """
    _check_flags(args)
    content, found = _report(args)
    if found and not args.repair:
        raise UserError(_verdict(args, content, found))
    record: Content = {"file": args.json.name, "sha256": file_digest(args.json)} | _conversions(args)
    if args.repair:
        content, record["repaired"] = _repair(content, found, args)
        for what, count in sorted(record["repaired"].items()):
            say(f"{count} {what}")
    if args.fraction != 1 or args.shots:
        content = _part(content, args)
        record |= {"fraction": args.fraction, "shots": args.shots, "seed": args.seed}
    if args.output is None:
        say(f"{args.json}: no problem was found")
        return
    info = content["info"] if isinstance(content.get("info"), dict) else {}
    write_json(args.output, {**content, "info": {**info, "made_from": record}}, indent=None)
    say(f"wrote {args.output}: {len(content['images'])} images, {len(content['annotations'])} annotations")


def check(root: Path, args: argparse.Namespace) -> str:
    """Print the same report and write nothing. Raise `UserError` if there is any problem."""
    if args.repair or args.output or args.fraction != 1 or args.shots:
        raise UserError("--check writes nothing: leave out --repair, --output, --fraction and --shots")
    _check_flags(args)
    content, found = _report(args)
    if found:
        raise UserError(_verdict(args, content, found))
    return f"{args.json}: no problem was found"


def _check_flags(args: argparse.Namespace) -> None:
    if not args.json.is_file():
        raise UserError(f"--json {args.json}: no such file")
    if not args.images.is_dir():
        raise UserError(f"--images {args.images}: no such folder")
    changes = args.repair or args.fraction != 1 or args.shots or _conversions(args)
    if changes and args.output is None and not args.check:
        raise UserError(f"{', '.join(CHANGES)} write a new file: name it with --output")
    if args.output is not None and not changes:
        raise UserError(
            f"--output: there is nothing to change; leave it out, or add one of {', '.join(CHANGES)}"
        )
    if args.output is not None and args.output.resolve() == args.json.resolve():
        raise UserError(
            f"--output {args.output} is the file of --json, which is never overwritten; name another file"
        )


def _report(args: argparse.Namespace) -> tuple[Content, list[Problem]]:
    """Read the file and print its summary, remarks and problems. Return its content and the problems."""
    content, notes, _ = read(args.json)
    if is_coco(content):
        content = _convert(content, args)
    found = _problems(content, args)
    if is_coco(content):
        say(f"{args.json}:")
        for line in (*summary(content), *notes, *(remarks(content) if not found else ())):
            say(f"  {line}")
    if found:
        say(f"{len(found)} problem(s):")
    shown = _first_of_each_kind(found)
    for problem in shown:
        say(f"  {problem.text}" + (f" (--repair: {problem.remedy})" if problem.repair else ""))
    if len(found) > len(shown):
        say(f"  ... and {len(found) - len(shown)} more of these kinds")
    return content, found


def _first_of_each_kind(found: list[Problem]) -> list[Problem]:
    kinds: Counter[str] = Counter()
    shown = []
    for problem in found:
        kind = DETAILS.sub("", problem.text)
        kinds[kind] += 1
        if kinds[kind] <= SHOWN_OF_A_KIND:
            shown.append(problem)
    return shown[:SHOWN]


def _problems(content: Any, args: argparse.Namespace) -> list[Problem]:
    """Return what `transfer.data.coco.problems` finds, then sizes that differ from those of the image files."""
    if not is_coco(content):
        return coco_problems.problems(content, args.images, masks=False, keypoints=False)
    learn, annotations = args.learn, content["annotations"]
    if learn is None:  # whatever nearly all annotations have
        learn = [part for part, field in FIELDS.items() if _missing(content, field) <= FEW * len(annotations)]
    found = coco_problems.problems(
        content, args.images, masks="masks" in learn, keypoints="keypoints" in learn
    )
    differing = list(size_differences(content["images"], args.images))
    if len(differing) > coco_problems.MOST_LEFT_OUT * len(content["images"]):
        index, text = differing[0]
        whole = f"{len(differing)} of {len(content['images'])} image files are not those that were annotated"
        name = label(content["images"][index].get("id", f"at position {index}"))
        advice = "give the folder of the original images, or export the annotations again"
        return [*found, Problem(f"{whole}, such as image {name}: {text}", advice=advice)]
    for index, text in differing:
        name = f"image {label(content['images'][index].get('id', f'at position {index}'))}"
        found.append(Problem(f"{name}: {text}", "images", index, "left out", drop))
    return found


def _conversions(args: argparse.Namespace) -> Content:
    """Return the conversions that are requested, for the record in the output."""
    wanted = {"box_format": (args.box_format, "xywh"), "category_shift": (args.category_shift, 0)}
    return {key: value for key, (value, usual) in wanted.items() if value != usual}


def _convert(content: Content, args: argparse.Namespace) -> Content:
    """Return the file with COCO's boxes and with category ids that exist, and print what was changed."""
    if args.box_format != "xywh":
        content, count = box_formats.converted(content, args.box_format)
        say(f"--box-format {args.box_format}: {count} of {len(content['annotations'])} boxes converted")
    if args.category_shift:
        content = whole_file.shifted(content, args.category_shift)
        say(f"--category-shift {args.category_shift}: added to {len(content['annotations'])} category ids")
    return content


def _verdict(args: argparse.Namespace, content: Content, found: list[Problem]) -> str:
    """Return the error message for a file with problems."""
    more = f", and {len(found) - 1} more problem(s)" if len(found) > 1 else ""
    if any(problem.repair is None for problem in found):
        first = next(problem for problem in found if problem.repair is None)
        return f"{args.json}: {first.text}{more}; {first.advice or 'this must be fixed by hand'}"
    remedy = coco_problems.refused(content, found) or "--repair --output FILE writes a repaired copy"
    return f"{args.json}: {found[0].text}{more}; {remedy}"


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
        try:
            content = coco_problems.repaired(content, found)
        except UserError as error:
            raise UserError(f"{args.json}: {error}") from None
        done.update(f"{problem.part}: {problem.remedy}" for problem in found)
        found = _problems(content, args)
    if found:
        raise UserError(_verdict(args, content, found))
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
    labelled = {hashable(annotation.get("image_id")) for annotation in annotations}
    bare = sum(hashable(image.get("id")) not in labelled for image in images)
    polygons = sum(bool(a.get("segmentation")) and isinstance(a["segmentation"], list) for a in annotations)
    rles = sum(bool(a.get("segmentation")) and isinstance(a["segmentation"], dict) for a in annotations)
    points = sum(bool(annotation.get("keypoints")) for annotation in annotations)
    mixed = "; training with masks needs one in each" if 0 < polygons + rles < len(annotations) else ""
    lines = [
        f"{len(images)} images, {bare} of them without annotations",
        f"{len(annotations)} annotations, {crowds} of them crowds, in {len(content['categories'])} categories",
        f"masks: {_share(polygons + rles, len(annotations))} ({polygons} as polygons, {rles} as RLE){mixed}",
        f"keypoints: {_share(points, len(annotations))}",
    ]
    return [*lines, *_sizes(images), *_areas(annotations), *_categories(content)]


def _missing(content: Content, field: str) -> int:
    """Return how many annotations have nothing in `field`: "segmentation" or "keypoints"."""
    return sum(not annotation.get(field) for annotation in content["annotations"])


def _share(part: int, whole: int) -> str:
    return "none" if not part else f"{part} of {whole} annotations"


def _sizes(images: list[Content]) -> list[str]:
    if not images or not all(map(is_size, images)):
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
    objects = Counter(hashable(a.get("category_id")) for a in content["annotations"])
    pairs = {(hashable(a.get("category_id")), hashable(a.get("image_id"))) for a in content["annotations"]}
    images = Counter(category for category, _ in pairs)
    rows = [
        (
            label(c.get("id")),
            label(c.get("name")),
            objects[hashable(c.get("id"))],
            images[hashable(c.get("id"))],
        )
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
