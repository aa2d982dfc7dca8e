"""Records to model inputs: labels move with their images, padding, scales, errors; the rest is detectron2's."""

import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image
from scipy import ndimage, stats

from pretrain.common.errors import UserError
from transfer.config.load import default_config
from transfer.data.mapper import ScaleCrop, build_mapper

MEAN = [123.675, 116.28, 103.53]
COLOURS = np.array([(0, 0, 0), (250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250)], np.uint8)


def _cfg(size: int = 65, scales: tuple[float, float] = (0.5, 2.0), **more: object) -> CfgNode:
    cfg = default_config()
    cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN = "RGB", MEAN
    cfg.INPUT.SCALE_CROP = CfgNode({"ENABLED": True, "SCALES": scales, "SIZE": size})
    cfg.INPUT.MIN_SIZE_TEST = 0
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = len(COLOURS)
    cfg.merge_from_list([item for pair in more.items() for item in pair])
    return cfg


def _record(folder: Path, width: int = 96, height: int = 80, block: int = 16) -> dict[str, object]:
    """Write an image of square blocks whose colours encode their labels; one block's label 0 is unknown (255)."""
    cells = np.random.default_rng(0).integers(0, len(COLOURS), (height // block + 1, width // block + 1))
    label = cells.repeat(block, 0).repeat(block, 1)[:height, :width].astype(np.uint8)
    Image.fromarray(COLOURS[label]).save(folder / "image.png")
    label[:block, :block] = 255
    Image.fromarray(label).save(folder / "label.png")
    names = {"file_name": str(folder / "image.png"), "sem_seg_file_name": str(folder / "label.png")}
    return {**names, "width": width, "height": height}


def _apply(mapper, record, seed: int) -> tuple[np.ndarray, np.ndarray]:
    np.random.seed(seed)
    mapped = mapper(record)
    return mapped["image"].numpy().transpose(1, 2, 0), mapped["sem_seg"].numpy()


def test_label_is_moved_as_its_image_is(tmp_path: Path) -> None:
    mapper, record = build_mapper(_cfg(), is_train=True), _record(tmp_path)
    checked = 0
    for seed in range(30):
        image, label = _apply(mapper, record, seed)
        assert image.shape == (65, 65, 3)
        assert image.dtype == np.uint8
        assert label.shape == (65, 65)
        assert label.dtype == np.int64
        # away from the blocks' borders, where the colour is interpolated, and from the crop's, behind which one may be
        inside = ndimage.minimum_filter(label, 5) == ndimage.maximum_filter(
            label, 5, mode="constant", cval=255
        )
        inside &= label != 255
        assert (image[inside] == COLOURS[label[inside]]).all()
        checked += inside.sum()
    assert checked > 30 * 65 * 65 / 4


def test_scale_one_is_a_window_of_the_image(tmp_path: Path) -> None:
    record = _record(tmp_path)
    mapper = build_mapper(_cfg(32, (1.0, 1.0), **{"INPUT.RANDOM_FLIP": "none"}), is_train=True)
    windows = np.lib.stride_tricks.sliding_window_view(np.array(Image.open(tmp_path / "label.png")), (32, 32))
    for seed in range(5):
        _, label = _apply(mapper, record, seed)
        assert (windows == label).all((2, 3)).any()


def test_small_images_are_padded_with_the_mean_and_the_ignored_label(tmp_path: Path) -> None:
    record = _record(tmp_path, 96, 80)
    mapper = build_mapper(_cfg(65, (0.5, 0.5), **{"INPUT.RANDOM_FLIP": "none"}), is_train=True)
    image, label = _apply(mapper, record, 0)
    outside = np.ones((65, 65), bool)
    outside[:40, :48] = False
    assert (image[outside] == (124, 116, 104)).all()
    assert (label[outside] == 255).all()
    assert (label[:40, :48] == np.array(Image.open(tmp_path / "label.png"))[1::2, 1::2]).all()  # nearest
    expected = Image.open(tmp_path / "image.png").resize((48, 40), Image.Resampling.BILINEAR)
    assert (image[:40, :48] == np.array(expected)).all()


def test_pads_one_side_only_where_only_one_is_short(tmp_path: Path) -> None:
    record = _record(tmp_path, 128, 32)
    mapper = build_mapper(_cfg(65, (1.0, 1.0), **{"INPUT.FORMAT": "BGR"}), is_train=True)
    image, label = _apply(mapper, record, 0)
    assert image.shape == (65, 65, 3)
    assert (label[32:] == 255).all()
    assert (image[32:] == (124, 116, 104)).all()  # PIXEL_MEAN is in the order of INPUT.FORMAT
    inside = ndimage.minimum_filter(label, 3) == ndimage.maximum_filter(label, 3)
    inside &= label != 255
    assert (image[..., ::-1][inside] == COLOURS[label[inside]]).all()


def test_scales_and_corners_are_uniform_and_independent() -> None:
    augmentation = ScaleCrop(0.5, 2.0, 200, MEAN, 255)
    image = np.zeros((400, 600, 3), np.uint8)
    np.random.seed(0)
    found = []
    for _ in range(2000):
        resize, crop, pad = augmentation.get_transform(image).transforms
        assert abs(resize.new_w / resize.new_h - 1.5) < 0.01  # one scale for both
        assert (crop.w, crop.h, pad.rows, pad.columns) == (200, 200, 0, 0)
        rows, columns = max(1, resize.new_h - 200), max(1, resize.new_w - 200)
        found.append((resize.new_w / 600, crop.y0 / rows, crop.x0 / columns))
    scales, tops, lefts = np.array(found).T
    assert stats.kstest(scales, stats.uniform(0.5, 1.5).cdf).pvalue > 0.01
    assert stats.kstest(tops[scales > 0.6], stats.uniform(0, 1).cdf).pvalue > 0.01
    assert stats.kstest(lefts[scales > 0.6], stats.uniform(0, 1).cdf).pvalue > 0.01
    assert tops.max() == lefts.max() == 1.0  # the last place, too
    assert np.abs(np.corrcoef([scales, tops, lefts]) - np.eye(3)).max() < 0.08


def test_half_are_flipped(tmp_path: Path) -> None:
    record = _record(tmp_path)
    mapper = build_mapper(_cfg(128, (1.0, 1.0)), is_train=True)
    plain = np.pad(np.array(Image.open(tmp_path / "label.png")), ((0, 48), (0, 32)), constant_values=255)
    flipped = 0
    for seed in range(200):
        _, label = _apply(mapper, record, seed)
        assert (label == plain).all() or (label == plain[:, ::-1]).all()
        flipped += (label != plain).any()
    assert 75 < flipped < 125


def test_pure_in_numpys_seed_and_picklable(tmp_path: Path) -> None:
    record = _record(tmp_path)
    mapper = build_mapper(_cfg(), is_train=True)
    before = dict(record)
    first = _apply(mapper, record, 3)
    random.seed(9)
    torch.manual_seed(9)
    again = _apply(pickle.loads(pickle.dumps(mapper)), record, 3)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, _apply(mapper, record, 4), strict=True))
    assert record == before


