"""The experiments of the MoCo paper, and of ViTDet, value by value, each value with its source.

Data only, for tasks and schedules; the models are in `transfer.config.paper_models` and, with ViTs, in
`transfer.config.paper_vit`. `transfer.config.explain` compares
a configuration with it.
"""

from dataclasses import dataclass

from transfer.config.paper_models import A5, C4, DC5, FCN, FPN, OPEN, REPO, SEC42, Facts, stated
from transfer.config.paper_vit import CUSTOM_VIT_S, VIT_B_25, VIT_B_100, VIT_S_25, VIT_T_640

_A4 = "He et al. 2020, App. A.4"
_LVIS = "detectron2 zoo, LVISv0.5 R50-FPN: the baseline that App. A.4 follows"
_KEYPOINT = "detectron2 zoo, Base-Keypoint-RCNN-FPN; OpenSelfSup"
_CITY = OPEN + "detectron2 zoo, Cityscapes R50-FPN; OpenSelfSup"


@dataclass(frozen=True)
class Recipe:
    """One experiment.

    Attributes:
        experiment: its place in the paper, or that it is not in the paper.
        zoo: detectron2's most similar config under its `configs/`; if empty, only its defaults are used.
        facts: the effective values with their sources.
    """

    experiment: str
    zoo: str
    facts: Facts


def _schedule(source: str, steps: tuple[int, ...], end: int) -> Facts:
    return stated(source, {"SOLVER.STEPS": steps, "SOLVER.MAX_ITER": end})


def _data(source: str, train: tuple[str, ...], test: str) -> Facts:
    return stated(source, {"DATASETS.TRAIN": train, "DATASETS.TEST": (test,)})


def _task(source: str, classes: int, *, masks: bool) -> Facts:
    return stated(source, {"MODEL.ROI_HEADS.NUM_CLASSES": classes, "MODEL.MASK_ON": masks})


def _scales(source: str, smallest: int, largest: int) -> Facts:
    sides = tuple(range(smallest, largest + 1, 32))
    return stated(source, {"INPUT.MIN_SIZE_TRAIN": sides, "INPUT.MIN_SIZE_TEST": largest})


