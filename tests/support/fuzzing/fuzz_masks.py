"""Hostile and damaged masks in COCO files, against the check, the repair, and pycocotools behind `safe_masks.watch`.

python -m tests.support.fuzzing.fuzz_masks --inputs 100000 --seed 0

Each file is a function of (seed, index). The check and the repair raise nothing but `UserError`, and what they let pass
can be drawn and compared. The unrepaired file goes to pycocotools as well, which may refuse it, but not crash, hang or
fill the memory. The last number printed is the input that did.
"""

import argparse
import random
import resource
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from pycocotools import mask as library
from pycocotools.coco import COCO

import transfer  # noqa: F401 (it watches pycocotools)
from pretrain.common.errors import UserError
from transfer.data.coco.problems import problems, repaired
from transfer.data.coco.safe_masks import BadMask, check_masks

W, H = 128, 96
MEMORY = 2 << 30  # bytes of address space above what the libraries take
Content = dict[str, Any]
NUMBERS: tuple[Any, ...] = (
    float("nan"), float("inf"), -float("inf"), 1e300, -1e300, 1e9, -1e9, 1e6, 2**31, 2**31 - 1, -(2**31), 2**32, 2**62,
    10**400, -1, 0, 0.5, 127.999, 1280, -1280, True, None, "5", [], {},
)  # fmt: skip
SIDES: tuple[Any, ...] = (0, -1, 1, H, W, 2**15, 2**16, 2**31, 2**32, 2**63, 10**30, 96.0, None, "96", True)


def _clean() -> Content:
    mask = np.zeros((H, W), np.uint8, order="F")
    mask[20:60, 10:50] = 1
    string = {"size": [H, W], "counts": library.encode(mask)["counts"].decode()}
    flat = mask.ravel(order="F")
    ends = [*np.flatnonzero(np.diff(flat)) + 1, H * W]
    counts = {"size": [H, W], "counts": [int(v) for v in np.diff([0, *ends])]}
    polygon = [[10.0, 20.0, 50.0, 20.0, 50.0, 60.0, 10.0, 60.0]]
    two = [[10.0, 20.0, 50.0, 20.0, 50.0, 60.0], [10.0, 20.0, 50.0, 60.0, 10.0, 60.0]]
    return {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": W, "height": H, "license": 0} for i in range(1, 6)
        ],
        "categories": [{"id": 1, "name": "cup"}],
        "annotations": [
            {
                "id": i, "image_id": i, "category_id": 1, "bbox": [10, 20, 40, 40], "area": 1600, "iscrowd": i // 5,
                "segmentation": segmentation,
            }
            for i, segmentation in enumerate((polygon, two, string, counts, string), start=1)
        ],
    }  # fmt: skip


def _polygon(draw: random.Random) -> list[Any]:
    kind, far = draw.randrange(5), draw.choice((1, 5, 9.9, 100, 1e4))
    if kind == 0:  # to and fro
        sides = draw.choice((10, 50, 300, 40_000))
        return [v for i in range(sides) for v in ((i % 2) * W * far, i * H / sides)]
    if kind == 1:  # far away and small
        return [v + W * far for v in (0, 0, 9, 0, 9, 9)]
    points = [draw.uniform(-W * far, W * far) for _ in range(draw.choice((4, 5, 6, 7, 8, 40)))]
    if kind < 4:
        points[draw.randrange(len(points))] = draw.choice(NUMBERS)
    return points


def _counts(draw: random.Random, old: Any) -> Any:
    if isinstance(old, list) and old and draw.random() < 0.8:
        new = list(old)
        new[draw.randrange(len(new))] = draw.choice(NUMBERS)
        return new[: draw.randint(0, len(new))] if draw.random() < 0.3 else new
    letters = "".join(map(chr, range(48, 112)))
    if isinstance(old, str) and old and draw.random() < 0.6:
        place = draw.randrange(len(old))
        return old[:place] + draw.choice((*letters[::7], "", "\0", "\xe9", "\ud800")) + old[place + 1 :]
    return draw.choice(
        (
            "", "o" * draw.choice((1, 6, 13, 5000)), "0" * draw.choice((1, 4000)), None, 7, [], [[H * W]], [0, H * W],
            [H * W], [1] * (H * W), [2**32 - 1, H * W + 1], "".join(draw.choices(letters, k=draw.randint(1, 40))),
        )
    )  # fmt: skip


