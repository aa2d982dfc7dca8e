"""Views: the distribution of their parameters, and each operation compared with torchvision's for the same parameters.

Differences are between values from 0 to 255, over crops of photographs: at most 1 in the mean and 4 at the 99th
percentile, compared with Pillow's operations and with those on float tensors, which are not rounded.
"""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as tv

from pretrain import config
from pretrain.common import rng
from pretrain.common.errors import UserError
from pretrain.data import pixel_ops, views
from pretrain.data.pixel_ops import resized_crop
from pretrain.data.views import (
    PARTS,
    RECIPES,
    Recipe,
    View,
    draw,
    pair_without,
    recipe_without,
    recolour,
    two_views,
)
from tests.support.photographs import NAMES, NOTHING, close, crops, floats, levels, photograph, photographs

DRAWS = 3000


def drawn(recipe: Recipe, *, width: int = 400, height: int = 300, min_scale: float = 0.2) -> list[View]:
    return [
        draw(rng.quick("view", 0, 0, n, 0), recipe, width=width, height=height, min_scale=min_scale)
        for n in range(DRAWS)
    ]


def near(share: float, wanted: float) -> bool:
    return abs(share - wanted) < 4 * (wanted * (1 - wanted) / DRAWS) ** 0.5 + 1e-9  # four standard errors


@pytest.mark.parametrize(
    ("recipe", "jittered", "blurred", "saturation", "hue", "solarized"),
    [
        ("v1", 1.0, 0.0, 0.4, 0.4, 0.0),
        ("v2", 0.8, 0.5, 0.4, 0.1, 0.0),
        ("v3_first", 0.8, 1.0, 0.2, 0.1, 0.0),
        ("v3_second", 0.8, 0.1, 0.2, 0.1, 0.2),
    ],
)
def test_parameters_follow_the_recipe(
    recipe: str, jittered: float, blurred: float, saturation: float, hue: float, solarized: float
) -> None:
    chosen = drawn(RECIPES[recipe])
    assert near(np.mean([bool(v.jitter) for v in chosen]), jittered)
    assert near(np.mean([v.sigma > 0 for v in chosen]), blurred)
    assert near(np.mean([v.gray for v in chosen]), 0.2)
    assert near(np.mean([v.flip for v in chosen]), 0.5)
    assert near(np.mean([v.solarize for v in chosen]), solarized)
    sigmas = [v.sigma for v in chosen if v.sigma]
    if sigmas:
        assert 0.1 <= min(sigmas) < 0.15 and 1.95 < max(sigmas) <= 2.0 and abs(np.mean(sigmas) - 1.05) < 0.06
    limits = {"brightness": (0.6, 1.4), "contrast": (0.6, 1.4), "hue": (-hue, hue),
              "saturation": (1 - saturation, 1 + saturation)}  # fmt: skip
    for name, (low, high) in limits.items():
        factors = [dict(v.jitter)[name] for v in chosen if v.jitter]
        margin = (high - low) / 100
        assert low <= min(factors) < low + margin and high - margin < max(factors) <= high
        assert abs(np.mean(factors) - (low + high) / 2) < 2 * margin
    orders = [tuple(name for name, _ in v.jitter) for v in chosen if v.jitter]
    assert len(set(orders)) == 24
    for place in range(4):  # each operation is in each place equally often
        assert all(
            near([order[place] for order in orders].count(name) / len(orders), 0.25) for name in limits
        )


def as_numbers(view: View) -> list[float]:
    factors = dict(view.jitter)
    return [*view.box[:3], view.flip, view.gray, *(factors[name] for name in pixel_ops.OPERATIONS)]


def test_choices_do_not_depend_on_each_other() -> None:
    """Nor on those of the next image: seeds of neighbouring images and of both views differ in a single bit."""
    both = [
        [
            draw(rng.quick("view", 0, 0, n, k), RECIPES["v1"], width=400, height=300, min_scale=0.2)
            for k in (0, 1)
        ]
        for n in range(DRAWS)
    ]
    numbers = np.array([[number for view in pair for number in as_numbers(view)] for pair in both])
    following = np.concatenate([numbers[:-1], numbers[1:]], 1)
    correlation = np.corrcoef(following.T)
    width = numbers.shape[1] // 2
    for view in range(0, 4 * width, width):
        correlation[view : view + 3, view : view + 3] = 0  # position and size of a box are correlated
    np.fill_diagonal(correlation, 0)
    same = np.eye(4 * width, k=2 * width) + np.eye(4 * width, k=-2 * width)
    assert np.abs(correlation * (1 - same)).max() < 5.5 / DRAWS**0.5
    assert np.abs(correlation * same).max() < 5.5 / DRAWS**0.5


