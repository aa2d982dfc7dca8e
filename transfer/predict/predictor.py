"""A fine-tuned detector from the folder of its run, for images as arrays or files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from PIL import Image

from pretrain.common import distributed
from pretrain.common.errors import UserError
from pretrain.model import precision
from transfer.data import images
from transfer.detector_files import read_run, weights_file
from transfer.models import init_weights
from transfer.models.build import use_memory_format

Picture = str | Path | np.ndarray


@dataclass(frozen=True)
class Detections:
    """N detections in an image of H x W pixels, in the order of decreasing scores.

    Attributes:
        size: (H, W) of the upright image.
        boxes: (N, 4) float32: x0, y0, x1, y1 in pixels of that image; (0, 0) is its upper left corner.
        classes: (N,) int64: indices into `Predictor.names` and `Predictor.category_ids`.
        names: N names of these classes.
        scores: (N,) float32, from 0 to 1.
        masks: (N, H, W) bool; None if the model has no masks.
        keypoints: (N, K, 3) float32: x, y in pixels, and a score; None if the model has no keypoints.
    """

    size: tuple[int, int]
    boxes: np.ndarray
    classes: np.ndarray
    names: list[str]
    scores: np.ndarray
    masks: np.ndarray | None = None
    keypoints: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.scores)


class Predictor:
    """The detector of a run of `tools/train_net.py`. Only the run's folder is read, wherever it has been moved to.

        predictor = Predictor("output/mine")
        found = predictor("photo.jpg")               # or predictor(pixels), or predictor(["a.jpg", "b.jpg"])
        for box, name, score in zip(found.boxes, found.names, found.scores): ...

    Args:
        run: OUTPUT_DIR of the run.
        weights: a checkpoint; by default the run's `model_final.pth`.
        device: `auto` (the GPU if there is one), `cpu` or `cuda`.
        threshold: scores up to this one are left out. The tests of a run use 0.05 (MODEL.ROI_HEADS.SCORE_THRESH_TEST).
        batch: how many images of a list go through the network together. Only images of equal size do: the padding
            that different sizes need would change the results near the edges.
        train_json: COCO json that the run was trained on, for runs without `categories.json`.
    Raises:
        UserError: a file of the run is missing or damaged, or there is no such device.

    Attributes:
        cfg: config of the run, frozen.
        categories: COCO's `categories` in the order of the class indices.
        names: of the classes, by class index.
        category_ids: the user's ids of the classes, by class index.
    """

    def __init__(
        self,
        run: str | Path,
        *,
        weights: str | Path | None = None,
        device: str = "auto",
        threshold: float = 0.5,
        batch: int = 4,
        train_json: str | Path | None = None,
    ) -> None:
        run = Path(run)
        cfg, self.categories = read_run(run, train_json=None if train_json is None else Path(train_json))
        path = weights_file(run, "--weights") if weights is None else Path(weights)
        if not path.is_file():
            raise UserError(f"--weights {path}: no such file")
        if not 0 <= threshold <= 1:
            raise UserError(f"threshold {threshold}: give a score from 0 to 1")
        # Of two overlapping boxes the one with the higher score stays, so this only cuts off the end of the list.
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = cfg.MODEL.RETINANET.SCORE_THRESH_TEST = float(threshold)
        cfg.MODEL.DEVICE = distributed.pick_device(device).type
        cfg.freeze()
        self.cfg, self.batch = cfg, batch
        self.names = [category["name"] for category in self.categories]
        self.category_ids = [category["id"] for category in self.categories]
        self._resize = T.AugmentationList(detection_utils.build_augmentation(cfg, is_train=False))
        precision.forbid_tf32()  # as in the run's own tests
        with torch.random.fork_rng(devices=[]):  # random weights, which are replaced at once
            self._model = build_model(cfg)
        init_weights.load_detector(self._model, path)
        self._model.eval()
        use_memory_format(cfg, self._model)

    @overload
    def __call__(self, images: Picture, *, channels: str = "RGB") -> Detections: ...

    @overload
    def __call__(self, images: list[Any] | tuple[Any, ...], *, channels: str = "RGB") -> list[Detections]: ...

    def __call__(
        self, images: Picture | list[Any] | tuple[Any, ...], *, channels: str = "RGB"
    ) -> Detections | list[Detections]:
        """Return the detections in an image, or a list of them for a list of images.

        Args:
            images: a path, or pixels (H, W, 3) uint8, or a list of these. Files are turned upright as their EXIF data
                say; arrays are taken as they are.
            channels: order of the channels of arrays: RGB, or BGR as read by OpenCV. Files need none.
        Raises:
            UserError: an image file cannot be read.
            ValueError: an array has another shape or type, or `channels` is neither.
        """
        if isinstance(images, str | Path | np.ndarray):
            return self.detect([self._pixels(images, channels)])[0]
        found: list[Detections] = []
        for start in range(0, len(images), self.batch):
            part = images[start : start + self.batch]
            found += self.detect([self._pixels(image, channels) for image in part])
        return found

    def read(self, path: str | Path) -> np.ndarray:
        """Return an image file as `detect` wants it. Raises `UserError` if it cannot be read."""
        return images.read(str(path), self.cfg.INPUT.FORMAT)

    @torch.no_grad()
    def detect(self, pictures: Sequence[np.ndarray]) -> list[Detections]:
        """Return the detections in images (H, W, C) uint8 in the order of the channels of the run's INPUT.FORMAT."""
        inputs = [self._input(picture) for picture in pictures]
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, each in enumerate(inputs):
            groups.setdefault(tuple(each["image"].shape), []).append(index)
        found: dict[int, Detections] = {}
        for members in groups.values():
            outputs = self._model([inputs[index] for index in members])
            found |= {i: self._plain(output["instances"]) for i, output in zip(members, outputs, strict=True)}
        return [found[index] for index in range(len(inputs))]

    def _pixels(self, image: Picture, channels: str) -> np.ndarray:
        if not isinstance(image, np.ndarray):
            return self.read(image)
        if channels not in ("RGB", "BGR"):
            raise ValueError(f"channels {channels!r}: give RGB or BGR")
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(f"an image is {image.dtype} {image.shape}: give uint8 (height, width, 3)")
        if channels == self.cfg.INPUT.FORMAT:
            return image
        upright = image if channels == "RGB" else image[:, :, ::-1]
        pixels: np.ndarray = detection_utils.convert_PIL_to_numpy(
            Image.fromarray(np.ascontiguousarray(upright)), self.cfg.INPUT.FORMAT
        )
        return pixels

    def _input(self, pixels: np.ndarray) -> dict[str, Any]:
        given = T.AugInput(pixels)
        self._resize(given)
        tensor = torch.as_tensor(np.ascontiguousarray(given.image.transpose(2, 0, 1)))
        return {"image": tensor, "height": pixels.shape[0], "width": pixels.shape[1]}

    def _plain(self, instances: Any) -> Detections:
        instances = instances.to("cpu")
        classes = instances.pred_classes.numpy()
        return Detections(
            size=instances.image_size,
            boxes=instances.pred_boxes.tensor.numpy(),
            classes=classes,
            names=[self.names[kind] for kind in classes],
            scores=instances.scores.numpy(),
            masks=instances.pred_masks.numpy() if instances.has("pred_masks") else None,
            keypoints=instances.pred_keypoints.numpy() if instances.has("pred_keypoints") else None,
        )
