"""Every config of the papers' experiments holds the values of the paper, of its authors, or of another named source.

The tables here were written from the sources next to each value, not from our YAML or `transfer.config.paper_tasks`:

- P: He et al. 2020, "Momentum Contrast ..." (CVPR; arXiv 1911.05722v3), followed by a section or appendix
- R: the detection configs published by its authors (facebookresearch/moco, detection/configs, and its README)
- I34, I39: the authors' answers in issues 34 and 39 of facebookresearch/moco
- D: detectron2's default (config/defaults.py), which R does not change
- Z: detectron2's model zoo, the config named after it
- O: OpenSelfSup, benchmarks/detection/configs
- V: detectron2's main branch, configs/common/models/mask_rcnn_vitdet.py, projects/ViTDet and configs/common/optim.py
- L: wangsr126/MAE-Lite, projects/eval_tools/det/mask_rcnn_vitdet_t_100ep.py
- open: not stated by any source; our choice
"""

import shlex
from fractions import Fraction
from typing import Any

import pytest
import torch
import torchvision
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model

from pretrain.common.errors import UserError
from tests.support.scripts import ROOT
from transfer.config import explain, length
from transfer.config.keys import add_keys
from transfer.config.load import load_config
from transfer.config.paper_tasks import RECIPES
from transfer.models import segmentation  # noqa: F401 (first; the last two register)

Table = dict[str, Any]
RANDOM = ["MODEL.INIT", "random"]