def test_tests_at_the_original_size(tmp_path: Path) -> None:
    record = _record(tmp_path, 99, 81)
    image, label = _apply(build_mapper(_cfg(), is_train=False), record, 0)
    assert (image == np.array(Image.open(tmp_path / "image.png"))).all()
    assert (label == np.array(Image.open(tmp_path / "label.png"))).all()


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("fault", ["palette", "number", "size", "missing", "broken"])
def test_label_that_would_be_misread_is_refused(tmp_path: Path, fault: str, is_train: bool) -> None:
    record, path = _record(tmp_path), tmp_path / "label.png"
    label = np.array(Image.open(path))
    if fault == "palette":  # VOC's own files; detectron2 would read the brightness of the colours
        picture = Image.fromarray(label)
        picture.putpalette(list(range(256)) * 3)
        picture.save(path)
    elif fault == "number":
        Image.fromarray(np.where(label == 255, 255, label + 1)).save(path)
    elif fault == "size":
        Image.fromarray(label[:-1]).save(path)
    elif fault == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    expected = {
        "palette": "mode P.*mode L", "number": r"label 6, .*NUM_CLASSES is 6", "size": "96x79.*96x80",
        "missing": "not a readable image", "broken": "not a readable",
    }  # fmt: skip
    cfg = _cfg(200, (1.0, 1.0))
    with pytest.raises(UserError, match=expected[fault]) as error:
        _apply(build_mapper(cfg, is_train=is_train), record, 0)
    assert str(path) in str(error.value) or fault == "broken"


