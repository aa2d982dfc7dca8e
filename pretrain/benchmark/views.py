"""Measure how fast one core makes view pairs, with our code and with torchvision, alternating in one process.

CPU time is measured, so that other load on the machine affects the result only through the shared caches.
"""

import io
import random
import statistics
import time
from collections.abc import Callable
from itertools import count

import cv2
import torch
from fvcore.common.config import CfgNode
from PIL import Image, ImageFilter, ImageOps
from torchvision import transforms as v1
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2

from pretrain.benchmark.fake_photos import SIZE, fake_photo, to_jpeg
from pretrain.common import rng
from pretrain.common.console import say
from pretrain.common.errors import UserError, label
from pretrain.data import pixel_ops
from pretrain.data.decode import ImageFile
from pretrain.data.folders import find_images
from pretrain.data.views import (
    MAX_SIGMA,
    MIN_SIGMA,
    PAIRS,
    Recipe,
    crop,
    draw,
    pair_without,
    recolour,
    two_views,
)

Pipeline = Callable[[bytes], object]
Pair = tuple[Recipe, Recipe]  # of the two views
PICTURES = 32  # in each block
_BLUR_SIZE = 13  # pixels, the width of our kernel at MAX_SIGMA
_BRIGHT = 128  # values from here up are inverted by solarizing
_NAMES = {
    "ours": "ours",
    "ours_gpu": "ours, INPUT.VIEWS gpu (without colours and blur)",
    "pillow": "torchvision v1 on PIL",
    "tensors": "torchvision v2 on tensors",
    "decode": "decoding alone",
}


def run(cfg: CfgNode, *, folder: str = "", rounds: int = 5) -> dict[str, dict[str, list[float]]]:
    """Measure and print the pairs per second of every pipeline, and the microseconds of each stage of ours.

    torchvision's pipelines produce normalised float32 tensors, as usual; ours produce bytes, which the training step
    normalises on the device.

    Args:
        cfg: from `pretrain.config.load`; INPUT.SIZE, MIN_SCALE, MEAN and STD are used.
        folder: of images, which are converted to JPEGs of 500 x 375; empty: synthetic pictures.
        rounds: number of measured blocks of each pipeline; one more is run first as a warm-up.
    Returns:
        For each of `pretrain.data.views.PAIRS`, the pairs per second of each pipeline in each round.
    """
    files = jpegs_of(folder) if folder else [to_jpeg(fake_photo(n)) for n in range(PICTURES)]
    threads = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    try:
        speeds = {}
        kilobytes = sum(map(len, files)) / len(files) / 1000
        source = folder or "synthetic"
        say(f"{len(files)} JPEGs of {SIZE[0]} x {SIZE[1]}, {kilobytes:.0f} kB each ({source}); views of "
            f"{cfg.INPUT.SIZE} pixels; one thread; {rounds} alternating rounds")  # fmt: skip
        say(
            "torchvision's pipelines return normalised float32 tensors; ours return bytes for the training step"
        )
        for name in PAIRS:
            pair = pair_without(name, ())
            speeds[name] = interleave(_pipelines(pair, cfg), files, rounds=rounds)
            for line in [*_table(name, speeds[name]), _stage_line(stages(files, pair, cfg, rounds=rounds))]:
                say(line)
    finally:
        cv2.setNumThreads(threads[0])
        torch.set_num_threads(threads[1])
    return speeds


def _pipelines(pair: Pair, cfg: CfgNode) -> dict[str, Pipeline]:
    def ours(*, geometry_only: bool) -> Pipeline:
        numbers = count()
        return lambda data: two_views(
            data, pair, size=cfg.INPUT.SIZE, min_scale=cfg.INPUT.MIN_SCALE,
            counters=(cfg.SEED, 0, next(numbers)), geometry_only=geometry_only,
        )  # fmt: skip

    return {
        "ours": ours(geometry_only=False),
        "ours_gpu": ours(geometry_only=True),
        "pillow": pillow(pair, cfg),
        "tensors": tensors(pair, cfg),
        "decode": lambda data: ImageFile(data).decode(),
    }


def interleave(pipelines: dict[str, Pipeline], files: list[bytes], *, rounds: int) -> dict[str, list[float]]:
    """Return files per second in `rounds` blocks of each pipeline. They alternate, so that other load affects all."""
    speeds: dict[str, list[float]] = {name: [] for name in pipelines}
    random.seed(0)  # used by torchvision, as is torch's generator
    torch.manual_seed(0)
    for number in range(rounds + 1):
        for name, pipeline in pipelines.items():
            began = time.process_time()
            for data in files:
                pipeline(data)
            if number:  # the first block warms up
                speeds[name].append(len(files) / (time.process_time() - began))
    return speeds