R50: Table = {
    "MODEL.RESNETS.DEPTH": 50,  # P, the tables' headings
    "MODEL.RESNETS.NUM_GROUPS": 1,  # same
    "MODEL.RESNETS.WIDTH_PER_GROUP": 64,  # same
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,  # same
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 256,  # same
    "MODEL.RESNETS.NORM": "SyncBN",  # P 4.2 "BN that is trained (and synchronized across GPUs)"; I34, I39; DC5: open
    "MODEL.BACKBONE.FREEZE_AT": 0,  # P 4.2 "We fine-tune all layers end-to-end"; R
    "MODEL.RESNETS.STRIDE_IN_1X1": False,  # R, *_moco.yaml
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],  # R, *_moco.yaml
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],  # R, *_moco.yaml
    "INPUT.FORMAT": "RGB",  # R, *_moco.yaml
    "INPUT.RANDOM_FLIP": "horizontal",  # D; P A.5 for segmentation
    "TEST.PRECISE_BN.ENABLED": True,  # R; I39; segmentation: open
    "TEST.PRECISE_BN.NUM_ITER": 200,  # D
    "SOLVER.OPTIMIZER": "SGD",  # D
    "SOLVER.IMS_PER_BATCH": 16,  # R; P A.5 for segmentation
    "SOLVER.MOMENTUM": 0.9,  # D
    "SOLVER.NESTEROV": False,  # D
    "SOLVER.WEIGHT_DECAY": 0.0001,  # D; P A.5 for segmentation
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,  # D
    "SOLVER.BIAS_LR_FACTOR": 1.0,  # D
    "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",  # D
    "SOLVER.GAMMA": 0.1,  # D; P A.5 for segmentation
    "SOLVER.WARMUP_METHOD": "linear",  # D
    "SOLVER.WARMUP_FACTOR": 0.001,  # D
    "SOLVER.CLIP_GRADIENTS.ENABLED": False,  # D
    "SOLVER.AMP.ENABLED": False,  # D
    "SOLVER.BACKBONE_LR_FACTOR": 1.0,  # one rate for all layers
    "SOLVER.LR_DECAY": 1.0,
    "SOLVER.ACCUMULATE": 1,  # the whole batch at once
    "DATASETS.FRACTION": 1.0,  # all labels
    "DATASETS.SHOTS": 0,  # all labels
}
RCNN: Table = R50 | {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",  # P 4.2
    "MODEL.KEYPOINT_ON": False,  # D
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 256,  # D
    "MODEL.RPN.POSITIVE_FRACTION": 0.5,  # D
    "MODEL.RPN.IOU_THRESHOLDS": [0.3, 0.7],  # D
    "MODEL.RPN.NMS_THRESH": 0.7,  # D
    "MODEL.RPN.SMOOTH_L1_BETA": 0.0,  # D
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 512,  # D
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.25,  # D
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.5],  # D
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.05,  # D
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.5,  # D
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.0,  # D
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlignV2",  # D
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 0,  # D
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],  # D
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",  # D
    "INPUT.MIN_SIZE_TEST": 800,  # P 4.2 "800 at inference"
    "INPUT.MAX_SIZE_TRAIN": 1333,  # D
    "INPUT.MAX_SIZE_TEST": 1333,  # D
    "INPUT.MASK_FORMAT": "polygon",  # D
    "INPUT.CROP.ENABLED": False,  # D
    "INPUT.SCALE_CROP.ENABLED": False,  # P names a scale only
    "DATALOADER.SAMPLER_TRAIN": "TrainingSampler",  # D
    "DATALOADER.ASPECT_RATIO_GROUPING": True,  # D
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": True,  # D
    "TEST.DETECTIONS_PER_IMAGE": 100,  # D
    "SOLVER.BASE_LR": 0.02,  # R; I39 for FPN; DC5: open, as C4
    "SOLVER.WARMUP_ITERS": 1000,  # D
}
SINGLE_LEVEL: Table = RCNN | {
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32, 64, 128, 256, 512]],  # D
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 12000,  # D
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 2000,  # D
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,  # R; Z Base-RCNN-C4, Base-RCNN-DilatedC5
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,  # R; Z Base-RCNN-C4, Base-RCNN-DilatedC5
}
C4: Table = SINGLE_LEVEL | {
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",  # P A.1
    "MODEL.RESNETS.OUT_FEATURES": ["res4"],  # P A.1 "the backbone ends with the conv4 stage"
    "MODEL.RESNETS.RES5_DILATION": 1,  # D
    "MODEL.RPN.IN_FEATURES": ["res4"],  # D
    "MODEL.ROI_HEADS.IN_FEATURES": ["res4"],  # D
    "MODEL.ROI_HEADS.NAME": "Res5ROIHeadsExtraNorm",  # P A.1 "followed by a BN layer"; R
    "MODEL.RESNETS.NORM": "naiveSyncBN",  # R, since 2020-11-04; SyncBN in the file of March 2020
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 14,  # D
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",  # D
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 0,  # D
    "MODEL.ROI_MASK_HEAD.NORM": "",  # D
}
DC5: Table = SINGLE_LEVEL | {
    "MODEL.BACKBONE.NAME": "build_resnet_dc5_backbone",  # P A.1
    "MODEL.RESNETS.OUT_FEATURES": ["res5"],  # P A.1
    "MODEL.RESNETS.RES5_DILATION": 2,  # P A.1 "a dilation of 2 and stride 1"
    "MODEL.DC5.CHANNELS": 512,  # P A.1 "reduces dimension to 512"
    "MODEL.RPN.IN_FEATURES": ["dc5"],  # open
    "MODEL.ROI_HEADS.IN_FEATURES": ["dc5"],  # open
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",  # Z Base-RCNN-DilatedC5
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",  # Z Base-RCNN-DilatedC5
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,  # P A.1 "two hidden fully-connected layers"
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 0,  # same
    "MODEL.ROI_BOX_HEAD.FC_DIM": 1024,  # open; D
    "MODEL.ROI_BOX_HEAD.NORM": "",  # open
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,  # open; Z Base-RCNN-DilatedC5
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",  # Z Base-RCNN-DilatedC5, for MASK_ON True
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,  # same
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,  # same
}
FPN: Table = RCNN | {
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",  # P 4.2
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],  # Z Base-RCNN-FPN
    "MODEL.RESNETS.RES5_DILATION": 1,  # D
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],  # Z Base-RCNN-FPN
    "MODEL.FPN.OUT_CHANNELS": 256,  # D
    "MODEL.FPN.NORM": "SyncBN",  # P 4.2 "BN in the newly initialized layers (e.g., FPN)"; I34
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],  # Z Base-RCNN-FPN
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],  # Z Base-RCNN-FPN
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 2000,  # Z Base-RCNN-FPN
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000,  # Z Base-RCNN-FPN
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1000,  # Z Base-RCNN-FPN
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,  # Z Base-RCNN-FPN
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",  # Z Base-RCNN-FPN
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],  # Z Base-RCNN-FPN
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",  # Z Base-RCNN-FPN; I34 "heads are not different"
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,  # same
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 0,  # same
    "MODEL.ROI_BOX_HEAD.FC_DIM": 1024,  # D
    "MODEL.ROI_BOX_HEAD.NORM": "",  # I34 "SyncBN only on backbone and FPN"
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,  # Z Base-RCNN-FPN
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",  # Z Base-RCNN-FPN
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,  # Z Base-RCNN-FPN
    "MODEL.ROI_MASK_HEAD.NORM": "",  # I34
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,  # Z Base-RCNN-FPN
}
FCN: Table = R50 | {
    "MODEL.META_ARCHITECTURE": "SemanticSegmentor",  # P A.5 "an FCN-based structure"
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",  # P A.5
    "MODEL.RESNETS.OUT_FEATURES": ["res5"],  # P A.5
    "MODEL.RESNETS.RES5_DILATION": 2,  # P A.5 "dilation 2 and stride 1"
    "MODEL.SEM_SEG_HEAD.NAME": "FCN16sHead",  # P A.5 "FCN-16s"
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res5"],  # P A.5
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 256,  # P A.5 "of 256 channels"
    "MODEL.SEM_SEG_HEAD.NORM": "SyncBN",  # P A.5 "with BN"; P 4.2
    "MODEL.SEM_SEG_HEAD.DILATION": 6,  # P A.5 "dilation = 6"
    "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": 1.0,  # the only loss
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": 255,  # the data sets' void
    "INPUT.SCALE_CROP.ENABLED": True,  # P A.5
    "INPUT.SCALE_CROP.SCALES": (0.5, 2.0),  # P A.5 "by a ratio in [0.5, 2.0]"
    "INPUT.CROP.ENABLED": False,  # replaced by SCALE_CROP
    "INPUT.MIN_SIZE_TEST": 0,  # P A.5 "on the original image size"
    "DATALOADER.ASPECT_RATIO_GROUPING": False,  # open
    "SOLVER.WARMUP_ITERS": 0,  # open
}
VOC_SCALES = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)  # P 4.2 [480, 800]; R
COCO_SCALES = (640, 672, 704, 736, 768, 800)  # P 4.2 [640, 800]; R
VOC_24K: Table = {
    "MODEL.MASK_ON": False,  # P 4.2 "Faster R-CNN"
    "MODEL.ROI_HEADS.NUM_CLASSES": 20,
    "DATASETS.TRAIN": ("voc_2007_trainval", "voc_2012_trainval"),  # P Table 2
    "DATASETS.TEST": ("voc_2007_test",),  # P Table 2
    "INPUT.MIN_SIZE_TRAIN": VOC_SCALES,
    "SOLVER.STEPS": (18000, 22000),  # R
    "SOLVER.MAX_ITER": 24000,  # P 4.2; R
    "SOLVER.WARMUP_ITERS": 100,  # R
}
VOC_MASKS: Table = VOC_24K | {
    "MODEL.MASK_ON": True,  # open: not an experiment of the paper
    "DATASETS.TRAIN": ("voc_2012_masks_train",),  # open
    "DATASETS.TEST": ("voc_2012_masks_val",),  # open
    "INPUT.MASK_FORMAT": "bitmask",  # the masks are images
}
COCO_1X: Table = {
    "MODEL.MASK_ON": True,  # P 4.2 "Mask R-CNN"
    "MODEL.ROI_HEADS.NUM_CLASSES": 80,
    "DATASETS.TRAIN": ("coco_2017_train",),  # P 4.2
    "DATASETS.TEST": ("coco_2017_val",),  # P 4.2
    "INPUT.MIN_SIZE_TRAIN": COCO_SCALES,
    "SOLVER.STEPS": (60000, 80000),  # Z 1x
    "SOLVER.MAX_ITER": 90000,  # Z 1x
}
TWO_X: Table = {
    "SOLVER.STEPS": (120000, 160000),  # R, COCO C4 2x; O
    "SOLVER.MAX_ITER": 180000,  # same
}
LVIS_1X: Table = COCO_1X | {
    "MODEL.ROI_HEADS.NUM_CLASSES": 1230,  # Z LVISv0.5
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0001,  # Z LVISv0.5
    "DATASETS.TRAIN": ("lvis_v0.5_train",),  # P A.4
    "DATASETS.TEST": ("lvis_v0.5_val",),  # P A.4
    "DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler",  # Z LVISv0.5
    "DATALOADER.REPEAT_THRESHOLD": 0.001,  # Z LVISv0.5
    "TEST.DETECTIONS_PER_IMAGE": 300,  # Z LVISv0.5
}
TABLE: dict[str, Table] = {
    "voc_R50_C4_24k": C4 | VOC_24K,
    "voc07_R50_C4_9k": C4
    | VOC_24K
    | {
        "DATASETS.TRAIN": ("voc_2007_trainval",),  # P Table 4
        "SOLVER.STEPS": (6750, 8250),  # open
        "SOLVER.MAX_ITER": 9000,  # P 4.2
    },
    "voc_R50_DC5_24k": DC5 | VOC_24K,
    "voc_mask_R50_FPN": FPN | VOC_MASKS,
    "voc_mask_R50_C4": C4 | VOC_MASKS,
    "coco_R50_C4_1x": C4 | COCO_1X,
    "coco_R50_C4_2x": C4 | COCO_1X | TWO_X,
    "coco_R50_FPN": FPN | COCO_1X,
    "coco_R50_FPN_2x": FPN | COCO_1X | TWO_X,
    "coco_R50_FPN_6x": FPN
    | COCO_1X
    | {
        "SOLVER.STEPS": (480000, 520000),  # P A.8 cites He et al. 2019; PyContrast
        "SOLVER.MAX_ITER": 540000,  # P A.8 "~72 epochs"; PyContrast
    },
    "keypoint_R50_FPN_2x": FPN
    | COCO_1X
    | TWO_X
    | {
        "MODEL.MASK_ON": False,  # Z Base-Keypoint-RCNN-FPN
        "MODEL.KEYPOINT_ON": True,  # P A.2
        "MODEL.ROI_HEADS.NUM_CLASSES": 1,  # Z Base-Keypoint-RCNN-FPN
        "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.5,  # Z Base-Keypoint-RCNN-FPN; O
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1500,  # Z Base-Keypoint-RCNN-FPN; O
        "DATASETS.TRAIN": ("keypoints_coco_2017_train",),  # P A.2
        "DATASETS.TEST": ("keypoints_coco_2017_val",),  # P A.2
    },
    "lvis_R50_FPN_1x": FPN | LVIS_1X,
    "lvis_R50_FPN_2x": FPN | LVIS_1X | TWO_X,
    "lvis_R50_FPN_2x_frozen": FPN
    | LVIS_1X
    | TWO_X
    | {
        "MODEL.RESNETS.NORM": "FrozenBN",  # P A.4 "with BN frozen"
        "MODEL.BACKBONE.FREEZE_AT": 0,  # P A.4 "end-to-end tuned"
        "MODEL.FPN.NORM": "",  # open
        "TEST.PRECISE_BN.ENABLED": False,  # nothing to measure
    },
    "cityscapes_R50_FPN": FPN
    | {
        "MODEL.MASK_ON": True,  # all of it: P says nothing; Z Cityscapes; O
        "MODEL.ROI_HEADS.NUM_CLASSES": 8,  # Z Cityscapes
        "DATASETS.TRAIN": ("cityscapes_fine_instance_seg_train",),  # Z Cityscapes
        "DATASETS.TEST": ("cityscapes_fine_instance_seg_val",),  # Z Cityscapes
        "INPUT.MIN_SIZE_TRAIN": (800, 832, 864, 896, 928, 960, 992, 1024),  # Z Cityscapes
        "INPUT.MIN_SIZE_TEST": 1024,  # Z Cityscapes
        "INPUT.MAX_SIZE_TRAIN": 2048,  # Z Cityscapes
        "INPUT.MAX_SIZE_TEST": 2048,  # Z Cityscapes
        "SOLVER.IMS_PER_BATCH": 8,  # Z Cityscapes
        "SOLVER.BASE_LR": 0.01,  # Z Cityscapes
        "SOLVER.STEPS": (18000,),  # Z Cityscapes
        "SOLVER.MAX_ITER": 24000,  # Z Cityscapes
    },
    "semseg_voc_R50": FCN
    | {
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 21,  # VOC's 20 and background
        "DATASETS.TRAIN": ("voc_2012_semseg_train",),  # P A.5 train_aug2012
        "DATASETS.TEST": ("voc_2012_semseg_val",),  # P A.5 val2012
        "INPUT.SCALE_CROP.SIZE": 513,  # P A.5
        "SOLVER.BASE_LR": 0.003,  # P A.5
        "SOLVER.STEPS": (21000, 27000),  # P A.5, 70 % and 90 %
        "SOLVER.MAX_ITER": 30000,  # P A.5
    },
    "semseg_cityscapes_R50": FCN
    | {
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 19,  # Cityscapes' evaluated classes
        "DATASETS.TRAIN": ("cityscapes_fine_sem_seg_train",),  # P A.5
        "DATASETS.TEST": ("cityscapes_fine_sem_seg_val",),  # P A.5
        "INPUT.SCALE_CROP.SIZE": 769,  # P A.5
        "SOLVER.BASE_LR": 0.01,  # P A.5
        "SOLVER.STEPS": (63000, 81000),  # P A.5, 70 % and 90 %
        "SOLVER.MAX_ITER": 90000,  # P A.5
    },
    "custom_R50_FPN": FPN
    | {
        "MODEL.MASK_ON": True,  # all of it: open
        "INPUT.MIN_SIZE_TRAIN": VOC_SCALES,
        "SOLVER.EPOCHS": 29.0,
        "SOLVER.WARMUP_ITERS": 100,
    },
}
VIT: Table = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",  # V
    "MODEL.BACKBONE.NAME": "build_vit_sfp_backbone",  # V
    "MODEL.BACKBONE.FREEZE_AT": 0,  # V
    "MODEL.VIT.PATCH_SIZE": 16,  # V
    "MODEL.VIT.WIDTH": 768,  # V
    "MODEL.VIT.DEPTH": 12,  # V
    "MODEL.VIT.HEADS": 12,  # V
    "MODEL.VIT.MLP_RATIO": 4.0,  # V
    "MODEL.VIT.NORM_EPS": 1e-6,  # V
    "MODEL.VIT.PRETRAIN_SIZE": 224,  # V, default of its ViT
    "MODEL.VIT.CLASS_POSITION": True,  # same
    "MODEL.VIT.IMAGE_SIZE": 1024,  # V img_size and square_pad
    "MODEL.VIT.WINDOW": 14,  # V
    "MODEL.VIT.GLOBAL_BLOCKS": (2, 5, 8, 11),  # V: all blocks but those of window_block_indexes
    "MODEL.VIT.REL_POS": True,  # V
    "MODEL.VIT.DROP_PATH": 0.1,  # V
    "MODEL.VIT.CHECKPOINT_BLOCKS": False,  # V, default of its ViT
    "MODEL.FPN.OUT_CHANNELS": 256,  # V
    "MODEL.FPN.NORM": "LN",  # V
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],  # V
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],  # V
    "MODEL.RPN.CONV_DIMS": [-1, -1],  # V
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 4,  # V
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 256,  # V
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,  # V
    "MODEL.ROI_BOX_HEAD.FC_DIM": 1024,  # V
    "MODEL.ROI_BOX_HEAD.NORM": "LN",  # V
    "MODEL.ROI_MASK_HEAD.NORM": "LN",  # V
    "INPUT.FORMAT": "RGB",  # V
    "INPUT.LSJ.ENABLED": True,  # V
    "INPUT.LSJ.SCALES": (0.1, 2.0),  # V
    "INPUT.LSJ.SIZE": 1024,  # V
    "INPUT.RANDOM_FLIP": "horizontal",  # V
    "INPUT.MIN_SIZE_TRAIN": (1024,),  # open
    "INPUT.MAX_SIZE_TRAIN": 1024,  # open
    "INPUT.MIN_SIZE_TEST": 1024,  # V
    "INPUT.MAX_SIZE_TEST": 1024,  # V
    "DATALOADER.ASPECT_RATIO_GROUPING": False,  # open
    "SOLVER.OPTIMIZER": "AdamW",  # V
    "SOLVER.IMS_PER_BATCH": 64,  # V
    "SOLVER.BASE_LR": 1e-4,  # V
    "SOLVER.WEIGHT_DECAY": 0.1,  # V
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,  # V
    "SOLVER.LR_DECAY": 0.7,  # V
    "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",  # V
    "SOLVER.GAMMA": 0.1,  # V
    "SOLVER.WARMUP_ITERS": 250,  # V
    "SOLVER.WARMUP_FACTOR": 0.001,  # V
    "SOLVER.AMP.ENABLED": True,  # V
    "SOLVER.AMP.DTYPE": "bfloat16",  # open; V has float16
    "SOLVER.CLIP_GRADIENTS.ENABLED": False,  # D
    "TEST.PRECISE_BN.ENABLED": False,  # D
} | {
    key: FPN[key]  # V is based on detectron2's Mask R-CNN with FPN
    for key in (
        "MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "MODEL.RPN.IN_FEATURES",
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "MODEL.RPN.PRE_NMS_TOPK_TEST", "MODEL.RPN.POST_NMS_TOPK_TRAIN",
        "MODEL.RPN.POST_NMS_TOPK_TEST", "MODEL.ROI_HEADS.NAME", "MODEL.ROI_HEADS.IN_FEATURES",
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "MODEL.ROI_BOX_HEAD.NAME", "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION",
        "MODEL.ROI_MASK_HEAD.NAME", "MODEL.ROI_MASK_HEAD.NUM_CONV", "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION",
    )
}  # fmt: skip
VIT_COCO: Table = VIT | {
    "MODEL.MASK_ON": True,  # V
    "MODEL.ROI_HEADS.NUM_CLASSES": 80,  # V
    "DATASETS.TRAIN": ("coco_2017_train",),  # V
    "DATASETS.TEST": ("coco_2017_val",),  # V
    "SOLVER.STEPS": (163889, 177546),  # V
    "SOLVER.MAX_ITER": 184375,  # V
}
VIT_25: Table = VIT_COCO | {"SOLVER.STEPS": (40972, 44387), "SOLVER.MAX_ITER": 46094}  # open
SIDE_640: Table = {
    "MODEL.VIT.IMAGE_SIZE": 640,  # L
    "INPUT.LSJ.SIZE": 640,  # L
    "INPUT.MIN_SIZE_TEST": 640,  # L
    "INPUT.MAX_SIZE_TEST": 640,  # L
    "INPUT.MIN_SIZE_TRAIN": (640,),  # open
    "INPUT.MAX_SIZE_TRAIN": 640,  # open
}
TABLE |= {
    "coco_ViTB_SFP_100ep": VIT_COCO,
    "coco_ViTB_SFP_25ep": VIT_25,
    "coco_ViTS_SFP_25ep": VIT_25 | {"MODEL.VIT.WIDTH": 384},
    "coco_ViTT_SFP_640": VIT_COCO
    | SIDE_640
    | {
        "MODEL.VIT.WIDTH": 192,  # L, with the 12 heads of V
        "MODEL.VIT.DROP_PATH": 0.0,  # L
        "MODEL.VIT.CHECKPOINT_BLOCKS": True,  # L
        "SOLVER.WEIGHT_DECAY": 0.05,  # L
        "SOLVER.LR_DECAY": 1.0,  # L
    },
    "custom_ViTS_SFP": VIT
    | SIDE_640
    | {
        "MODEL.VIT.WIDTH": 384,
        "MODEL.MASK_ON": True,
        "SOLVER.EPOCHS": 29.0,
        "SOLVER.IMS_PER_BATCH": 16,
    },
}
RESNETS = [name for name in TABLE if "ViT" not in name]
VITS = [name for name in TABLE if "ViT" in name]
# Settings of this project, and keys that identify a run; no paper has them.
OURS = {"VERSION", "SEED", "OUTPUT_DIR", "MODEL.DEVICE", "MODEL.INIT"}


