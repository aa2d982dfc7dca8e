"""Views finished on whole batches, here on CPU tensors, equal those of the CPU path for the same choices."""

import random
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as tv

from pretrain import config
from pretrain.data import on_device
from pretrain.data.folders import find_images
from pretrain.data.loader import make_train_loader
from pretrain.data.views import PACKED, PARTS, RECIPES, View, draw, pack, recipe_without, recolour
from tests.support.photographs import NOTHING, close, crops, floats, levels, photographs

UNCHANGED = (("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 0.0))


def finished(pixels: list[np.ndarray], views: list[View], recipe: str) -> np.ndarray:
    choices = torch.tensor([pack(view) for view in views], dtype=torch.float32)
    done = on_device.finish(torch.from_numpy(np.stack(pixels)), choices, RECIPES[recipe])
    assert done.dtype == torch.uint8 and done.is_contiguous()
    return done.numpy()


@pytest.mark.parametrize("recipe", RECIPES)
def test_same_choices_give_the_views_of_the_cpu_path(recipe: str) -> None:
    pixels = crops(8, 112)
    views = [
        draw(random.Random(n), RECIPES[recipe], width=112, height=112, min_scale=1.0)
        for n in range(len(pixels))
    ]
    assert {view.gray for view in views} == {False, True}
    done = finished(pixels, views, recipe)
    close(list(done), [recolour(*pair, RECIPES[recipe]) for pair in zip(pixels, views, strict=True)])


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_each_operation_is_torchvisions(name: str) -> None:
    pixels = crops(3, 112)
    factors = np.linspace(-0.4, 0.4, len(pixels)) + (name != "hue")
    steps = [((name, factor), *(step for step in UNCHANGED if step[0] != name)) for factor in factors]
    done = finished(pixels, [NOTHING._replace(jitter=jitter) for jitter in steps], "v1")
    adjust = getattr(tv, f"adjust_{name}")
    exact = [levels(adjust(floats(crop), factor)) for crop, factor in zip(pixels, factors, strict=True)]
    close(list(done), exact, mean=0.3, p99=1)


def test_each_view_has_its_own_order() -> None:
    """All 24 orders of strong changes in one batch, each against torchvision's in that order."""
    strong = {"brightness": 1.4, "contrast": 1.4, "saturation": 0.6, "hue": 0.3}
    orders = [view.jitter for view in all_orders(strong)]
    crop = crops(1, 64)[0]
    done = finished([crop] * 24, [NOTHING._replace(jitter=jitter) for jitter in orders], "v1")
    exact = []
    for jitter in orders:
        image = floats(crop)
        for name, factor in jitter:
            image = getattr(tv, f"adjust_{name}")(image, factor)
        exact.append(levels(image))
        close([done[len(exact) - 1]], [exact[-1]], mean=0.3, p99=1)
    assert len({picture.tobytes() for picture in done}) > 12


def all_orders(factors: dict[str, float]) -> list[View]:
    return [
        NOTHING._replace(jitter=tuple((name, factors[name]) for name in order))
        for order in permutations(factors)
    ]


def test_blur_and_gray_are_torchvisions() -> None:
    pixels = crops(2, 64)
    sigmas = np.linspace(0.1, 2.0, len(pixels))
    done = finished(pixels, [NOTHING._replace(sigma=sigma, gray=True) for sigma in sigmas], "v2")
    exact = []
    for crop, sigma in zip(pixels, sigmas, strict=True):
        gray = tv.rgb_to_grayscale(floats(crop), 3)
        exact.append(levels(tv.gaussian_blur(gray, [13, 13], [float(sigma)] * 2)))
    close(list(done), exact, mean=0.3, p99=1)


def test_solarizing_is_torchvisions() -> None:
    """After the blur; in a batch with views that are not solarized."""
    pixels = crops(2, 64)
    views = [NOTHING._replace(solarize=number % 2 == 0) for number in range(len(pixels))]
    for crop, view, done in zip(pixels, views, finished(pixels, views, "v3_second"), strict=True):
        image = torch.from_numpy(crop).permute(2, 0, 1)
        exact = tv.solarize(image, 128) if view.solarize else image
        assert np.array_equal(done, exact.permute(1, 2, 0).numpy())


def test_a_view_does_not_depend_on_its_batch() -> None:
    pixels = crops(2, 32)
    views = [
        draw(random.Random(n), RECIPES["v2"], width=32, height=32, min_scale=1.0) for n in range(len(pixels))
    ]
    together = finished(pixels, views, "v2").astype(int)
    alone = [finished([crop], [view], "v2")[0] for crop, view in zip(pixels, views, strict=True)]
    assert np.abs(together - np.stack(alone)).max() <= 1  # sums in another order


@pytest.mark.parametrize("size", [1, 3, 8])
def test_small_views_are_mirrored_at_the_rim_more_than_once(size: int) -> None:
    pixels = [crop[:size, :size] for crop in crops(1, 64)]
    views = [NOTHING._replace(sigma=2.0)] * len(pixels)
    wanted = [recolour(crop, view, RECIPES["v2"]) for crop, view in zip(pixels, views, strict=True)]
    assert np.abs(finished(pixels, views, "v2").astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("recipe", RECIPES)
def test_nothing_chosen_changes_nothing(recipe: str) -> None:
    pixels = crops(1, 64)
    assert np.array_equal(finished(pixels, [NOTHING] * len(pixels), recipe), np.stack(pixels))
    images = torch.from_numpy(np.stack(pixels))
    done = torch.zeros(len(pixels), 0)  # the choices of views that the CPU path has finished
    assert on_device.finish(images, done, RECIPES[recipe]) is images


@pytest.mark.parametrize("without", [[], list(PARTS)])
def test_the_loader_leaves_the_rest_to_the_device(tmp_path: Path, without: list[str]) -> None:
    for number, picture in enumerate(photographs()):
        picture.save(tmp_path / f"{number}.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"")
    batches = []
    for place in ("cpu", "gpu"):
        cfg = config.defaults()
        cfg.INPUT.VIEWS, cfg.INPUT.SIZE, cfg.INPUT.WITHOUT = place, 96, without
        cfg.DATA.TRAIN, cfg.DATA.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH = [str(tmp_path)], 0, 5
        files = find_images(cfg.DATA.TRAIN, key="DATA.TRAIN")
        batches.append(next(make_train_loader(files, cfg, start=0, stop=1, device=torch.device("cpu"))))
    ours, left = batches
    assert ours.choices.shape == (5, 2, 0) and left.choices.shape == (5, 2, PACKED)
    recipe = recipe_without("v2", without)
    for number, name in enumerate(("query", "key")):
        done = on_device.finish(getattr(left, name), left.choices[:, number], recipe)
        close([done.numpy()], [getattr(ours, name).numpy()])
        assert without or not torch.equal(getattr(left, name), getattr(ours, name))