def test_both_crops_at_once_are_refused() -> None:
    with pytest.raises(UserError, match="both enabled"):
        build_mapper(_cfg(**{"INPUT.CROP.ENABLED": True}), is_train=True)


def test_detection_is_detectron2s(tmp_path: Path) -> None:
    """Boxes, masks and keypoints of the stock mapper under the same seed; a flip swaps left and right."""
    metadata = MetadataCatalog.get("mapper_keypoints")
    metadata.set(keypoint_names=("nose", "left", "right"), keypoint_flip_map=(("left", "right"),))
    cfg = default_config()
    cfg.DATASETS.TRAIN = ("mapper_keypoints",)
    cfg.MODEL.MASK_ON = cfg.MODEL.KEYPOINT_ON = True
    cfg.INPUT.MIN_SIZE_TRAIN = (64, 128)
    record = {k: v for k, v in _record(tmp_path).items() if k != "sem_seg_file_name"}
    record["annotations"] = [
        {"bbox": [10, 20, 40, 60], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0,
         "segmentation": [[10, 20, 40, 20, 40, 60]], "keypoints": [20, 30, 2, 12, 40, 2, 30, 50, 1]}
    ]  # fmt: skip
    for seed in range(6):
        ours = _instances(build_mapper(cfg, is_train=True), record, seed)
        stock = _instances(DatasetMapper(cfg, True), record, seed)
        for a, b in zip(ours, stock, strict=True):
            assert np.array_equal(a, b)
        image, box, points = ours[0], ours[1][0], ours[3][0]
        scale = image.shape[1] / 80
        flipped = box[0] > box[2] - box[0]
        left_x = 12 * scale if not flipped else image.shape[2] - 30 * scale
        assert points[1, 0] == pytest.approx(left_x, abs=0.5)
    assert set(build_mapper(cfg, is_train=False)(record)) == {"file_name", "width", "height", "image"}


def _instances(mapper, record, seed: int) -> list[np.ndarray]:
    np.random.seed(seed)
    mapped = mapper(record)
    found = mapped["instances"]
    return [
        mapped["image"].numpy(),
        found.gt_boxes.tensor.numpy(),
        found.gt_masks.polygons[0][0],
        found.gt_keypoints.tensor.numpy(),
    ]


@pytest.mark.parametrize(
    "mask", [[[0, 0, 1e9, 0, 1e9, 1e9]], {"size": [80, 96], "counts": "o"}], ids=["polygon", "RLE"]
)
def test_a_mask_that_would_crash_a_worker_names_its_image(tmp_path: Path, mask: Any) -> None:
    cfg = default_config()
    cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT = True, "bitmask"
    record = {k: v for k, v in _record(tmp_path).items() if k != "sem_seg_file_name"}
    record["annotations"] = [
        {"bbox": [10, 20, 40, 60], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "segmentation": mask}
    ]
    with pytest.raises(UserError, match="do not fit: an annotation has") as error:
        build_mapper(cfg, is_train=True)(record)
    assert str(error.value).startswith(f"{record['file_name']}: ") and type(error.value) is UserError
