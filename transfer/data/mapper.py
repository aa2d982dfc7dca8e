"""Turn a data set's record into the model's input. detectron2's `DatasetMapper` is created only here."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from PIL import Image

from pretrain.common.errors import UserError
from transfer.data import images

Record = dict[str, Any]


def build_mapper(cfg: CfgNode, *, is_train: bool) -> Callable[[Record], Record]:
    """Return the function that turns a record in detectron2's format into an input of its models.

    detectron2's `DatasetMapper` handles boxes, masks, keypoints and labels per pixel; in training,
    `INPUT.SCALE_CROP` or `INPUT.LSJ` replaces its resizing. All randomness comes from numpy's global generator. The
    returned function can be pickled, and raises `UserError` if a file is not what the record says.
    """
    options: dict[str, Any] = {}
    enabled = [name for name in ("CROP", "SCALE_CROP", "LSJ") if cfg.INPUT[name].ENABLED]
    if is_train and len(enabled) > 1:
        raise UserError(
            f"INPUT.{enabled[0]} and INPUT.{enabled[1]} are both enabled: set one of them to False"
        )
    if is_train and enabled == ["SCALE_CROP"]:
        options["augmentations"] = _scale_crop_flip(cfg)
    if is_train and enabled == ["LSJ"]:
        options["augmentations"] = large_scale_jitter(cfg)
        # The box of a cropped object is no longer tight. detectron2 fails at this for images without objects.
        options["recompute_boxes"] = cfg.MODEL.MASK_ON and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    mapper = DatasetMapper(cfg, is_train, **options)
    head = cfg.MODEL.SEM_SEG_HEAD
    return partial(_map, mapper, classes=head.NUM_CLASSES, ignored=head.IGNORE_VALUE)


def _map(mapper: DatasetMapper, record: Record, *, classes: int, ignored: int) -> Record:
    """Return the record as an input of the model. Raise `UserError` if its image is broken or has another size."""
    if "sem_seg_file_name" in record:
        _check_label_file(record)
    try:
        with images.used_by_detectron2():
            mapped: Record = mapper(record)
    except (OSError, SyntaxError, ValueError) as error:  # ValueError: detectron2's SizeMismatchError
        reason = " ".join(str(error).split())
        raise UserError(
            f"{record['file_name']}: its image and its annotations do not fit: {reason}"
        ) from None
    if "sem_seg" in mapped:
        values = np.unique(mapped["sem_seg"].numpy())
        wrong = values[(values >= classes) & (values != ignored)]
        if len(wrong):
            raise UserError(
                f"{record['sem_seg_file_name']}: label {wrong[0]}, but MODEL.SEM_SEG_HEAD.NUM_CLASSES is {classes}: "
                f"labels must be 0..{classes - 1}, or {ignored} for unknown"
            )
    return mapped


def _check_label_file(record: Record) -> None:
    """Raise `UserError` for a file that detectron2 would misread: it turns colours and palettes into grey values."""
    path = record["sem_seg_file_name"]
    mode, size = images.header(path)
    if mode != "L":
        raise UserError(
            f"{path}: an image of mode {mode}: labels must be 8-bit grey values (mode L, one number for each class), "
            "as written by tools/prepare_data.py"
        )
    if size != (record.get("width", size[0]), record.get("height", size[1])):
        raise UserError(f"{path}: {size[0]}x{size[1]}, but its image is {record['width']}x{record['height']}")


def _scale_crop_flip(cfg: CfgNode) -> list[T.Augmentation]:
    low, high = cfg.INPUT.SCALE_CROP.SCALES
    scale_crop = ScaleCrop(
        low, high, cfg.INPUT.SCALE_CROP.SIZE, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    )
    return [scale_crop, *_flip(cfg)]


def _flip(cfg: CfgNode) -> list[T.Augmentation]:
    flip = cfg.INPUT.RANDOM_FLIP
    if flip == "none":
        return []
    return [T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical")]


def large_scale_jitter(cfg: CfgNode) -> list[T.Augmentation]:
    """Return a flip, a random scale and a random crop: large-scale jitter (Ghiasi et al. 2021), in ViTDet's form.

    The image is scaled so that it just fits into the square of that side times the scale, which is uniform in
    `INPUT.LSJ.SCALES`. It is not padded here if it is smaller than the crop: the model pads all images of a batch with
    the mean color, to squares if its backbone needs them. As in ViTDet, the crops lie along the diagonal (`ScaleCrop`).
    """
    jitter = cfg.INPUT.LSJ
    low, high = jitter.SCALES
    return [
        *_flip(cfg),
        T.ResizeScale(low, high, jitter.SIZE, jitter.SIZE),
        T.FixedSizeCrop((jitter.SIZE, jitter.SIZE), pad=False),
    ]


class ScaleCrop(T.Augmentation):
    """Scale the whole image at random, then crop a random square (He et al. App. A.5; the order is DeepLab's).

    The scale is uniform in [low, high] and the same for height and width. Images are scaled bilinearly (Pillow's
    filter, which averages when it shrinks), labels to the nearest pixel. The corner of the square is uniform over
    all positions, independently for rows and columns. A smaller image is padded at the right and the bottom.

    detectron2's FixedSizeCrop is not used: it draws one random number for both rows and columns, so its crops lie
    along the diagonal, and in v0.6 it pads labels with 0, which is a class.
    """

    def __init__(self, low: float, high: float, size: int, pad_value: list[float], ignored: int) -> None:
        """Set `size` in pixels, `pad_value` with a number per channel, and `ignored`, which pads labels."""
        super().__init__()
        self.low, self.high, self.size = low, high, size
        self.pad_value, self.ignored = pad_value, ignored

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draw a transform for an image (H, W, C)."""
        old_height, old_width = image.shape[:2]
        scale = np.random.uniform(self.low, self.high)
        height, width = max(1, round(old_height * scale)), max(1, round(old_width * scale))
        crop_height, crop_width = min(height, self.size), min(width, self.size)
        top = np.random.randint(height - crop_height + 1)
        left = np.random.randint(width - crop_width + 1)
        return T.TransformList(
            [
                T.ResizeTransform(old_height, old_width, height, width, Image.Resampling.BILINEAR),
                T.CropTransform(left, top, crop_width, crop_height, width, height),
                _Pad(self.size - crop_height, self.size - crop_width, self.pad_value, self.ignored),
            ]
        )


class _Pad(T.Transform):
    """Pad at the bottom and the right; unlike fvcore's, with a value for each channel of the image."""

    def __init__(self, rows: int, columns: int, value: list[float], ignored: int) -> None:
        super().__init__()
        self.rows, self.columns, self.value, self.ignored = rows, columns, value, ignored

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Pad an image (H, W, C) uint8; the value is rounded to integers."""
        height, width, channels = img.shape
        padded = np.empty((height + self.rows, width + self.columns, channels), img.dtype)
        padded[:] = np.round(self.value)
        padded[:height, :width] = img
        return padded

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Pad labels (H, W)."""
        return np.pad(segmentation, ((0, self.rows), (0, self.columns)), constant_values=self.ignored)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords
