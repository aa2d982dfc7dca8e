"""The rows of the demo have one network, and each run gets the settings that its weights need."""

import json
from pathlib import Path

from pretrain import config as pretrain_config
from pretrain.common.configs import get
from pretrain.model.encoders import architecture
from transfer.config.load import load_config
from transfer.convert.convert import preprocessing
from transfer.convert.preprocessing import CAFFE
from transfer.demo import run

# Yahoo's network, whose converted file names these widths.
WIDTHS = {
    "STEM_OUT_CHANNELS": 64,
    "WIDTH_PER_GROUP": 32,
    "RES2_OUT_CHANNELS": 128,
    "DEPTH": 50,
    "NUM_GROUPS": 1,
}


def test_all_rows_have_the_widths_of_the_released_network() -> None:
    model = pretrain_config.load("pretrain/demo_R50w50.yaml").MODEL
    settings = preprocessing(architecture(model.ARCH, model.WIDTH, stem=model.STEM_CHANNELS))
    cfg = load_config("transfer/demo_R50w50_FPN.yaml", ["MODEL.INIT", "random"])
    for key, value in WIDTHS.items():
        assert settings[f"MODEL.RESNETS.{key}"] == get(cfg, f"MODEL.RESNETS.{key}") == value


def test_a_run_gets_the_settings_that_its_weights_need(tmp_path: Path) -> None:
    shape, config = architecture("resnet50", 0.5, stem=64), "transfer/demo_R50w50_FPN.yaml"
    for row, settings in (("moco", preprocessing(shape)), ("supervised", preprocessing(shape, CAFFE))):
        (tmp_path / f"{row}.json").write_text(json.dumps({"preprocessing": settings}))
    assert run._init("random", tmp_path, config) == ("MODEL.INIT", "random")
    assert run._init("moco", tmp_path, config) == ("MODEL.WEIGHTS", str(tmp_path / "moco.pkl"))
    cfg = load_config(config, run._init("supervised", tmp_path, config))
    assert cfg.INPUT.FORMAT == "BGR" and cfg.MODEL.RESNETS.STRIDE_IN_1X1
    assert (list(cfg.MODEL.PIXEL_MEAN), list(cfg.MODEL.PIXEL_STD)) == ([104, 117, 123], [1, 1, 1])
