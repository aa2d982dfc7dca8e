"""Where each kind of checkpoint stores its ResNet: one entry per kind. A new kind needs an entry and a test fixture.

A *branch* is the path to a network's tensors in the file, such as `encoder_q`, without wrappers that carry no
information (`state_dict`, `module`, `_orig_mod`). Most files hold two networks; the entry states which one to take.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from transfer.convert.preprocessing import CAFFE, IMAGENET, MSRA, SWAV, UNIT, Input


@dataclass(frozen=True)
class Layout:
    """One kind of checkpoint.

    Attributes:
        wanted: pattern of the branch to take.
        why: what that branch is; printed and recorded.
        over: pattern of branches that such files also hold but that are not taken.
        evidence: pattern that must match in at least one tensor name (without wrappers).
        as_written: whether the names for `evidence` keep their wrappers, such as `module`.
        dialect: the only dialect of `transfer.convert.tensor_names` that the entry applies to; empty: any.
        input: the preprocessing that the network expects.
        elsewhere: stages that such files may store outside the branch: torchvision's name -> branch.
        padded_pooling: whether the stem pools with one pixel of padding, as torchvision and detectron2 do. Caffe pools
            without, and rounds the size up: one row and column further.
        guess: whether `--source auto` may choose this kind.
    """

    wanted: str
    why: str = "the only network"
    over: str = ""
    evidence: str = ""
    as_written: bool = False
    dialect: str = ""
    input: Input = IMAGENET
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    padded_pooling: bool = True
    guess: bool = True


# The order matters: the first entry that matches a file wins.
LAYOUTS = {
    "moco": Layout(r"(model\.)?encoder_q", "the query encoder", over=r"(model\.)?encoder_k"),
    "mocov3": Layout(r"base_encoder", "the base encoder", over=r"momentum_encoder"),
    "dino": Layout(r"teacher(\.backbone)?", "the teacher", over=r"student(\.backbone)?"),
    "instanceloc": Layout(
        r"backbone",
        "the query backbone",
        over=r"backbone_k",
        evidence=r"^(backbone_k|neck_k|roi_head)\.",
        elsewhere={"layer4": "roi_head.shared_head"},
    ),
    "openselfsup": Layout(
        r"backbone",
        "the backbone, under training the query or online one",
        over=r"(encoder_k|target_net)\.0|(momentum|teacher|target)_?(backbone|encoder)?(\.0)?",
        evidence=r"^(encoder_[qk]|online_net|target_net)\.0\.|^(neck|head)\.",
    ),
    "byol": Layout(
        r"(.*\.)?online(_network|_encoder|_net)?(\.(encoder|backbone|net|0))*",
        "the online network",
        over=r"(.*\.)?target(_network|_encoder|_net)?(\.(encoder|backbone|net|0))*",
    ),
    "lightly-moco": Layout(
        r"query_backbone", "the query encoder; `backbone` is the key's", over=r"backbone|key_backbone"
    ),
    "lightly": Layout(
        r"backbone",
        "the backbone that lightly's own evaluation uses",
        over=r"(student|teacher|momentum|key|target)_backbone|backbone_(momentum|key|teacher|student)",
        evidence=r"^(projection_head|prediction_head|online_classifier|student_\w+|backbone_momentum)\.",
    ),
    "simsiam": Layout(r"encoder", "the encoder", evidence=r"^encoder\.fc\.\d"),
    "barlowtwins": Layout(r"(model\.)?backbone", "the backbone", evidence=r"^(model\.)?bn\.running_mean$"),
    "vicreg": Layout(r"model\.backbone", "the backbone", evidence=r"^model\.projector\."),
    "solo": Layout(
        r"(backbone\.)?encoder|backbone",
        "the online backbone",
        over=r"(backbone\.)?momentum_(backbone|encoder)",
        evidence=r"^((momentum_)?projector|predictor|prototypes|momentum_\w+)\.|^classifier\.(weight|bias)$",
    ),
    "soco": Layout(
        r"model\.encoder",
        "the online encoder",
        over=r"model\.encoder_k|model_ema\.encoder",
        evidence=r"^model\.(neck|neck_k|head_k)\.",
    ),
    "pixpro": Layout(
        r"model\.encoder", "the online encoder", over=r"model\.encoder_k", evidence=r"^model\.encoder_k\."
    ),
    # Its DistributedDataParallel is evidence: without, every Lightning module with an `encoder` in its `model` is one.
    "pycontrast": Layout(
        r"model\.encoder",
        "the trained encoder",
        over=r"model_ema\.encoder",
        evidence=r"(^|state_dict\.)model\.(module\.)+head(_jig)?\.",
        as_written=True,
    ),
    "vissl": Layout(r"(.*\.)?_feature_blocks", "the trunk"),
    "swav": Layout(
        r"(model)?", "the network", evidence=r"^(model\.)?(projection_head|prototypes)\.", input=SWAV
    ),
    "detectron2": Layout(
        r"(model)?(\.?backbone(\.bottom_up)?)?",
        "the backbone",
        dialect="detectron2",
        elsewhere={"layer4": "roi_heads"},
    ),
    "caffe": Layout(r"", dialect="caffe", input=CAFFE, padded_pooling=False),
    "caffe2": Layout(r"(blobs|model)?", dialect="caffe2", input=MSRA, padded_pooling=False),
    "transformers": Layout(r"(model)?(\.?resnet)?", dialect="transformers"),
    "simclr": Layout(r"(model)?", input=UNIT, guess=False),
    "torchvision": Layout(r"(model|network)?", dialect="torchvision"),
}
