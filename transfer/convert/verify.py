"""Verify numerically that detectron2's backbone with the written file computes what the source network computes."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import GeneralizedRCNN, build_model, build_resnet_backbone
from torch import nn
from torchvision.transforms import functional

from pretrain.common.errors import UserError
from transfer.convert.layouts import LAYOUTS
from transfer.convert.recognise import Source, build_network
from transfer.convert.tensor_names import detectron2_name
from transfer.convert.weights_file import for_detectron2, read_weights

LEVELS = ("res2", "res3", "res4", "res5")
_TRUNK = re.compile(r"(stem|res[2-5])\.")
_KEPT = re.compile(r"fpn_|roi_heads\.box_head\.")  # added by `--keep`, not part of the backbone
TOLERANCE = 1e-4  # relative; equal networks differ by 1e-15 to 1e-11

Forward = Callable[[torch.Tensor], dict[str, torch.Tensor]]
Features = list[dict[str, torch.Tensor]]  # with running statistics, then with the batch's


class Checkpointer(DetectionCheckpointer):
    """detectron2's checkpointer, which also remembers the names that it could not place."""

    unplaced: tuple[str, ...] = ()

    def _load_model(self, checkpoint: Any) -> Any:
        result = super()._load_model(checkpoint)
        shapes = [name for name, _, _ in result.incorrect_shapes]
        self.unplaced = (*result.missing_keys, *result.unexpected_keys, *shapes)
        return result


def verify(source: Source, path: Path) -> dict[str, float]:
    """Verify a converted file against its source, by the differences that `compare` and `compare_c4` return.

    Dead channels and zero gammas hide some tensors from any output, so the tensors that detectron2 loaded must also be
    bit-identical to the source's.

    Returns:
        The largest relative difference at each of `LEVELS`.
    Raises:
        UserError: the source network is dead, a level differs by more than `TOLERANCE`, or a tensor differs at all.
    """
    differences = compare(source, path)
    if source.architecture.bottleneck and max(differences.values()) <= TOLERANCE:
        in_c4 = compare_c4(source, path)
        differences = {level: max(differences[level], in_c4[level]) for level in LEVELS}
    backbone, _ = load_backbone(path)
    loaded = backbone.state_dict()
    wrong = [
        detectron2_name(name)
        for name, tensor in source.backbone.items()
        if not torch.equal(loaded[detectron2_name(name)], tensor)
    ]
    cause = f"; tensor {wrong[0]} differs from the source's ({len(wrong)} such tensors)" if wrong else ""
    figures = ", ".join(f"{level} {difference:.1e}" for level, difference in differences.items())
    if not all(difference <= TOLERANCE for difference in differences.values()):  # a NaN fails too
        raise UserError(
            f"verification failed: the outputs differ from the source network's by {figures} "
            f"(relative; limit {TOLERANCE:.0e}){cause}"
        )
    if wrong:
        raise UserError(f"verification failed{cause}, although the outputs agree: {figures}")
    return differences


def compare(source: Source, path: Path) -> dict[str, float]:
    """Run both networks on the same images, each with its own preprocessing, and compare their features.

    The comparison is in float64, so that rounding cannot hide a difference, and is made with running statistics (as in
    evaluation) and with batch statistics (as in fine-tuning).

    Returns:
        For each level, the maximum over channels of max |a - b| / max |a|, where a is the source's.
    Raises:
        UserError: the source network's features overflow float32, or do not depend on the image.
    """
    images = sample_images()
    expected = _source_features(source, images)
    _check_alive(expected)
    actual = _detectron2_features(path, images)
    return _differences(expected, actual)


