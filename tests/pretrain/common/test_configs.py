"""What the three kinds of configs have in common: a wrong key, file or tool is named in one line with the right one."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pretrain import config as pretraining
from pretrain.common.configs import CONFIG_ROOT, find_config, merge, nearest
from pretrain.common.errors import UserError
from pretrain.common.files import missing_folder
from transfer.config import load as finetuning
from transfer.linear import config as linear

DEFAULTS: dict[str, Callable[[], Any]] = {
    "pretrain": pretraining.defaults,
    "transfer": finetuning.default_config,
    "linear": linear.defaults,
}
TOOLS = {"pretrain": "tools/pretrain.py", "transfer": "tools/train_net.py", "linear": "tools/linear_eval.py"}
PURPOSES = {"pretrain": "pre-training", "transfer": "fine-tuning", "linear": "linear classification"}


@pytest.mark.parametrize("given", DEFAULTS)
@pytest.mark.parametrize("needed", DEFAULTS)
def test_every_config_of_another_tool_names_that_tool(given: str, needed: str) -> None:
    paths = sorted((CONFIG_ROOT / given).glob("*.yaml"))
    assert paths
    for path in paths:
        if given == needed:
            merge(DEFAULTS[needed](), path, [])
            continue
        with pytest.raises(UserError) as error:
            merge(DEFAULTS[needed](), path, [])
        kinds = f"a config of {PURPOSES[given]}, for {TOOLS[given]}; needed here: one of {PURPOSES[needed]}"
        assert str(error.value) == f"{path}: {kinds}"


@pytest.mark.parametrize("kind", DEFAULTS)
def test_a_misspelt_key_in_a_config_of_the_right_tool_is_a_misspelt_key(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "mine.yaml"
    base = sorted((CONFIG_ROOT / kind).glob("[!b]*.yaml"))[0]
    path.write_text(f"_BASE_: {base}\nSOLVER:\n  BASE_RL: 1\n")
    with pytest.raises(
        UserError, match=r"unknown config key SOLVER\.BASE_RL; did you mean SOLVER\.BASE_LR\?$"
    ):
        merge(DEFAULTS[kind](), path, [])


@pytest.mark.parametrize(
    ("kind", "name", "key", "meant"),
    [
        ("transfer", "transfer/coco_R50_FPN.yaml", "DEVICE", "MODEL.DEVICE"),
        ("pretrain", "pretrain/moco_v2_R50.yaml", "MODEL.DEVICE", "DEVICE"),
        ("linear", "linear/imagenet.yaml", "MODEL.DEVICE", "DEVICE"),
        ("pretrain", "pretrain/moco_v2_R50.yaml", "DATALOADER.NUM_WORKERS", "DATA.NUM_WORKERS"),
    ],
)
def test_the_same_key_in_another_section_is_suggested(kind: str, name: str, key: str, meant: str) -> None:
    with pytest.raises(UserError) as error:
        merge(DEFAULTS[kind](), find_config(name), [key, "cpu"])
    assert str(error.value) == f"command line: unknown config key {key}; did you mean {meant}?"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("weights.pth", r"a weights file, not a YAML config; .* as MODEL\.WEIGHTS.*--weights.*--resume"),
        ("checkpoint_last.pth.tar", "a weights file, not a YAML config"),
        ("moco.pkl", "a weights file, not a YAML config"),
        ("train.json", r"a JSON file, not a YAML config; .* as DATASETS\.TRAIN_JSON"),
    ],
)
def test_other_files_as_config(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x02}q\0.")
    with pytest.raises(UserError, match=f"^--config {re.escape(str(tmp_path / name))}: {message}"):
        find_config(str(tmp_path / name))


def test_binary_and_large_files_and_folders_as_config(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\x80\x02}q\0.")
    with pytest.raises(
        UserError, match=r"a\.yaml: not a YAML mapping of config keys: it is not text in UTF-8"
    ):
        merge(pretraining.defaults(), tmp_path / "a.yaml", [])
    (tmp_path / "b.yaml").write_bytes(b"#" * 300_000)
    with pytest.raises(UserError, match=r"b\.yaml: has more than 200000 bytes, too many for a YAML config$"):
        merge(pretraining.defaults(), tmp_path / "b.yaml", [])
    (tmp_path / "config.yaml").write_text("SEED: 1\n")
    with pytest.raises(UserError, match=r": a folder; did you mean \S+/config\.yaml\?$"):
        find_config(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("coco_R50_FPN.yaml", "transfer/coco_R50_FPN.yaml"),
        ("configs/coco_R50_FPN", "transfer/coco_R50_FPN.yaml"),
        ("transfer/coco_R50_FNP.yaml", "transfer/coco_R50_FPN.yaml"),
        ("coco_fpn.yaml", "transfer/coco_R50_FPN.yaml"),
        ("pretrain/moco_v2_R50.yml", "pretrain/moco_v2_R50.yaml"),
        ("moco_v2_r50.yaml", "pretrain/moco_v2_R50.yaml"),
        ("nothere.yaml", ""),
        ("transfer/mine.yaml", ""),
        ("a/config.yaml", ""),
        ("", ""),
    ],
)
def test_a_missing_file_suggests_only_what_resembles_it(name: str, meant: str) -> None:
    with pytest.raises(UserError) as error:
        find_config(name)
    hint = f"; did you mean {meant}?" if meant else ""
    assert str(error.value) == f"--config {name}: no such file, neither here nor under configs/{hint}"


def test_what_differs_in_case_alone_is_the_nearest() -> None:
    for known in (["mae_ViTB", "mae_ViTL"], ["mae_ViTL", "mae_ViTB"]):
        assert nearest("mae_vitb", known) == "; did you mean mae_ViTB?"
        assert nearest("mae_ViTb", known) == "; did you mean mae_ViTB?"


@pytest.mark.parametrize(
    ("folder", "command"),
    [
        ("datasets/demo_standard/pretrain", "demo --size standard --root datasets"),
        ("demo_quick", "demo --size quick --root ."),
        ("/big/demo_full/knn/train", "demo --size full --root /big"),
        ("/demo_full/knn", "demo --size full --root /"),
        ("datasets/imagenet/val", "imagenet --root datasets"),
        ("my/photos", ""),
    ],
)
def test_a_missing_folder_of_a_known_set_names_the_command_that_makes_it(folder: str, command: str) -> None:
    end = f"; run 'python tools/prepare_data.py {command}'" if command else "; give another"
    assert (
        missing_folder("DATA.TRAIN", folder, "; give another") == f"DATA.TRAIN: no such folder: {folder}{end}"
    )
