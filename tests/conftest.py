"""Shared set-up of the tests: one thread per process, and small image folders."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch loads: test processes share the machine's few cores

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import transfer  # noqa: F401 (its import hook comes before any test imports detectron2)
from tests.support import scripts

torch.set_num_threads(1)
# `distributed.spawn` starts fresh interpreters; forking instead saves each process about four seconds of imports. The
# tests in end_to_end/ start the tools as users do.
torch.multiprocessing.spawn = scripts.spawn


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that makes JPEG folders: `image_folder(count=8, size=(64, 48), classes=(), seed=0)` -> path.

    `size` is (width, height) in pixels. The images are smooth random colours, all different. With `classes`,
    each class folder gets `count` images; each call makes a new folder.
    """

    def make(
        count: int = 8, size: tuple[int, int] = (64, 48), classes: tuple[str, ...] = (), seed: int = 0
    ) -> Path:
        folder = tmp_path / f"images{len(list(tmp_path.glob('images*')))}"
        rng = np.random.default_rng(seed)
        for name in classes or ("",):
            (folder / name).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
                picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
                picture.save(folder / name / f"{index:04d}.jpg")
        return folder

    return make
