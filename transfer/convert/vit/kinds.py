"""Where each kind of checkpoint stores its ViT, and how many heads it has: one entry per kind.

The entries are like those of `transfer.convert.layouts`, with what only a ViT needs. A new kind needs an entry and a
fixture.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pretrain.common.errors import UserError
from pretrain.tensor_files.read_any import Loaded
from pretrain.yaml_text import parse_yaml
from transfer.convert.architecture import FLOATS
from transfer.convert.layouts import LAYOUTS, Layout
from transfer.convert.preprocessing import MAX_CONFIG
from transfer.convert.tensor_names import Tensors


@dataclass(frozen=True)
class Kind(Layout):
    """One kind of checkpoint.

    Attributes:
        heads: width -> number of heads, where that is not the usual number.
        eps: of the norms, where the file's `config.json` does not state it.
        interpolation: a key of `transfer.convert.vit.notes.INTERPOLATIONS`, if the project's code resizes the table of
            positions in another way than the detectors' ViT.
    """

    heads: Mapping[int, int] = field(default_factory=dict)
    eps: float = 1e-6
    interpolation: str = ""


_STUDENT = r"student(\.backbone)?"
_TEACHER = r"teacher(\.backbone)?"

# The order matters: the first entry that matches a file wins.
KINDS: dict[str, Layout] = {
    # ViT-S has 12 heads here, and 6 elsewhere.
    "mocov3": Kind(r"base_encoder", "the base encoder", over=r"momentum_encoder", heads={384: 12}),
    # With the encoder alone, MAE's files look like DeiT's, which makes no difference.
    "mae": Kind(r"(model)?", "the encoder", evidence=r"(^|\.)decoder_blocks\.\d", dialect="timm"),
    "ibot": Kind(_TEACHER, "the teacher", over=_STUDENT, evidence=r"(^|\.)masked_embed$", interpolation="offset"),
    "dinov2": Kind(
        r"(teacher(\.backbone)?|model)?", "the teacher", over=_STUDENT, evidence=r"(^|[^_])mask_token$", dialect="timm",
        interpolation="offset",
    ),
    "dino": Kind(_TEACHER, "the teacher", over=_STUDENT, interpolation="offset"),
    "solo": LAYOUTS["solo"],
    "lightly": LAYOUTS["lightly"],
    "detectron2": Kind(r"(model\.)?backbone\.net", "the backbone", dialect="timm"),
    "transformers": Kind(
        r"(?!(.*\.)?decoder$).*", "the encoder", over=r"(.*\.)?decoder", dialect="transformers", eps=1e-12
    ),
    "torchvision": Kind(r"(model)?", dialect="torchvision", interpolation="corners"),
    "timm": Kind(r"(model|network|backbone)?", dialect="timm", interpolation="antialias"),
}  # fmt: skip
# The larger networks of all families have 16 heads; smaller ones a head for each 64 channels.
_LARGE = {1152: 16, 1280: 16, 1408: 16, 1664: 16}
FLAG = "--heads"


def read_heads(
    path: Path, kind: str, loaded: Loaded, network: Tensors, *, width: int, given: int | None
) -> tuple[int, str]:
    """Return the number of heads, which no tensor shows, and where it comes from.

    It is stated by `--heads`, the record of a converted file, the config in a file of this project's pre-training, or a
    `config.json` next to the file; otherwise the kind decides.

    Raises:
        UserError: it cannot be known; the message names the flag.
    """
    if given is not None:
        if given < 1:
            raise UserError(f"{FLAG} {given}: give a number above 0")
        return given, f"as {FLAG} says"
    settings = loaded.other.get("preprocessing")
    recorded = settings.get("MODEL.VIT.HEADS") if isinstance(settings, dict) else None
    if isinstance(recorded, int) and _is_count(recorded):
        return recorded, "as its record states"
    if (configured := _configured_heads(loaded)) is not None:
        return configured, "as its config states"
    if _is_count(loaded.card.get("num_attention_heads")):
        return int(loaded.card["num_attention_heads"]), "as its config.json states"
    layout = KINDS.get(kind)
    known = layout.heads if isinstance(layout, Kind) else {}
    if width in known:
        return known[width], f"as in all {kind} ViTs of width {width}"
    if width in (192, 384) and _class_position_is_zero(network):
        if kind == "solo":
            return 12, "as in all of solo-learn's ViTs of this width with positions of sines and cosines"
        usual = width // 64
        raise UserError(
            f"{path}: its number of heads cannot be known: a width of {width} and a position of zeros for the class "
            f"token fit MoCo v3's, MAE-Lite's and solo-learn's ViTs, which have 12 heads, and others with {usual}: add "
            f"{FLAG} 12 or {FLAG} {usual}"
        )
    if width in _LARGE:
        return _LARGE[width], f"assumed, as usual for width {width} (to change it: {FLAG})"
    if width % 64:
        raise UserError(
            f"{path}: its number of heads cannot be known: its width, {width}, is not a multiple of 64: give it with "
            f"{FLAG} N"
        )
    return width // 64, f"assumed, one for each 64 channels (to change it: {FLAG})"


def _configured_heads(loaded: Loaded) -> int | None:
    """Return the heads that the config in a checkpoint of tools/pretrain.py states."""
    text = loaded.other.get("config")
    if not isinstance(text, str) or "iterations_per_epoch" not in loaded.other:
        return None
    try:
        value = parse_yaml(text[:MAX_CONFIG])["MODEL"]["VIT"]["HEADS"]
    except (KeyError, TypeError, ValueError):
        return None
    return value if isinstance(value, int) and _is_count(value) else None


def _is_count(value: object) -> bool:
    return type(value) is int and 0 < value <= 1 << 12


def _class_position_is_zero(network: Tensors) -> bool:
    """Return whether the class token's position is zero, as in fixed tables of sines and cosines."""
    table = network.get("pos_embed")
    if table is None or table.ndim != 3 or table.dtype not in FLOATS or 0 in table.shape:
        return False
    return table.shape[1] > 1 and not bool(table[0, 0].any())


def read_eps(kind: str, loaded: Loaded, *, layer_scale: bool) -> float:
    """Return the epsilon of the norms, which no tensor shows: as a record or `config.json` states, or the kind's."""
    settings = loaded.other.get("preprocessing")
    recorded = settings.get("MODEL.VIT.NORM_EPS") if isinstance(settings, dict) else None
    for value in (recorded, loaded.card.get("layer_norm_eps")):
        if type(value) is float and 0 < value < 1:
            return value
    layout = KINDS.get(kind)
    # Of transformers' networks, DINOv2's have LayerScale, and the usual epsilon.
    return layout.eps if isinstance(layout, Kind) and not layer_scale else 1e-6
