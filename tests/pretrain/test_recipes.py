"""Every pre-training recipe compared with a table written from the papers, and a real step of each."""

import re

import pytest
import torch
import torchvision

from pretrain import config
from pretrain.data.on_device import Pixels
from pretrain.model import build, moco, norm
from pretrain.train.step import METRICS, train_step
from tests.support.scripts import ROOT

CPU = torch.device("cpu")
FOLDER = ROOT / "configs/pretrain"
RECIPES = sorted(p.stem for p in FOLDER.glob("*.yaml") if not p.name.startswith("base_"))

# He et al. 2020, Sec. 3.3 (128-d, temperature 0.07, ShuffleBN, one layer after the pooling, 224-pixel crops), Sec. 4
# (SGD with weight decay 1e-4 and momentum 0.9, 256 images on 8 GPUs, rate 0.03, 200 epochs, x 0.1 at 120 and 160),
# Sec. 4.1 (K 65536, m 0.999). Group size: the images of one GPU. Scale of crops: the authors' published script.
V1 = {
    "MODEL.ARCH": "resnet50", "MODEL.WIDTH": 1.0, "MODEL.DIM": 128, "MODEL.HEAD": "linear",
    "MODEL.NORM": "ShuffleBN", "MODEL.BN_GROUP_SIZE": 256 // 8, "MODEL.COMPILE": False,
    "MOCO.MECHANISM": "moco", "MOCO.K": 65536, "MOCO.M": 0.999, "MOCO.T": 0.07, "MOCO.SHUFFLE": True,
    "INPUT.SIZE": 224, "INPUT.AUG": "v1", "INPUT.WITHOUT": [], "INPUT.MIN_SCALE": 0.2,
    "INPUT.MEAN": [0.485, 0.456, 0.406], "INPUT.STD": [0.229, 0.224, 0.225],
    "SOLVER.BASE_LR": 0.03, "SOLVER.IMS_PER_BATCH": 256, "SOLVER.MOMENTUM": 0.9, "SOLVER.WEIGHT_DECAY": 1e-4,
    "SOLVER.SCHEDULE": "step", "SOLVER.STEPS": [120, 160], "SOLVER.MAX_EPOCH": 200, "SOLVER.MAX_ITER": 0,
    "SOLVER.AMP": "off",  # the published script has no autocast
}  # fmt: skip
# Chen et al. 2020, Sec. 3: MLP head, temperature 0.2, "aug+", cosine.
HEAD, VIEWS, COSINE = {"MODEL.HEAD": "mlp", "MOCO.T": 0.2}, {"INPUT.AUG": "v2"}, {"SOLVER.SCHEDULE": "cosine"}
V2 = {**V1, **HEAD, **VIEWS, **COSINE}
TABLE = {
    "moco_v1_R50": V1,  # He et al., Table 1
    "moco_v1_R101": {**V1, "MODEL.ARCH": "resnet101"},
    "moco_v1_RX50": {**V1, "MODEL.ARCH": "resnext50_32x8d"},
    "moco_v1_R50w2x": {**V1, "MODEL.WIDTH": 2.0},
    "moco_v1_R50w4x": {**V1, "MODEL.WIDTH": 4.0},
    # Sec. 4.1 and Figure 3: 1024 images on 8 GPUs, learning rate scaled in proportion
    "endtoend_R50": {
        **V1, "MOCO.MECHANISM": "endtoend", "SOLVER.IMS_PER_BATCH": 1024, "SOLVER.BASE_LR": 0.03 * 1024 / 256,
        "MODEL.BN_GROUP_SIZE": 1024 // 8,
    },
    "memorybank_R50": {**V1, "MOCO.MECHANISM": "memorybank", "MOCO.BANK_M": 0.5},  # m of Wu et al. 2018
    # Sec. 4, IG-1B: 1024 images on 64 GPUs, 0.12, x 0.9 every 62.5k iterations, 1.25M of them
    "ig1b_style_R50": {
        **V1, "SOLVER.IMS_PER_BATCH": 1024, "MODEL.BN_GROUP_SIZE": 1024 // 64, "SOLVER.BASE_LR": 0.12,
        "SOLVER.SCHEDULE": "exponential", "SOLVER.GAMMA": 0.9, "SOLVER.GAMMA_PERIOD": 62_500,
        "SOLVER.MAX_ITER": 1_250_000, "SOLVER.MAX_EPOCH": 1_000_000,
    },
    "moco_v2_R50": V2,  # Chen et al., Table 1
    "moco_v2_R50_200ep": V2,
    "moco_v2_R50_800ep": {**V2, "SOLVER.MAX_EPOCH": 800},
    "moco_v2_R50_syncbn": {**V2, "MODEL.NORM": "SyncBN"},
    "moco_v2_table1_a_R50": {**V1, **HEAD},
    "moco_v2_table1_b_R50": {**V1, **VIEWS},
    "moco_v2_table1_c_R50": {**V1, **HEAD, **VIEWS},
    "moco_v2_table1_d_R50": V2,
}  # fmt: skip
DEMOS = {"laptop_R18", "demo_R18", "demo_R50w50", "demo_mechanism", "demo_ViT"}
# Chen, Xie and He 2021 (MoCo v3), Sec. 4 and 5, and CONFIG.md of the authors' code. Their rates are for 256 images.
V3 = {
    "MODEL.DIM": 256, "MODEL.HIDDEN": 4096, "MODEL.NORM": "SyncBN", "MODEL.COMPILE": False,
    "MOCO.MECHANISM": "mocov3", "MOCO.M": 0.99, "INPUT.SIZE": 224, "INPUT.AUG": "v3", "INPUT.WITHOUT": [],
    "INPUT.MEAN": [0.485, 0.456, 0.406], "INPUT.STD": [0.229, 0.224, 0.225],
    "SOLVER.IMS_PER_BATCH": 4096, "SOLVER.SCHEDULE": "warmup_cosine", "SOLVER.MAX_ITER": 0, "SOLVER.CHUNK": 0,
    "SOLVER.AMP": "fp16",
}  # fmt: skip
V3_RESNET = {
    **V3, "MODEL.ARCH": "resnet50", "MODEL.WIDTH": 1.0, "MOCO.T": 1.0, "INPUT.MIN_SCALE": 0.2,
    "SOLVER.OPTIMIZER": "lars", "SOLVER.MOMENTUM": 0.9, "SOLVER.WARMUP_EPOCHS": 10, "SOLVER.WEIGHT_DECAY": 1e-6,
}  # fmt: skip
V3_VIT = {
    **V3, "MODEL.ARCH": "vit", "MODEL.VIT.DEPTH": 12, "MODEL.VIT.HEADS": 12, "MODEL.VIT.PATCH_SIZE": 16,
    "MOCO.T": 0.2, "INPUT.MIN_SCALE": 0.08, "SOLVER.OPTIMIZER": "adamw", "SOLVER.BASE_LR": 1.5e-4 * 4096 / 256,
    "SOLVER.WEIGHT_DECAY": 0.1, "SOLVER.WARMUP_EPOCHS": 40, "SOLVER.MAX_EPOCH": 300,
}  # fmt: skip
TABLE |= {
    "moco_v3_R50_100ep": {**V3_RESNET, "SOLVER.BASE_LR": 0.6 * 4096 / 256, "SOLVER.MAX_EPOCH": 100},
    "moco_v3_R50_300ep": {**V3_RESNET, "SOLVER.BASE_LR": 0.3 * 4096 / 256, "SOLVER.MAX_EPOCH": 300},
    "moco_v3_R50_1000ep": {
        **V3_RESNET, "SOLVER.BASE_LR": 0.3 * 4096 / 256, "SOLVER.MAX_EPOCH": 1000, "SOLVER.WEIGHT_DECAY": 1.5e-6,
        "MOCO.M": 0.996,
    },
    "moco_v3_ViTS": {**V3_VIT, "MODEL.VIT.WIDTH": 384},  # 12 heads, unlike DeiT-S
    "moco_v3_ViTB": {**V3_VIT, "MODEL.VIT.WIDTH": 768},
}  # fmt: skip