def load(name: str, *overrides: str) -> CfgNode:
    return load_config(f"transfer/{name}.yaml", [*RANDOM, *overrides])


def flat(node: CfgNode, prefix: str = "") -> Table:
    values = {}
    for key, value in node.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else {f"{prefix}{key}": value}
    return values


def wrong_keys(values: Table, table: Table) -> set[str]:
    """Return the keys of the table whose value in `values` differs, or is a number of another type."""
    return {
        key for key, value in table.items() if values[key] != value or type(values[key]) is not type(value)
    }


def changed(value: Any) -> Any:
    """Return another value of the same type, as close as a typing mistake."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 1.01 + (value == 0) * 1e-6
    if isinstance(value, str):
        return value[:-1] if value else "BN"
    return type(value)(value[:-1])  # a list without its last entry


def test_every_config_of_the_papers_is_here() -> None:
    files = {path.stem for path in (ROOT / "configs/transfer").glob("*.yaml")}
    names = {name for name in files if not name.startswith(("base_", "demo_", "laptop_"))}
    assert names == set(TABLE) == set(RECIPES)


@pytest.mark.parametrize("name", TABLE)
def test_effective_values(name: str) -> None:
    assert not wrong_keys(flat(load(name)), TABLE[name])


@pytest.mark.parametrize("name", TABLE)
def test_no_value_is_changed_unseen(name: str) -> None:
    """The test above notices a change of any single value, and so does `explain`."""
    values, recipe = flat(load(name)), RECIPES[name].facts
    for key in TABLE[name]:
        slip = values | {key: changed(values[key])}
        assert wrong_keys(slip, TABLE[name]) == {key}
    cfg = load(name)
    for key in recipe:
        parent, _, leaf = key.rpartition(".")
        node = cfg
        for part in parent.split("."):
            node = node[part]
        kept, node[leaf] = node[leaf], changed(node[leaf])
        assert explain.differences(cfg, recipe) == [key]
        node[leaf] = kept


@pytest.mark.parametrize("name", TABLE)
def test_the_table_has_all_that_a_config_sets(name: str) -> None:
    plain = get_cfg()
    add_keys(plain)
    before, after = flat(plain), flat(load(name))
    assert {key for key in after if after[key] != before[key]} <= set(TABLE[name]) | OURS


@pytest.mark.parametrize("name", TABLE)
def test_rate_and_steps_are_in_proportion(name: str) -> None:
    cfg = load(name)
    length.follow_images(cfg, 1920)  # only a config without a length of its own
    solver = cfg.SOLVER
    if "ViT" in name:
        custom = name.startswith("custom")  # three quarters and eleven twelfths, as for VOC
        shares = (
            (3 / 4, 11 / 12) if custom else (24 / 27, 26 / 27)
        )  # as in the authors' schedules of 9 x 12 epochs
        assert tuple(solver.STEPS) == tuple(round(share * solver.MAX_ITER) for share in shares)
        return
    if not name.startswith("semseg"):  # 0.02 for 16 images, and the linear rule
        assert Fraction(str(solver.BASE_LR)) / solver.IMS_PER_BATCH == Fraction(2, 100) / 16
    parts = [Fraction(step, solver.MAX_ITER) for step in solver.STEPS]
    expected = {
        "voc": [Fraction(3, 4), Fraction(11, 12)],
        "custom": [Fraction(3, 4), Fraction(11, 12)],
        "cityscapes": [Fraction(3, 4)],
        "semseg": [Fraction(7, 10), Fraction(9, 10)],
    }.get(name.split("_")[0].rstrip("07"), [Fraction(2, 3), Fraction(8, 9)])
    if name.endswith("6x"):  # the last two phases are as long as those of 2x
        expected = [1 - Fraction(60000, 540000), 1 - Fraction(20000, 540000)]
    assert parts == expected


def overrides_in_the_documentation() -> dict[str, list[str]]:
    """Return the overrides that docs/recipes.md adds to a command, by the title of their section."""
    found = {}
    title = ""
    for line in (ROOT / "docs/recipes.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            title = line.lstrip("# ")
        if line.startswith(("    INPUT.", "    MODEL.", "    DATASETS.")):
            found.setdefault(title, []).extend(shlex.split(line.removesuffix("\\")))
    return found


def test_published_numbers_are_the_same_in_config_and_documentation() -> None:
    rows = [line.split("|") for line in (ROOT / "docs/recipes.md").read_text(encoding="utf-8").splitlines()]
    numbers = {row[1].strip(" `"): row[4:7] for row in rows if len(row) == 10 and row[1].strip(" `") in TABLE}
    assert numbers.keys() == TABLE.keys()
    for name, cells in numbers.items():
        text = (ROOT / f"configs/transfer/{name}.yaml").read_text(encoding="utf-8").replace("\n#", "")
        comment = " ".join(text.split())
        moco = "MoCo v3" if "ViT" in name else "MoCo v1"
        for kind, cell in zip(("random", "supervised", moco), cells, strict=True):
            assert cell.strip() == "-" or f"{kind} {cell.strip()}" in comment.replace("random init", "random")


@pytest.mark.parametrize("name", RESNETS)
def test_the_inits_differ_in_weights_alone(name: str) -> None:
    """Random, converted weights, and the paper's supervised row with the overrides of docs/recipes.md."""
    random = flat(load(name))
    weights = flat(load_config(f"transfer/{name}.yaml", ["MODEL.WEIGHTS", "moco.pkl"]))
    assert {key for key in random if random[key] != weights[key]} == {"MODEL.INIT", "MODEL.WEIGHTS"}
    documented = overrides_in_the_documentation()["Weights of MSRA"]
    msra = flat(load_config(f"transfer/{name}.yaml", documented))
    # R without *_moco.yaml: detectron2's defaults, which are MSRA's
    other = {"INPUT.FORMAT", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "MODEL.RESNETS.STRIDE_IN_1X1"}
    assert {key for key in weights if weights[key] != msra[key]} == {"MODEL.WEIGHTS", *other}
    plain = flat(get_cfg())
    assert {key: msra[key] for key in other} == {key: plain[key] for key in other}


