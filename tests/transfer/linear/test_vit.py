"""The linear probe's features of a ViT: the class token after the final norm, as in MoCo v3."""

from pathlib import Path

import pytest
import torch
from torchvision.models import VisionTransformer
from torchvision.transforms import v2

from pretrain.common.errors import UserError
from pretrain.model.vit import ViT
from tests.support.checkpoints import plain_file
from tests.support.layouts import mlp, under
from tests.support.vit.layouts import vit
from transfer.convert.program.networks import convert_any
from transfer.linear import backbone as linear_backbone
from transfer.linear import config as linear_config

CPU = torch.device("cpu")


def settings(size: int = 48) -> linear_config.CfgNode:
    cfg = linear_config.defaults()
    cfg.INPUT.SIZE = size
    return cfg


def test_features_are_torchvisions(tmp_path: Path) -> None:
    network = VisionTransformer(
        image_size=48, patch_size=16, num_layers=2, num_heads=1, hidden_dim=64, mlp_dim=96, num_classes=5
    ).eval()
    path = plain_file(tmp_path / "a.pth", network.state_dict())
    backbone = linear_backbone.load(str(path), settings())
    images = torch.randint(0, 256, (3, 48, 48, 3), dtype=torch.uint8)
    extract = linear_backbone.Extractor(backbone, CPU)
    network.heads = torch.nn.Identity()
    batch = v2.functional.to_dtype(images.permute(0, 3, 1, 2), torch.float32, scale=True)
    with torch.no_grad():
        theirs = network(v2.functional.normalize(batch, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    assert extract.channels == 64
    torch.testing.assert_close(extract(images), theirs, rtol=1e-4, atol=1e-5)


def test_the_trained_encoder_is_probed_and_other_weights_have_another_digest(tmp_path: Path) -> None:
    state = under("module.base_encoder.", vit(1)) | under("module.momentum_encoder.", vit(2))
    path = plain_file(tmp_path / "a.pth", state | mlp("module.predictor.", "0"))
    base, momentum = (
        linear_backbone.load(str(path), settings(), branch=branch) for branch in ("", "momentum_encoder")
    )
    assert torch.equal(base.network.state_dict()["norm.bias"], vit(1)["norm.bias"])
    assert base.digest != momentum.digest and "mocov3" in base.what
    assert linear_backbone.describe_architecture(base.architecture).startswith("ViT, width 64, 2 blocks")
    assert linear_backbone.record_architecture(base.architecture)["heads"] == 1


def test_what_cannot_be_probed_is_refused(tmp_path: Path) -> None:
    path = plain_file(tmp_path / "a.pth", vit(1))
    with pytest.raises(
        UserError, match=r"INPUT\.SIZE 50: not a multiple of the ViT's patches of 16 pixels: set it to 48"
    ):
        linear_backbone.load(str(path), settings(50))
    convert_any(path, tmp_path / "a.pkl", verify=False)
    with pytest.raises(UserError, match="without the class token or the final norm"):
        linear_backbone.load(str(tmp_path / "a.pkl"), settings())


def test_random_weights_are_those_of_pre_training() -> None:
    """As `ViT`, which pre-training uses, draws them."""
    shape = ["MODEL.ARCH", "vit", "MODEL.VIT.WIDTH", "16", "MODEL.VIT.DEPTH", "2", "MODEL.VIT.HEADS", "2"]
    cfg = linear_config.load("linear/demo.yaml", [*shape, "INPUT.SIZE", "32", "SEED", "3"], folders=())
    backbone = linear_backbone.load("random", cfg)
    torch.manual_seed(3)
    theirs = ViT(width=16, depth=2, heads=2, patch_size=16, image_size=32).eval()
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    batch = v2.functional.to_dtype(images.permute(0, 3, 1, 2), torch.float32, scale=True)
    batch = v2.functional.normalize(batch, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = theirs(batch)
    torch.testing.assert_close(linear_backbone.Extractor(backbone, CPU)(images), expected)
    cfg = linear_config.load("linear/demo.yaml", [*shape, "INPUT.SIZE", "40"], folders=())
    with pytest.raises(UserError, match=r"INPUT\.SIZE 40: not a multiple .*: set it to 32"):
        linear_backbone.load("random", cfg)
    with pytest.raises(
        UserError, match=r"MODEL\.VIT\.WIDTH 18: must be a multiple of MODEL\.VIT\.HEADS 2 and of 4"
    ):
        linear_config.load("linear/demo.yaml", [*shape, "MODEL.VIT.WIDTH", "18"], folders=())
    with pytest.raises(UserError, match=r"are for ResNets: use MODEL\.VIT\.WIDTH for a ViT"):
        linear_config.load("linear/demo.yaml", [*shape, "MODEL.WIDTH", "0.5"], folders=())
    cfg = linear_config.load("linear/demo.yaml", ["MODEL.ARCH", "vitt"], folders=())
    with pytest.raises(UserError, match=r"MODEL\.ARCH vitt: unknown architecture; choose .*, vit$"):
        linear_backbone.load("random", cfg)
