"""The networks that the demo can pre-train and fine-tune, and the initialisations that each of them has."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Network:
    """A network, with its configs.

    Attributes:
        backbone: what the page calls it.
        pretrain: config of pre-training.
        finetune: config of fine-tuning.
        moco: the row of the weights that are pre-trained on the spot, a key of `transfer.demo.comparison.ROWS`.
        supervised: whether there is a released, supervised network of exactly this shape.
    """

    backbone: str
    pretrain: str
    finetune: str
    moco: str
    supervised: bool


RESNET = "resnet"
NETWORKS = {
    RESNET: Network(
        "ResNet", "pretrain/demo_R50w50.yaml", "transfer/demo_R50w50_FPN.yaml", "moco", supervised=True
    ),
    # No package was found that holds a pre-trained ViT.
    "vit": Network(
        "ViT", "pretrain/demo_ViT.yaml", "transfer/demo_ViT_SFP.yaml", "moco_v3", supervised=False
    ),
}