def build(cfg: CfgNode) -> torch.nn.Module:
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg)


def norms(
    model: torch.nn.Module, kind: type[torch.nn.Module] | tuple[type[torch.nn.Module], ...]
) -> set[str]:
    """Return the parts of the model, by their two outermost names, that hold norm layers of a kind."""
    return {".".join(name.split(".")[:2]) for name, m in model.named_modules() if isinstance(m, kind)}


BN = torch.nn.modules.batchnorm._BatchNorm
TRUNK = {f"backbone.{part}" for part in ("stem", "res2", "res3", "res4")}
FPN_NORMS = {f"backbone.fpn_{kind}{level}" for kind in ("lateral", "output") for level in (2, 3, 4, 5)}
NORMS = {  # parts with BN
    "C4": TRUNK | {"roi_heads.res5"},
    "DC5": {"backbone.bottom_up", "backbone.output"},
    "FPN": {"backbone.bottom_up"} | FPN_NORMS,
    "R50": TRUNK | {"backbone.res5", "sem_seg_head.convs"},
}


# Parameters in millions: Dosovitskiy et al. 2021 (86 for ViT-B) and Touvron et al. 2021 (5 and 22 for DeiT-T and S),
# with classifiers but without relative positions; 111 with ViTDet's pyramid and heads (Li et al. 2022).
@pytest.mark.parametrize("name", VITS)
def test_vit(name: str) -> None:
    model = build(load(name))
    assert not norms(model, BN) and all(p.requires_grad for p in model.parameters())
    kind = name.split("_")[1]
    millions = {"ViTB": 86, "ViTS": 22, "ViTT": 5}[kind]
    found = sum(p.numel() for p in model.backbone.net.parameters()) / 1e6
    assert found == pytest.approx(millions, abs=0.6)
    if kind == "ViTB":
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(111, abs=0.5)
    assert model.backbone.size_divisibility == load(name).MODEL.VIT.IMAGE_SIZE