_VOC_SCALES = _scales(f"{SEC42}: [480, 800]; steps of 32: {REPO}", 480, 800)
_COCO_SCALES = _scales(f"{SEC42}: [640, 800]; steps of 32: {REPO}", 640, 800)
_VOC = (
    _VOC_SCALES
    | _task(SEC42, 20, masks=False)
    | _data(SEC42, ("voc_2007_trainval", "voc_2012_trainval"), "voc_2007_test")
    | _schedule(f"{SEC42}: 24k; steps: {REPO}", (18000, 22000), 24000)
    | stated(REPO, {"SOLVER.WARMUP_ITERS": 100})
)
_VOC07 = (
    _data(SEC42, ("voc_2007_trainval",), "voc_2007_test")
    | stated(SEC42, {"SOLVER.MAX_ITER": 9000})
    | stated(OPEN + "3/4 and 11/12, as for 24k", {"SOLVER.STEPS": (6750, 8250)})
    | stated(OPEN + "as for 24k", {"SOLVER.WARMUP_ITERS": 100})
)
_VOC_OPEN = stated(
    OPEN + "as in the authors' C4 configs", {"SOLVER.STEPS": (18000, 22000), "SOLVER.WARMUP_ITERS": 100}
)
_NO_TABLE = OPEN + "not an experiment of the paper; as in its VOC runs"
_VOC_MASKS = (
    _scales(_NO_TABLE, 480, 800)
    | _task(_NO_TABLE, 20, masks=True)
    | _data(
        OPEN + "train_aug and val, as for semantic segmentation in App. A.5",
        ("voc_2012_masks_train",),
        "voc_2012_masks_val",
    )
    | _schedule(_NO_TABLE, (18000, 22000), 24000)
    | stated(_NO_TABLE, {"SOLVER.WARMUP_ITERS": 100})
    | stated(OPEN + "the masks are images, not polygons", {"INPUT.MASK_FORMAT": "bitmask"})
)
_COCO = (
    _COCO_SCALES
    | _task(SEC42, 80, masks=True)
    | _data(SEC42, ("coco_2017_train",), "coco_2017_val")
    | _schedule(f"{SEC42}: the default 1x, detectron2's", (60000, 80000), 90000)
)
_SYNCED = stated(
    OPEN + "synchronised (Sec. 4.2), as in the authors' FPN models of COCO",
    {"MODEL.RESNETS.NORM": "SyncBN", "MODEL.FPN.NORM": "SyncBN"},
)
_TWO = _schedule("the default 2x: detectron2's 1x, doubled", (120000, 160000), 180000)
_SIX = _schedule(
    "He et al. 2020, App. A.8: ~72 epochs; steps as in He et al. 2019 (Rethinking ImageNet Pre-training); PyContrast",
    (480000, 520000),
    540000,
)
_KEYPOINTS = (
    _SYNCED
    | _scales(OPEN + "as for Mask R-CNN on COCO", 640, 800)
    | _task("He et al. 2020, App. A.2", 1, masks=False)
    | stated("He et al. 2020, App. A.2", {"MODEL.KEYPOINT_ON": True})
    | _data("He et al. 2020, App. A.2", ("keypoints_coco_2017_train",), "keypoints_coco_2017_val")
    | stated(_KEYPOINT, {"MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.5, "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1500})
    | _TWO
)
_LVIS_1X = (
    _SYNCED
    | _scales(_LVIS, 640, 800)
    | _task(_LVIS, 1230, masks=True)
    | _data(_A4, ("lvis_v0.5_train",), "lvis_v0.5_val")
    | _schedule(_LVIS, (60000, 80000), 90000)
    | stated(
        _LVIS,
        {
            "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0001,
            "TEST.DETECTIONS_PER_IMAGE": 300,
            "DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler",
            "DATALOADER.REPEAT_THRESHOLD": 0.001,
        },
    )
)
_FROZEN = (
    stated(f"{_A4}: BN frozen", {"MODEL.RESNETS.NORM": "FrozenBN"})
    | stated(f"{_A4}: end-to-end tuned", {"MODEL.BACKBONE.FREEZE_AT": 0})
    | stated(OPEN + "a frozen norm has no effect in a new layer", {"MODEL.FPN.NORM": ""})
    | stated(OPEN + "there is no BN to measure", {"TEST.PRECISE_BN.ENABLED": False})
)
_CITYSCAPES = (
    _SYNCED
    | _scales(_CITY, 800, 1024)
    | _task(_CITY, 8, masks=True)
    | _data(
        "He et al. 2020, Table 6", ("cityscapes_fine_instance_seg_train",), "cityscapes_fine_instance_seg_val"
    )
    | _schedule(_CITY, (18000,), 24000)
    | stated(
        _CITY,
        {
            "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
            "INPUT.MAX_SIZE_TRAIN": 2048,
            "INPUT.MAX_SIZE_TEST": 2048,
            "SOLVER.IMS_PER_BATCH": 8,
            "SOLVER.BASE_LR": 0.01,
        },
    )
)
_CUSTOM = (
    _scales(_NO_TABLE, 480, 800)
    | stated(_NO_TABLE, {"MODEL.MASK_ON": True, "SOLVER.WARMUP_ITERS": 100})
    | stated(OPEN + "as for VOC2007, the paper's smallest set", {"SOLVER.EPOCHS": 29.0})
)


