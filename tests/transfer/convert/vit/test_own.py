"""A ViT that tools/pretrain.py has trained is converted, verified and probed without any flag."""

from collections.abc import Callable
from pathlib import Path

import torch

from tests.support.pretrain_runs import pretrain
from transfer.convert.program.networks import convert_any
from transfer.convert.weights_file import read_weights
from transfer.linear import backbone as linear_backbone
from transfer.linear import config as linear_config

MOCO_V3 = [
    "MOCO.MECHANISM", "mocov3", "MODEL.NORM", "SyncBN", "MODEL.HIDDEN", "32", "INPUT.AUG", "v3", "SOLVER.SCHEDULE",
    "warmup_cosine", "SOLVER.WARMUP_EPOCHS", "0.5", "MODEL.ARCH", "vit", "MODEL.WIDTH", "1", "MODEL.VIT.WIDTH", "24",
    "MODEL.VIT.DEPTH", "2", "MODEL.VIT.HEADS", "3", "INPUT.SIZE", "32", "SOLVER.IMS_PER_BATCH", "16",
    "SOLVER.MAX_EPOCH", "1",
]  # fmt: skip


def test_from_pre_training_to_a_detector_and_a_probe(
    image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    contents = pretrain(image_folder(16), tmp_path / "run", *MOCO_V3)
    file = tmp_path / "run" / "checkpoint_last.pth.tar"
    written = convert_any(file, tmp_path / "a.pkl")
    record, settings = written["record"], written["preprocessing"]
    assert (record["source"], record["branch"]) == ("mocov3", "module.base_encoder")
    assert record["heads"] == record["input"] == "as its config states"
    assert (settings["MODEL.VIT.HEADS"], settings["MODEL.VIT.PRETRAIN_SIZE"]) == (3, 32)
    assert max(record["proof"].values()) < 1e-12
    encoder = contents["state_dict"]
    for name, tensor in read_weights(tmp_path / "a.pkl")["model"].items():
        assert torch.equal(tensor, encoder[f"module.base_encoder.{name}"]), name
    cfg = linear_config.defaults()
    cfg.INPUT.SIZE = 32
    extract = linear_backbone.Extractor(linear_backbone.load(str(file), cfg), torch.device("cpu"))
    assert extract(torch.zeros(2, 32, 32, 3, dtype=torch.uint8)).shape == (2, 24)
