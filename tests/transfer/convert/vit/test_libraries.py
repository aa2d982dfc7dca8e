"""ViTs built and saved by other libraries: the network that is read computes what the library's own computes."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

from pretrain.common.errors import UserError
from tests.transfer.convert.test_libraries import library, save
from transfer.convert.program.networks import convert_any, export_any, read_any
from transfer.convert.vit.recognise import VitSource, build_vit, read_vit

IMAGE = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).double()


def randomise(network: nn.Module) -> nn.Module:
    """Give every parameter a random value: many begin at 0 or 1, LayerScale at a tiny number."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.normal_(0, 0.1, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter += 1
    return network.eval()


@torch.no_grad()
def assert_computes(
    source: VitSource, blocks: list[torch.Tensor], feature: torch.Tensor | None = None
) -> None:
    """Compare patch tokens after each block, (N, patches, C), and the class token after the final norm."""
    network = build_vit(source).double()
    ours = [tokens.flatten(1, 2) for tokens in network.tokens(IMAGE)]
    assert len(ours) == len(blocks)
    for a, b in zip(ours, blocks, strict=True):
        # The sum of a register and its position is rounded to float32.
        torch.testing.assert_close(a, b[:, b.shape[1] - a.shape[1] :], rtol=1e-6, atol=1e-6)
    if feature is not None:
        torch.testing.assert_close(network.feature(IMAGE), feature, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def outputs(network: nn.Module, blocks: Any) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return what each block gives, and the network's output."""
    found: list[torch.Tensor] = []
    for block in blocks:
        block.register_forward_hook(lambda _, __, output: found.append(output))
    output = network.double()(IMAGE)
    return found, output


def test_torchvision(tmp_path: Path) -> None:
    network = randomise(
        VisionTransformer(
            image_size=64, patch_size=16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=48, num_classes=7
        )
    )
    torch.save(network.state_dict(), tmp_path / "a.pth")
    network.heads = nn.Identity()
    source = read_vit(tmp_path / "a.pth", heads=2)
    assert (source.kind, source.dropped) == ("torchvision", {"heads": 2})
    assert_computes(source, *outputs(network, network.encoder.layers))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {}),
        ("vit_tiny_patch16_224", {"init_values": 1.0, "reg_tokens": 4}),  # positions of registers
        ("vit_tiny_patch16_224", {"init_values": 1.0, "reg_tokens": 4, "no_embed_class": True}),
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg", "fc_norm": False}),
        ("vit_tiny_patch16_224", {"qkv_bias": False}),
        ("deit_tiny_distilled_patch16_224", {}),
    ],
)
@torch.no_grad()
def test_timm(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    sizes = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3}
    network = randomise(
        library("timm").create_model(name, pretrained=False, num_classes=0, **sizes, **options)
    )
    card = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    path = save(tmp_path / "model.safetensors", network.state_dict(), architecture=name, pretrained_cfg=card)
    source = read_vit(path, heads=3)
    assert source.kind == "timm" and source.input.mean == (127.5,) * 3
    blocks, feature = outputs(network, network.blocks)
    if "distilled" not in name:
        assert_computes(source, blocks, feature)
        assert source.dropped == {}
        # The line that is printed for timm loads what was written.
        load = export_any(path, tmp_path / "back.pth", to="timm", overwrite=False, heads=3)[-1]
        again = eval(load.removeprefix("load").strip(), {"timm": library("timm")})
        torch.testing.assert_close(again.double().eval()(IMAGE), feature, rtol=1e-6, atol=1e-6)
    convert_any(path, tmp_path / "a.pkl", heads=3)
    load = export_any(tmp_path / "a.pkl", tmp_path / "kept.pth", to="timm", overwrite=False)[-1]
    made, _, loaded = load.removeprefix("load").strip().partition(".load_state_dict")
    assert loaded == f"(torch.load({str(tmp_path / 'kept.pth')!r}), strict=False)"
    kept = eval(made, {"timm": library("timm")})
    missing = kept.load_state_dict(torch.load(tmp_path / "kept.pth"), strict=False)
    assert (
        set(missing.missing_keys) <= {"cls_token", "norm.weight", "norm.bias"} and not missing.unexpected_keys
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vit_giant_patch14_dinov2", "SwiGLU"),
        ("vit_base_patch16_clip_224", "a norm before its blocks"),
        ("vit_small_patch16_dinov3", "RoPE"),
        ("eva02_tiny_patch14_224", "biases of queries and values only"),
        ("beit_base_patch16_224", "relative position biases"),
        ("swin_tiny_patch4_window7_224", "relative position biases"),
        ("cait_xxs24_224", "no place in a plain ViT"),
        ("vit_relpos_small_patch16_224", "no place in a plain ViT"),
        ("vit_tiny_r_s16_p8_224", "not one convolution"),
    ],
)
def test_other_transformers_of_timm_are_refused(tmp_path: Path, name: str, reason: str) -> None:
    with torch.device("meta"):  # initialising the weights would take longer than the rest of the test
        options = {"depth": 2} if re.match("vit|eva|beit", name) else {}
        network = library("timm").create_model(name, pretrained=False, **options)
    state = {key: torch.zeros(tensor.shape).half() for key, tensor in network.state_dict().items()}
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(UserError, match=reason):
        read_any(tmp_path / "a.pth")


@pytest.mark.parametrize("kind", ["ViT", "Dinov2", "Dinov2WithRegisters"])
@torch.no_grad()
def test_transformers(tmp_path: Path, kind: str) -> None:
    transformers = library("transformers")
    config = getattr(transformers, f"{kind}Config")(
        image_size=64, patch_size=16, hidden_size=48, num_hidden_layers=2, num_attention_heads=3,
        **({"intermediate_size": 96} if kind == "ViT" else {"mlp_ratio": 2}),
    )  # fmt: skip
    network = randomise(getattr(transformers, f"{kind}Model")(config)).double()
    expected = network(IMAGE, output_hidden_states=True)
    network.float().save_pretrained(tmp_path / "hub")
    source = read_vit(tmp_path / "hub" / "model.safetensors")
    assert (source.kind, source.shape.heads) == ("transformers", 3)
    assert source.shape.eps == config.layer_norm_eps
    assert_computes(source, list(expected.hidden_states[1:]), expected.last_hidden_state[:, 0])
    # Under the names within the library, which version 5 translates when it saves
    torch.save(network.state_dict(), tmp_path / "hub" / "pytorch_model.bin")
    other = read_vit(tmp_path / "hub" / "pytorch_model.bin")
    assert all(torch.equal(other.backbone[name], tensor) for name, tensor in source.backbone.items())
