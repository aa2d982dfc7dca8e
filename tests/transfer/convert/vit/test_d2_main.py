"""Converted ViTs in the ViTDet of detectron2's main branch (`make test-d2-main`), with nothing of this project."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from detectron2 import modeling
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from tests.support.vit.layouts import FILES, vit
from transfer.convert.program.networks import convert_any
from transfer.convert.vit.lines import lazy_config
from transfer.convert.vit.recognise import build_vit, read_vit

pytestmark = pytest.mark.skipif(not hasattr(modeling, "ViT"), reason="detectron2 v0.6 does not have a ViT")


class Checkpointer(DetectionCheckpointer):
    """detectron2's, which also remembers what it could not place."""

    def _load_model(self, checkpoint):  # type: ignore[no-untyped-def]
        self.result = super()._load_model(checkpoint)
        return self.result


@torch.no_grad()
def test_the_file_fills_detectron2s_own_vitdet(tmp_path: Path) -> None:
    pytest.importorskip("timm")  # main's ViT is built of its parts
    torch.save(FILES["vit: moco v3"][1](vit(1, grid=14), vit(2, grid=14)), tmp_path / "a.pth")
    written = convert_any(tmp_path / "a.pth", tmp_path / "a.pkl", verify=False)
    # The settings of the line that the converter prints for a LazyConfig file
    (line,) = [
        line
        for line in lazy_config(written["preprocessing"], tmp_path / "a.pkl")
        if line.startswith("model.backbone.net.")
    ]
    options = eval(f"dict{line.removeprefix('model.backbone.net.update')}")  # our own line
    net = modeling.ViT(
        img_size=1024, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6), use_rel_pos=True, window_size=14,
        window_block_indexes=[0], out_feature="last_feat", **options,
    )  # fmt: skip
    pyramid = modeling.SimpleFeaturePyramid(net, "last_feat", 8, (4.0, 2.0, 1.0, 0.5))
    model = nn.Module()
    model.backbone = pyramid
    checkpointer = Checkpointer(model)
    checkpointer.load(str(tmp_path / "a.pkl"))
    own = re.compile(r"backbone\.(simfp_|net\.blocks\.\d\.attn\.rel_pos_[hw]$)")
    assert [name for name in checkpointer.result.missing_keys if not own.match(name)] == []
    assert not checkpointer.result.unexpected_keys and not checkpointer.result.incorrect_shapes
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)).double()
    expected = build_vit(read_vit(tmp_path / "a.pth")).double().tokens(images, extra=False)[-1]
    actual = net.double().eval()(images)["last_feat"].permute(0, 2, 3, 1)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
