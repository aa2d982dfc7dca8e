"""Configs hold the paper's values, and the error for a mistake names the key and what to do."""

import json
from pathlib import Path

import pytest

from pretrain.common.configs import CONFIG_ROOT
from pretrain.common.errors import UserError
from transfer.config.load import check_processes, load_config

RANDOM = ["MODEL.INIT", "random"]

# Written from He et al. 2020 (Sec. 4.2, App. A.1), the authors' published detection settings and their answers in
# issues 34 and 39 of facebookresearch/moco; detectron2's defaults for values that those do not set.
COMMON = {
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.NORM": "SyncBN",
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "INPUT.FORMAT": "RGB",
    "INPUT.MAX_SIZE_TRAIN": 1333,
    "INPUT.MIN_SIZE_TEST": 800,
    "TEST.PRECISE_BN.ENABLED": True,
    "TEST.PRECISE_BN.NUM_ITER": 200,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.BASE_LR": 0.02,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "SOLVER.GAMMA": 0.1,
    "SOLVER.WARMUP_FACTOR": 1 / 1000,
    "SOLVER.OPTIMIZER": "SGD",
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.0,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.05,
}
FPN = {
    "MODEL.FPN.NORM": "SyncBN",
    "MODEL.ROI_BOX_HEAD.NORM": "",
    "MODEL.ROI_MASK_HEAD.NORM": "",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 0,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1000,
    "MODEL.MASK_ON": True,
}
VOC_SCALES = tuple(range(480, 801, 32))
RECIPES = {
    "coco_R50_FPN": {
        **COMMON, **FPN, "SOLVER.STEPS": (60000, 80000), "SOLVER.MAX_ITER": 90000, "SOLVER.WARMUP_ITERS": 1000,
        "INPUT.MIN_SIZE_TRAIN": tuple(range(640, 801, 32)), "MODEL.ROI_HEADS.NUM_CLASSES": 80,
        "DATASETS.TRAIN": ("coco_2017_train",), "DATASETS.TEST": ("coco_2017_val",),
    },
    "voc_R50_C4_24k": {
        **COMMON, "SOLVER.STEPS": (18000, 22000), "SOLVER.MAX_ITER": 24000, "SOLVER.WARMUP_ITERS": 100,
        "INPUT.MIN_SIZE_TRAIN": VOC_SCALES, "MODEL.ROI_HEADS.NUM_CLASSES": 20, "MODEL.MASK_ON": False,
        "MODEL.RESNETS.NORM": "naiveSyncBN",
        "MODEL.ROI_HEADS.NAME": "Res5ROIHeadsExtraNorm", "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 1000, "DATASETS.TRAIN": ("voc_2007_trainval", "voc_2012_trainval"),
        "DATASETS.TEST": ("voc_2007_test",),
    },
    "voc_mask_R50_FPN": {
        **COMMON, **FPN, "SOLVER.STEPS": (18000, 22000), "SOLVER.MAX_ITER": 24000, "SOLVER.WARMUP_ITERS": 100,
        "INPUT.MIN_SIZE_TRAIN": VOC_SCALES, "MODEL.ROI_HEADS.NUM_CLASSES": 20,
        "DATASETS.TRAIN": ("voc_2012_masks_train",), "DATASETS.TEST": ("voc_2012_masks_val",),
    },
}  # fmt: skip


def _value(cfg, key: str):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name: str) -> None:
    cfg = load_config(f"transfer/{name}.yaml", RANDOM)
    got = {key: _value(cfg, key) for key in RECIPES[name]}
    assert got == RECIPES[name]


