"""Colours and blur on a GPU: the results of the CPU, without waiting for them."""

import random

import numpy as np
import pytest
import torch

from pretrain.data import on_device
from pretrain.data.views import RECIPES, draw, pack, recolour
from tests.gpu.real import DEVICE, GPU, no_waiting
from tests.support.photographs import close, crops

pytestmark = GPU


@pytest.mark.parametrize("recipe", RECIPES)
def test_views_equal_the_cpus_and_nothing_waits(recipe: str) -> None:
    """Of the same choices: the byte-by-byte path of the loader, and the batch path on a CPU."""
    pixels = crops(2, 112)
    views = [
        draw(random.Random(n), RECIPES[recipe], width=112, height=112, min_scale=1.0)
        for n in range(len(pixels))
    ]
    images, choices = torch.from_numpy(np.stack(pixels)), torch.tensor([pack(view) for view in views])
    there, chosen = images.to(DEVICE), choices.to(DEVICE)
    on_device.finish(there, chosen, RECIPES[recipe])  # constants are copied at the first call
    with no_waiting():
        done = on_device.finish(there, chosen, RECIPES[recipe])
    assert done.device == DEVICE and done.dtype == torch.uint8
    close(
        list(done.cpu().numpy()),
        [recolour(*pair, RECIPES[recipe]) for pair in zip(pixels, views, strict=True)],
    )
    batch = on_device.finish(images, choices, RECIPES[recipe])
    difference = (done.cpu().int() - batch.int()).abs()
    assert difference.max() <= 2 and (difference > 0).float().mean() < 0.01
