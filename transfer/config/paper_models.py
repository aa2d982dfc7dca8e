"""The models that the MoCo paper fine-tunes, as detectron2's keys, each value with its source.

Data only; `transfer.config.paper_tasks` adds the tasks. If the authors do not state a value, its source begins with
`OPEN` and gives the reason for our choice.
"""

from typing import Any

Facts = dict[str, tuple[Any, str]]  # config key -> (value, source)

OPEN = "not stated; our choice: "
SEC42 = "He et al. 2020, Sec. 4.2"
_A1 = "He et al. 2020, App. A.1"
A5 = "He et al. 2020, App. A.5"
REPO = "facebookresearch/moco, detection configs"
_NAIVE = f"{REPO} since 2020-11-04, instead of SyncBN for its larger variance"
_NAME = "the experiment's model"
_D2 = "detectron2's default, kept by the authors' configs"
_ISSUE34 = "facebookresearch/moco issue 34"
_ISSUE39 = "facebookresearch/moco issue 39 (a user's config, read by the authors); OpenSelfSup"
_FPN_HEADS = f"detectron2 zoo, Base-RCNN-FPN: heads as in the baselines ({_ISSUE34})"
_WEIGHTS = "facebookresearch/moco, *_moco.yaml: torchvision's layout (MSRA weights: docs/recipes.md)"


def stated(source: str, values: dict[str, Any]) -> Facts:
    """Return facts that share a source."""
    return {key: (value, source) for key, value in values.items()}