@pytest.mark.parametrize(
    ("name", "overrides", "parts"),
    [
        ("transfer/coco_R50_FNP.yaml", RANDOM, ["transfer/coco_R50_FPN.yaml"]),
        ("transfer/coco_R50_FPN.yaml", [], ["MODEL.WEIGHTS", "MODEL.INIT random"]),
        ("transfer/coco_R50_FPN.yaml", [*RANDOM, "MODEL.WEIGHTS", "x.pkl"], ["MODEL.INIT", "x.pkl"]),
        ("transfer/coco_R50_FPN.yaml", [*RANDOM, "SOLVER.BASE_RL", "0.1"], ["SOLVER.BASE_RL", "SOLVER.BASE_LR"]),
        ("transfer/coco_R50_FPN.yaml", [*RANDOM, "MODEL.BASE_LR", "0.1"], ["MODEL.BASE_LR", "SOLVER.BASE_LR"]),
        ("transfer/coco_R50_FPN.yaml", [*RANDOM, "SOLVER.BASE_LR", "fast"], ["SOLVER.BASE_LR", "fast"]),
        ("transfer/coco_R50_FPN.yaml", [*RANDOM, "SEED"], ["SEED", "no value"]),
        ("transfer/coco_R50_FPN.yaml", [*RANDOM, "SOLVER.MAX_ITER", "100"], ["SOLVER.STEPS", "SOLVER.MAX_ITER 100"]),
        ("transfer/voc_R50_C4_24k.yaml", [*RANDOM, "MODEL.RESNETS.DEPTH", "18"], ["MODEL.RESNETS.DEPTH 18", "FPN"]),
        ("transfer/demo_R18_FPN.yaml", [*RANDOM, "MODEL.RESNETS.RES5_DILATION", "2"], ["DEPTH 18", "RES5_DILATION 1"]),
        ("transfer/coco_R50_FPN.yaml", [*RANDOM, "SEED", "-1"], ["SEED -1", "0 or more"]),
        ("transfer/coco_R50_FPN.yaml", [*RANDOM, "SOLVER.MAX_ITER", "0"], ["SOLVER.MAX_ITER 0", "--eval-only"]),
        ("transfer/coco_R50_FPN.yaml", [*RANDOM, "DATASETS.FRACTION", "0"], ["DATASETS.FRACTION 0", "up to 1"]),
        ("transfer/coco_R50_FPN.yaml", [*RANDOM, "SOLVER.IMS_PER_BATCH", "0"], ["SOLVER.IMS_PER_BATCH 0", "1 or more"]),
        ("transfer/coco_R50_FPN.yaml", [*RANDOM, "SOLVER.BASE_LR", "-1"], ["SOLVER.BASE_LR -1", "above 0"]),
        ("transfer/coco_R50_FPN.yaml", [*RANDOM, "MODEL.RESNETS.DEPTH", "33"], ["RESNETS.DEPTH 33", "18, 34, 50"]),
        ("transfer/coco_R50_FPN.yaml", [*RANDOM, "DATASETS.SHOTS", "-1"], ["DATASETS.SHOTS -1", "or more"]),
        ("transfer/semseg_voc_R50.yaml", [*RANDOM, "INPUT.SCALE_CROP.SIZE", "-1"], ["SCALE_CROP.SIZE -1", "pixels"]),
        ("transfer/semseg_voc_R50.yaml", [*RANDOM, "INPUT.SCALE_CROP.SCALES", "(2, 1)"], ["SCALES (2, 1)", "smallest"]),
        ("transfer/coco_R50_FPN.yaml", [*RANDOM, "TEST.EVAL_PERIOD", "-1"], ["TEST.EVAL_PERIOD -1", "0"]),
        ("transfer/coco_R50_FPN.yaml", [*RANDOM, "TEST.KEEP_BEST", "bbox/AP"], ["TEST.KEEP_BEST", "TEST.EVAL_PERIOD"]),
        ("transfer/coco_R50_FPN.yaml", [*RANDOM, "TEST.KEEP_BEST", "AP"], ["TEST.KEEP_BEST AP", "bbox/AP"]),
        ("transfer/coco_R50_FPN.yaml", [*RANDOM, "TEST.AUG.ENABLED", "True"], ["TEST.AUG.ENABLED True", "False"]),
        ("transfer/coco_R50_FPN.yaml", [*RANDOM, "SOLVER.AMP.DTYPE", "fp16"], ["SOLVER.AMP.DTYPE fp16", "float16"]),
        ("transfer/coco_R50_FPN.yaml", [*RANDOM, "SOLVER.ACCUMULATE", "0"], ["SOLVER.ACCUMULATE 0", "1"]),
        (
            "transfer/coco_R50_FPN.yaml",
            [*RANDOM, "DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler"],
            ["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"],
        ),
    ],
)  # fmt: skip
def test_mistakes_name_the_key_and_the_remedy(name: str, overrides: list[str], parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_config(name, overrides)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(("processes", "remedy"), [(3, "--num-gpus 2"), (0, "1 or more")])
def test_processes_that_do_not_divide_the_batch(processes: int, remedy: str) -> None:
    cfg = load_config("transfer/coco_R50_FPN.yaml", [*RANDOM, "MODEL.DEVICE", "cpu"])
    with pytest.raises(UserError, match=remedy):
        check_processes(cfg, processes, local=processes)


def test_parts_that_do_not_divide_a_share() -> None:
    cfg = load_config(
        "transfer/coco_R50_FPN.yaml", [*RANDOM, "MODEL.DEVICE", "cpu", "SOLVER.ACCUMULATE", "3"]
    )
    with pytest.raises(UserError, match=r"SOLVER\.ACCUMULATE 3: the 8 images of each process.*use 2"):
        check_processes(cfg, 2, local=2)


def test_explaining_needs_no_weights() -> None:
    assert load_config("transfer/coco_R50_FPN.yaml", need_weights=False).MODEL.WEIGHTS == ""


def test_base_may_not_be_a_url(tmp_path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text('_BASE_: "https://example.org/x.yaml"\n')
    with pytest.raises(UserError, match="URL"):
        load_config(str(path), RANDOM)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "it is a list"),
        ('_BASE_: "x.yaml"\n', "leads back to itself"),
        ('_BASE_: "."\n', "is not a regular file"),
        ("SOLVER:\n  STEPS: [a]\n", r"SOLVER\.STEPS: \['a'\] is not a list of numbers"),
        ("SOLVER: 3\n", r"unknown config key SOLVER"),
    ],
)
def test_files_that_are_no_configs(tmp_path, text: str, message: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(str(path), RANDOM)


def test_a_section_without_keys_changes_nothing(tmp_path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("SOLVER:\n#  BASE_LR: 1\nSEED: 5\n")
    assert load_config(str(path), RANDOM).SEED == 5


def test_yaml_runs_no_code(tmp_path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(f'OUTPUT_DIR: !!python/object/apply:os.mkdir ["{tmp_path / "made"}"]\n')
    with pytest.raises(UserError, match=r"x\.yaml"):
        load_config(str(path), RANDOM)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("key", ["MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.RETINANET.NUM_CLASSES"])
def test_a_number_of_classes_on_the_command_line_must_be_that_of_the_json(tmp_path: Path, key: str) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": [{"id": 1}, {"id": 7}]}))
    given = [*RANDOM, "DATASETS.TRAIN_JSON", str(path)]
    message = f"{key} 80 contradicts DATASETS.TRAIN_JSON {path}, which has 2 categories: leave {key} out"
    with pytest.raises(UserError, match=f"^{message}"):
        load_config("transfer/custom_R50_FPN.yaml", [*given, key, "80"])
    load_config("transfer/custom_R50_FPN.yaml", [*given, key, "2"])
    # A YAML file has some number, whatever the data: it is replaced.
    own = tmp_path / "own.yaml"
    own.write_text(
        f"_BASE_: {CONFIG_ROOT}/transfer/custom_R50_FPN.yaml\nMODEL: {{ROI_HEADS: {{NUM_CLASSES: 80}}}}\n"
    )
    load_config(str(own), given)
    # What is wrong with a file is said when the data are read.
    path.write_text("[")
    load_config("transfer/custom_R50_FPN.yaml", [*given, key, "80"])
