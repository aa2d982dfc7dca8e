"""A file of every known layout with a ViT, from names and shapes: its two networks hold different random values.

The names are written down from what each project's code or documentation says, not from our table.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch

from tests.support.checkpoints import State
from tests.support.layouts import lightning, mlp, under

WIDTH, DEPTH, HIDDEN, GRID = 64, 2, 96, 3
NOT_IN_DETECTORS = ("cls_token", "reg_token", "norm.weight", "norm.bias")


def vit(
    seed: int,
    *,
    width: int = WIDTH,
    depth: int = DEPTH,
    hidden: int = HIDDEN,
    grid: int = GRID,
    patch: int = 16,
    registers: int = 0,
    layer_scale: bool = False,
    class_position: bool = True,
) -> State:
    """A small ViT under timm's names, every tensor random."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.2

    def norm(name: str) -> State:
        return {f"{name}.weight": normal(width) + 1, f"{name}.bias": normal(width)}

    def linear(name: str, rows: int, columns: int) -> State:
        return {f"{name}.weight": normal(rows, columns), f"{name}.bias": normal(rows)}

    state = {"cls_token": normal(1, 1, width), "pos_embed": normal(1, grid**2 + class_position, width)}
    if registers:
        state["reg_token"] = normal(1, registers, width)
    state |= {
        "patch_embed.proj.weight": normal(width, 3, patch, patch) / 4,
        "patch_embed.proj.bias": normal(width),
    }
    for number in range(depth):
        block = f"blocks.{number}."
        state |= norm(f"{block}norm1") | linear(f"{block}attn.qkv", 3 * width, width)
        state |= linear(f"{block}attn.proj", width, width)
        state |= norm(f"{block}norm2") | linear(f"{block}mlp.fc1", hidden, width)
        state |= linear(f"{block}mlp.fc2", width, hidden)
        if layer_scale:
            state |= {f"{block}ls1.gamma": normal(width), f"{block}ls2.gamma": normal(width)}
    return state | norm("norm")


def transformers_names(state: State, *, dino: bool = False, version: int = 4) -> State:
    """The names of Hugging Face's `ViTModel` or, with `dino`, `Dinov2Model`, of version 4 or 5 of transformers."""
    norms = ("norm1", "norm2") if dino else ("layernorm_before", "layernorm_after")
    mlp = dino or version == 5
    modules = {
        "norm1": norms[0],
        "norm2": norms[1],
        "attn.proj": "attention.output.dense" if version == 4 else "attention.o_proj",
        "mlp.fc1": "mlp.fc1" if mlp else "intermediate.dense",
        "mlp.fc2": "mlp.fc2" if mlp else "output.dense",
    }
    whole = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "reg_token": "embeddings.register_tokens",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }
    renamed = {}
    for name, tensor in state.items():
        if name in whole:
            renamed[whole[name]] = tensor
            continue
        _, number, rest = name.split(".", 2)
        module, leaf = rest.rsplit(".", 1)
        layer = f"layers.{number}." if version == 5 and not dino else f"encoder.layer.{number}."
        if module == "attn.qkv":
            for part, word in zip(tensor.chunk(3), ("query", "key", "value"), strict=True):
                place = f"attention.attention.{word}" if version == 4 else f"attention.{word[0]}_proj"
                renamed[f"{layer}{place}.{leaf}"] = part.clone()
        elif module in ("ls1", "ls2"):
            renamed[f"{layer}layer_scale{module[-1]}.lambda1"] = tensor
        else:
            renamed[f"{layer}{modules[module]}.{leaf}"] = tensor
    return renamed


def torchvision_names(state: State) -> State:
    """Those of torchvision's VisionTransformer."""
    whole = {
        "cls_token": "class_token",
        "pos_embed": "encoder.pos_embedding",
        "patch_embed.proj.weight": "conv_proj.weight",
        "patch_embed.proj.bias": "conv_proj.bias",
        "norm.weight": "encoder.ln.weight",
        "norm.bias": "encoder.ln.bias",
    }
    parts = {
        "norm1.weight": "ln_1.weight",
        "norm1.bias": "ln_1.bias",
        "attn.qkv.weight": "self_attention.in_proj_weight",
        "attn.qkv.bias": "self_attention.in_proj_bias",
        "attn.proj.weight": "self_attention.out_proj.weight",
        "attn.proj.bias": "self_attention.out_proj.bias",
        "norm2.weight": "ln_2.weight",
        "norm2.bias": "ln_2.bias",
        "mlp.fc1.weight": "mlp.0.weight",
        "mlp.fc1.bias": "mlp.0.bias",
        "mlp.fc2.weight": "mlp.3.weight",
        "mlp.fc2.bias": "mlp.3.bias",
    }
    renamed = {}
    for name, tensor in state.items():
        if name in whole:
            renamed[whole[name]] = tensor
        else:
            _, number, rest = name.split(".", 2)
            renamed[f"encoder.layers.encoder_layer_{number}.{parts[rest]}"] = tensor
    return renamed


