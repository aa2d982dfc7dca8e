"""Configs: every YAML file loads, and errors name the mistake and its remedy."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fvcore.common.config import CfgNode

from pretrain import config
from pretrain.common.configs import CONFIG_ROOT, read_yaml
from pretrain.common.errors import UserError
from tests.support.scripts import ROOT

PRETRAIN = sorted((ROOT / "configs" / "pretrain").glob("*.yaml"))


def refusal(*overrides: str, name: str = "pretrain/moco_v2_R50.yaml", processes: int = 1) -> str:
    with pytest.raises(UserError) as error:
        config.load(name, overrides, processes=processes)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("path", PRETRAIN, ids=lambda path: path.stem)
@pytest.mark.parametrize("processes", [1, 8])
def test_every_yaml_loads(path: Path, processes: int) -> None:
    assert path.read_text().startswith("# ")
    cfg = config.load(str(path), processes=processes)
    assert cfg.is_frozen()


def test_missing_images_are_reported_before_pytorch_is_imported(tmp_path: Path) -> None:
    """It takes seconds to import."""
    code = """
import sys
from pretrain import config
from pretrain.common.errors import UserError
for given in (["DATA.TRAIN", sys.argv[1]], ["DATA.TRAINS", "x"]):
    try:
        config.check_images("pretrain/moco_v2_R50.yaml", given)
    except UserError as error:
        print(error, "torch" in sys.modules)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "none")]
    printed = subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert printed[0] == f"DATA.TRAIN: no such folder: {tmp_path / 'none'} False"
    assert "unknown config key DATA.TRAINS; did you mean DATA.TRAIN? False" in printed[1]
    config.check_images("pretrain/moco_v2_R50.yaml", ["DATA.TRAIN", str(tmp_path)])  # empty: found later


def test_recipes_are_the_papers() -> None:
    v1, v2 = (config.load(f"pretrain/moco_v{n}_R50.yaml") for n in (1, 2))
    for cfg in (v1, v2):
        assert (cfg.MOCO.K, cfg.MOCO.M, cfg.MODEL.DIM) == (65536, 0.999, 128)
        assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.IMS_PER_BATCH, cfg.MODEL.BN_GROUP_SIZE) == (0.03, 256, 32)
        assert (cfg.SOLVER.MOMENTUM, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.MAX_EPOCH) == (0.9, 1e-4, 200)
        assert (cfg.INPUT.SIZE, cfg.INPUT.MIN_SCALE) == (224, 0.2)
    assert (v1.MOCO.T, v1.MODEL.HEAD, v1.INPUT.AUG, v1.SOLVER.SCHEDULE) == (0.07, "linear", "v1", "step")
    assert (v2.MOCO.T, v2.MODEL.HEAD, v2.INPUT.AUG, v2.SOLVER.SCHEDULE) == (0.2, "mlp", "v2", "cosine")
    assert v1.SOLVER.STEPS == [120, 160]


def test_syncbn_differs_in_nothing_else() -> None:
    shuffled, synced = (config.load(f"pretrain/moco_v2_R50{end}.yaml") for end in ("", "_syncbn"))
    synced.defrost()
    synced.MODEL.NORM, synced.OUTPUT_DIR = shuffled.MODEL.NORM, shuffled.OUTPUT_DIR
    assert synced == shuffled


def test_overrides_take_the_type_of_the_default() -> None:
    cfg = config.load(
        "pretrain/demo_R18.yaml",
        ["DATA.TRAIN", "my/photos", "SOLVER.BASE_LR", "1", "OUTPUT_DIR", "7", "MOCO.SHUFFLE", "False"],
    )
    assert cfg.DATA.TRAIN == ["my/photos"] and cfg.OUTPUT_DIR == "7"
    assert isinstance(cfg.SOLVER.BASE_LR, float) and cfg.MOCO.SHUFFLE is False
    assert config.load("pretrain/demo_R18.yaml", ["DATA.TRAIN", "['a','b']"]).DATA.TRAIN == ["a", "b"]


