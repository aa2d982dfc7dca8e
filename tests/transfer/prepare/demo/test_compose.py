"""Composing images: exact masks, no fringes, bounded sizes, and all randomness from the generator."""

import numpy as np
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO

from transfer.prepare.demo import coco_json, compose, fallback, streams
from transfer.prepare.demo.compose import Instance
from transfer.prepare.demo.cutouts import Cutout, Sources, alpha_from_plain_ground, clean, premultiply, shrink
from transfer.prepare.demo.recipe import RECIPES, Recipe

RECIPE = RECIPES["quick"]


def disc(side: int, colour: tuple[int, int, int], *, hidden: int = 255, kind: str = "bird") -> Cutout:
    """A disc; the colour under its transparent surroundings is `hidden`."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    inside = x**2 + y**2 < (side / 2) ** 2
    pixels = np.full((side, side, 4), hidden, np.uint8)
    pixels[..., 3] = 255 * inside
    pixels[inside, :3] = colour
    return Cutout(kind, premultiply(pixels))


def sources() -> Sources:
    rng = np.random.default_rng(0)
    found = {
        name: [disc(100, (40 * n, 200, 90)), disc(60, (9, 9, 40 * n))]
        for n, name in enumerate(RECIPE.classes)
    }
    grounds = {split: [rng.integers(0, 255, (300, 400, 3), dtype=np.uint8)] for split in ("train", "val")}
    return Sources({"train": found, "val": found}, [], grounds, [])


@pytest.mark.parametrize("hidden", [0, 255])
@pytest.mark.parametrize("longer", [20.0, 73.0, 110.0])
def test_no_fringe_of_the_hidden_colour(hidden: int, longer: float) -> None:
    rng = np.random.default_rng(1)
    cutout = disc(100, (200, 0, 100), hidden=hidden)
    for _ in range(10):
        stamp = compose.render(cutout, longer, rng=rng)
        colour, alpha = stamp[..., :3], stamp[..., 3]
        edge = alpha > 0.05
        ratio = colour[edge] / alpha[edge, None] * 255
        assert np.abs(ratio - (200, 0, 100)).max() < 12  # rounding of 8-bit premultiplied colour


def test_the_mask_is_where_the_object_is() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        canvas = np.zeros((240, 320, 3), np.float32)
        mask = compose.add_object(canvas, disc(100, (250, 250, 250)), [], longer=90, recipe=RECIPE, rng=rng)
        assert mask is not None
        drawn = canvas.mean(axis=2) / canvas.mean(axis=2).max()
        assert ((drawn > 0.55) <= mask).all() and (mask <= (drawn > 0.45)).all()
        assert 0.6 * np.pi * 45**2 < mask.sum() < 1.05 * np.pi * 45**2


def test_small_cutouts_are_not_blown_up() -> None:
    rng = np.random.default_rng(3)
    canvas = np.zeros((240, 320, 3), np.float32)
    mask = compose.add_object(
        canvas, disc(40, (99, 99, 99)), [], longer=190, recipe=RECIPE, rng=rng, centred=True
    )
    assert mask is not None
    assert np.ptp(np.flatnonzero(mask.any(axis=0))) + 1 <= RECIPE.upscale_limit * 40 + 2


def test_an_object_that_would_hide_another_is_refused() -> None:
    canvas = np.full((50, 50, 3), 0.5, np.float32)
    before = canvas.copy()
    there = np.zeros((50, 50), bool)
    there[20:30, 20:30] = True
    placed = compose.add_object(
        canvas, disc(100, (1, 2, 3)), [there], longer=100, recipe=RECIPE, rng=np.random.default_rng(4)
    )
    assert placed is None and (canvas == before).all()


def test_visible_masks_are_disjoint_and_large_enough() -> None:
    found = sources()
    for index in range(30):
        image, instances = streams.make(found, "train", index, recipe=RECIPE, seed=0)
        assert image.shape == (240, 320, 3) and image.dtype == np.uint8
        assert 1 <= len(instances) <= len(RECIPE.objects)
        assert sum(i.mask.astype(int) for i in instances).max() == 1
        assert all(i.mask.sum() >= compose.LEAST_AREA for i in instances)


def test_an_image_depends_on_seed_stream_and_index_only() -> None:
    found = sources()
    for stream in streams.STREAMS:
        first, _ = streams.make(found, stream, 5, recipe=RECIPE, seed=0)
        streams.make(found, stream, 6, recipe=RECIPE, seed=0)
        again, _ = streams.make(found, stream, 5, recipe=RECIPE, seed=0)
        assert (first == again).all()
        assert (first != streams.make(found, stream, 5, recipe=RECIPE, seed=1)[0]).any()
        assert (first != streams.make(found, stream, 6, recipe=RECIPE, seed=0)[0]).any()


def test_crops_of_any_photograph_have_the_size_asked_for() -> None:
    rng = np.random.default_rng(5)
    for shape in ((600, 800), (800, 500), (90, 400), (240, 320), (20, 10)):
        photo = np.full((*shape, 3), 128, np.uint8)
        for size in ((320, 240), (128, 128)):
            part = compose.crop(photo, size, rng=rng, share=0.35)
            assert part.shape == (size[1], size[0], 3) and np.allclose(part, 128 / 255)


def test_cleaning_drops_haze_and_strays_and_trims() -> None:
    pixels = np.zeros((60, 80, 4), np.uint8)
    pixels[10:40, 20:50] = 200
    pixels[50:52, 70:72] = 255  # 4 of 900 px: a stray
    pixels[0, :, 3] = 20  # haze
    assert (clean(pixels) == 200).all() and clean(pixels).shape == (30, 30, 4)
    pixels[45:55, 20:30] = 200  # 100 of 900 px: a part of the object
    assert clean(pixels).shape == (45, 30, 4)


def test_plain_ground_is_cut_away_and_holes_with_it() -> None:
    y, x = np.mgrid[:100, :100] - 50
    radius = np.hypot(x, y)
    ring = (radius < 40) & (radius > 15)
    rgb = np.where(ring[..., None], (30, 90, 160), (250, 250, 245)).astype(np.uint8)
    alpha = alpha_from_plain_ground(rgb)
    assert (alpha[(radius < 36) & (radius > 19)] == 255).all()
    assert (alpha[(radius > 41) | (radius < 14)] == 0).all()


def test_shrinking_keeps_the_aspect() -> None:
    assert shrink(np.zeros((100, 1000, 4), np.uint8), 480).shape == (48, 480, 4)
    assert shrink(np.zeros((100, 100, 4), np.uint8), 480).shape == (100, 100, 4)


def test_annotations_are_those_of_the_mask() -> None:
    mask = np.zeros((240, 320), bool)
    mask[30:50, 100:160] = True
    mask[35:40, 110:120] = False  # a hole, which polygons would lose
    (found,) = coco_json.annotations_of([Instance("b", mask)], ["a", "b"])
    assert found["category_id"] == 2 and found["bbox"] == [100, 30, 60, 20] and found["area"] == 1200 - 50
    assert (rle.decode(found["segmentation"]) == mask).all()


def test_pycocotools_reads_the_file() -> None:
    mask = np.zeros((8, 9), bool)
    mask[2:5, 3:7] = True
    images = [
        (name, coco_json.annotations_of([Instance("a", mask)] * n, ["a"])) for n, name in enumerate("xyz")
    ]
    coco = COCO()
    coco.dataset = coco_json.dataset(images, classes=["a"], width=9, height=8, about="test")
    coco.createIndex()
    assert [len(coco.getAnnIds(imgIds=[i])) for i in coco.getImgIds()] == [0, 1, 2]
    assert (coco.annToMask(coco.loadAnns(coco.getAnnIds(imgIds=[2]))[0]) == mask).all()


@pytest.mark.parametrize("shape", fallback.SHAPES)
def test_silhouettes_fill_their_square(shape: str) -> None:
    alpha = fallback.silhouette(shape)
    radius = fallback.SIDE / 2 - 2
    areas = {
        "disc": np.pi * radius**2, "ring": 0.75 * np.pi * radius**2, "triangle": 3 * 3**0.5 / 4 * radius**2,
        "square": 2 * radius**2, "star": 10 * 0.5 * 0.45 * np.sin(np.pi / 5) * radius**2,
        "cross": (4 * radius * 2 * radius / 3) - (2 * radius / 3) ** 2,
    }  # fmt: skip
    assert alpha.sum() / 255 == pytest.approx(areas[shape], rel=0.03)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_recipes_make_sense(recipe: Recipe) -> None:
    assert sum(recipe.objects) == pytest.approx(1)
    paths = {streams.path(s, i, recipe) for s in streams.STREAMS for i in range(streams.count(s, recipe))}
    assert len(paths) == recipe.train + recipe.val + recipe.pretrain + recipe.knn_train + recipe.knn_val