@pytest.mark.parametrize("name", RESNETS)
def test_model(name: str) -> None:
    model = build(load(name))
    kind = next(part for part in name.split("_")[::-1] if part in NORMS)
    assert all(p.requires_grad for p in model.parameters())
    if name.endswith("frozen"):
        assert norms(model, FrozenBatchNorm2d) == {"backbone.bottom_up"} and not norms(model, BN)
    else:
        assert norms(model, BN) == NORMS[kind] and not norms(model, FrozenBatchNorm2d)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if kind == "R50":
        assert shapes["sem_seg_head.classifier.weight"][0] == TABLE[name]["MODEL.SEM_SEG_HEAD.NUM_CLASSES"]
    else:
        classes = TABLE[name].get("MODEL.ROI_HEADS.NUM_CLASSES", 80)
        inputs = 2048 if kind == "C4" else 1024
        assert shapes["roi_heads.box_predictor.cls_score.weight"] == (classes + 1, inputs)
    assert any("mask_head" in key for key in shapes) == TABLE[name].get("MODEL.MASK_ON", False)
    assert any("keypoint_head" in key for key in shapes) == TABLE[name].get("MODEL.KEYPOINT_ON", False)


# Backbone parameters in millions: R50 and R101 from torchvision, RX50 and w2 from Table 1 of the paper (46 and 94,
# with the 128-d head), each without its classifier.
@pytest.mark.parametrize(
    ("title", "millions"),
    [("ResNet-101", 42.5), ("ResNeXt-50 32x8d", 46 - 0.26), ("ResNet-50, twice as wide", 94 - 0.52)],
)
@pytest.mark.parametrize("name", ["coco_R50_FPN", "voc_R50_C4_24k", "voc_R50_DC5_24k", "semseg_voc_R50"])
def test_other_backbones(name: str, title: str, millions: float) -> None:
    model = build(load(name, *overrides_in_the_documentation()[title]))
    trunk = sum(p.numel() for key, p in model.named_parameters() if ".res" in key or ".stem" in key)
    extra = 2 * model.roi_heads.res5.norm.num_features if "C4" in name else 0
    assert (trunk - extra) / 1e6 == pytest.approx(millions, abs=0.5)


