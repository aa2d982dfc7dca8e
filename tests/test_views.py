"""Views: the distribution of their parameters, and each operation against torchvision's on the same numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as tv

from pretrain import decode, rng, views
from pretrain.views import RECIPES, View, draw, render

DRAWS = 3000


def drawn(recipe: str, *, width: int = 400, height: int = 300, min_scale: float = 0.2) -> list[View]:
    return [
        draw(
            rng.generator("view", 0, 0, n, 0),
            RECIPES[recipe],
            width=width,
            height=height,
            min_scale=min_scale,
        )
        for n in range(DRAWS)
    ]


def near(share: float, wanted: float) -> bool:
    return abs(share - wanted) < 4 * (wanted * (1 - wanted) / DRAWS) ** 0.5 + 1e-9  # four standard errors


def picture(size: tuple[int, int] = (90, 70)) -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("recipe", "jittered", "blurred", "hue"), [("v1", 1.0, 0.0, 0.4), ("v2", 0.8, 0.5, 0.1)]
)
def test_parameters_follow_the_recipe(recipe: str, jittered: float, blurred: float, hue: float) -> None:
    chosen = drawn(recipe)
    assert near(np.mean([bool(v.jitter) for v in chosen]), jittered)
    assert near(np.mean([v.sigma > 0 for v in chosen]), blurred)
    assert near(np.mean([v.gray for v in chosen]), 0.2)
    assert near(np.mean([v.flip for v in chosen]), 0.5)
    sigmas = [v.sigma for v in chosen if v.sigma]
    if sigmas:
        assert 0.1 <= min(sigmas) < 0.15 and 1.95 < max(sigmas) <= 2.0 and abs(np.mean(sigmas) - 1.05) < 0.06
    limits = {"brightness": (0.6, 1.4), "contrast": (0.6, 1.4), "saturation": (0.6, 1.4), "hue": (-hue, hue)}
    for name, (low, high) in limits.items():
        factors = [dict(v.jitter)[name] for v in chosen if v.jitter]
        margin = (high - low) / 100
        assert low <= min(factors) < low + margin and high - margin < max(factors) <= high
        assert abs(np.mean(factors) - (low + high) / 2) < 2 * margin
    first = [v.jitter[0][0] for v in chosen if v.jitter]  # each operation comes first equally often
    assert all(near(first.count(name) / len(first), 0.25) for name in limits)


@pytest.mark.parametrize(("width", "height", "min_scale"), [(400, 300, 0.2), (64, 64, 0.08), (900, 60, 0.2)])
def test_crops_are_distributed_as_torchvisions(width: int, height: int, min_scale: float) -> None:
    ours = np.array([v.box for v in drawn("v2", width=width, height=height, min_scale=min_scale)], float)
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


def test_crop_is_torchvisions_resized_crop() -> None:
    view = View((10, 20, 50, 37), (), False, 0.0, False)
    ours = render(picture(), view, RECIPES["v2"], size=24)
    theirs = np.asarray(tv.resized_crop(picture(), 20, 10, 37, 50, [24, 24]))
    difference = np.abs(ours.astype(int) - theirs)
    assert difference[2:-2, 2:-2].max() <= 1
    assert difference.max() <= 8  # at the rim Pillow's `box` looks at the pixels beyond, a crop cannot
    flipped = render(picture(), View(view.box, (), False, 0.0, True), RECIPES["v2"], size=24)
    assert np.array_equal(flipped, np.asarray(tv.hflip(Image.fromarray(ours))))


@pytest.mark.parametrize("factor", [0.6, 0.83, 1.0, 1.4])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_jitter_is_torchvisions(name: str, factor: float) -> None:
    ours = views.JITTER[name](np.asarray(picture()), factor)
    theirs = np.asarray(getattr(tv, f"adjust_{name}")(picture(), factor))
    assert np.abs(ours.astype(int) - theirs).max() <= 2


@pytest.mark.parametrize("turn", [-0.4, -0.1, 0.0, 0.07, 0.4])
def test_hue_is_torchvisions(turn: float) -> None:
    ours = views.adjust_hue(np.asarray(picture()), turn).astype(float)
    exact = 255 * tv.adjust_hue(tv.to_tensor(picture()), turn).permute(1, 2, 0).numpy()
    assert np.abs(ours - exact).mean() < 1.5 and np.abs(ours - exact).max() < 12  # hue in 256 steps


def test_gray_is_torchvisions() -> None:
    theirs = np.asarray(tv.rgb_to_grayscale(picture(), num_output_channels=3))
    assert np.abs(views.to_gray(np.asarray(picture())).astype(int) - theirs).max() <= 1


@pytest.mark.parametrize("sigma", [0.1, 0.7, 1.3, 2.0])
def test_blur_is_gaussian(sigma: float) -> None:
    image = picture((64, 64))
    ours = render(image, View((0, 0, 64, 64), (), False, sigma, False), RECIPES["v2"], size=64)
    theirs = np.asarray(tv.gaussian_blur(image, [13, 13], [sigma, sigma]))
    assert np.abs(ours.astype(int) - theirs).max() <= 2
    published = np.asarray(image.filter(ImageFilter.GaussianBlur(sigma)))  # what MoCo v2's authors call
    assert np.abs(ours.astype(int) - published).mean() < 3


def test_gray_comes_before_the_jitter_in_v1_only() -> None:
    """A turned hue colours a gray picture not at all; order shows with saturation after gray and before it."""
    jitter = (("hue", 0.3), ("brightness", 1.3))
    view = View((0, 0, 64, 64), jitter, True, 0.0, False)
    pixels = np.asarray(picture((64, 64)))
    v1, v2 = (render(picture((64, 64)), view, RECIPES[name], size=64) for name in ("v1", "v2"))
    turned = views.adjust_brightness(views.adjust_hue(pixels, 0.3), 1.3)
    assert np.array_equal(v2, views.to_gray(turned))
    assert np.array_equal(v1, views.adjust_brightness(views.adjust_hue(views.to_gray(pixels), 0.3), 1.3))


def test_views_depend_on_their_counters_only(tmp_path: Path) -> None:
    path = str(tmp_path / "a.png")
    picture((80, 60)).save(path)

    def pair(*counters: int) -> tuple[np.ndarray, np.ndarray]:
        return views.two_views(
            Path(path).read_bytes(), RECIPES["v2"], size=32, min_scale=0.2, counters=counters
        )  # type: ignore[arg-type]

    first, again = pair(1, 2, 3), pair(1, 2, 3)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], first[1])
    assert all(not np.array_equal(first[0], pair(*other)[0]) for other in [(0, 2, 3), (1, 0, 3), (1, 2, 0)])
    assert first[0].shape == (32, 32, 3) and first[0].dtype == np.uint8


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view
    picture((90, 60)).save(tmp_path / "turned.jpg", exif=exif, quality=98)
    image, width, height = decode.open_image((tmp_path / "turned.jpg").read_bytes())
    assert (width, height) == (60, 90)
    upright = np.asarray(decode.decode(image)).astype(int)
    wanted = np.asarray(picture((90, 60)).transpose(Image.Transpose.ROTATE_270)).astype(int)
    assert upright.shape == wanted.shape and np.abs(upright - wanted).mean() < 4


def test_large_jpegs_are_decoded_smaller_but_not_below_the_view(tmp_path: Path) -> None:
    picture((1600, 1200)).save(tmp_path / "large.jpg", quality=95)
    image, width, _ = decode.open_image((tmp_path / "large.jpg").read_bytes())
    view = View((200, 100, 800, 640), (), False, 0.0, False)
    small = decode.decode(image, shrink=640 / 224)
    assert small.size == (800, 600)
    ours = render(small, view, RECIPES["v2"], size=224, scale=small.width / width)
    full = render(Image.open(tmp_path / "large.jpg"), view, RECIPES["v2"], size=224)
    assert np.abs(ours.astype(int) - full).mean() < 1.5
