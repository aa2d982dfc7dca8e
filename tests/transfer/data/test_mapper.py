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


def _jittered(folder: Path, scales: tuple[float, float], flip: str = "none", **more: object) -> Any:
    """A mapper with large-scale jitter to 64 pixels, and a record of 100 x 50 with a box and a triangle."""
    cfg = default_config()
    cfg.INPUT.LSJ = CfgNode({"ENABLED": True, "SCALES": scales, "SIZE": 64})
    cfg.INPUT.RANDOM_FLIP, cfg.MODEL.MASK_ON = flip, True
    cfg.merge_from_list([item for pair in more.items() for item in pair])
    record = {k: v for k, v in _record(folder, 100, 50).items() if k != "sem_seg_file_name"}
    shapes = {
        "rectangle": [10.0, 10.0, 30.0, 10.0, 30.0, 20.0, 10.0, 20.0],
        "triangle": [40.0, 0.0, 90.0, 0.0, 90.0, 50.0],
    }
    record["annotations"] = [
        {"bbox": [min(s[::2]), min(s[1::2]), max(s[::2]), max(s[1::2])], "bbox_mode": BoxMode.XYXY_ABS,
         "category_id": n, "iscrowd": 0, "segmentation": [s]} for n, s in enumerate(shapes.values())
    ]  # fmt: skip
    return build_mapper(cfg, is_train=True), record


def test_large_scale_jitter_by_hand(tmp_path: Path) -> None:
    """At scale 1, 100 x 50 becomes 64 x 32, without padding; at scale 4, 64 x 64 remain of 256 x 128."""
    mapper, record = _jittered(tmp_path, (1.0, 1.0))
    found = mapper(record)
    assert found["image"].shape == (3, 32, 64)
    expected = torch.tensor([[6.4, 6.4, 19.2, 12.8], [25.6, 0, 57.6, 32]])
    assert torch.allclose(found["instances"].gt_boxes.tensor, expected, atol=1e-4)
    mapper, record = _jittered(tmp_path, (4.0, 4.0))
    seen = 0
    for seed in range(12):
        np.random.seed(seed)
        found = mapper(record)
        np.random.seed(seed)
        np.random.uniform(4, 4)  # the scale; then one number for both offsets
        share = np.random.uniform(0, 1)
        x0, y0 = round(192 * share), round(64 * share)
        assert found["image"].shape == (3, 64, 64)
        boxes = []
        for box in ([25.6, 25.6, 76.8, 51.2], [102.4, 0, 230.4, 128]):
            left, top = max(box[0] - x0, 0), max(box[1] - y0, 0)
            right, bottom = min(box[2] - x0, 64), min(box[3] - y0, 64)
            if (
                box[2] > 200 and right > 0
            ):  # the triangle's slope is y = x - 102.4 before the crop: above it is the object
                bottom = min(bottom, right + x0 - 102.4 - y0)  # deepest at the right edge
                left = max(left, 102.4 + y0 + top - x0)  # widest at the upper edge
            if right - left > 1e-3 and bottom - top > 1e-3:
                boxes.append([left, top, right, bottom])
        assert torch.allclose(
            found["instances"].gt_boxes.tensor, torch.tensor(boxes).reshape(-1, 4), atol=1e-3
        )
        seen += len(boxes)
    assert seen > 8


def test_large_scale_jitter_flips_and_depends_on_the_seed_alone(tmp_path: Path) -> None:
    mapper, record = _jittered(tmp_path, (1.0, 1.0), "horizontal")
    lefts = set()
    for seed in range(12):
        np.random.seed(seed)
        lefts.add(round(mapper(record)["instances"].gt_boxes.tensor[0, 0].item(), 3))
    assert lefts == {6.4, 44.8}  # or 64 - 19.2
    mapper, record = _jittered(tmp_path, (0.1, 2.0), "horizontal")
    images = []
    for seed in (1, 1, 2):
        np.random.seed(seed)
        images.append(pickle.loads(pickle.dumps(mapper))(record)["image"])
    assert images[0].equal(images[1]) and images[0].shape != images[2].shape
    sizes = [mapper(record)["image"].shape[1:] for _ in range(60)]
    assert min(w for _, w in sizes) < 16 and max(w for _, w in sizes) == 64
    with pytest.raises(UserError, match=r"INPUT\.CROP and INPUT\.LSJ are both enabled"):
        _jittered(tmp_path, (0.1, 2.0), **{"INPUT.CROP.ENABLED": True})
