"""Image files of all kinds reach a detector as detectron2 reads them, and as pre-training does where that is wrong."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, detection_utils
from PIL import Image

from pretrain.common.errors import UserError
from pretrain.data.decode import ImageFile, shown_size
from transfer.config.load import default_config
from transfer.data import images
from transfer.data.mapper import build_mapper
from transfer.metrics.cityscapes import CityscapesInstances, CityscapesLabels

RAMP = np.tile(np.linspace(0, 255, 128), (96, 1)).round()  # (96, 128), 0 to 255
COLOURS = np.random.default_rng(0).integers(0, 256, (24, 32, 4), dtype=np.uint8).repeat(4, 0).repeat(4, 1)


def _cfg() -> CfgNode:
    cfg = default_config()
    cfg.INPUT.FORMAT, cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = "RGB", (96,), 0
    cfg.INPUT.RANDOM_FLIP = "none"
    return cfg


def _mapped(path: Path, *, is_train: bool, size: tuple[int, int] = (128, 96)) -> np.ndarray:
    """What the model gets for an image, (H, W, 3). The mapper is pickled first, as for a worker of the loader."""
    mapper = pickle.loads(pickle.dumps(build_mapper(_cfg(), is_train=is_train)))
    record = {"file_name": str(path), "width": size[0], "height": size[1], "image_id": 1, "annotations": []}
    return mapper(record)["image"].numpy().transpose(1, 2, 0)


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("name", ["ramp.png", "ramp.tif", "int32.tif", "unit.tif", "float.tif"])
def test_more_than_eight_bits(tmp_path: Path, name: str, is_train: bool) -> None:
    values = {
        "ramp.png": (RAMP * 257).astype(np.uint16),
        "ramp.tif": (RAMP * 257).astype(np.uint16),
        "int32.tif": (RAMP * 257).astype(np.int32),
        "unit.tif": (RAMP / 255).astype(np.float32),
        "float.tif": RAMP.astype(np.float32),
    }[name]
    path = tmp_path / name
    Image.fromarray(values).save(path)
    theirs = detection_utils.read_image(str(path), "RGB")
    if name != "float.tif":  # the fault that `images` is for: white from 255 of 65535 on, or black
        assert np.abs(theirs[..., 0] - RAMP).max() > 100
    for pixels in (_mapped(path, is_train=is_train), images.read(str(path), "RGB")):
        assert pixels.dtype == np.uint8
        assert np.abs(pixels - RAMP[..., None]).max() <= 1
    assert np.array_equal(images.read(str(path), "RGB"), ImageFile(path.read_bytes()).decode())
    assert (
        detection_utils.read_image.__module__ == "detectron2.data.detection_utils"
    )  # it is not replaced for good


@pytest.mark.parametrize(
    "kind", ["RGB", "L", "RGBA", "LA", "1", "P", "P clear", "CMYK", "CMYK.jpg", "RGB16", "RGB.jpg"]
)
def test_eight_bits_are_read_as_by_detectron2(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("a.jpg" if kind.endswith(".jpg") else "a.tif" if kind == "CMYK" else "a.png")
    picture = Image.fromarray(COLOURS)
    if kind == "RGB16":
        import cv2

        cv2.imwrite(str(path), COLOURS[..., :3].astype(np.uint16) * 257)
    elif kind == "P clear":
        picture.convert("RGB").quantize(16).save(path, transparency=3)
    else:
        mode = kind.removesuffix(".jpg")
        picture.convert("RGB").convert("P" if mode == "P" else mode).save(path)
    for channels in ("RGB", "BGR", "L"):
        theirs = detection_utils.read_image(str(path), channels)
        ours = images.read(str(path), channels)
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs), channels
    assert np.array_equal(_mapped(path, is_train=False), images.read(str(path), "RGB"))
    pretraining = ImageFile(path.read_bytes()).decode().astype(int)
    # OpenCV's and Pillow's JPEG libraries may differ by a level
    assert np.abs(pretraining - images.read(str(path), "RGB")).max() <= (1 if kind == "RGB.jpg" else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_orientation(tmp_path: Path, orientation: int, ending: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{ending}"
    Image.fromarray(COLOURS).convert("RGB").save(path, exif=exif)
    ours = images.read(str(path), "RGB")
    assert np.array_equal(ours, detection_utils.read_image(str(path), "RGB"))
    assert shown_size(path) == ours.shape[1::-1] == ((128, 96) if orientation < 5 else (96, 128))
    deep = tmp_path / "deep.png"  # 16-bit pictures are turned as well
    Image.fromarray((RAMP * 257).astype(np.uint16)).save(deep, exif=exif)
    flat = tmp_path / "flat.png"
    Image.fromarray(RAMP.astype(np.uint8)).save(flat, exif=exif)
    assert np.array_equal(images.read(str(deep), "BGR"), detection_utils.read_image(str(flat), "BGR"))
    assert shown_size(deep) == shown_size(flat)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_data_are_ignored(tmp_path: Path, kind: str) -> None:
    path, picture = tmp_path / "a", Image.fromarray(COLOURS).convert("RGB")
    options = {"lossless": True} if kind == "WEBP" else {}
    picture.save(path, kind, exif=b"Exif\0\0not a TIFF header", **options)
    ours = images.read(str(path), "RGB")
    assert np.array_equal(ours, detection_utils.read_image(str(path), "RGB"))
    assert np.abs(ImageFile(path.read_bytes()).decode().astype(int) - ours).max() <= (kind == "JPEG")
    assert shown_size(path) == (128, 96)


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("fault", ["heights", "negative", "broken", "text", "missing", "size"])
def test_what_is_refused(tmp_path: Path, fault: str, is_train: bool) -> None:
    path = tmp_path / "a.tif"
    if fault == "heights":
        Image.fromarray((RAMP * 12).astype(np.float32)).save(path)
    elif fault == "negative":
        Image.fromarray(RAMP.astype(np.int32) - 100).save(path)
    elif fault == "broken":
        path = tmp_path / "a.png"
        Image.fromarray(COLOURS).save(path)
        path.write_bytes(path.read_bytes()[:700])
    elif fault == "text":
        path.write_text("no image")
    elif fault == "size":
        Image.fromarray(COLOURS[:-1]).save(path)
    expected = {
        "heights": "values from 0.0 to 3060.0 are not colours", "negative": "values from -100 to 155 are not colours",
        "broken": "not a readable image", "text": "not a readable image", "missing": "No such file",
        "size": r"\(128, 95\)",
    }  # fmt: skip
    with pytest.raises(UserError, match=expected[fault]) as error:
        _mapped(path, is_train=is_train)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    if fault not in ("broken", "size"):  # the header does not show these two
        with pytest.raises(ValueError, match=expected[fault]):
            shown_size(path)


@pytest.mark.parametrize("evaluator", [CityscapesInstances, CityscapesLabels])
def test_what_the_scripts_of_cityscapes_open_is_checked_first(tmp_path: Path, evaluator: type) -> None:
    name = f"labels_{evaluator.__name__}"
    MetadataCatalog.get(name).gt_dir = str(tmp_path)
    (tmp_path / "ulm").mkdir()
    path = tmp_path / "ulm/ulm_000000_000019_gtFine_instanceIds.png"
    Image.fromarray(RAMP.astype(np.uint8)).save(path)
    evaluator(name)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=f"{path.name}: not a readable image: it is not a regular file"):
        evaluator(name)
