"""The picture of view pairs: its pixels are those used in training, and its captions give their parameters."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pretrain import config
from pretrain.data import views_sheet
from pretrain.data.folders import find_images
from pretrain.data.loader import ViewPairs
from pretrain.data.views import View
from tests.support.scripts import run_script

SIZE = 224  # not enlarged


def _config(folder: Path, *more: str):
    return config.load("pretrain/moco_v2_R50.yaml", ["DATA.TRAIN", str(folder), *more])


def _inside(picture: np.ndarray, part: np.ndarray) -> bool:
    """Return whether the picture contains the part, pixel by pixel."""
    windows = np.lib.stride_tricks.sliding_window_view(picture[..., 1], part.shape[:2])[:, :, 0, :]
    rows, columns = np.nonzero((windows == part[0, :, 1]).all(-1))
    height, width = part.shape[:2]
    return any(
        np.array_equal(picture[y : y + height, x : x + width], part)
        for y, x in zip(rows, columns, strict=True)
    )


@pytest.mark.parametrize("where", ["cpu", "gpu"])
def test_the_views_are_those_of_the_first_epoch(image_folder: Callable[..., Path], where: str) -> None:
    cfg = _config(image_folder(3), "INPUT.VIEWS", where)
    files = find_images(cfg.DATA.TRAIN, key="DATA.TRAIN")
    picture = views_sheet.draw(files, cfg, count=2)
    pairs = ViewPairs(files, _config(Path(cfg.DATA.TRAIN[0])))
    first, second, third = map(int, files.order(cfg.SEED, 0))
    for index in (first, second):
        assert all(_inside(picture, view) for view in (pairs[0, index].query, pairs[0, index].key))
    assert not _inside(picture, pairs[0, third].query) and not _inside(picture, pairs[1, first].query)


def test_small_views_are_enlarged_for_their_captions(image_folder: Callable[..., Path]) -> None:
    cfg = _config(image_folder(1), "INPUT.SIZE", "32")
    files = find_images(cfg.DATA.TRAIN, key="DATA.TRAIN")
    sample = ViewPairs(files, cfg)[0, 0]
    assert _inside(views_sheet.draw(files, cfg), sample.query.repeat(7, axis=0).repeat(7, axis=1))


def test_rows_of_eight(image_folder: Callable[..., Path]) -> None:
    cfg = _config(image_folder(10))
    files = find_images(cfg.DATA.TRAIN, key="DATA.TRAIN")
    eight, nine = (views_sheet.draw(files, cfg, count=count) for count in (8, 9))
    assert nine.shape == (2 * len(eight), *eight.shape[1:]) and np.array_equal(nine[: len(eight)], eight)
    assert views_sheet.draw(files, cfg, count=99).shape == nine.shape
    columns = [np.asarray(column) for column in views_sheet.columns(Image.fromarray(eight))]
    assert len(columns) == 8
    for column, index in zip(columns, map(int, files.order(cfg.SEED, 0)), strict=False):
        sample = ViewPairs(files, cfg)[0, index]
        assert _inside(column, sample.query) and _inside(column, sample.key)


def test_unreadable_images_are_said_to_be(image_folder: Callable[..., Path]) -> None:
    folder = image_folder(2)
    cfg = _config(folder)
    files = find_images(cfg.DATA.TRAIN, key="DATA.TRAIN")
    (folder / "0000.jpg").write_bytes(b"no image")
    pairs = ViewPairs(files, cfg)
    assert _inside(views_sheet.draw(files, cfg), pairs[0, 1].query)  # replaced, as in training
    (folder / "0001.jpg").write_bytes(b"no image")
    assert _inside(views_sheet.draw(files, cfg), np.full((SIZE, SIZE, 3), 128, np.uint8))


def test_captions_name_every_choice() -> None:
    jitter = (("hue", -0.05), ("brightness", 1.25), ("saturation", 0.7), ("contrast", 1.0))
    assert views_sheet._caption(View((12, 34, 100, 90), jitter, True, 1.26, True)) == [
        "100 x 90 at (12, 34)", "hue -0.05  bri 1.25  sat 0.70  con 1.00", "gray, blur 1.3, flipped"
    ]  # fmt: skip
    assert views_sheet._caption(View((0, 0, 5, 5), (), False, 0.0, False)) == [
        "5 x 5 at (0, 0)", "no jitter", "no blur, no flip"
    ]  # fmt: skip


def test_the_command(image_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = str(image_folder(3))
    command = ["tools/visualize.py", "views", "--config", "pretrain/moco_v1_R50.yaml", "DATA.TRAIN", folder]
    done = run_script(
        *command, "--output", str(tmp_path / "deep" / "views.png"), "--count", "2", "INPUT.SIZE", "64"
    )
    assert done.returncode == 0, done.stderr
    cfg = config.load("pretrain/moco_v1_R50.yaml", ["DATA.TRAIN", folder, "INPUT.SIZE", "64"])
    expected = views_sheet.draw(find_images([folder], key="DATA.TRAIN"), cfg, count=2)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "deep" / "views.png")), expected)
