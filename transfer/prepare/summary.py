"""What a COCO-format file holds, in a few lines. Copes with entries that are wrong: those are told of elsewhere."""

from collections import Counter
from typing import Any

Content = dict[str, Any]
SHOWN = 100  # categories
SMALL, LARGE = 32**2, 96**2  # square pixels: COCO's limits for APs, APm and APl


def summary(content: Content) -> list[str]:
    """Lines on images, annotations, masks, keypoints, sizes, and a table of the categories."""
    images, annotations = content["images"], content["annotations"]
    crowds = sum(annotation.get("iscrowd") == 1 for annotation in annotations)
    labelled = {_key(annotation.get("image_id")) for annotation in annotations}
    bare = sum(_key(image.get("id")) not in labelled for image in images)
    polygons = sum(bool(a.get("segmentation")) and isinstance(a["segmentation"], list) for a in annotations)
    rles = sum(bool(a.get("segmentation")) and isinstance(a["segmentation"], dict) for a in annotations)
    points = sum(bool(annotation.get("keypoints")) for annotation in annotations)
    lines = [
        f"{len(images)} images, {bare} of them without annotation",
        f"{len(annotations)} annotations, {crowds} of them crowds, in {len(content['categories'])} categories",
        f"masks: {_share(polygons + rles, len(annotations))} ({polygons} as polygons, {rles} as RLE)",
        f"keypoints: {_share(points, len(annotations))}",
    ]
    return [*lines, *_sizes(images), *_areas(annotations), *_categories(content)]


def holds(content: Content, field: str) -> bool:
    """Whether any annotation has something in `field`: "segmentation" or "keypoints"."""
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
    """A table: id, name, annotations, images with one of them; the most frequent first."""
    objects = Counter(_key(a.get("category_id")) for a in content["annotations"])
    pairs = {(_key(a.get("category_id")), _key(a.get("image_id"))) for a in content["annotations"]}
    images = Counter(category for category, _ in pairs)
    rows = [
        (str(c.get("id")), str(c.get("name")), objects[_key(c.get("id"))], images[_key(c.get("id"))])
        for c in content["categories"]
    ]
    rows.sort(key=lambda row: -row[2])
    lines = [f"{'id':>6}  {'category':<30} {'annotations':>11} {'images':>8}"]
    lines += [f"{number:>6}  {name:<30} {count:>11} {seen:>8}" for number, name, count, seen in rows[:SHOWN]]
    return lines + ([f"... and {len(rows) - SHOWN} rarer categories"] if len(rows) > SHOWN else [])


def _key(value: Any) -> Any:
    return value if isinstance(value, (int, str)) else repr(value)