def compare_c4(source: Source, path: Path) -> dict[str, float]:
    """Do the same as `compare` for a whole C4 detector as detectron2 builds it, where res5 is part of the box head."""
    cfg, settings = _config(path)  # detectron2's defaults are a Faster R-CNN C4
    cfg.MODEL.RESNETS.OUT_FEATURES = list(LEVELS[:3])
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    unplaced = [name for name in fill(model, path) if _TRUNK.search(name)]
    if unplaced:
        raise UserError(f"{path}: a C4 detector lacks {len(unplaced)} tensors, first {unplaced[0]}")

    def forward(batch: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = model.backbone(batch)
        return {**maps, "res5": model.roi_heads.res5(maps["res4"])}

    images = sample_images()
    actual = _both_modes(model.double(), forward, preprocessed(model, settings, images))
    return _differences(_source_features(source, images), actual)


def pooling_difference(source: Source) -> dict[str, float]:
    """Return what changes because detectron2 pools the stem with padding, where Caffe does not; {} for other networks.

    The source network is compared with itself, so that nothing but the pooling differs. It sees the image two pixels
    further in Caffe, and what is at the borders.

    Returns:
        For each level, the root mean square of the difference relative to the features' own, with running statistics.
    """
    layout = LAYOUTS.get(source.kind)
    if not layout or layout.padded_pooling or source.architecture.groups > 1:  # the ResNeXts are Caffe2's
        return {}
    images = sample_images()
    theirs = _source_features(source, images, pool=nn.MaxPool2d(3, stride=2, ceil_mode=True))[0]
    ours = _source_features(source, images)[0]
    return {level: float((ours[level] - theirs[level]).norm() / theirs[level].norm()) for level in LEVELS}


def _check_alive(features: Features) -> None:
    """Raise `UserError` if no detector could use the source network's features, whatever the comparison would say."""
    modes = ("with its running statistics", "with the statistics of a batch")
    for mode, levels in zip(modes, features, strict=True):
        for level, maps in levels.items():
            largest = float(maps.abs().nan_to_num(nan=float("inf")).max())
            if largest > torch.finfo(torch.float32).max:
                raise UserError(
                    f"the source network overflows {mode}: its features at {level} are not finite numbers in float32; "
                    "the training run diverged or the file is damaged: use another checkpoint"
                )
    for level, maps in features[0].items():
        if float((maps[0] - maps[1]).abs().max()) <= 1e-12 * float(maps.abs().max()):
            what = "the same for every image" if maps.any() else "zero"
            raise UserError(
                f"the source network is dead: its features at {level} are {what}; use another checkpoint"
            )


def _differences(expected: Features, actual: Features) -> dict[str, float]:
    pairs = list(zip(expected, actual, strict=True))
    return {level: max(relative(a[level], b[level]) for a, b in pairs) for level in LEVELS}


def load_backbone(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Build detectron2's ResNet from the file's settings and fill it with detectron2's checkpointer.

    Returns:
        The backbone with outputs `LEVELS`, float32 on the CPU, and the settings.
    Raises:
        UserError: the file was not written by this converter, or does not fill the backbone exactly.
    """
    cfg, settings = _config(path)
    cfg.MODEL.RESNETS.OUT_FEATURES = list(LEVELS)
    backbone = build_resnet_backbone(cfg, ShapeSpec(channels=3))
    unplaced = [name for name in fill(backbone, path) if not _KEPT.match(name)]
    if unplaced:
        raise UserError(
            f"{path}: detectron2 finds {len(unplaced)} tensors missing, unexpected or mis-shaped, "
            f"first {unplaced[0]}"
        )
    return backbone, settings


def _config(path: Path) -> tuple[CfgNode, dict[str, Any]]:
    """Return detectron2's defaults changed by the file's settings, and those settings."""
    settings = read_weights(path)["preprocessing"]
    if settings is None:
        raise UserError(
            f"{path}: it has no preprocessing record, so it was not written by tools/convert_to_d2.py"
        )
    cfg = get_cfg()
    for key, value in settings.items():
        cfg.merge_from_list([key, value])
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    return cfg, settings


def fill(module: nn.Module, path: Path) -> tuple[str, ...]:
    """Fill a module by detectron2's own matching and return the names that it could not place.

    `read_weights` reads the file, because detectron2 would run code in a pickle.
    """
    checkpointer = Checkpointer(module)
    checkpointer.logger = logging.getLogger(f"{__name__}.quiet")
    checkpointer.logger.setLevel(logging.CRITICAL)  # the caller reports the names
    checkpointer._load_model(for_detectron2(read_weights(path)))
    return checkpointer.unplaced


def sample_images(height: int = 64, width: int = 96) -> numpy.ndarray:
    """Return (2, height, width, 3) uint8 RGB images: a drawing with soft and sharp colour transitions, and noise."""
    random = numpy.random.default_rng(0)
    soft = random.uniform(0, 255, (4, 5, 3)).astype(numpy.float32)
    drawing = cv2.resize(soft, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(12):
        corner, size = random.integers(0, (width, height)), random.integers(6, 40, 2)
        colour = tuple(map(float, random.uniform(0, 255, 3)))
        cv2.rectangle(drawing, corner.tolist(), (corner + size).tolist(), colour, -1)
    drawing += random.normal(0, 4, drawing.shape)
    noise = random.integers(0, 256, drawing.shape)
    return numpy.stack([drawing.clip(0, 255), noise]).astype(numpy.uint8)


def _source_features(source: Source, images: numpy.ndarray, *, pool: nn.MaxPool2d | None = None) -> Features:
    net = build_network(source)
    net.maxpool = pool or net.maxpool
    batch = functional.convert_image_dtype(_channels_first(images), torch.float64)
    if source.input.format == "BGR":
        batch = batch.flip(1)
    mean, std = ([value / 255 for value in values] for values in (source.input.mean, source.input.std))
    return _both_modes(net.double(), net.features, functional.normalize(batch, mean, std))


def _detectron2_features(path: Path, images: numpy.ndarray) -> Features:
    backbone, settings = load_backbone(path)
    model = GeneralizedRCNN(
        backbone=backbone,
        proposal_generator=nn.Identity(),
        roi_heads=nn.Identity(),
        pixel_mean=settings["MODEL.PIXEL_MEAN"],
        pixel_std=settings["MODEL.PIXEL_STD"],
    )
    return _both_modes(backbone.double(), backbone, preprocessed(model, settings, images))


def preprocessed(model: GeneralizedRCNN, settings: dict[str, Any], images: numpy.ndarray) -> torch.Tensor:
    """Apply detectron2's own `preprocess_image`; the sides are multiples of 32, so nothing is padded."""
    if settings["INPUT.FORMAT"] == "BGR":
        images = images[..., ::-1].copy()
    model.double()
    for name in ("MEAN", "STD"):  # the model has rounded them to float32
        exact = torch.tensor(settings[f"MODEL.PIXEL_{name}"], dtype=torch.float64).view(-1, 1, 1)
        getattr(model, f"pixel_{name.lower()}").copy_(exact)
    inputs = [{"image": image} for image in _channels_first(images)]
    batch: torch.Tensor = model.preprocess_image(inputs).tensor
    return batch


def _channels_first(images: numpy.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()  # (N, H, W, 3) -> (N, 3, H, W)


@torch.no_grad()
def _both_modes(network: nn.Module, forward: Forward, batch: torch.Tensor) -> Features:
    network.eval()
    evaluated = forward(batch)
    network.train()  # after evaluation, because the forward pass changes the running statistics
    return [evaluated, forward(batch)]


def relative(expected: torch.Tensor, actual: torch.Tensor) -> float:
    """Return the largest relative difference of a channel of two (N, C, H, W); infinite for different shapes."""
    if expected.shape != actual.shape:
        return float("inf")
    difference = (expected - actual).abs().amax(dim=(0, 2, 3))  # (C,)
    scale = expected.abs().amax(dim=(0, 2, 3))
    # A channel that ReLU almost silences is compared with the whole level; otherwise rounding alone would count.
    scale = scale.clamp(min=1e-6 * float(scale.max()))
    return float((difference / scale).nan_to_num(nan=float("inf")).max())