def stages(files: list[bytes], pair: Pair, cfg: CfgNode, *, rounds: int) -> dict[str, float]:
    """Return the mean microseconds that each stage of `views.two_views` takes for a pair."""
    laps = _Laps()
    for number, data in enumerate(files * rounds):
        laps.start()
        file = ImageFile(data)
        laps.end("header")
        pixels = file.decode()
        laps.end("decode")
        for n, recipe in enumerate(pair):
            chance = rng.quick("view", cfg.SEED, 0, number, n)
            view = draw(chance, recipe, width=file.width, height=file.height, min_scale=cfg.INPUT.MIN_SCALE)
            laps.end("draw")
            cut = crop(pixels, view, size=cfg.INPUT.SIZE)
            laps.end("crop, resize, flip")
            recolour(cut, view._replace(sigma=0.0, solarize=False), recipe)
            laps.end("colours")
            if view.sigma:
                pixel_ops.blur(cut, view.sigma)
            laps.end("blur")
            if view.solarize:
                pixel_ops.solarize(cut)
                laps.end("solarize")
    return {stage: 1e6 * seconds / (rounds * len(files)) for stage, seconds in laps.spent.items()}


class _Laps:
    """A stopwatch of CPU time that adds up the seconds of each stage."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    def start(self) -> None:
        self.last = time.process_time()

    def end(self, stage: str) -> None:
        now = time.process_time()
        self.spent[stage] = self.spent.get(stage, 0.0) + now - self.last
        self.last = now


def _table(recipe: str, speeds: dict[str, list[float]]) -> list[str]:
    """Return medians and ranges over the rounds, and of the ratio to torchvision v1 on PIL in the same round."""
    lines = ["", f"{recipe + ' views':55}{'pairs/s':>26}{'ratio to PIL':>24}"]
    for name, values in speeds.items():
        ratios = [ours / theirs for ours, theirs in zip(values, speeds["pillow"], strict=True)]
        unit = " (images)" if name == "decode" else ""
        lines.append(f"{_NAMES[name] + unit:55}{_spread(values, '.0f'):>26}{_spread(ratios, '.2f'):>24}")
    return lines


def _stage_line(spent: dict[str, float]) -> str:
    whole = sum(spent.values())
    parts = ", ".join(f"{stage} {time:.0f} ({time / whole:.0%})" for stage, time in spent.items())
    return f"ours, microseconds per pair: {parts}"


def _spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def jpegs_of(folder: str) -> list[bytes]:
    """Return the first images of a folder as JPEGs of SIZE. Raises `UserError` if there are none, or a broken one."""
    found = find_images([folder], key="--images")
    made = []
    for number in range(min(PICTURES, len(found))):
        try:
            picture = Image.fromarray(ImageFile(found.read(number)).decode())
        except Exception as error:  # of Pillow, OpenCV or the disk
            raise UserError(
                f"{label(found[number])}: it cannot be read as an image ({label(str(error))}): remove it, or name "
                "another folder with --images"
            ) from None
        made.append(to_jpeg(ImageOps.fit(picture, SIZE, Image.Resampling.BICUBIC)))
    return made


class _PillowBlur:
    """The blur of the published MoCo v2 recipe: Pillow's approximation by three box filters."""

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(MIN_SIGMA, MAX_SIGMA)))


def pillow(pair: Pair, cfg: CfgNode) -> Pipeline:
    """Return torchvision's v1 transforms, on `PIL.Image`, as a pipeline: bytes -> two normalised tensors."""
    transforms = [
        v1.Compose(
            [
                v1.RandomResizedCrop(cfg.INPUT.SIZE, scale=(cfg.INPUT.MIN_SCALE, 1.0)),
                *_in_order(
                    recipe,
                    v1.RandomApply([v1.ColorJitter(*recipe.jitter)], p=recipe.jitter_probability),
                    v1.RandomGrayscale(recipe.gray_probability),
                ),
                v1.RandomApply([_PillowBlur()], p=recipe.blur_probability),
                v1.RandomSolarize(_BRIGHT, p=recipe.solarize_probability or 0.0),
                v1.RandomHorizontalFlip(recipe.flip_probability),
                v1.ToTensor(),
                v1.Normalize(cfg.INPUT.MEAN, cfg.INPUT.STD),
            ]
        )
        for recipe in pair
    ]

    def views(data: bytes) -> object:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        return tuple(transform(image) for transform in transforms)

    return views


def tensors(pair: Pair, cfg: CfgNode) -> Pipeline:
    """Return torchvision's v2 transforms, on uint8 tensors, as a pipeline: bytes -> two normalised tensors."""
    blur = v2.GaussianBlur(_BLUR_SIZE, (MIN_SIGMA, MAX_SIGMA))
    transforms = [
        v2.Compose(
            [
                v2.RandomResizedCrop(cfg.INPUT.SIZE, scale=(cfg.INPUT.MIN_SCALE, 1.0), antialias=True),
                *_in_order(
                    recipe,
                    v2.RandomApply([v2.ColorJitter(*recipe.jitter)], p=recipe.jitter_probability),
                    v2.RandomGrayscale(recipe.gray_probability),
                ),
                v2.RandomApply([blur], p=recipe.blur_probability),
                v2.RandomSolarize(_BRIGHT, p=recipe.solarize_probability or 0.0),
                v2.RandomHorizontalFlip(recipe.flip_probability),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(cfg.INPUT.MEAN, cfg.INPUT.STD),
            ]
        )
        for recipe in pair
    ]

    def views(data: bytes) -> object:
        image = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
        return tuple(transform(image) for transform in transforms)

    return views


def _in_order(recipe: Recipe, jitter: object, gray: object) -> list[object]:
    return [gray, jitter] if recipe.gray_first else [jitter, gray]
