"""Our ViT against torchvision's, against torch's bicubic resizing, and against the papers' formulas."""

import math
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from pretrain.model.vit import Attention, ViT, sincos_positions

SMALL: dict[str, Any] = {"width": 24, "depth": 3, "heads": 4, "patch_size": 8, "image_size": 32}


def random_vit(**options: Any) -> ViT:
    """A small ViT in float64 whose parameters, biases and tokens too, are all different from 0."""
    torch.manual_seed(0)
    vit = ViT(**{**SMALL, **options}).double()
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.3)
    return vit


def torchvision_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state of our ViT under the names of torchvision's."""
    names = {
        "cls_token": "class_token", "pos_embed": "encoder.pos_embedding", "patch_embed.proj": "conv_proj",
        "norm": "encoder.ln",
    }  # fmt: skip
    inside = {
        "norm1": "ln_1", "norm2": "ln_2", "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.3",
        "attn.qkv.weight": "self_attention.in_proj_weight", "attn.qkv.bias": "self_attention.in_proj_bias",
        "attn.proj": "self_attention.out_proj",
    }  # fmt: skip
    names |= {
        f"blocks.{n}.{a}": f"encoder.layers.encoder_layer_{n}.{b}"
        for n in range(3)
        for a, b in inside.items()
    }
    found = {}
    for name, value in state.items():
        stem = name if name in names else name.rpartition(".")[0]
        found[names[stem] + name.removeprefix(stem)] = value
    return found


def test_equals_torchvisions() -> None:
    ours = random_vit()
    theirs = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=3, num_heads=4, hidden_dim=24, mlp_dim=96
    ).double()
    theirs.heads = nn.Identity()
    theirs.load_state_dict(torchvision_names(ours.state_dict()))
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-12, atol=1e-12)

    blocks: list[torch.Tensor] = []
    for layer in theirs.encoder.layers:
        layer.register_forward_hook(lambda module, inputs, output: blocks.append(output))
    theirs(images)
    for own, block in zip(ours.tokens(images), blocks, strict=True):
        torch.testing.assert_close(own.flatten(1, 2), block[:, 1:], rtol=1e-12, atol=1e-12)