@pytest.mark.parametrize(("width", "height", "min_scale"), [(400, 300, 0.2), (64, 64, 0.08), (900, 60, 0.2)])
def test_crops_are_distributed_as_torchvisions(width: int, height: int, min_scale: float) -> None:
    chosen = drawn(RECIPES["v2"], width=width, height=height, min_scale=min_scale)
    ours = np.array([v.box for v in chosen], float)
    torch.manual_seed(0)
    blank = torch.zeros(1, height, width)
    params = [
        RandomResizedCrop.get_params(blank, [min_scale, 1.0], [3 / 4, 4 / 3]) for _ in range(DRAWS)
    ]  # top, left, height, width
    theirs = np.array([(left, top, w, h) for top, left, h, w in params], float)
    assert (ours[:, 0] + ours[:, 2]).max() <= width and (ours[:, 1] + ours[:, 3]).max() <= height
    for column in range(4):
        error = (ours[:, column].var() / DRAWS + theirs[:, column].var() / DRAWS) ** 0.5
        assert abs(ours[:, column].mean() - theirs[:, column].mean()) <= 4.5 * error + 1e-9
        for share in (0.1, 0.5, 0.9):
            limit = np.quantile(theirs[:, column], share)
            below = [(part[:, column] <= limit).mean() for part in (ours, theirs)]
            assert abs(below[0] - below[1]) < 0.06


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", RECIPES)
def test_a_part_left_out_leaves_the_others_as_they_are(name: str, part: str) -> None:
    everything = drawn(RECIPES[name])[:200]
    reduced = drawn(recipe_without(name, [part]))[:200]
    none = {"crop": (50, 0, 300, 300), "jitter": (), "blur": 0.0}.get(part, False)
    field = {"crop": "box", "blur": "sigma"}.get(part, part)
    assert reduced == [view._replace(**{field: none}) for view in everything]


def test_without_crop_the_view_is_resize_and_centre_crop() -> None:
    picture, file = photograph("coffee").resize((600, 400)), io.BytesIO()
    picture.save(file, "PNG")
    pair = pair_without("v3", PARTS)
    query, key, _ = two_views(file.getvalue(), pair, size=96, min_scale=0.2, counters=(0, 0, 0))
    theirs = np.asarray(tv.center_crop(tv.resize(picture, 96), [96, 96]))
    assert np.array_equal(query, key)
    close([query[2:-2, 2:-2]], [theirs[2:-2, 2:-2]], p99=1)  # at the border torchvision reads beyond the crop


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(UserError, match=r"INPUT\.WITHOUT colour: choose from crop flip jitter gray blur"):
        config.load("pretrain/moco_v2_R50.yaml", ["INPUT.WITHOUT", "['gray','colour']"])


@pytest.mark.parametrize("size", [32, 96, 224])  # at most 0.06, 0.2 and 0.5 of a photograph's width
def test_crop_is_torchvisions_resized_crop(size: int) -> None:
    ours, pillow, exact = [], [], []
    for number, picture in enumerate(photographs()):
        for n in range(6):
            chance = random.Random(10 * number + n)
            box = draw(chance, RECIPES["v1"], width=picture.width, height=picture.height, min_scale=0.2).box
            left, top, width, height = box
            ours.append(resized_crop(np.array(picture), box, size))
            cut = (top, left, height, width, [size, size])
            pillow.append(np.asarray(tv.resized_crop(picture, *cut)))
            exact.append(levels(tv.resized_crop(tv.to_tensor(picture), *cut, antialias=True)))
    close(ours, pillow, mean=0.1, p99=1)
    close(ours, exact, mean=0.5, p99=1)