def test_basic_blocks_in_fpn_models_only() -> None:
    overrides = overrides_in_the_documentation()["ResNet-18 and ResNet-34"]
    model = build(load("coco_R50_FPN", *overrides))
    trunk = sum(p.numel() for key, p in model.named_parameters() if ".res" in key or ".stem" in key)
    assert trunk == sum(p.numel() for p in torchvision.models.resnet18().parameters()) - 512 * 1000 - 1000
    for name in ("voc_R50_C4_24k", "voc_R50_DC5_24k", "semseg_voc_R50"):
        with pytest.raises(UserError, match=r"MODEL\.RESNETS\.DEPTH 18.*FPN"):
            load(name, *overrides)


def test_lvis_v1_by_the_documented_overrides() -> None:
    cfg = load("lvis_R50_FPN_2x", *overrides_in_the_documentation()["LVIS v1"])
    changes = {"DATASETS.TRAIN", "DATASETS.TEST", "MODEL.ROI_HEADS.NUM_CLASSES"}
    assert wrong_keys(flat(cfg), TABLE["lvis_R50_FPN_2x"]) == changes
    assert (cfg.DATASETS.TRAIN, cfg.MODEL.ROI_HEADS.NUM_CLASSES) == (("lvis_v1_train",), 1203)


@pytest.mark.parametrize("name", TABLE)
def test_explain_finds_the_configs_equal_to_the_recipes(name: str) -> None:
    lines = explain.explain(load(name), f"transfer/{name}.yaml")
    assert lines[0].startswith(f"{name}: ")
    assert lines[1].endswith("values: none")
    assert not any("command line" in line for line in lines)  # each difference to detectron2 has its source
    assert all(source for _, source in RECIPES[name].facts.values())