def test_without_the_class_token_the_patches_see_each_other_only() -> None:
    """Removing the class token's and the registers' columns from every attention is the same as not feeding them."""
    vit = random_vit(registers=2, layer_scale=True)
    alone = random_vit(class_token=False, layer_scale=True)
    state = vit.state_dict()
    state["pos_embed"] = state["pos_embed"][:, 1:]
    alone.load_state_dict({k: v for k, v in state.items() if k not in ("cls_token", "reg_token")})
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for fed, own in zip(vit.tokens(images, extra=False), alone.tokens(images), strict=True):
        torch.testing.assert_close(fed, own, rtol=1e-13, atol=1e-13)
    assert not torch.allclose(vit.tokens(images)[-1], vit.tokens(images, extra=False)[-1])
    mean = alone.norm(alone.tokens(images)[-1]).mean((1, 2))
    torch.testing.assert_close(alone(images), mean, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("class_position", [True, False])
def test_registers_and_class_token_stand_before_the_patches(class_position: bool) -> None:
    """A loop over queries, keys and heads, with layer scale and registers."""
    vit = random_vit(depth=1, registers=2, layer_scale=True, qkv_bias=False, class_position=class_position)
    image = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    positions = vit.pos_embed[0]
    assert len(positions) == 16 + class_position
    kernel = vit.patch_embed.proj.weight.flatten(1)
    first = vit.cls_token[0, 0] + (positions[0] if class_position else 0)  # type: ignore[index]
    x = [first, *vit.reg_token[0]]  # type: ignore[index]
    for row in range(4):
        for column in range(4):
            patch = image[0, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].flatten()
            position = positions[class_position + 4 * row + column]
            x.append(kernel @ patch + vit.patch_embed.proj.bias + position)
    (block,) = vit.blocks
    qkv = [block.attn.qkv.weight @ block.norm1(token) for token in x]
    for place, token in enumerate(x):
        heads = []
        for head in range(4):
            q, k, v = (slice(24 * part + 6 * head, 24 * part + 6 * head + 6) for part in range(3))
            scores = torch.stack([qkv[place][q] @ other[k] / math.sqrt(6) for other in qkv]).softmax(0)
            heads.append(sum(score * other[v] for score, other in zip(scores, qkv, strict=True)))
        y = token + block.ls1.gamma * block.attn.proj(torch.cat(heads))
        hidden = block.mlp.fc1(block.norm2(y))
        gelu = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        y = y + block.ls2.gamma * block.mlp.fc2(gelu)
        if place == 0:
            torch.testing.assert_close(vit(image)[0], vit.norm(y), rtol=1e-12, atol=1e-12)
        if place >= 3:
            own = vit.tokens(image)[0][0].flatten(0, 1)[place - 3]
            torch.testing.assert_close(own, y, rtol=1e-12, atol=1e-12)


def test_positions_of_another_image_size_are_interpolated() -> None:
    vit = random_vit(depth=1)
    resized = random_vit(depth=1, image_size=48)
    state = vit.state_dict()
    table = state["pos_embed"][:, 1:].reshape(4, 4, 24).permute(2, 0, 1)[None]
    new = nn.functional.interpolate(table, size=(6, 6), mode="bicubic", align_corners=False)
    state["pos_embed"] = torch.cat([state["pos_embed"][:, :1], new[0].permute(1, 2, 0).reshape(1, 36, 24)], 1)
    resized.load_state_dict(state)
    images = torch.randn(1, 3, 48, 48, dtype=torch.float64)
    torch.testing.assert_close(vit(images), resized(images), rtol=1e-13, atol=1e-13)
    assert vit.tokens(torch.zeros(2, 3, 16, 40, dtype=torch.float64))[0].shape == (2, 2, 5, 24)
    with pytest.raises(ValueError, match="36 x 32 pixels do not divide into patches of 8"):
        vit(torch.zeros(1, 3, 32, 36))


def test_sincos_positions() -> None:
    """Against the formula, written out for single entries."""
    table = sincos_positions(16, (3, 5))[0].reshape(3, 5, 4, 4)
    for row, column, channel in [(0, 0, 0), (2, 1, 3), (1, 4, 2)]:
        wave = 10000 ** (-channel / 4)
        expected = [f(wave * place) for place in (row, column) for f in (math.sin, math.cos)]
        torch.testing.assert_close(table[row, column, :, channel], torch.tensor(expected))


def test_initialisation_is_moco_v3s() -> None:
    torch.manual_seed(0)
    vit = ViT(width=192, depth=2, heads=3)
    assert torch.equal(vit.pos_embed[0, 0], torch.zeros(192))
    assert torch.equal(vit.pos_embed[:, 1:], sincos_positions(192, (14, 14)))
    assert 0.5e-6 < vit.cls_token.std() < 1.5e-6  # type: ignore[union-attr]
    for module in vit.modules():
        if isinstance(module, Attention):
            bound = math.sqrt(
                6 / (192 + 192)
            )  # that of q, k and v each; together it would be sqrt(6 / (4 * 192))
            for part in module.qkv.weight.chunk(3):
                assert 0.99 * bound < part.abs().max() <= bound
        if isinstance(module, nn.Linear):
            assert not module.bias.any()
    assert vit.patch_embed.proj.weight.abs().max() <= math.sqrt(6 / (3 * 256 + 192))


def test_shapes_and_names_of_vit_base() -> None:
    with torch.device("meta"):
        vit = ViT(width=768, depth=12, heads=12)
    shapes = {name: tuple(value.shape) for name, value in vit.state_dict().items()}
    assert shapes["pos_embed"] == (1, 197, 768) and shapes["cls_token"] == (1, 1, 768)
    assert shapes["patch_embed.proj.weight"] == (768, 3, 16, 16)
    assert shapes["blocks.11.attn.qkv.weight"] == (2304, 768)
    assert shapes["blocks.0.mlp.fc2.weight"] == (768, 3072)
    assert len(shapes) == 4 + 12 * 12 + 2
    assert (
        sum(math.prod(shape) for shape in shapes.values()) == 85_798_656
    )  # as timm counts vit_base_patch16_224