def test_flip_is_torchvisions() -> None:
    picture = np.array(photograph("rocket"))
    view = NOTHING._replace(box=(100, 20, 300, 370))
    straight, flipped = (views.crop(picture, view._replace(flip=flip), size=96) for flip in (False, True))
    assert np.array_equal(flipped, np.asarray(tv.hflip(Image.fromarray(straight))))


@pytest.mark.parametrize("factor", [0.6, 0.83, 1.0, 1.4])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_jitter_is_torchvisions(name: str, factor: float) -> None:
    adjust = getattr(tv, f"adjust_{name}")
    ours = [pixel_ops.adjust(crop, [(name, factor)]) for crop in crops()]
    close(ours, [np.asarray(adjust(Image.fromarray(crop), factor)) for crop in crops()], p99=1)
    close(ours, [levels(adjust(floats(crop), factor)) for crop in crops()], mean=0.3, p99=1)


@pytest.mark.parametrize("turn", [-0.5, -0.4, -0.1, 0.0, 0.03, 0.4, 0.5])
def test_hue_is_torchvisions(turn: float) -> None:
    """Pillow's hue has 255 steps, and torchvision rounds the rotation down to one: vivid colours differ by more."""
    ours = [pixel_ops.adjust(crop, [("hue", turn)]) for crop in crops()]
    close(ours, [levels(tv.adjust_hue(floats(crop), turn)) for crop in crops()], mean=0.3, p99=1)
    close(ours, [np.asarray(tv.adjust_hue(Image.fromarray(crop), turn)) for crop in crops()], p99=8)


def test_gray_is_torchvisions() -> None:
    ours = [pixel_ops.adjust(crop, [pixel_ops.GRAY]) for crop in crops()]
    assert all(np.array_equal(pixels[..., 0], pixels[..., channel]) for pixels in ours for channel in (1, 2))
    close(ours, [np.asarray(tv.rgb_to_grayscale(Image.fromarray(crop), 3)) for crop in crops()], p99=1)


@pytest.mark.parametrize("sigma", [0.1, 0.4, 0.7, 1.3, 2.0])
def test_blur_is_gaussian(sigma: float) -> None:
    ours = [pixel_ops.blur(crop, sigma) for crop in crops()]
    close(ours, [levels(tv.gaussian_blur(floats(crop), [13, 13], [sigma, sigma])) for crop in crops()], p99=2)
    blurred = [np.asarray(Image.fromarray(crop).filter(ImageFilter.GaussianBlur(sigma))) for crop in crops()]
    close(ours, blurred, p99=5)  # MoCo v2's authors use this approximation by three box filters


def test_solarize_is_torchvisions() -> None:
    for crop in crops():
        pillow = np.asarray(tv.solarize(Image.fromarray(crop), 128))
        assert np.array_equal(pixel_ops.solarize(crop), pillow) and not np.array_equal(crop, pillow)


@pytest.mark.parametrize("name", RECIPES)
def test_whole_views_are_torchvisions(name: str) -> None:
    """Same choices, same order. Pillow truncates instead of rounding after each operation: up to two levels less."""
    ours, exact, pillow = [], [], []
    for number, picture in enumerate(photographs() * 6):
        chance = random.Random(number)
        view = draw(chance, RECIPES[name], width=picture.width, height=picture.height, min_scale=0.2)
        pixels = views.crop(np.array(picture), view, size=112)
        ours.append(recolour(pixels, view, RECIPES[name]))
        exact.append(levels(by_torchvision(tv.to_tensor(picture), view, RECIPES[name])))
        pillow.append(np.asarray(by_torchvision(picture, view, RECIPES[name])))
    close(ours, exact)
    close(ours, pillow, mean=2, p99=8)
    assert abs(np.mean(np.float64(ours) - np.float64(exact))) < 0.1  # as bright as the definition
    assert 0.5 < np.mean(np.float64(ours) - np.float64(pillow)) < 2  # Pillow is darker