def _segmentation(name: str, *, classes: int, crop: int, rate: float, end: int) -> Facts:
    return (
        FCN
        | stated(
            A5,
            {
                "MODEL.SEM_SEG_HEAD.NUM_CLASSES": classes,
                "INPUT.SCALE_CROP.SIZE": crop,
                "SOLVER.BASE_LR": rate,
            },
        )
        | _data(A5, (f"{name}_train",), f"{name}_val")
        | _schedule(f"{A5}: at 70 % and 90 %", (end * 7 // 10, end * 9 // 10), end)
    )


_T = "He et al. 2020, Table "
_VOC_ZOO = "PascalVOC-Detection/faster_rcnn_R_50_C4.yaml"
_MASK_ZOO = "COCO-InstanceSegmentation/mask_rcnn_R_50_{}_1x.yaml"
_FPN_ZOO, _C4_ZOO = _MASK_ZOO.format("FPN"), _MASK_ZOO.format("C4")
_LVIS_ZOO = "LVISv0.5-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
RECIPES = {
    "voc_R50_C4_24k": Recipe(_T + "2(b)", _VOC_ZOO, C4 | _VOC),
    "voc07_R50_C4_9k": Recipe(_T + "4", _VOC_ZOO, C4 | _VOC | _VOC07),
    "voc_R50_DC5_24k": Recipe(_T + "2(a)", "Base-RCNN-DilatedC5.yaml", DC5 | _VOC | _VOC_OPEN),
    "voc_mask_R50_FPN": Recipe(
        "not in a table of the paper; model of Table 5(a)", _FPN_ZOO, FPN | _VOC_MASKS
    ),
    "voc_mask_R50_C4": Recipe("not in a table of the paper; model of Table 5(c)", _C4_ZOO, C4 | _VOC_MASKS),
    "coco_R50_C4_1x": Recipe(_T + "5(c)", _C4_ZOO, C4 | _COCO),
    "coco_R50_C4_2x": Recipe(_T + "5(d)", _C4_ZOO, C4 | _COCO | _schedule(REPO, (120000, 160000), 180000)),
    "coco_R50_FPN": Recipe(_T + "5(a)", _FPN_ZOO, FPN | _COCO),
    "coco_R50_FPN_2x": Recipe(_T + "5(b)", _FPN_ZOO, FPN | _COCO | _TWO),
    "coco_R50_FPN_6x": Recipe(_T + "A.1", _FPN_ZOO, FPN | _COCO | _SIX),
    "keypoint_R50_FPN_2x": Recipe(
        _T + "6 and App. A.2", "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml", FPN | _KEYPOINTS
    ),
    "lvis_R50_FPN_1x": Recipe("He et al. 2020, App. A.4", _LVIS_ZOO, FPN | _LVIS_1X),
    "lvis_R50_FPN_2x": Recipe(_T + "6 and App. A.4", _LVIS_ZOO, FPN | _LVIS_1X | _TWO),
    "lvis_R50_FPN_2x_frozen": Recipe(
        _T + "6 and App. A.4, supervised row", _LVIS_ZOO, FPN | _LVIS_1X | _TWO | _FROZEN
    ),
    "cityscapes_R50_FPN": Recipe(_T + "6", "Cityscapes/mask_rcnn_R_50_FPN.yaml", FPN | _CITYSCAPES),
    "semseg_voc_R50": Recipe(
        _T + "6 and App. A.5",
        "",
        _segmentation("voc_2012_semseg", classes=21, crop=513, rate=0.003, end=30000),
    ),
    "semseg_cityscapes_R50": Recipe(
        _T + "6 and App. A.5",
        "",
        _segmentation("cityscapes_fine_sem_seg", classes=19, crop=769, rate=0.01, end=90000),
    ),
    "custom_R50_FPN": Recipe("not in a table of the paper; model of Table 5(a)", _FPN_ZOO, FPN | _CUSTOM),
    "coco_ViTB_SFP_100ep": Recipe("ViTDet (Li et al. 2022), Mask R-CNN with ViT-B", "", VIT_B_100),
    "coco_ViTB_SFP_25ep": Recipe("not in a paper; a quarter of ViTDet's schedule", "", VIT_B_25),
    "coco_ViTS_SFP_25ep": Recipe("not in a paper; ViTDet's detector with a ViT-S", "", VIT_S_25),
    "coco_ViTT_SFP_640": Recipe("MAE-Lite (Wang et al. 2023), its table of ViT-T on COCO", "", VIT_T_640),
    "custom_ViTS_SFP": Recipe("not in a paper; ViTDet's detector with a ViT-S", "", CUSTOM_VIT_S),
}