V3 = ["MOCO.MECHANISM", "mocov3", "MODEL.NORM", "SyncBN"]
V3_VIT = [*V3, "MODEL.ARCH", "vit"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["SOLVER.BASE_RL", "1"], "unknown config key SOLVER.BASE_RL; did you mean SOLVER.BASE_LR?"),
        (["MODEL.BASE_LR", "1"], "did you mean SOLVER.BASE_LR?"),
        (["SOLVER", "1"], "unknown config key SOLVER"),
        (["SOLVER.BASE_LR"], "pairs"),
        (["SOLVER.BASE_LR", "fast"], "SOLVER.BASE_LR: 'fast' is not of type float"),
        (["MODEL.ARCH", "resnet51"], "resnet50"),
        (["MODEL.HEAD", "big"], "MODEL.HEAD big: choose linear"),
        (["MODEL.ARCH", "vit"], "MODEL.ARCH vit: only MoCo v3 trains a ViT: set MOCO.MECHANISM mocov3"),
        (
            ["MOCO.MECHANISM", "mocov3"],
            "MODEL.NORM ShuffleBN: MoCo v3 (MOCO.MECHANISM mocov3) needs MODEL.NORM SyncBN",
        ),
        ([*V3, "SOLVER.CHUNK", "8"], "SOLVER.CHUNK 8: a ResNet normalises over the whole batch"),
        (
            [*V3_VIT, "SOLVER.CHUNK", "8", "MODEL.COMPILE", "True"],
            "SOLVER.CHUNK does not work with MODEL.COMPILE",
        ),
        ([*V3_VIT, "MODEL.WIDTH", "2"], "MODEL.WIDTH and MODEL.STEM_CHANNELS are for ResNets"),
        (
            [*V3_VIT, "MODEL.VIT.HEADS", "5"],
            "MODEL.VIT.WIDTH 768: must be a multiple of MODEL.VIT.HEADS 5 and of 4",
        ),
        (
            [*V3_VIT, "MODEL.VIT.PATCH_SIZE", "14", "INPUT.SIZE", "100"],
            "must be a multiple of MODEL.VIT.PATCH_SIZE 14: use INPUT.SIZE 98",
        ),
        (["SOLVER.OPTIMIZER", "adam"], "SOLVER.OPTIMIZER adam: choose sgd or lars or adamw"),
        (["MODEL.NORM", "GN"], "MODEL.NORM GN: choose ShuffleBN or SyncBN or BN"),
        (["MOCO.M", "2"], "MOCO.M 2.0: must be between 0 and 1"),
        (["MOCO.T", "0"], "MOCO.T 0.0: must be positive"),
        (["INPUT.MEAN", "[0.5]"], "INPUT.MEAN [0.5]: must be three numbers"),
        (["MODEL.BN_GROUP_SIZE", "256"], "use MODEL.BN_GROUP_SIZE 128"),
        (["MODEL.BN_GROUP_SIZE", "1"], "2 or more"),
        (["MODEL.BN_GROUP_SIZE", "33"], "use MODEL.BN_GROUP_SIZE 32"),
        (["KNN.VAL", "x"], "KNN.TRAIN"),
        (["DEVICE", "gpu"], "DEVICE gpu: choose auto or cpu or cuda"),
        (
            ["MODEL.ARCH", "resnext50_32x8d", "MODEL.WIDTH", "0.1"],
            "MODEL.WIDTH 0.1: resnext50_32x8d needs 0.125",
        ),
        (["MODEL.WIDTH", "0"], "MODEL.WIDTH"),
        (["DATA.TRAIN", "[1, 2]"], "DATA.TRAIN: [1, 2] is not a list of strings"),
        (["DATA.TRAIN", '["a", 3]'], "DATA.TRAIN: ['a', 3] is not a list of strings"),
        (["DATA.TRAIN", '[["a"]]'], "DATA.TRAIN: [...] is not a list of strings"),
        (["INPUT.WITHOUT", "[1]"], "INPUT.WITHOUT 1: choose from"),
    ],
)
def test_mistakes_are_named(overrides: list[str], expected: str) -> None:
    assert expected in refusal(*overrides)