def chunked(state: State, size: int = 1) -> State:
    """DINOv2's blocks in chunks: `blocks.C.N`, where N counts the blocks of all chunks."""
    renamed = {}
    for name, tensor in state.items():
        if name.startswith("blocks."):
            _, number, rest = name.split(".", 2)
            name = f"blocks.{int(number) // size}.{number}.{rest}"
        renamed[name] = tensor
    return renamed


def _mocov3(q: State, k: State) -> Any:
    heads = mlp("module.base_encoder.head.", "0", "1.bn", "3") | mlp("module.momentum_encoder.head.", "0")
    state = under("module.momentum_encoder.", k) | under("module.base_encoder.", q) | heads
    state |= mlp("module.predictor.", "0", "3")
    return {"epoch": 300, "arch": "vit_small", "state_dict": state, "optimizer": {}, "scaler": {"scale": 1.0}}


def _dino(q: State, k: State, *, masked: bool = False) -> Any:
    student = under("module.backbone.", k) | mlp("module.head.mlp.", "0", "2")
    if masked:
        student["module.backbone.masked_embed"] = torch.zeros(1, WIDTH)
    return {
        "student": student,
        "teacher": under("backbone.", q) | mlp("head.mlp.", "0", "2"),
        "epoch": 800,
        "args": argparse.Namespace(arch="vit_small"),
    }


def _mae(q: State, k: State) -> Any:
    decoder = {f"decoder_{name}": tensor for name, tensor in k.items() if name.startswith("blocks.")}
    decoder |= {
        "mask_token": torch.zeros(1, 1, 32),
        "decoder_pos_embed": torch.zeros(1, 10, 32),
        "decoder_embed.weight": torch.zeros(32, WIDTH),
        "decoder_norm.weight": torch.ones(32),
        "decoder_pred.weight": torch.zeros(768, 32),
    }
    return {"model": q | decoder, "optimizer": {}, "epoch": 799, "args": argparse.Namespace(mask_ratio=0.75)}


def _with_mask(q: State) -> State:
    return q | {"mask_token": torch.zeros(1, WIDTH)}


def _distilled(q: State, k: State) -> Any:
    """DeiT's: a second token, with its position after the class token's."""
    token = {"dist_token": torch.randn(1, 1, WIDTH)}
    table = torch.cat([q["pos_embed"][:, :1], torch.randn(1, 1, WIDTH), q["pos_embed"][:, 1:]], dim=1)
    return {"model": q | token | {"pos_embed": table} | mlp("", "head", "head_dist")}


def _detector(q: State, k: State) -> Any:
    """A ViTDet whose relative positions are still zero, and which lacks what no detector has."""
    net = {name: tensor for name, tensor in q.items() if name not in NOT_IN_DETECTORS}
    net |= {f"blocks.{n}.attn.rel_pos_{side}": torch.zeros(27, WIDTH) for n in range(DEPTH) for side in "hw"}
    return {"model": under("backbone.net.", net) | {"backbone.simfp_4.0.weight": torch.zeros(8, WIDTH, 1, 1)}}


# name -> (the kind expected, file from a query and a key network); both are as of `vit`, without LayerScale
FILES: dict[str, tuple[str, Callable[[State, State], Any]]] = {
    "vit: moco v3": ("mocov3", _mocov3),
    "vit: dino full": ("dino", _dino),
    "vit: ibot full": ("ibot", lambda q, k: _dino(q, k, masked=True)),
    "vit: mae full": ("mae", _mae),
    "vit: mae encoder": ("timm", lambda q, k: {"model": dict(q)}),
    "vit: dinov2": ("dinov2", lambda q, k: _with_mask(q)),
    "vit: dinov2 training": (
        "dinov2",
        lambda q, k: {
            "teacher": under("backbone.", chunked(_with_mask(q))) | mlp("dino_head.mlp.", "0"),
            "student": under("backbone.", chunked(_with_mask(k))) | mlp("dino_head.mlp.", "0"),
        },
    ),
    "vit: timm": ("timm", lambda q, k: q | mlp("", "head")),
    "vit: deit distilled": ("timm", _distilled),
    "vit: transformers": (
        "transformers",
        lambda q, k: under("vit.", transformers_names(q)) | mlp("", "classifier"),
    ),
    "vit: transformers 5": ("transformers", lambda q, k: transformers_names(q, version=5)),
    "vit: transformers dinov2": (
        "transformers",
        lambda q, k: under("dinov2.", transformers_names(q, dino=True)),
    ),
    "vit: torchvision": ("torchvision", lambda q, k: torchvision_names(q) | mlp("heads.", "head")),
    "vit: solo": (
        "solo",
        lambda q, k: lightning(
            under("backbone.", q) | under("momentum_backbone.", k) | mlp("projector.", "0", "2")
        ),
    ),
    "vit: detector": ("detectron2", _detector),
    "vit: in a Lightning module": (
        "unknown",
        lambda q, k: lightning(under("model.encoder.", q) | mlp("model.head.", "0")),
    ),
}