def get(cfg: object, key: str) -> object:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def test_table_is_complete() -> None:
    assert set(RECIPES) == set(TABLE) | DEMOS


@pytest.mark.parametrize("name", TABLE)
def test_settings_are_the_papers(name: str) -> None:
    cfg = config.load(f"pretrain/{name}.yaml")
    assert {key: get(cfg, key) for key in TABLE[name]} == TABLE[name]
    assert name == cfg.OUTPUT_DIR.removeprefix("output/")
    others = config.load("pretrain/moco_v2_R50.yaml")
    for key in ("KNN", "LOG", "SEED", "DEVICE"):  # recipes do not change these
        assert cfg[key] == others[key]


@pytest.mark.parametrize("name", RECIPES)
def test_first_comment_names_paper_number_and_hours(name: str) -> None:
    comment = re.match(r"(#.*\n)+", (FOLDER / f"{name}.yaml").read_text())[0].replace("\n# ", " ")
    assert re.search(r"(He|Chen) et al\. 202[01]|moco_v1_R50|MoCo v1", comment)
    assert re.search(r"\d\d\.\d %|AP \d\d\.\d|[Nn]o published number", comment)
    assert re.search(r"hours|minutes|days", comment)
    published = {  # He et al. Table 1, Figure 3; Chen et al. Table 1
        "moco_v1_R50": "60.6", "moco_v1_RX50": "63.9", "moco_v1_R50w2x": "65.4", "moco_v1_R50w4x": "68.6",
        "endtoend_R50": "57.3", "memorybank_R50": "58.0", "moco_v2_table1_a_R50": "66.2",
        "moco_v2_table1_b_R50": "63.4", "moco_v2_table1_c_R50": "67.3", "moco_v2_table1_d_R50": "67.5",
        "moco_v2_R50": "67.5", "moco_v2_R50_200ep": "67.5", "moco_v2_R50_800ep": "71.1", "ig1b_style_R50": "57.2",
        # CONFIG.md of MoCo v3
        "moco_v3_R50_100ep": "68.9", "moco_v3_R50_300ep": "72.8", "moco_v3_R50_1000ep": "74.6",
        "moco_v3_ViTS": "73.2", "moco_v3_ViTB": "76.7",
    }  # fmt: skip
    assert published.get(name, "") in comment


