"""Detectors with a plain ViT and a simple feature pyramid (ViTDet), as detectron2's keys, each value with its source.

Data only, like `transfer.config.paper_models`. The values were read in detectron2's main branch, where the authors
published them.
"""

from transfer.config.paper_models import OPEN, WEIGHTS, stated

_D2 = "detectron2 main, "
_MODEL = f"{_D2}configs/common/models/mask_rcnn_vitdet.py"
_HEADS = f"{_D2}configs/common/models/mask_rcnn_fpn.py, kept by ViTDet"
_RUN = f"{_D2}projects/ViTDet, mask_rcnn_vitdet_b_100ep.py"
_DATA = f"{_D2}projects/ViTDet, coco_loader_lsj.py"
_OPTIMIZER = f"{_D2}configs/common/optim.py"
_DEFAULT = "detectron2's default, kept by ViTDet"
_LITE = "wangsr126/MAE-Lite, projects/eval_tools/det, mask_rcnn_vitdet_t_100ep.py"
_COCO = "ViTDet (Li et al. 2022), Sec. 4"
_NO_PAPER = OPEN + "not an experiment of a paper; "

VITDET = (
    stated(
        _MODEL,
        {
            "MODEL.BACKBONE.NAME": "build_vit_sfp_backbone",
            "MODEL.VIT.PATCH_SIZE": 16,
            "MODEL.VIT.WIDTH": 768,
            "MODEL.VIT.DEPTH": 12,
            "MODEL.VIT.HEADS": 12,
            "MODEL.VIT.MLP_RATIO": 4.0,
            "MODEL.VIT.NORM_EPS": 1e-6,
            "MODEL.VIT.PRETRAIN_SIZE": 224,
            "MODEL.VIT.CLASS_POSITION": True,
            "MODEL.VIT.IMAGE_SIZE": 1024,
            "MODEL.VIT.WINDOW": 14,
            "MODEL.VIT.GLOBAL_BLOCKS": (2, 5, 8, 11),
            "MODEL.VIT.REL_POS": True,
            "MODEL.VIT.DROP_PATH": 0.1,
            "MODEL.VIT.CHECKPOINT_BLOCKS": False,
            "MODEL.FPN.OUT_CHANNELS": 256,
            "MODEL.FPN.NORM": "LN",
            "MODEL.RPN.CONV_DIMS": [-1, -1],
            "MODEL.ROI_BOX_HEAD.NUM_CONV": 4,
            "MODEL.ROI_BOX_HEAD.CONV_DIM": 256,
            "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
            "MODEL.ROI_BOX_HEAD.FC_DIM": 1024,
            "MODEL.ROI_BOX_HEAD.NORM": "LN",
            "MODEL.ROI_MASK_HEAD.NORM": "LN",
            "INPUT.FORMAT": "RGB",
            "MODEL.PIXEL_MEAN": WEIGHTS["MODEL.PIXEL_MEAN"][0],
            "MODEL.PIXEL_STD": WEIGHTS["MODEL.PIXEL_STD"][0],
        },
    )
    | stated(
        _HEADS,
        {
            "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
            "MODEL.KEYPOINT_ON": False,
            "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
            "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
            "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
            "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 256,
            "MODEL.RPN.POSITIVE_FRACTION": 0.5,
            "MODEL.RPN.IOU_THRESHOLDS": [0.3, 0.7],
            "MODEL.RPN.NMS_THRESH": 0.7,
            "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 2000,
            "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000,
            "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1000,
            "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
            "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
            "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
            "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 512,
            "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.25,
            "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.5],
            "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.05,
            "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
            "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlignV2",
            "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 0,
            "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
            "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
            "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
            "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
        },
    )
    | stated(
        _DATA,
        {
            "INPUT.LSJ.ENABLED": True,
            "INPUT.LSJ.SCALES": (0.1, 2.0),
            "INPUT.LSJ.SIZE": 1024,
            "INPUT.RANDOM_FLIP": "horizontal",
            "INPUT.MIN_SIZE_TEST": 1024,
            "INPUT.MAX_SIZE_TEST": 1024,
            "SOLVER.IMS_PER_BATCH": 64,
        },
    )
    | stated(
        _OPTIMIZER,
        {
            "SOLVER.OPTIMIZER": "AdamW",
            "SOLVER.BASE_LR": 1e-4,
            "SOLVER.WEIGHT_DECAY": 0.1,
            "SOLVER.WEIGHT_DECAY_NORM": 0.0,
        },
    )
    | stated(
        _RUN,
        {
            "SOLVER.LR_DECAY": 0.7,
            "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
            "SOLVER.GAMMA": 0.1,
            "SOLVER.WARMUP_METHOD": "linear",
            "SOLVER.WARMUP_FACTOR": 0.001,
            "SOLVER.WARMUP_ITERS": 250,
            "SOLVER.AMP.ENABLED": True,
        },
    )
    | stated(f"{_COCO}: the whole backbone is fine-tuned", {"MODEL.BACKBONE.FREEZE_AT": 0})
    | stated(
        _DEFAULT,
        {
            "SOLVER.BIAS_LR_FACTOR": 1.0,
            "SOLVER.CLIP_GRADIENTS.ENABLED": False,
            "SOLVER.BACKBONE_LR_FACTOR": 1.0,
            "SOLVER.ACCUMULATE": 1,
            "DATASETS.FRACTION": 1.0,
            "DATASETS.SHOTS": 0,
            "INPUT.MASK_FORMAT": "polygon",
            "DATALOADER.SAMPLER_TRAIN": "TrainingSampler",
            "TEST.DETECTIONS_PER_IMAGE": 100,
            "TEST.PRECISE_BN.ENABLED": False,
        },
    )
    | stated(
        OPEN + "the published runs use float16; bfloat16 needs no scaling of the losses",
        {"SOLVER.AMP.DTYPE": "bfloat16"},
    )
    | stated(OPEN + "all images are padded to the same square", {"DATALOADER.ASPECT_RATIO_GROUPING": False})
    | stated(
        OPEN + "read only by plain detectron2, which does not know INPUT.LSJ",
        {"INPUT.MIN_SIZE_TRAIN": (1024,), "INPUT.MAX_SIZE_TRAIN": 1024},
    )
)
_ON_COCO = stated(
    _COCO,
    {
        "MODEL.MASK_ON": True,
        "MODEL.ROI_HEADS.NUM_CLASSES": 80,
        "DATASETS.TRAIN": ("coco_2017_train",),
        "DATASETS.TEST": ("coco_2017_val",),
    },
)
VIT_B_100 = VITDET | _ON_COCO | stated(_RUN, {"SOLVER.STEPS": (163889, 177546), "SOLVER.MAX_ITER": 184375})
VIT_B_25 = VIT_B_100 | stated(
    OPEN + "a quarter of the 100 epochs, in the same proportions",
    {"SOLVER.STEPS": (40972, 44387), "SOLVER.MAX_ITER": 46094},
)
VIT_S_25 = (
    VIT_B_25
    | stated("MoCo v3 (Chen et al. 2021), Sec. 5", {"MODEL.VIT.WIDTH": 384, "MODEL.VIT.HEADS": 12})
    | stated(
        OPEN + "ViTDet has no ViT-S; as for its ViT-B",
        {"MODEL.VIT.DROP_PATH": 0.1, "SOLVER.LR_DECAY": 0.7, "SOLVER.WEIGHT_DECAY": 0.1},
    )
)
_SIDE = {
    "MODEL.VIT.IMAGE_SIZE": 640,
    "INPUT.LSJ.SIZE": 640,
    "INPUT.MIN_SIZE_TEST": 640,
    "INPUT.MAX_SIZE_TEST": 640,
}
_PLAIN_SIDE = {"INPUT.MIN_SIZE_TRAIN": (640,), "INPUT.MAX_SIZE_TRAIN": 640}
VIT_T_640 = (
    VIT_B_100
    | stated(
        _LITE,
        _SIDE
        | {
            "MODEL.VIT.WIDTH": 192,
            "MODEL.VIT.HEADS": 12,
            "MODEL.VIT.DROP_PATH": 0.0,
            "MODEL.VIT.CHECKPOINT_BLOCKS": True,
            "SOLVER.WEIGHT_DECAY": 0.05,
            "SOLVER.LR_DECAY": 1.0,
            "SOLVER.STEPS": (163889, 177546),  # its int() gives 163888 for the first
        },
    )
    | stated(VITDET["INPUT.MIN_SIZE_TRAIN"][1], _PLAIN_SIDE)
)
CUSTOM_VIT_S = (
    VITDET
    | stated("MoCo v3 (Chen et al. 2021), Sec. 5", {"MODEL.VIT.WIDTH": 384, "MODEL.VIT.HEADS": 12})
    | stated(_NO_PAPER + "640 pixels need a fifth of the time of 1024", _SIDE)
    | stated(VITDET["INPUT.MIN_SIZE_TRAIN"][1], _PLAIN_SIDE)
    | stated(_NO_PAPER + "the models of Table 5 have masks", {"MODEL.MASK_ON": True})
    | stated(_NO_PAPER + "as for VOC2007, the smallest set of the MoCo paper", {"SOLVER.EPOCHS": 29.0})
    | stated(
        _NO_PAPER
        + "a batch for small data; AdamW's rate is not lowered with it, or the new heads would hardly train",
        {"SOLVER.IMS_PER_BATCH": 16, "SOLVER.BASE_LR": 1e-4},
    )
)