def test_batches_that_do_not_fit_the_processes() -> None:
    assert "use SOLVER.IMS_PER_BATCH 255" in refusal(processes=3)
    # 16 processes of 16 images: groups of 32 span two of them, groups of 64 span four, groups of 24 do not fit
    assert config.load("pretrain/moco_v2_R50.yaml", processes=16)
    assert "MODEL.BN_GROUP_SIZE" in refusal("MODEL.BN_GROUP_SIZE", "24", processes=16)
    assert config.load("pretrain/moco_v2_R50.yaml", ["MODEL.BN_GROUP_SIZE", "64"], processes=16)


def test_the_nearest_file_is_named() -> None:
    assert "did you mean pretrain/moco_v2_R50.yaml?" in refusal(name="pretrain/moco_v2_R05.yaml")


def test_yaml_runs_no_code(tmp_path: Path) -> None:
    trap = tmp_path / "trap.yaml"
    trap.write_text(f"OUTPUT_DIR: !!python/object/apply:os.system ['touch {tmp_path}/ran']\n")
    assert "trap.yaml" in refusal(name=str(trap))
    assert not (tmp_path / "ran").exists()


def test_base_must_exist_and_be_local(tmp_path: Path) -> None:
    child = tmp_path / "child.yaml"
    child.write_text("_BASE_: missing.yaml\n")
    assert "missing.yaml" in refusal(name=str(child))
    child.write_text("_BASE_: https://example.org/x.yaml\n")
    assert "URL" in refusal(name=str(child))


LAUGHS = "".join(f"- &a{i} [{', '.join([f'*a{i - 1}' if i else 'x'] * 9)}]\n" for i in range(12))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("SEED: 0x" + "f" * 6000, "it holds a number of 6002 characters"),
        ("SEED: 1" + ":59" * 3000, "it holds a number of 9001 characters"),
        ("SEED: " + "9" * 30, "SEED: 9{30} is too large"),
        ("SOLVER: {BASE_LR: " + "9" * 399 + "}", r"SOLVER\.BASE_LR: an integer of 1326 bits is too large"),
        ("SOLVER:\n  BASE_LR: '" + "-" * 9000 + "1'", r"SOLVER\.BASE_LR: '-+\.\.\.' has 9001 characters"),
        ("MODEL: &m\n  ARCH: *m", "its aliases hold themselves"),
        ("&m\nMODEL: *m", "its aliases hold themselves"),
        ("SEED:\n" + LAUGHS, "expand to too much data"),
        ("SEED: " + "[" * 100_000, "it is nested too deeply"),
        ("SEED: " + "{a: " * 33, "it is nested too deeply"),
        ("a: 1\n" * 50_000, "has more than 200000 bytes"),
        ("SEED: !!bool 3", "not a YAML mapping of config keys"),
        ("SEED: !!int ''", "not a YAML mapping of config keys"),
        ('"BOGUS\\e[31m": 1', r"unknown config key BOGUS\\x1b\[31m"),
        ("? " + "B" * 9000 + "\n: 1", r"unknown config key B{197}\.\.\.$"),
        ('OUTPUT_DIR: "a\\e[31m"', r"OUTPUT_DIR: 'a\\x1b\[31m' holds a control character"),
        ('OUTPUT_DIR: "a\\ud800"', r"OUTPUT_DIR: 'a\\ud800' holds a control character"),
        ('OUTPUT_DIR: "a\\0"', r"OUTPUT_DIR: 'a\\x00' holds a control character"),
        ("_BASE_: /dev/zero", "/dev/zero: cannot be read: it is not a regular file"),
        ("_BASE_: pipe", "pipe: cannot be read: it is not a regular file"),
        ("_BASE_: 3", "_BASE_ 3: name the path of a file"),
        ("_BASE_: [twice.yaml, twice.yaml]", "leads back to itself, or has more than 32 files"),
        ("_BASE_: value.yaml\nMODEL: {ARCH: resnet18}", "MODEL is a section, but a value in its _BASE_"),
    ],
)
def test_yaml_that_is_built_wrong_ends_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "twice.yaml").write_text("_BASE_: [twice.yaml, twice.yaml]\n")
    (tmp_path / "value.yaml").write_text("MODEL: 3\n")
    (tmp_path / "x.yaml").write_text(text + "\n")
    message = refusal(name=str(tmp_path / "x.yaml"))
    assert re.search(words, message) and message.isprintable() and len(message) < 600 + len(str(tmp_path))