# Required by weights in torchvision's layout; other weights may need other values, see docs/recipes.md.
WEIGHTS = stated(
    _WEIGHTS,
    {
        "INPUT.FORMAT": "RGB",
        "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
        "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
    },
)
_SOLVER = stated(
    _D2,
    {
        "SOLVER.OPTIMIZER": "SGD",
        "SOLVER.MOMENTUM": 0.9,
        "SOLVER.NESTEROV": False,
        "SOLVER.WEIGHT_DECAY": 1e-4,
        "SOLVER.WEIGHT_DECAY_NORM": 0.0,
        "SOLVER.BIAS_LR_FACTOR": 1.0,
        "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
        "SOLVER.GAMMA": 0.1,
        "SOLVER.WARMUP_METHOD": "linear",
        "SOLVER.WARMUP_FACTOR": 0.001,
        "SOLVER.WARMUP_ITERS": 1000,
        "SOLVER.CLIP_GRADIENTS.ENABLED": False,
        "SOLVER.AMP.ENABLED": False,
        "SOLVER.BACKBONE_LR_FACTOR": 1.0,
        "SOLVER.LR_DECAY": 1.0,
        "SOLVER.ACCUMULATE": 1,
        "DATASETS.FRACTION": 1.0,
        "DATASETS.SHOTS": 0,
        "INPUT.RANDOM_FLIP": "horizontal",
        "TEST.PRECISE_BN.NUM_ITER": 200,
    },
)
TRAINED = (
    stated(f"{SEC42}: all layers fine-tuned", {"MODEL.BACKBONE.FREEZE_AT": 0})
    | stated(f"{SEC42}: BN trained and synchronised", {"MODEL.RESNETS.NORM": "SyncBN"})
    | WEIGHTS
)
_R50 = (
    stated(
        _NAME,
        {"MODEL.RESNETS.DEPTH": 50, "MODEL.RESNETS.NUM_GROUPS": 1, "MODEL.RESNETS.WIDTH_PER_GROUP": 64},
    )
    | TRAINED
    | _SOLVER
)
_RCNN = _R50 | stated(
    _D2,
    {
        "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
        "MODEL.KEYPOINT_ON": False,
        "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 256,
        "MODEL.RPN.POSITIVE_FRACTION": 0.5,
        "MODEL.RPN.IOU_THRESHOLDS": [0.3, 0.7],
        "MODEL.RPN.NMS_THRESH": 0.7,
        "MODEL.RPN.SMOOTH_L1_BETA": 0.0,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 512,
        "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.25,
        "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.5],
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.05,
        "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.5,
        "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.0,
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlignV2",
        "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 0,
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
        "INPUT.MAX_SIZE_TRAIN": 1333,
        "INPUT.MAX_SIZE_TEST": 1333,
        "INPUT.MASK_FORMAT": "polygon",
        "DATALOADER.SAMPLER_TRAIN": "TrainingSampler",
        "DATALOADER.ASPECT_RATIO_GROUPING": True,
        "TEST.DETECTIONS_PER_IMAGE": 100,
    },
)
_ONE_LEVEL = stated(
    _D2,
    {
        "MODEL.ANCHOR_GENERATOR.SIZES": [[32, 64, 128, 256, 512]],
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 12000,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 2000,
    },
)
_BATCH = {"SOLVER.IMS_PER_BATCH": 16, "SOLVER.BASE_LR": 0.02, "TEST.PRECISE_BN.ENABLED": True}
_PROPOSALS = {"MODEL.RPN.PRE_NMS_TOPK_TEST": 6000, "MODEL.RPN.POST_NMS_TOPK_TEST": 1000}
C4 = (
    _RCNN
    | _ONE_LEVEL
    | stated(f"{_A1}: conv5 stage followed by BN", {"MODEL.ROI_HEADS.NAME": "Res5ROIHeadsExtraNorm"})
    | stated(
        f"{_A1}: the backbone ends with conv4",
        {
            "MODEL.BACKBONE.NAME": "build_resnet_backbone",
            "MODEL.RESNETS.OUT_FEATURES": ["res4"],
            "MODEL.RESNETS.RES5_DILATION": 1,
            "MODEL.RPN.IN_FEATURES": ["res4"],
            "MODEL.ROI_HEADS.IN_FEATURES": ["res4"],
        },
    )
    | stated(_D2, {"MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 14})
    | stated(REPO, _BATCH | _PROPOSALS)
    | stated(_NAIVE, {"MODEL.RESNETS.NORM": "naiveSyncBN"})
)
DC5 = (
    _RCNN
    | _ONE_LEVEL
    | stated(
        f"{_A1}: conv5 with dilation 2 and stride 1, then a 3x3 convolution with BN to 512",
        {
            "MODEL.BACKBONE.NAME": "build_resnet_dc5_backbone",
            "MODEL.RESNETS.OUT_FEATURES": ["res5"],
            "MODEL.RESNETS.RES5_DILATION": 2,
            "MODEL.DC5.CHANNELS": 512,
        },
    )
    | stated(
        f"{_A1}: two hidden fully-connected layers",
        {
            "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
            "MODEL.ROI_BOX_HEAD.NUM_CONV": 0,
            "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
            "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
        },
    )
    | stated(
        OPEN + "RPN and box head read the 512 channels, which the paper counts as part of the backbone",
        {"MODEL.RPN.IN_FEATURES": ["dc5"], "MODEL.ROI_HEADS.IN_FEATURES": ["dc5"]},
    )
    | stated(OPEN + "detectron2's width", {"MODEL.ROI_BOX_HEAD.FC_DIM": 1024})
    | stated(OPEN + "the paper mentions BN only after convolutions", {"MODEL.ROI_BOX_HEAD.NORM": ""})
    | stated(
        OPEN + "detectron2 zoo, Base-RCNN-DilatedC5", {"MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7} | _PROPOSALS
    )
    | stated(OPEN + "as in the authors' C4 configs", _BATCH)
    | stated(
        OPEN + "synchronised (Sec. 4.2), as in the authors' FPN models; their C4 configs have naiveSyncBN",
        {"MODEL.RESNETS.NORM": "SyncBN"},
    )
)
FPN = (
    _RCNN
    | stated(_FPN_HEADS, {"MODEL.ROI_BOX_HEAD.NORM": "", "MODEL.ROI_MASK_HEAD.NORM": ""})
    | stated(f"{SEC42}: BN trained and synchronised; SyncBN: {_ISSUE34}", {"MODEL.RESNETS.NORM": "SyncBN"})
    | stated(f"{SEC42}: BN in new layers such as FPN; SyncBN: {_ISSUE34}", {"MODEL.FPN.NORM": "SyncBN"})
    | stated(
        _FPN_HEADS,
        {
            "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
            "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
            "MODEL.RESNETS.RES5_DILATION": 1,
            "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
            "MODEL.FPN.OUT_CHANNELS": 256,
            "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
            "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
            "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 2000,
            "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000,
            "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1000,
            "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
            "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
            "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
            "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
            "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
            "MODEL.ROI_BOX_HEAD.NUM_CONV": 0,
            "MODEL.ROI_BOX_HEAD.FC_DIM": 1024,
            "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
            "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
            "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
            "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
        },
    )
    | stated(_ISSUE39, _BATCH)
)
FCN = (
    _R50
    | stated(
        A5,
        {
            "MODEL.META_ARCHITECTURE": "SemanticSegmentor",
            "MODEL.BACKBONE.NAME": "build_resnet_backbone",
            "MODEL.RESNETS.OUT_FEATURES": ["res5"],
            "MODEL.RESNETS.RES5_DILATION": 2,
            "MODEL.SEM_SEG_HEAD.NAME": "FCN16sHead",
            "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res5"],
            "MODEL.SEM_SEG_HEAD.CONVS_DIM": 256,
            "MODEL.SEM_SEG_HEAD.DILATION": 6,
            "MODEL.SEM_SEG_HEAD.NORM": "SyncBN",
            "INPUT.SCALE_CROP.ENABLED": True,
            "INPUT.SCALE_CROP.SCALES": (0.5, 2.0),
            "INPUT.RANDOM_FLIP": "horizontal",
            "INPUT.MIN_SIZE_TEST": 0,
            "SOLVER.IMS_PER_BATCH": 16,
            "SOLVER.WEIGHT_DECAY": 0.0001,
        },
    )
    | stated("the label of unknown pixels in both data sets", {"MODEL.SEM_SEG_HEAD.IGNORE_VALUE": 255})
    | stated(
        OPEN + "as in the paper's detection runs",
        {
            "MODEL.BACKBONE.FREEZE_AT": 0,
            "SOLVER.MOMENTUM": 0.9,
            "SOLVER.WEIGHT_DECAY_NORM": 0.0,
            "TEST.PRECISE_BN.ENABLED": True,
        },
    )
    | stated(OPEN + "the only loss", {"MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": 1.0})
    | stated(OPEN + "the paper describes the schedule without a warm-up", {"SOLVER.WARMUP_ITERS": 0})
    | stated(OPEN + "all crops have the same size", {"DATALOADER.ASPECT_RATIO_GROUPING": False})
)
