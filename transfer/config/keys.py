"""The config keys that fine-tuning adds to detectron2's, each with its default."""

import os
from typing import Any


def data_root() -> str:
    """Return the folder of the data sets if none is given: the one that detectron2's own scripts read, or `datasets`.

    Those look for data sets under the environment variable DETECTRON2_DATASETS.
    """
    return os.environ.get("DETECTRON2_DATASETS") or "datasets"


def add_keys(cfg: Any) -> None:
    """Add our keys to detectron2's, which remain unchanged.

    Args:
        cfg: a detectron2 `CfgNode`, in place; those of plain detectron2 get the keys by `transfer.d2_import_hook`.
    """
    node = type(cfg)
    # weights: MODEL.WEIGHTS must name a file that fills the whole backbone. random: train from scratch.
    cfg.MODEL.INIT = "weights"
    # Memory format of the convolutions. It changes only the order of additions.
    cfg.MODEL.CHANNELS_LAST = True
    cfg.MODEL.COMPILE = False  # torch.compile of the backbone
    cfg.MODEL.DC5 = node({"CHANNELS": 512})  # of the 3x3 convolution after a dilated C5 (App. A.1)
    cfg.MODEL.SEM_SEG_HEAD.DILATION = 6  # of the two 3x3 convolutions of FCN16sHead (App. A.5)
    # The plain ViT of build_vit_sfp_backbone; MODEL.FPN describes its pyramid. The defaults are ViTDet's ViT-B.
    cfg.MODEL.VIT = node(
        {
            "PATCH_SIZE": 16,
            "WIDTH": 768,
            "DEPTH": 12,
            "HEADS": 12,
            "MLP_RATIO": 4.0,
            "NORM_EPS": 1e-6,
            # side in pixels of the square images that the table of absolute positions belongs to
            "PRETRAIN_SIZE": 224,
            "CLASS_POSITION": True,  # that table begins with the class token's position
            # Images are padded to squares of this side; the relative positions of global blocks are for this size.
            "IMAGE_SIZE": 1024,
            "WINDOW": 14,  # side of the windows in patches; 0: all blocks attend globally
            "GLOBAL_BLOCKS": (2, 5, 8, 11),  # blocks without windows, counted from 0
            "REL_POS": True,  # relative positions, which begin at zero
            "DROP_PATH": 0.1,  # probability in the last block; it rises linearly from 0 in the first one
            "CHECKPOINT_BLOCKS": False,  # compute activations again in the backward pass, to save memory
        }
    )
    # Detection: large-scale jitter. The image is scaled to fit into SIZE x SIZE, times a random factor, then cropped.
    cfg.INPUT.LSJ = node({"ENABLED": False, "SCALES": (0.1, 2.0), "SIZE": 1024})
    # Semantic segmentation: a random scale of the whole image, then a square crop, padded if the image is smaller.
    cfg.INPUT.SCALE_CROP = node({"ENABLED": False, "SCALES": (0.5, 2.0), "SIZE": 513})
    cfg.SOLVER.OPTIMIZER = "SGD"  # SGD (the paper) | AdamW (the demo: trains from scratch in minutes)
    # Learning rates of the backbone: a factor for all of it, and one more for every stage (or block of a ViT) between a
    # layer and the heads.
    cfg.SOLVER.BACKBONE_LR_FACTOR = 1.0
    cfg.SOLVER.LR_DECAY = 1.0  # res5 once, res4 twice, ... the stem five times
    cfg.SOLVER.ACCUMULATE = 1  # parts into which each process divides its share of a batch
    cfg.SOLVER.AMP.DTYPE = "bfloat16"  # bfloat16 | float16 (scaled losses, as in detectron2)
    cfg.SOLVER.LOG_PERIOD = 20  # iterations
    cfg.SOLVER.CHECKPOINT_PERIOD = 5000  # iterations
    cfg.SOLVER.SAVE_MINUTES = 15.0  # also save at this interval; 0: only by CHECKPOINT_PERIOD
    # Number of epochs, from which MAX_ITER, STEPS and the warm-up follow (length.py); not if a MAX_ITER is set.
    cfg.SOLVER.EPOCHS = 0.0
    cfg.DATASETS.ROOT = data_root()  # the folder of coco/, VOC2007/, VOC2012/, demo_*/
    # Your own COCO-format data: set all four, instead of TRAIN and TEST.
    cfg.DATASETS.TRAIN_JSON = ""
    cfg.DATASETS.TRAIN_IMAGES = ""
    cfg.DATASETS.TEST_JSON = ""
    cfg.DATASETS.TEST_IMAGES = ""
    cfg.DATASETS.REPAIR = False  # repair or leave out annotations that cannot be used, instead of stopping
    # Train on part of the labels: a fraction of the images, or images until each class has SHOTS objects.
    cfg.DATASETS.FRACTION = 1.0
    cfg.DATASETS.SHOTS = 0
    cfg.DATASETS.SUBSET_SEED = 0
    cfg.TEST.KEEP_BEST = ""  # for example bbox/AP: with TEST.EVAL_PERIOD, writes model_best.pth
    cfg.TEST.PICTURES = 8  # number of test images to draw, with predictions and ground truth
    cfg.TEST.PICTURE_SCORE = 0.5  # detections below this score are not drawn
    cfg.LOG = node({"TENSORBOARD": True, "WANDB": ""})  # WANDB: the name of a project; needs wandb
