"""Config files of other projects run here unchanged, and ours run in plain detectron2 after `import transfer`."""

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import detectron2
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from pretrain.common.configs import flatten
from pretrain.common.errors import UserError
from tests.support import detection_data
from tests.support.checkpoints import moco_file, small_network
from tests.support.scripts import ROOT
from transfer import d2_compat
from transfer.config import explain
from transfer.config.load import load_config
from transfer.convert.convert import convert
from transfer.models import init_weights as weights_module
from transfer.train import run

OURS = sorted(path.name for path in (ROOT / "configs/transfer").glob("*.yaml"))

# Config files as the authors of MoCo publish them for detectron2, written from their keys (Base-RCNN-C4-BN.yaml, as it
# is since 2020-11-04, and what builds on it; the settings are those of He et al. Sec. 4.2 and App. A.1).
PUBLISHED = {
    "Base-RCNN-C4-BN.yaml": """
MODEL:
  META_ARCHITECTURE: "GeneralizedRCNN"
  RPN:
    PRE_NMS_TOPK_TEST: 6000
    POST_NMS_TOPK_TEST: 1000
  ROI_HEADS:
    NAME: "Res5ROIHeadsExtraNorm"
  BACKBONE:
    FREEZE_AT: 0
  RESNETS:
    NORM: "naiveSyncBN"
TEST:
  PRECISE_BN:
    ENABLED: True
SOLVER:
  IMS_PER_BATCH: 16
  BASE_LR: 0.02
""",
    "pascal_voc_R_50_C4_24k.yaml": """
_BASE_: "Base-RCNN-C4-BN.yaml"
MODEL:
  MASK_ON: False
  WEIGHTS: "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
  RESNETS:
    DEPTH: 50
  ROI_HEADS:
    NUM_CLASSES: 20
INPUT:
  MIN_SIZE_TRAIN: (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
  MIN_SIZE_TEST: 800
DATASETS:
  TRAIN: ('voc_2007_trainval', 'voc_2012_trainval')
  TEST: ('voc_2007_test',)
SOLVER:
  STEPS: (18000, 22000)
  MAX_ITER: 24000
  WARMUP_ITERS: 100
""",
    "coco_R_50_C4_2x.yaml": """
_BASE_: "Base-RCNN-C4-BN.yaml"
MODEL:
  MASK_ON: True
  WEIGHTS: "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
INPUT:
  MIN_SIZE_TRAIN: (640, 672, 704, 736, 768, 800)
  MIN_SIZE_TEST: 800
DATASETS:
  TRAIN: ("coco_2017_train",)
  TEST: ("coco_2017_val",)
SOLVER:
  STEPS: (120000, 160000)
  MAX_ITER: 180000
""",
}
MOCO = """
_BASE_: "{base}"
MODEL:
  PIXEL_MEAN: [123.675, 116.280, 103.530]
  PIXEL_STD: [58.395, 57.120, 57.375]
  WEIGHTS: "./output.pkl"
  RESNETS:
    STRIDE_IN_1X1: False
INPUT:
  FORMAT: "RGB"
"""


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the published files to a folder, and make it the working directory."""
    for name, text in PUBLISHED.items():
        (tmp_path / name).write_text(text)
        if name.count("_R_50"):
            (tmp_path / name.replace(".yaml", "_moco.yaml")).write_text(MOCO.format(base=name))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _flat(cfg) -> dict:
    return {key: value for key, value in flatten(cfg).items() if key not in ("MODEL.WEIGHTS", "VERSION")}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("pascal_voc_R_50_C4_24k_moco", "voc_R50_C4_24k"), ("coco_R_50_C4_2x_moco", "coco_R50_C4_2x")],
)
def test_published_files_say_what_ours_say(published: Path, theirs: str, ours: str) -> None:
    loaded = load_config(f"{theirs}.yaml")
    assert loaded.MODEL.WEIGHTS == "./output.pkl"
    same = ["MODEL.WEIGHTS", "x.pkl", "OUTPUT_DIR", loaded.OUTPUT_DIR]  # named after the file
    assert _flat(loaded) == _flat(load_config(f"transfer/{ours}.yaml", same))


def test_explain_calls_no_published_value_a_deviation(published: Path) -> None:
    name = "pascal_voc_R_50_C4_24k_moco.yaml"
    lines = explain.explain(load_config(name), name)
    (norm,) = [line for line in lines if "MODEL.RESNETS.NORM" in line]
    assert "naiveSyncBN" in norm and "since 2020-11-04" in norm
    assert not any("differs from" in line for line in lines)
    # the value of the file of March 2020, in our recipe of the same experiment
    overrides = ["MODEL.INIT", "random", "MODEL.RESNETS.NORM", "SyncBN"]
    lines = explain.explain(load_config("transfer/voc_R50_C4_24k.yaml", overrides), "voc_R50_C4_24k")
    assert lines[1].endswith("values: 1")
    assert "MODEL.RESNETS.NORM" in lines[3] and "larger variance" in lines[3]


@pytest.mark.parametrize(
    ("name", "task"), [("pascal_voc_R_50_C4_24k_moco.yaml", "bbox"), ("coco_R_50_C4_2x_moco.yaml", "segm")]
)
def test_published_files_run_unchanged(
    published: Path, name: str, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They run through to results on small data. Overrides make the model narrow and the images small."""
    convert(
        moco_file(published / "a.pth.tar", small_network(width=0.25).state_dict()),
        Path("output.pkl"),
        verify=False,
    )
    detection_data.write_voc(published / "datasets")
    overrides = [
        *detection_data.NARROW,
        *detection_data.TINY,
        "OUTPUT_DIR",
        "out",
        "SOLVER.MAX_ITER",
        "1",
        "SOLVER.STEPS",
        "()",
    ]
    if task == "segm":
        train, test = (detection_data.write_coco(published / part, images=3) for part in ("train", "test"))
        overrides += detection_data.custom(train, test)
    run.run(load_config(name, overrides))
    text = (published / "out/results.json").read_text()
    assert f'"{task}"' in text and '"AP50"' in text
    evaluated = "voc_2007_test" if task == "bbox" else "custom_test"
    assert f'"{evaluated}"' in text