@pytest.mark.parametrize("name", RECIPES)
def test_takes_a_step(name: str) -> None:
    """The network is small and images are few, but mechanism, head, normalisation and optimizer are the recipe's."""
    cfg = config.load(f"pretrain/{name}.yaml")
    small = ["SOLVER.IMS_PER_BATCH", "4", "MODEL.BN_GROUP_SIZE", "2", "MOCO.K", "16", "MODEL.HIDDEN", "32"]
    if cfg.MODEL.ARCH == "vit":
        small += [
            "MODEL.VIT.WIDTH",
            "48",
            "MODEL.VIT.DEPTH",
            "2",
            "MODEL.VIT.PATCH_SIZE",
            "16",
            "INPUT.SIZE",
            "64",
        ]
    else:
        small += ["MODEL.WIDTH", str(cfg.MODEL.WIDTH / 8)]
    cfg = config.load(f"pretrain/{name}.yaml", small)
    model, optimizer, _ = build.build(cfg, CPU, images=12, decide=False)
    views = tuple(torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8) for _ in range(2))
    before = [p.detach().clone() for p in model.trained()]
    metrics = train_step(
        model, optimizer, views, pixels=Pixels(cfg.INPUT.MEAN, cfg.INPUT.STD), images=torch.arange(4),
        order=moco.key_order(cfg, 0),
    )  # fmt: skip
    assert torch.isfinite(metrics).all() and len(metrics) == len(METRICS)
    for old, new in zip(before, model.trained(), strict=True):
        # Blocks that start as the identity (MoCo v3) have no gradient inside in the first step.
        assert not torch.equal(old, new) or not new.grad.any()


@pytest.mark.parametrize(
    ("name", "head"), [("moco_v1_R50", 2048 * 128 + 128), ("moco_v2_R50", 2048 * 2049 + 128 * 2049)]
)
def test_size_is_torchvisions_plus_the_head(name: str, head: int) -> None:
    cfg = config.load(f"pretrain/{name}.yaml")
    with torch.device("meta"):
        encoder = build.encoder_maker(cfg, norm.norm_layer(cfg, CPU))()
        reference = torchvision.models.resnet50()
    backbone = sum(p.numel() for key, p in reference.named_parameters() if not key.startswith("fc."))
    assert sum(p.numel() for p in encoder.parameters()) == backbone + head


@pytest.mark.parametrize(
    ("name", "printed", "backbone", "with_layer"),  # millions
    [
        ("moco_v1_R50", 24, 23.508, 23.770), ("moco_v1_RX50", 46, 45.973, 46.235),
        ("moco_v1_R50w2x", 94, 93.907, 94.431), ("moco_v1_R50w4x", 375, 375.378, 376.427),
        ("moco_v1_R101", None, 42.500, 42.762),
    ],
)  # fmt: skip
def test_sizes_of_table_1(name: str, printed: int | None, backbone: float, with_layer: float) -> None:
    """He et al. Table 1, "#params (M)", gives the size of the backbone: 24, 46, 94, 375. It omits plain ResNet-101.

    Counted: weights and biases of one encoder's convolutions and batch norms (scale and shift). Not counted:
    running statistics, the second encoder, the queue, the 1000-way classifier of the linear protocol, and the
    128-d layer after the pooling. With that layer, all stay within 1 M of the table except R50w4x, whose layer
    alone has 1.05 M: 376.4.
    """
    with torch.device("meta"):
        cfg = config.load(f"pretrain/{name}.yaml")
        encoder = build.encoder_maker(cfg, norm.norm_layer(cfg, CPU))()
    assert encoder.fc.out_features == 128
    layer = sum(p.numel() for p in encoder.fc.parameters()) / 1e6
    total = sum(p.numel() for p in encoder.parameters()) / 1e6
    assert total - layer == pytest.approx(backbone, abs=1e-3) and total == pytest.approx(with_layer, abs=1e-3)
    if printed:
        assert round(total - layer) == printed
        assert abs(total - printed) < (1 if name != "moco_v1_R50w4x" else 1.5)


def test_a_stream_of_any_length_ends_after_its_iterations() -> None:
    """MAX_EPOCH of the IG-1B recipe is never reached before MAX_ITER if an epoch has two steps or more."""
    solver = config.load("pretrain/ig1b_style_R50.yaml").SOLVER
    for images in (2 * 1024, 1_281_167, 940_000_000):
        assert solver.MAX_EPOCH * (images // solver.IMS_PER_BATCH) >= solver.MAX_ITER
    assert pytest.approx(1.36, abs=0.01) == solver.MAX_ITER * solver.IMS_PER_BATCH / 940e6  # "~1.4 epochs"
