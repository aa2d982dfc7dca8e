"""The config keys of pre-training with their defaults, and how a config is loaded."""

from collections.abc import Sequence

from fvcore.common.config import CfgNode

from pretrain.common.configs import find_config, merge
from pretrain.validate import validate


def load(name: str, overrides: Sequence[str] = (), *, processes: int = 1) -> CfgNode:
    """The frozen pre-training config of a YAML file and `KEY VALUE` pairs.

    Raises `UserError` for everything that cannot work, here with `processes` processes.
    """
    cfg = defaults()
    merge(cfg, find_config(name), overrides)
    validate(cfg, processes=processes)
    cfg.freeze()
    return cfg


def defaults() -> CfgNode:
    """Every key of pre-training with its default: MoCo v2's values (Chen et al. 2020; He et al. Sec. 4)."""
    return CfgNode(
        {
            "MODEL": {
                "ARCH": "resnet50",  # resnet18|34|50|101|152, resnext50_32x8d, resnext101_32x8d
                "WIDTH": 1.0,  # multiplies every channel count of the backbone
                "DIM": 128,  # size of the query and key vectors
                "HEAD": "mlp",  # linear (v1) | mlp (v2: hidden layer as wide as the feature, ReLU)
                "NORM": "ShuffleBN",  # ShuffleBN | SyncBN | BN
                "BN_GROUP_SIZE": 32,  # images normalised together; 256 / 8 GPUs in the paper
                "COMPILE": False,  # torch.compile
            },
            "MOCO": {
                "MECHANISM": "moco",  # moco | endtoend | memorybank (He et al. Figure 2)
                "K": 65536,  # keys in the queue; negatives drawn from the memory bank
                "M": 0.999,  # momentum of the key encoder
                "T": 0.2,  # temperature; 0.07 in v1
                "BANK_M": 0.5,  # momentum of the memory bank's features (Wu et al. 2018)
                "SHUFFLE": True,  # False only to see the leak that shuffling prevents (Figure A.1)
            },
            "INPUT": {
                "SIZE": 224,  # pixels, of the square views
                "AUG": "v2",  # v1 | v2
                "WITHOUT": [],  # parts of AUG to leave out: crop flip jitter gray blur
                "VIEWS": "cpu",  # cpu | gpu: where colours are changed and views blurred
                "MIN_SCALE": 0.2,  # smallest share of the image that a crop may cover
                "MEAN": [0.485, 0.456, 0.406],  # of RGB in [0, 1]
                "STD": [0.229, 0.224, 0.225],
            },
            "DATA": {
                "TRAIN": ["datasets/imagenet/train"],  # folders, text lists, tar shards; labels are not used
                "NUM_WORKERS": 4,  # loader processes of each training process
                "MAX_BROKEN": 0.01,  # stop when more than this share of the images cannot be read
            },
            "SOLVER": {
                "BASE_LR": 0.03,
                "IMS_PER_BATCH": 256,  # total over all processes
                "MOMENTUM": 0.9,
                "WEIGHT_DECAY": 1e-4,
                "SCHEDULE": "cosine",  # cosine | step | exponential
                "STEPS": [120, 160],  # epochs at which `step` multiplies the rate by 0.1
                "GAMMA": 0.9,  # `exponential` multiplies the rate by it
                "GAMMA_PERIOD": 62500,  # every so many iterations
                "MAX_EPOCH": 200,
                "MAX_ITER": 0,  # stop after so many iterations; 0: only MAX_EPOCH counts
                "AMP": "auto",  # auto (bf16 on GPUs that have it; on CPUs a timed step tells) | bf16 | fp16 | off
                "CHECKPOINT_PERIOD": 10,  # epochs; the checkpoint of every so manieth one stays for good
                "KEEP_LAST": 3,  # checkpoints of the last epochs that stay besides; 0 keeps all
                "SAVE_MINUTES": 15.0,  # save inside an epoch too, so often; 0: only at its end
                "SAVE_ERRORS": "stop",  # stop | continue, when a checkpoint cannot be written
                "LOG_PERIOD": 20,  # iterations
            },
            "KNN": {
                "TRAIN": "",  # folder of class folders; empty: DATA.TRAIN's own, if it has them
                "VAL": "",  # folder of class folders; empty: leave-one-out on TRAIN
                "K": 20,
                "T": 0.07,
                "PERIOD": 10,  # epochs; the last epoch is always measured; 0: no monitor
                "MAX_IMAGES": 5000,  # of each folder, evenly spread; and one of each class that this leaves out
            },
            "LOG": {
                "TENSORBOARD": True,
                "WANDB": "",  # project; empty: none
            },
            "OUTPUT_DIR": "output/pretrain",
            "SEED": 0,
            "DEVICE": "auto",  # auto | cpu | cuda
        }
    )