def test_weights_at_an_address_are_fetched_by_detectron2(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervised baseline is a Caffe2 file: batch norm merged into weight and bias, BGR, stride in 1x1."""
    cfg = load_config("pascal_voc_R_50_C4_24k.yaml", [*detection_data.NARROW, *detection_data.TINY])
    torch.manual_seed(0)
    model = build_model(cfg)
    stored = {
        name.removeprefix("roi_heads.").removeprefix("backbone."): tensor.numpy() + 1
        for name, tensor in model.state_dict().items()
        if (name.startswith("backbone.") or ".res5." in name)
        and "running" not in name
        and "batches" not in name
    }
    local = published / "R-50.pkl"
    local.write_bytes(pickle.dumps({"model": stored, "__author__": "Caffe2", "matching_heuristics": True}))
    asked = []
    monkeypatch.setattr(
        weights_module.PathManager, "get_local_path", lambda path, *_: asked.append(path) or str(local)
    )
    record = weights_module.load_into(model, cfg)
    assert asked[0] == "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
    assert record["matched"] > 0
    assert torch.equal(model.backbone.stem.conv1.weight, torch.tensor(stored["stem.conv1.weight"]))


def _python(code: str, **environment: str) -> str:
    """Run code in a fresh interpreter, in which no fix has been applied to detectron2 yet."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_import_costs_nothing_until_detectron2_is_imported() -> None:
    code = "import sys, transfer, transfer.prepare.command; print('detectron2' in sys.modules, 'torch' in sys.modules)"
    assert _python(code).split() == ["False", "False"]


@pytest.mark.parametrize("module", ["config.load", "models.paper_heads", "models.segmentation"])
def test_every_module_can_be_the_first(module: str) -> None:
    _python(f"import transfer.{module}")


@pytest.mark.parametrize("first", ["import transfer", "from detectron2.config import get_cfg"])
def test_our_keys_join_detectron2s_whichever_is_imported_first(first: str) -> None:
    code = f"""{first}
from detectron2.config import get_cfg
import transfer
from detectron2.modeling import BACKBONE_REGISTRY, ROI_HEADS_REGISTRY, SEM_SEG_HEADS_REGISTRY
cfg = get_cfg()
print(cfg.MODEL.INIT, cfg.MODEL.DEVICE, cfg.SEED)
assert "Res5ROIHeadsExtraNorm" in ROI_HEADS_REGISTRY
assert "build_resnet_dc5_backbone" in BACKBONE_REGISTRY
assert "FCN16sHead" in SEM_SEG_HEADS_REGISTRY
"""
    assert _python(code).split() == ["weights", "cuda", "-1"]


def test_the_authors_own_script_may_follow_import_transfer() -> None:
    """Their train_net.py registers a head of our name, which is then the one that is used."""
    code = """
import transfer
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import Res5ROIHeads
from transfer.models.paper_heads import Res5ROIHeadsExtraNorm as ours
assert ROI_HEADS_REGISTRY.get("Res5ROIHeadsExtraNorm") is ours
@ROI_HEADS_REGISTRY.register()
class Res5ROIHeadsExtraNorm(Res5ROIHeads):
    pass
assert ROI_HEADS_REGISTRY.get("Res5ROIHeadsExtraNorm") is Res5ROIHeadsExtraNorm
"""
    _python(code)


def test_detectron2s_own_defaults_stay() -> None:
    code = """
from detectron2.config import get_cfg
def flat(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flat(value, prefix + key + ".")
        else:
            yield prefix + key, value
before = dict(flat(get_cfg()))
import transfer
after = dict(flat(get_cfg()))
assert all(after[key] == value for key, value in before.items())
print(len(after) - len(before))
"""
    assert int(_python(code)) > 10


@pytest.mark.parametrize(
    "name", [name for name in OURS if "demo" not in name and not name.startswith("base")]
)
def test_our_files_build_in_plain_detectron2(name: str) -> None:
    """detectron2 reads the file itself, without our loader."""
    cfg = get_cfg()
    cfg.merge_from_file(str(ROOT / "configs/transfer" / name))
    cfg.merge_from_list([*detection_data.NARROW, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    assert sum(parameter.numel() for parameter in build_model(cfg).parameters()) > 0


def test_our_file_trains_by_detectron2s_own_trainer(tmp_path: Path) -> None:
    detection_data.write_voc(tmp_path / "data")
    tiny = [
        *detection_data.NARROW,
        *detection_data.TINY,
        "SOLVER.MAX_ITER",
        "1",
        "SOLVER.STEPS",
        "()",
        "OUTPUT_DIR",
        str(tmp_path),
    ]
    code = f"""
import transfer
from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer
cfg = get_cfg()
cfg.merge_from_file("configs/transfer/voc_R50_C4_24k.yaml")
cfg.merge_from_list({tiny!r})
trainer = DefaultTrainer(cfg)
trainer.resume_or_load(resume=False)
trainer.train()
print(type(trainer.model.roi_heads).__name__)
"""
    assert _python(code, DETECTRON2_DATASETS=str(tmp_path / "data")).split()[-1] == "Res5ROIHeadsExtraNorm"
    assert (tmp_path / "model_final.pth").is_file()


def _zoo() -> Path:
    folder = Path(str(detectron2.__file__)).parent
    packaged = folder / "model_zoo" / "configs"
    return packaged if packaged.exists() else folder.parent / "configs"  # a checkout that was not installed


REFUSED = {  # the reason why, in one line
    "quick_schedules/mask_rcnn_R_50_FPN_inference_acc_test.yaml": "TEST.AUG.ENABLED True: not supported",
}
DEFORMABLE = "DEFORM_ON_PER_STAGE.*C\\+\\+"


def test_every_config_of_the_zoo_loads_or_says_why_not() -> None:
    names = sorted(str(path.relative_to(_zoo())) for path in _zoo().rglob("*.yaml"))
    assert len(names) > 80
    compiled = d2_compat.describe()["has_C"]
    for name in names:
        reason = REFUSED.get(name)
        if "dconv" in name and not compiled:
            reason = DEFORMABLE
        if "retinanet" in name.lower():  # their anchor sizes are Python code
            reason = "python tag would run code; write the value out"
        try:
            load_config(str(_zoo() / name), ["MODEL.INIT", "random", "MODEL.WEIGHTS", ""])
        except UserError as error:
            assert reason and re.search(reason, str(error)), f"{name}: {error}"
        else:
            assert reason is None, name


def _with_sizes_written_out(folder: Path) -> Path:
    """The zoo's RetinaNet with the anchor sizes as numbers, as the error asks for."""
    base = (_zoo() / "Base-RetinaNet.yaml").read_text()
    sizes = [[size * 2 ** (third / 3) for third in range(3)] for size in (32, 64, 128, 256, 512)]
    text, count = re.subn(r"!!python/object/apply:eval.*", str(sizes), base)
    assert count == 1
    path = folder / "retinanet.yaml"
    path.write_text(text)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml", "bbox"),
        ("COCO-Detection/faster_rcnn_R_50_DC5_1x.yaml", "bbox"),
        ("COCO-Detection/retinanet_R_50_FPN_1x.yaml", "bbox"),
        ("COCO-Detection/rpn_R_50_FPN_1x.yaml", "box_proposals"),
        ("COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml", "segm"),
        ("COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml", "keypoints"),
        ("Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml", "segm"),
        ("Misc/scratch_mask_rcnn_R_50_FPN_3x_gn.yaml", "segm"),
    ],
)
def test_zoo_configs_train(tmp_path: Path, name: str, task: str) -> None:
    """One step, evaluation and pictures, for one config of each kind of model."""
    keypoints = 17 if task == "keypoints" else 0
    data = detection_data.write_coco(tmp_path / "a", images=3, keypoints=keypoints, classes=("person",))
    narrow = (
        [*detection_data.NARROW, "MODEL.RPN.CONV_DIMS", "[16]"] if "_gn" not in name else []
    )  # 32 groups need their channels
    overrides = [
        "MODEL.INIT", "random", "MODEL.WEIGHTS", "", *narrow, *detection_data.TINY, "SOLVER.MAX_ITER", "1",
        "SOLVER.STEPS", "()", *detection_data.custom(data, data), "OUTPUT_DIR", str(tmp_path / "out"),
    ]  # fmt: skip
    config = _with_sizes_written_out(tmp_path) if "retinanet" in name else _zoo() / name
    run.run(load_config(str(config), overrides))
    assert f'"{task}"' in (tmp_path / "out/results.json").read_text()
    assert len(list((tmp_path / "out/pictures").glob("*.jpg"))) == 2