def test_explain_names_both_values_and_the_source() -> None:
    cfg = load("voc_R50_C4_24k", "MODEL.BACKBONE.FREEZE_AT", "2", "OUTPUT_DIR", "x", "SOLVER.MOMENTUM", "0.8")
    lines = explain.explain(cfg, "/some/where/voc_R50_C4_24k.yaml")
    assert lines[0] == "voc_R50_C4_24k: He et al. 2020, Table 2(b)"
    assert lines[1].endswith(": 2")
    assert lines[3].split()[:3] == ["MODEL.BACKBONE.FREEZE_AT", "2", "0"]
    assert "He et al. 2020, Sec. 4.2" in lines[3]
    assert lines[4].split()[:3] == ["SOLVER.MOMENTUM", "0.8", "0.9"]
    assert lines[2].index("recipe") == lines[4].index("0.9")  # aligned
    assert not any("OUTPUT_DIR" in line for line in lines)
    plain = [line for line in lines[lines.index("") :] if "SOLVER.MOMENTUM" in line]
    assert len(plain) == 1 and "command line" in plain[0]


def test_explain_against_plain_detectron2() -> None:
    """voc_R50_C4_24k differs from detectron2's VOC config in what the paper and its authors state, and in the seed."""
    lines = explain.explain(load("voc_R50_C4_24k"), "voc_R50_C4_24k")
    keys = {line.split()[0] for line in lines[lines.index("") + 3 :]}
    assert keys == {
        "INPUT.FORMAT", "MODEL.BACKBONE.FREEZE_AT", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "MODEL.RESNETS.NORM",
        "MODEL.RESNETS.STRIDE_IN_1X1", "MODEL.ROI_HEADS.NAME", "SEED", "SOLVER.MAX_ITER", "SOLVER.STEPS",
        "TEST.PRECISE_BN.ENABLED",
    }  # fmt: skip


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_explain_fits_the_terminal(width: int) -> None:
    """Every value and every reason is there, in lines that fit."""
    cfg = load("coco_R50_FPN")
    lines = explain.explain(cfg, "coco_R50_FPN.yaml", width=width)
    assert max(map(len, lines)) <= width
    assert max(map(len, explain.explain(cfg, "coco_R50_FPN.yaml"))) > 150  # a pipe gets each row in one line
    together = " ".join(" ".join(lines).split())
    assert "MODEL.RESNETS.NORM" in together and "'FrozenBN'" in together
    for word in ["BN", "trained", "and", "synchronised;", "SyncBN:", "facebookresearch/moco", "issue", "34"]:
        assert word in together
    if width < 100:
        assert (
            "here 'RGB', detectron2 'BGR': facebookresearch/moco, *_moco.yaml: torchvision's layout"
            in together
        )


def test_explain_for_a_config_of_ones_own() -> None:
    lines = explain.explain(load("demo_R18_FPN"), "mine.yaml")
    assert lines[0].startswith("mine: the paper has no recipe of this name") and "coco_R50_FPN_6x" in lines[0]
    assert any("AdamW" in line and "SGD" in line for line in lines)
