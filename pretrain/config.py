"""The config keys of pre-training with their defaults, and loading a config."""

import os
from collections.abc import Sequence

from fvcore.common.config import CfgNode

from pretrain.common.configs import default_output, find_config, merge
from pretrain.data import sources


def load(name: str, overrides: Sequence[str] = (), *, processes: int = 1) -> CfgNode:
    """Return the frozen pre-training config of a YAML file and `KEY VALUE` pairs.

    Raises `UserError` for any setting that cannot work with this number of processes.
    """
    from pretrain.config_checks import validate  # imports PyTorch, which takes seconds

    cfg = _read(name, overrides)
    validate(cfg, processes=processes)
    cfg.freeze()
    return cfg


def check_images(name: str, overrides: Sequence[str] = ()) -> None:
    """Raise `UserError` for an unknown key or for images that are not there, before PyTorch is imported."""
    sources.check(_read(name, overrides).DATA.TRAIN)


def _read(name: str, overrides: Sequence[str]) -> CfgNode:
    cfg, path = defaults(), find_config(name)
    merge(cfg, path, overrides)
    cfg.OUTPUT_DIR = default_output(path, overrides) or cfg.OUTPUT_DIR
    _forget_absent_labels(cfg, overrides)
    return cfg


def defaults() -> CfgNode:
    """Return every key of pre-training with its default, the value of MoCo v2 (Chen et al. 2020; He et al. Sec. 4)."""
    return CfgNode(
        {
            "MODEL": {
                "ARCH": "resnet50",  # resnet18|34|50|101|152, resnext50_32x8d, resnext101_32x8d, vit (MoCo v3)
                "WIDTH": 1.0,  # multiplies every channel count of a ResNet
                "STEM_CHANNELS": 0,  # of the first convolution; 0: 64 x WIDTH
                "DIM": 128,  # size of the query and key vectors
                "HEAD": "mlp",  # linear (v1) | mlp (v2: hidden layer as wide as the feature, ReLU); v3 has its own
                "HIDDEN": 4096,  # width of the hidden layers in the projector and the predictor of MoCo v3
                "VIT": {  # the shape of ARCH vit; the default is ViT-B/16
                    "WIDTH": 768,
                    "DEPTH": 12,  # number of blocks
                    "HEADS": 12,
                    "PATCH_SIZE": 16,  # pixels
                },
                "NORM": "ShuffleBN",  # ShuffleBN | SyncBN | BN; MoCo v3: SyncBN
                "BN_GROUP_SIZE": 32,  # number of images normalised together; 256 / 8 GPUs in the paper
                "COMPILE": False,  # whether to use torch.compile
            },
            "MOCO": {
                "MECHANISM": "moco",  # moco | endtoend | memorybank (He et al. Figure 2) | mocov3 (no queue)
                "K": 65536,  # number of keys in the queue, or of negatives drawn from the memory bank
                "M": 0.999,  # momentum of the key encoder; in MoCo v3 it rises from here to 1
                "T": 0.2,  # temperature; 0.07 in v1
                "BANK_M": 0.5,  # momentum of the memory bank's features (Wu et al. 2018)
                "SHUFFLE": True,  # set False only to show the leak that shuffling prevents (Figure A.1)
            },
            "INPUT": {
                "SIZE": 224,  # pixels; views are square
                "AUG": "v2",  # v1 | v2 | v3
                "WITHOUT": [],  # parts of AUG to leave out: crop flip jitter gray blur solarize
                "VIEWS": "cpu",  # cpu | gpu: where to change colours and to blur
                "MIN_SCALE": 0.2,  # smallest share of the image area that a crop may cover
                "MEAN": [0.485, 0.456, 0.406],  # of RGB in [0, 1]
                "STD": [0.229, 0.224, 0.225],
            },
            "DATA": {
                "TRAIN": ["datasets/imagenet/train"],  # folders, text lists, tar shards; labels are not used
                "ENDINGS": [],  # file names that are images: jpg, rgb.png, or !_mask.png for all but these; empty: all
                "NUM_WORKERS": 4,  # loader workers of each training process
                "MAX_BROKEN": 0.01,  # stop if more than this share of the images cannot be read
            },
            "SOLVER": {
                "OPTIMIZER": "sgd",  # sgd | lars | adamw
                "BASE_LR": 0.03,  # of this batch: it is not scaled by the batch size
                "IMS_PER_BATCH": 256,  # total over all processes
                "MOMENTUM": 0.9,  # of SGD and LARS
                "WEIGHT_DECAY": 1e-4,
                "SCHEDULE": "cosine",  # cosine | step | exponential | warmup_cosine (per iteration)
                "WARMUP_EPOCHS": 10.0,  # in which the rate of `warmup_cosine` rises from 0
                "STEPS": [120, 160],  # epochs at which `step` multiplies the rate by 0.1
                "GAMMA": 0.9,  # `exponential` multiplies the rate by this
                "GAMMA_PERIOD": 62500,  # iterations between these multiplications
                "MAX_EPOCH": 200,
                "MAX_ITER": 0,  # stop after this many iterations; 0: only MAX_EPOCH counts
                "CHUNK": 0,  # images that a process's ViT encodes at a time, to save memory; 0: all; same result
                "AMP": "auto",  # auto (bf16 if the GPU has it, or if it is timed faster on a CPU) | bf16 | fp16 | off
                "CHECKPOINT_PERIOD": 10,  # keep the checkpoint of every Nth epoch permanently
                "KEEP_LAST": 3,  # also keep the checkpoints of the last N epochs; 0: keep all
                "SAVE_MINUTES": 15.0,  # also save during an epoch, at this interval; 0: only at its end
                "SAVE_ERRORS": "stop",  # stop | continue: what to do if a checkpoint cannot be written
                "LOG_PERIOD": 20,  # iterations
            },
            "KNN": {
                "TRAIN": "",  # folder of class folders; empty: those of DATA.TRAIN, if it has any
                "VAL": "",  # folder of class folders; empty: leave-one-out on TRAIN
                "K": 20,
                "T": 0.07,
                "PERIOD": 10,  # measure every Nth epoch, and after the last one; 0: never
                "MAX_IMAGES": 5000,  # from each folder, evenly spaced, plus one of each class missed by that
            },
            "LOG": {
                "TENSORBOARD": True,
                "WANDB": "",  # name of a project; empty: none
            },
            "OUTPUT_DIR": "output/pretrain",
            "SEED": 0,
            "DEVICE": "auto",  # auto | cpu | cuda
        }
    )


def _forget_absent_labels(cfg: CfgNode, overrides: Sequence[str]) -> None:
    """Empty KNN.TRAIN and VAL of a config whose DATA.TRAIN is overridden, if the labelled images are not there.

    They belong to the images that the config names, such as the demo's, and not to those of the command line.
    """
    given = set(overrides[::2])
    if "DATA.TRAIN" in given and not {"KNN.TRAIN", "KNN.VAL"} & given and not os.path.exists(cfg.KNN.TRAIN):
        cfg.KNN.TRAIN = cfg.KNN.VAL = ""
