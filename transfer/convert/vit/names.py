"""The dialects in which projects name the tensors of a plain ViT, and their translation to timm's names.

Separate queries, keys and values become `attn.q`, `attn.k` and `attn.v`, which timm does not have; `fused` joins them.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch

from transfer.convert.tensor_names import Candidate, Dialect, Tensors, find_candidates

# Modules of a block, under timm's names
_BLOCK = r"norm[12]|attn\.(qkv|[qkv]|proj)|mlp\.fc[12]"
_PLACES = re.compile(
    rf"cls_token|reg_token|dist_token|pos_embed|(patch_embed\.proj|norm|blocks\.\d+\.({_BLOCK}))\.(weight|bias)"
    r"|blocks\.\d+\.ls[12]\.gamma"
)


def _known(name: str) -> str | None:
    return name if _PLACES.fullmatch(name) else None


def _timm(name: str) -> str | None:
    """Translate timm's own names, the registers of DINOv2, its chunks of blocks, and the LayerScale of DeiT III."""
    name = {"register_tokens": "reg_token"}.get(name, name)
    name = re.sub(
        r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name
    )  # DINOv2 numbers the blocks of all chunks together
    name = re.sub(r"^(blocks\.\d+)\.gamma_([12])$", r"\1.ls\2.gamma", name)
    return _known(name)


_HF_WHOLE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.register_tokens": "reg_token",
    "embeddings.distillation_token": "dist_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_HF_BLOCK = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "norm1": "norm1",
    "norm2": "norm2",
    "attention.attention.query": "attn.q",
    "attention.attention.key": "attn.k",
    "attention.attention.value": "attn.v",
    "attention.output.dense": "attn.proj",
    "attention.q_proj": "attn.q",
    "attention.k_proj": "attn.k",
    "attention.v_proj": "attn.v",
    "attention.o_proj": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_HF_LAYER = re.compile(r"(?:encoder\.layer|layers)\.(\d+)\.(.+)")


def _transformers(name: str) -> str | None:
    """Translate the names of Hugging Face's ViT, DeiT, ViT-MAE, DINO and DINOv2."""
    if name in _HF_WHOLE:
        return _HF_WHOLE[name]
    match = _HF_LAYER.fullmatch(name)
    if not match:
        return None
    block, rest = match.groups()
    if scale := re.fullmatch(r"layer_scale([12])\.lambda1", rest):
        return f"blocks.{block}.ls{scale[1]}.gamma"
    module, _, leaf = rest.rpartition(".")
    return _known(f"blocks.{block}.{_HF_BLOCK[module]}.{leaf}") if module in _HF_BLOCK else None


_TV_WHOLE = {
    "class_token": "cls_token",
    "encoder.pos_embedding": "pos_embed",
    "conv_proj.weight": "patch_embed.proj.weight",
    "conv_proj.bias": "patch_embed.proj.bias",
    "encoder.ln.weight": "norm.weight",
    "encoder.ln.bias": "norm.bias",
}
_TV_BLOCK = {
    "ln_1.": "norm1.",
    "ln_2.": "norm2.",
    "self_attention.in_proj_": "attn.qkv.",
    "self_attention.out_proj.": "attn.proj.",
    "mlp.0.": "mlp.fc1.",
    "mlp.3.": "mlp.fc2.",
    "mlp.linear_1.": "mlp.fc1.",
    "mlp.linear_2.": "mlp.fc2.",
}
_TV_LAYER = re.compile(r"encoder\.layers\.encoder_layer_(\d+)\.(.+?)(weight|bias)")


def _torchvision(name: str) -> str | None:
    """Translate the names of torchvision's VisionTransformer, whose queries, keys and values are one matrix."""
    if name in _TV_WHOLE:
        return _TV_WHOLE[name]
    match = _TV_LAYER.fullmatch(name)
    if not match or match[2] not in _TV_BLOCK:
        return None
    return _known(f"blocks.{match[1]}.{_TV_BLOCK[match[2]]}{match[3]}")


DIALECTS = (
    Dialect("timm", re.compile(r"(.*\.)?blocks\.(?:0\.)?[01]\.attn\.(?:qkv|proj)\.weight"), _timm),
    Dialect(
        "transformers",
        re.compile(
            r"(.*\.)?(?:encoder\.layer|layers)\.[01]\.attention\.(?:attention\.query|output\.dense|q_proj|o_proj)\.weight"
        ),
        _transformers,
    ),
    Dialect(
        "torchvision",
        re.compile(
            r"(.*\.)?encoder\.layers\.encoder_layer_[01]\.self_attention\.(?:in_proj_|out_proj\.)weight"
        ),
        _torchvision,
    ),
)


def find_vits(tensors: Mapping[str, Any]) -> list[Candidate]:
    """Return every network with a ViT's blocks in a file, in the file's order."""
    return find_candidates(tensors, DIALECTS)


def fused(network: Tensors) -> Tensors:
    """Join separate queries, keys and values to `attn.qkv`, in this order; what is not a complete triple stays."""
    joined: Tensors = {}
    for name, tensor in network.items():
        match = re.fullmatch(r"(blocks\.\d+\.attn)\.([qkv])\.(weight|bias)", name)
        if not match:
            joined[name] = tensor
            continue
        parts = [network.get(f"{match[1]}.{letter}.{match[3]}") for letter in "qkv"]
        likes = (tensor.shape, tensor.dtype)
        whole = [part for part in parts if part is not None and (part.shape, part.dtype) == likes]
        if len(whole) < 3 or not tensor.ndim or not tensor.is_floating_point():
            joined[name] = tensor
        elif match[2] == "q":
            joined[f"{match[1]}.qkv.{match[3]}"] = torch.cat(whole)
    return joined
