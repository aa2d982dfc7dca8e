"""The comparison of view pipelines: alternation, printed numbers, and the pipelines themselves."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as tv

from pretrain import config
from pretrain.benchmark import views
from pretrain.benchmark.fake_photos import fake_photo, to_jpeg
from pretrain.common.errors import UserError
from pretrain.data.views import pair_without
from tests.support.scripts import run_script


def test_pipelines_take_turns_and_the_first_round_is_not_counted() -> None:
    calls: list[str] = []
    pipelines = {name: lambda data, name=name: calls.append(name) for name in ("ours", "pillow")}
    speeds = views.interleave(pipelines, [b"", b""], rounds=2)
    assert calls == 3 * (["ours"] * 2 + ["pillow"] * 2)
    assert [len(values) for values in speeds.values()] == [2, 2]


@pytest.mark.parametrize("make", [views.pillow, views.tensors])
def test_torchvisions_pipelines_end_in_normalised_tensors(make: object) -> None:
    cfg = config.defaults()
    cfg.INPUT.SIZE, cfg.INPUT.MIN_SCALE = 32, 1.0
    data = to_jpeg(Image.new("RGB", (32, 32), (200, 100, 50)))
    plain = pair_without("v3", ["flip", "jitter", "gray", "blur", "solarize"])
    wanted = tv.normalize(
        tv.to_tensor(Image.new("RGB", (32, 32), (200, 100, 50))), cfg.INPUT.MEAN, cfg.INPUT.STD
    )
    for view in make(plain, cfg)(data):  # type: ignore[operator]
        assert view.shape == (3, 32, 32) and torch.allclose(view, wanted, atol=0.1)
    assert make(pair_without("v1", ()), cfg)(data)[0].shape == (3, 32, 32)  # type: ignore[operator]


def test_made_pictures_are_as_photographs_are() -> None:
    """Neighbouring pixels are similar, strong edges are rare, and a JPEG is as large as a photograph's."""
    pixels = np.asarray(fake_photo(0), float)
    assert pixels.shape == (375, 500, 3)
    step = np.diff(pixels, axis=1)
    assert np.corrcoef(pixels[:, 1:].ravel(), pixels[:, :-1].ravel())[0, 1] > 0.9
    assert (step**4).mean() / (step**2).mean() ** 2 > 6  # Gaussian noise has 3
    assert 40_000 < len(to_jpeg(fake_photo(0))) < 130_000


def test_command_prints_both_tables(tmp_path: object) -> None:
    fake_photo(0).save(f"{tmp_path}/a.png")
    done = run_script(
        "tools/benchmark.py", "views", "--images", f"{tmp_path}", "--rounds", "1", "INPUT.SIZE", "64"
    )
    assert done.returncode == 0, done.stderr
    assert (
        all(f"{name} views" in done.stdout for name in ("v1", "v2", "v3"))
        and "torchvision v1 on PIL" in done.stdout
    )
    refused = run_script("tools/benchmark.py", "views", "--rounds", "0")
    assert refused.returncode and refused.stderr.splitlines() == ["error: --rounds: give 1 or more"]


def test_a_broken_image_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match=r"a\.jpg: it cannot be read as an image \(.*\): remove it"):
        views.jpegs_of(str(tmp_path))