def _segmentation(draw: random.Random, annotation: Content) -> None:
    old = annotation["segmentation"]
    if isinstance(old, dict) and draw.random() < 0.8:
        if draw.random() < 0.3:
            old["size"] = draw.choice(([H, W], [W, H], None, [H], [draw.choice(SIDES), draw.choice(SIDES)]))
        else:
            old["counts"] = _counts(draw, old.get("counts"))
    elif draw.random() < 0.8:
        polygons = [_polygon(draw) for _ in range(draw.choice((1, 1, 2, 8)))]
        annotation["segmentation"] = polygons + (old if isinstance(old, list) else [])
    else:
        annotation["segmentation"] = draw.choice(
            (
                None,
                [],
                {},
                "",
                "x",
                7,
                [[]],
                [None],
                [{}],
                [[10, 20, 50, 60]],
                [10, 20, 50, 20, 50, 60],
                [old],
            )
        )


def make(seed: int, index: int) -> Content:
    """Return a file with one to three mutations."""
    draw, content = random.Random(f"{seed} {index}"), _clean()
    for _ in range(draw.choice((1, 1, 2, 3))):
        number = draw.randrange(5)
        image, annotation = content["images"][number], content["annotations"][number]
        kind = draw.random()
        if kind < 0.7:
            _segmentation(draw, annotation)
        elif kind < 0.8:
            image[draw.choice(("width", "height"))] = draw.choice(SIDES)
        elif kind < 0.9:
            annotation["iscrowd"] = 1
            annotation["segmentation"] = draw.choice(([], annotation["segmentation"]))
        else:
            annotation["bbox"][draw.randrange(4)] = draw.choice(NUMBERS)
    return content


def check(content: Content) -> str:
    """Return the outcome: clean, repaired or refused. Raises whatever else the check and the repair raise."""
    original, outcome = content, "clean"
    for _ in range(4):
        found = problems(content, None, masks=True, keypoints=False)
        if not found:
            break
        try:
            content, outcome = repaired(content, found), "repaired"
        except UserError:
            outcome = "refused"
            break
    _tried(original)
    if outcome != "refused" and not found:
        check_masks("fuzz", content)
        api = _api(content)
        for annotation in content["annotations"]:
            image = api.imgs[annotation["image_id"]]
            assert api.annToMask(annotation).shape == (image["height"], image["width"])
            rle = api.annToRLE(annotation)
            assert library.iou([rle], [rle], [0])[0, 0] == 1 and library.area(rle) > 0
    return outcome


def _api(content: Content) -> COCO:
    api = COCO()
    api.dataset = content
    api.createIndex()
    return api


def _tried(content: Content) -> None:
    """Give an unchecked file to pycocotools as the readers and evaluators of data sets do."""
    api = _api(content)
    for annotation in content["annotations"]:
        image, mask = api.imgs[annotation["image_id"]], annotation["segmentation"]
        calls: tuple[Callable[[], Any], ...] = (
            lambda a=annotation: api.annToMask(a),
            lambda m=mask, i=image: library.decode(library.frPyObjects(m, i["height"], i["width"])),
            lambda m=mask: library.decode(m),
            lambda m=mask: library.toBbox(m),
            lambda m=mask: library.area(library.merge([m, m])),
        )
        for call in calls:
            try:
                call()
            except BadMask as error:
                assert str(error).isprintable() and len(str(error)) < 600
            except Exception:  # of Python: for what is not a mask at all
                continue
    try:
        check_masks("fuzz", content)
    except UserError as error:
        assert str(error).isprintable() and len(str(error)) < 600
        return
    for annotation in content["annotations"]:  # those that the check lets pass can be compared
        if annotation["segmentation"]:
            try:
                rle = api.annToRLE(annotation)
            except Exception:  # of Python: for polygons of four numbers next to others
                continue
            library.iou([rle], [rle], [0])


def main() -> None:
    """Run, and print the number of each outcome."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="index of the first input")
    args = parser.parse_args()
    sys.stdout = open("/dev/null", "w")  # noqa: SIM115 (COCO prints)
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + MEMORY  # noqa: SIM115
    resource.setrlimit(resource.RLIMIT_AS, (used, used))
    outcomes: Counter[str] = Counter()
    for index in range(args.start, args.start + args.inputs):
        print(index, end="\r", file=sys.stderr, flush=True)
        outcomes[check(make(args.seed, index))] += 1
    print(f"\n{dict(sorted(outcomes.items()))}", file=sys.stderr)


if __name__ == "__main__":
    main()