def test_aliases_and_several_bases_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("SEED: 1\nSOLVER: {IMS_PER_BATCH: 64, MAX_ITER: 5}\n")
    (tmp_path / "b.yaml").write_text("SEED: 2\nMODEL: {ARCH: resnet18}\n")
    own = "_BASE_: [a.yaml, b.yaml]\nSOLVER: {MAX_ITER: &n 7, WARMUP_ITERS: *n}\n"
    (tmp_path / "x.yaml").write_text(own)
    assert read_yaml(tmp_path / "x.yaml") == {
        "SEED": 2,
        "SOLVER": {"IMS_PER_BATCH": 64, "MAX_ITER": 7, "WARMUP_ITERS": 7},
        "MODEL": {"ARCH": "resnet18"},
    }


def test_shipped_configs_are_read_as_by_fvcore() -> None:
    for path in CONFIG_ROOT.rglob("*.yaml"):
        assert read_yaml(path) == CfgNode.load_yaml_with_base(str(path)), path


def test_overrides_that_are_built_wrong() -> None:
    assert "holds a control character" in refusal("OUTPUT_DIR", "a\x1b[31m")
    assert "is not of type int" in refusal("SEED", "-" * 2000 + "1")
    assert "is too large" in refusal("SEED", "1" * 100)


def test_no_two_configs_write_to_one_folder() -> None:
    folders = [config.load(str(path)).OUTPUT_DIR for path in PRETRAIN]
    assert len(set(folders)) == len(PRETRAIN)
    stated = [path for path in PRETRAIN if re.search(r"^OUTPUT_DIR: ", path.read_text(), re.M)]
    assert [path.stem for path in PRETRAIN if path not in stated] == ["base_moco", "base_moco_v3"]


def test_the_folder_of_a_users_config_is_named_after_it(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine.yaml", tmp_path / "other.yaml"
    mine.write_text(f"_BASE_: {CONFIG_ROOT}/pretrain/moco_v2_R50.yaml\n")
    assert config.load(str(mine)).OUTPUT_DIR == "output/mine"
    assert config.load(str(mine), ["OUTPUT_DIR", "here"]).OUTPUT_DIR == "here"
    mine.write_text("_BASE_: other.yaml\n")
    other.write_text(f"_BASE_: {CONFIG_ROOT}/pretrain/moco_v2_R50.yaml\nOUTPUT_DIR: there\n")
    assert config.load(str(mine)).OUTPUT_DIR == config.load(str(other)).OUTPUT_DIR == "there"


def test_labelled_images_of_a_config_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the demo do not belong to a user's photographs. What the user names must exist."""
    monkeypatch.chdir(tmp_path)
    own = ["DATA.TRAIN", "my/photos"]
    cfg = config.load("pretrain/demo_R18.yaml", own)
    assert (cfg.KNN.TRAIN, cfg.KNN.VAL) == ("", "")
    cfg = config.load("pretrain/demo_R18.yaml", [*own, "KNN.TRAIN", "gone"])
    assert cfg.KNN.TRAIN == "gone"
    assert config.load("pretrain/demo_R18.yaml").KNN.TRAIN == "datasets/demo_standard/knn/train"
    Path("datasets/demo_standard/knn/train").mkdir(parents=True)
    assert config.load("pretrain/demo_R18.yaml", own).KNN.TRAIN == "datasets/demo_standard/knn/train"


@pytest.mark.parametrize(
    ("value", "steps"), [("40", [40]), ("40,54", [40, 54]), ("[40, 54]", [40, 54]), ("()", [])]
)
def test_a_list_of_numbers_may_be_one_number(value: str, steps: list[int]) -> None:
    assert steps == config.load("pretrain/moco_v1_R50.yaml", ["SOLVER.STEPS", value]).SOLVER.STEPS