def by_torchvision(image: torch.Tensor, view: View, recipe: Recipe, *, size: int = 112) -> torch.Tensor:
    left, top, width, height = view.box
    image = tv.resized_crop(image, top, left, height, width, [size, size], antialias=True)
    steps = [(getattr(tv, f"adjust_{operation}"), factor) for operation, factor in view.jitter]
    gray = [(tv.rgb_to_grayscale, 3)] if view.gray else []
    for adjust, factor in [*gray, *steps] if recipe.gray_first else [*steps, *gray]:
        image = adjust(image, factor)
    if view.sigma:
        image = tv.gaussian_blur(image, [13, 13], [view.sigma] * 2)
    if view.solarize:
        image = tv.solarize(image, 128 / 255 if isinstance(image, torch.Tensor) else 128)
    return tv.hflip(image) if view.flip else image


def test_operations_that_share_a_pass_give_what_they_give_one_by_one() -> None:
    for number, crop in enumerate(crops(2, 64) * 8):
        view = draw(random.Random(number), RECIPES["v1"], width=64, height=64, min_scale=1.0)
        steps = [*view.jitter, pixel_ops.GRAY] if number % 3 == 0 else [pixel_ops.GRAY, *view.jitter]
        steps = list(view.jitter) if number % 3 == 2 else steps
        one_by_one = crop
        for step in steps:
            one_by_one = pixel_ops.adjust(one_by_one, [step])
        close([pixel_ops.adjust(crop, steps)], [one_by_one], p99=5)


def test_gray_comes_before_the_jitter_in_v1_only() -> None:
    """A gray picture stays gray under jitter; the order changes its brightness."""
    crop = crops(1, 64)[0]
    jitter = (("saturation", 1.4), ("brightness", 1.4))
    view = NOTHING._replace(jitter=jitter, gray=True)
    first, last = (recolour(crop, view, RECIPES[name]) for name in ("v1", "v2"))
    assert np.array_equal(first, pixel_ops.adjust(pixel_ops.adjust(crop, [pixel_ops.GRAY]), jitter))
    close([last], [pixel_ops.adjust(pixel_ops.adjust(crop, jitter), [pixel_ops.GRAY])], p99=1)
    assert np.abs(first.astype(int) - last).max() > 10


def test_counters_of_any_integer_type_give_the_same_numbers() -> None:
    plain, numpy = (
        rng.quick("view", 0, 2, 1_000_000, 1),
        rng.quick("view", 0, np.int64(2), np.int32(1_000_000), 1),
    )
    assert plain.random() == numpy.random()
    others = [(1, 2, 1_000_000, 1), (0, 3, 1_000_000, 1), (0, 2, 1_000_001, 1), (0, 2, 1_000_000, 0)]
    assert len({rng.quick("view", *counters).random() for counters in others}) == 4


def test_views_depend_on_their_counters_only() -> None:
    file = io.BytesIO()
    photograph(NAMES[0]).save(file, "JPEG")

    def pair(*counters: int) -> tuple[np.ndarray, np.ndarray]:
        query, key, rest = two_views(
            file.getvalue(), pair_without("v2", ()), size=32, min_scale=0.2, counters=counters  # type: ignore[arg-type]
        )  # fmt: skip
        assert rest.shape == (2, 0)
        return query, key

    first, again = pair(1, 2, 3), pair(1, 2, 3)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], first[1])
    assert all(not np.array_equal(first[0], pair(*other)[0]) for other in [(0, 2, 3), (1, 0, 3), (1, 2, 0)])
    assert first[0].shape == (32, 32, 3) and first[0].dtype == np.uint8


def test_the_views_of_v3_have_a_recipe_each() -> None:
    """Of 40 images: the first view is always blurred and never solarized, the second sometimes both."""
    file = io.BytesIO()
    photograph(NAMES[0]).resize((64, 48)).save(file, "PNG")
    packed = np.stack(
        [
            two_views(
                file.getvalue(),
                pair_without("v3", ()),
                size=8,
                min_scale=0.2,
                counters=(0, 0, n),
                geometry_only=True,
            )[2]
            for n in range(40)
        ]
    )  # (40, 2, PACKED)
    sigma, solarized = packed[..., 9], packed[..., 10]
    assert (sigma[:, 0] > 0).all() and 0 < (sigma[:, 1] > 0).sum() < 15
    assert not solarized[:, 0].any() and 0 < solarized[:, 1].sum() < 20
