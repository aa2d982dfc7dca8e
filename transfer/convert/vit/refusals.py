"""Explain why a vision transformer in a file cannot be converted, and what to do instead."""

import re
from collections.abc import Iterable
from pathlib import Path

import torch

from pretrain.tensor_files.read_any import Loaded
from transfer.convert.tensor_names import Tensors

_PLAIN = "the detectors' ViT does not have them: give a plain ViT's checkpoint"
ROPE = (
    "its positions are rotary (RoPE), which turn queries and keys in every block and are not in a table, and the "
    "detectors' ViT adds a table of positions: use DINOv2 or another ViT with one"
)
_DINOV3 = r"(^|\.)storage_tokens$|\.attn\.qkv\.bias_mask$|(^|\.)rope_embed\.periods$"
# Pattern of a tensor's name in the file -> why no file with it can be converted. The first one that matches counts.
_FAMILIES = {
    _DINOV3: f"it holds DINOv3's ViT ({{name}}): {ROPE}",
    r"(^|\.)(rope|rotary)\w*\.|\.rope\.|(^|\.)freqs(_cis|_t_[xy])?$": f"it holds a ViT with {{name}}: {ROPE}",
    r"relative_position_bias|(^|\.)rel_pos_bias\.|relative_position_index": (
        f"it holds a transformer with relative position biases ({{name}}), as BEiT and Swin have; {_PLAIN}"
    ),
    r"\.mlp\.(w1|w2|w3|w12|fc1_g|fc1_x|weights_in|weights_out|gate_proj|up_proj|down_proj)\.": (
        f"it holds a ViT with gated MLPs (SwiGLU, {{name}}), as DINOv2's giant network has; {_PLAIN}"
    ),
    r"\.attn\.(q_bias|v_bias)$": f"it holds a ViT with biases of queries and values only ({{name}}); {_PLAIN}",
    r"\.attn\.(q_norm|k_norm|norm)\.|\.mlp\.norm\.": f"it holds a ViT with further norms ({{name}}); {_PLAIN}",
}
# The same for names within the network
_INSIDE = {
    r"attn\.rel_pos_[hw]$": (
        "it holds a ViT with trained relative positions ({name}), as ViTDet's detectors have, which a plain ViT does "
        "not: give the checkpoint that it was initialised from"
    ),
    r"norm_pre\.|ln_pre\.|pre_layrnorm\.": (
        f"it holds a ViT with a norm before its blocks ({{name}}), as CLIP's; {_PLAIN}"
    ),
    r"patch_embed\.(backbone|proj\.\d|conv\d|stem|norm)": (
        "it holds a ViT whose patch embedding is not one convolution ({name}), as MoCo v3's conv variants and hybrids "
        "with a ResNet; the detectors' ViT has one convolution: give a plain ViT's checkpoint"
    ),
}
# timm's names, and those of the files of "Rotary Position Embedding for Vision Transformer" (Heo et al. 2024)
_ROTARY = re.compile(r"\b(vit\w*_rope|rope_(axial|mixed))(?![a-z])")
_POST_NORM = re.compile(r"\bvit\w*_rpn(?![a-z])")
_MLP = ("blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight")
# Names that look like parts of a ViT. If one has no place in it, the network is of another kind.
TRUNK_LIKE = re.compile(
    r"(blocks|encoder\.layers?|layers|patch_embed|norm|norm_pre|ln|ln_pre|pre_layrnorm|embeddings\.patch_embeddings)\b"
    r"|(?!decoder)\w*pos(ition)?_embed"
)


def of_file(names: Iterable[str]) -> str:
    """Return why a file with a ViT under these names cannot be converted, or an empty string."""
    return _first(_FAMILIES, list(names))


def inside(names: Iterable[str]) -> str:
    """Return why a ViT with tensors of these names cannot be converted, or an empty string."""
    return _first(_INSIDE, list(names))


def _first(table: dict[str, str], names: list[str]) -> str:
    for pattern, reason in table.items():
        if name := next((name for name in names if re.search(pattern, name)), ""):
            return reason.format(name=name)
    return ""


def of_name(path: Path, loaded: Loaded) -> str:
    """Return why the network is not the plain ViT that its tensors look like, or an empty string.

    Rotary positions along the axes have no tensors, and timm's `rpn` networks have a plain ViT's, with the norms after
    the branches. Only the file's `arch`, the `config.json` next to it or the file's name can show the difference.
    """
    for where, text in (
        ("its `arch`", loaded.other.get("arch")),
        ("its config.json", loaded.card.get("architecture")),
        ("its name", path.name),
    ):
        if not isinstance(text, str):
            continue
        if found := _ROTARY.search(text):
            return f"it holds a ViT with rotary positions ({where} contains {found[0][:60]}): {ROPE}"
        if found := _POST_NORM.search(text):
            return (
                f"it holds a ViT with norms after its residual branches ({where} contains {found[0][:60]}), and the "
                "detectors' ViT has them before: give a plain ViT's checkpoint"
            )
    return ""


def of_network(loaded: Loaded, network: Tensors, dialect: str) -> str:
    """Return why a network under timm's names cannot be converted, or an empty string."""
    kernel = network.get("patch_embed.proj.weight")
    if kernel is not None and kernel.ndim == 5:
        shape = tuple(kernel.shape)
        return f"it holds a ViT for videos (patch_embed.proj.weight of shape {shape}): give one for images"
    if kernel is not None and kernel.ndim == 4 and kernel.shape[1] != 3:
        return (
            f"patch_embed.proj.weight takes {kernel.shape[1]} input channels; detection images have 3: keep only the "
            "kernels of red, green and blue, save the file, and convert that"
        )
    if kernel is not None and kernel.ndim == 4 and kernel.shape[2] != kernel.shape[3]:
        return f"its patches have {kernel.shape[2]} x {kernel.shape[3]} pixels; the detectors' ViT has square patches"
    sizes = [tuple(network[name].shape) for name in _MLP if name in network]
    if len(sizes) == 2 and len(sizes[0]) == len(sizes[1]) == 2 and sizes[0][0] == 2 * sizes[1][1]:
        return (
            f"it holds a ViT with gated MLPs (SwiGLU: blocks.0.mlp.fc1 gives twice what fc2 takes); {_PLAIN}"
        )
    act = loaded.card.get("hidden_act", "gelu")
    if dialect == "transformers" and act != "gelu":
        return f"it holds a ViT with activation {str(act)[:20]!a} (see its config.json); the detectors' ViT has GELU"
    integers = (torch.int8, torch.uint8, torch.qint8)
    if quantised := next((name for name, tensor in network.items() if tensor.dtype in integers), ""):
        return f"tensor {quantised} holds {network[quantised].dtype}, so the file is quantised: give the float file"
    return ""
