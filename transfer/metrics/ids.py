"""Small ids for an evaluation, whatever ids a file has.

The libraries that compute AP store ids in arrays of floats and of 64-bit integers. Large, negative and string ids are
then rounded, taken for "no match" or refused. AP depends only on which annotation belongs to which image and category,
so each evaluation runs on a copy with ids that count from 1.
"""

import copy
from dataclasses import dataclass
from typing import Any

Content = dict[str, Any]


@dataclass(frozen=True)
class Numbers:
    """Small ids of one annotation file.

    Attributes:
        images: id -> number, from 1.
        categories: id -> number, from 1, in the order of the ids, which is the order of the model's classes.
    """

    images: dict[Any, int]
    categories: dict[Any, int]


def numbers(dataset: Content) -> Numbers:
    """Return small ids for a COCO or LVIS file.

    Images are numbered by file name: the order decides between detections of equal score in different images. File
    names give COCO's images the order of their ids, which pycocotools uses, and do not depend on the ids.
    """
    images = sorted(
        dataset["images"], key=lambda image: image.get("file_name") or image.get("coco_url") or ""
    )
    categories = sorted(category["id"] for category in dataset["categories"])
    return Numbers(
        {image["id"]: number for number, image in enumerate(images, start=1)},
        {key: number for number, key in enumerate(categories, start=1)},
    )


def renumbered(api: Any, numbers: Numbers) -> Any:
    """Return a copy of a `COCO` or `LVIS` object whose ids of images, categories and annotations are small.

    The object that is passed, and its annotations, do not change.
    """
    images, categories = numbers.images, numbers.categories
    result = copy.copy(api)
    result.dataset = {
        **api.dataset,
        "images": [_image(image, numbers) for image in api.dataset["images"]],
        "categories": [
            {**category, "id": categories[category["id"]]} for category in api.dataset["categories"]
        ],
        "annotations": [
            {
                **annotation,
                "id": number,
                "image_id": images[annotation["image_id"]],
                "category_id": categories[annotation["category_id"]],
            }
            for number, annotation in enumerate(api.dataset["annotations"], start=1)
        ],
    }
    # COCO and LVIS build their indices under different names
    build = result.createIndex if hasattr(result, "createIndex") else result._create_index
    build()
    return result


def _image(image: Content, numbers: Numbers) -> Content:
    """Return an image with small ids, also in LVIS' lists of categories."""
    lists: Content = {
        key: [numbers.categories[category] for category in image[key]]
        for key in ("neg_category_ids", "not_exhaustive_category_ids")
        if key in image
    }
    return {**image, **lists, "id": numbers.images[image["id"]]}
