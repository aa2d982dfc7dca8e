"""Converted ViTs: what is in the file, the record, the way back to timm, and resampled patches."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from torch.nn import functional

from pretrain.common.errors import UserError
from tests.support.checkpoints import State
from tests.support.vit.layouts import FILES, GRID, NOT_IN_DETECTORS, vit
from transfer.config.load import load_config
from transfer.convert.convert import config_block
from transfer.convert.program.networks import convert_any, export_any
from transfer.convert.program.report import describe, report
from transfer.convert.vit.fold import resampled
from transfer.convert.vit.notes import PATCHES, resized_positions
from transfer.convert.vit.recognise import read_vit
from transfer.convert.weights_file import read_weights
from transfer.models.init_weights import check_preprocessing, load_into
from transfer.programs import convert_to_d2

QUERY, KEY = vit(1), vit(2)


def save(folder: Path, contents: Any) -> Path:
    torch.save(contents, folder / "a.pth")
    return folder / "a.pth"


def in_detectors(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if name not in NOT_IN_DETECTORS}


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(torch.as_tensor(found[name]), expected[name]) for name in expected)


def test_the_file_holds_the_network_and_what_it_needs(tmp_path: Path) -> None:
    path = save(tmp_path, FILES["vit: moco v3"][1](QUERY, KEY))
    written = convert_any(path, tmp_path / "a.pkl")
    weights = read_weights(tmp_path / "a.pkl")
    assert_same(weights["model"], in_detectors(QUERY))
    assert weights["preprocessing"] == {
        "INPUT.FORMAT": "RGB",
        "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
        "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
        "MODEL.BACKBONE.NAME": "build_vit_sfp_backbone",
        "MODEL.VIT.PATCH_SIZE": 16,
        "MODEL.VIT.WIDTH": 64,
        "MODEL.VIT.DEPTH": 2,
        "MODEL.VIT.HEADS": 1,
        "MODEL.VIT.MLP_RATIO": 1.5,
        "MODEL.VIT.NORM_EPS": 1e-6,
        "MODEL.VIT.PRETRAIN_SIZE": 16 * GRID,
        "MODEL.VIT.CLASS_POSITION": True,
    }
    record = written["record"]
    assert (record["source"], record["branch"], record["epoch"]) == ("mocov3", "module.base_encoder", 300)
    assert record["dropped"] == {
        "cls_token": 1, "norm": 2, "momentum_encoder": len(KEY) + 2, "head": 8, "predictor": 4,
    }  # fmt: skip
    assert (
        record["proof"].keys() == {"block 0", "block 1", "resized"} and max(record["proof"].values()) < 1e-12
    )
    text = "\n".join(report(written, tmp_path / "a.pkl"))
    for part in ("ViT, width 64, 2 blocks of 1 head", "cls_token (1), norm (2)", "2 blocks at 48 px, with windows of",
                 "all blocks global at 96 px", "feeding them changes the source's last tokens by", "PRETRAIN_SIZE: 48",
                 "model.backbone.net.update(patch_size=16, embed_dim=64"):  # fmt: skip
        assert part in text


def test_the_same_bytes_each_time_in_every_format(tmp_path: Path) -> None:
    path = save(tmp_path, QUERY)
    for ending in ("pkl", "pth", "safetensors"):
        outputs = [tmp_path / f"{number}.{ending}" for number in range(2)]
        for output in outputs:
            convert_any(path, output, verify=False)
        assert outputs[0].read_bytes() == outputs[1].read_bytes()
        assert_same(read_weights(outputs[0])["model"], in_detectors(QUERY))


def test_layer_scale_is_folded_and_a_missing_bias_filled(tmp_path: Path) -> None:
    state = {n: t for n, t in vit(3, layer_scale=True, registers=2).items() if not n.endswith("qkv.bias")}
    written = convert_any(save(tmp_path, state), tmp_path / "a.pkl")
    model = read_weights(tmp_path / "a.pkl")["model"]
    x, y = torch.randn(5, 64), torch.randn(5, 96)
    for gamma, layer, inputs in (("ls1", "attn.proj", x), ("ls2", "mlp.fc2", y)):
        name = f"blocks.1.{layer}"
        plain = functional.linear(inputs, state[f"{name}.weight"], state[f"{name}.bias"])
        folded = functional.linear(inputs, model[f"{name}.weight"], model[f"{name}.bias"])
        torch.testing.assert_close(folded, plain * state[f"blocks.1.{gamma}.gamma"], rtol=1e-5, atol=1e-6)
    assert torch.equal(model["blocks.0.attn.qkv.bias"], torch.zeros(192))
    assert not any("gamma" in name for name in model)
    assert written["record"]["changed"] == [
        "LayerScale folded into attn.proj and mlp.fc2",
        "zeros as biases of q, k and v, which the file does not have",
    ]
    assert max(written["record"]["proof"].values()) < 1e-5


def test_the_file_initialises_a_detector_of_ours(tmp_path: Path) -> None:
    state = vit(1, width=192, depth=6, hidden=768, grid=4)
    written = convert_any(save(tmp_path, state), tmp_path / "a.pkl", verify=False)
    cfg = load_config(
        "transfer/demo_ViT_SFP.yaml", ["MODEL.WEIGHTS", str(tmp_path / "a.pkl"), "MODEL.DEVICE", "cpu"]
    )
    model = build_model(cfg)
    assert load_into(model, cfg)["matched"] == 3 + 12 * 6
    assert torch.equal(model.backbone.net.blocks[5].mlp.fc2.weight, state["blocks.5.mlp.fc2.weight"])
    assert torch.equal(model.backbone.net.pos_embed, state["pos_embed"])
    # The settings that are printed have the right types when they are pasted.
    (tmp_path / "b.yaml").write_text(
        "_BASE_: transfer/demo_ViT_SFP.yaml\n" + config_block(written["preprocessing"], tmp_path / "a.pkl")
    )
    check_preprocessing(load_config(str(tmp_path / "b.yaml"), []), read_weights(tmp_path / "a.pkl"))
    cfg.merge_from_list(["MODEL.VIT.HEADS", 6])
    with pytest.raises(UserError, match=r"MODEL\.VIT\.HEADS is 6 \(needed: 3\)"):
        load_into(model, cfg)


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_the_way_back_to_timm_is_bit_equal(tmp_path: Path, ending: str) -> None:
    path, back = save(tmp_path, FILES["vit: transformers"][1](QUERY, KEY)), tmp_path / f"back.{ending}"
    export_any(path, back, to="timm", overwrite=False)
    assert_same(read_vit(back).backbone, QUERY)  # with the class token and the final norm
    convert_any(path, tmp_path / "a.pkl", verify=False)
    lines = export_any(tmp_path / "a.pkl", tmp_path / f"kept.{ending}", to="timm", overwrite=False)
    assert_same(read_vit(tmp_path / f"kept.{ending}").backbone, in_detectors(QUERY))
    assert any("has no cls_token and no norm.weight, which timm will leave" in line for line in lines)
    convert_any(tmp_path / f"kept.{ending}", tmp_path / "b.pkl", verify=False)
    assert_same(read_weights(tmp_path / "b.pkl")["model"], in_detectors(QUERY))
    with pytest.raises(UserError, match="with --to timm only, not --to moco"):
        export_any(path, tmp_path / "c.pth", to="moco", overwrite=False)


def test_the_program_takes_vits_in_every_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path, vit(1, patch=14))
    for words, expected in (
        (
            ["a.pth", "a.pkl", "--resample-patch", "16", "--record", "a.json"],
            "verified  the source network without",
        ),
        (["--inspect", "a.pth", "a.pkl"], "patches   of 14 pixels"),
        (["a.pth", "back.pth", "--to", "timm"], "load      timm.create_model("),
        (["a.pth", "--output-dir", "all", "--resample-patch", "16", "--heads", "2"], "timm, the top"),
    ):
        monkeypatch.chdir(path.parent)
        monkeypatch.setattr(sys, "argv", ["convert_to_d2.py", *words])
        convert_to_d2.main()
        assert expected in capsys.readouterr().out
    for words, fault in (
        (
            ["a.pth", "b.pth", "--to", "timm", "--resample-patch", "16"],
            "--resample-patch has no effect with --to",
        ),
        (["a.pth", "b.pkl", "--heads", "0"], "--heads 0: give a number above 0"),
        (["a.pth", "b.pkl"], "add --resample-patch 16"),
    ):
        monkeypatch.setattr(sys, "argv", ["convert_to_d2.py", *words])
        with pytest.raises(UserError, match=fault):
            convert_to_d2.main()


def test_a_converted_file_keeps_its_settings(tmp_path: Path) -> None:
    given = {"mean": (127.5,) * 3, "std": (127.5,) * 3}
    first = convert_any(
        save(tmp_path, vit(1, width=48)), tmp_path / "a.pkl", heads=3, given=given, verify=False
    )
    second = convert_any(tmp_path / "a.pkl", tmp_path / "b.pkl")
    assert first["preprocessing"] == second["preprocessing"]
    assert second["preprocessing"]["MODEL.VIT.HEADS"] == 3 and second["record"]["source"] == "detectron2"
    assert second["preprocessing"]["MODEL.PIXEL_MEAN"] == [127.5] * 3


def test_inspect_says_what_would_happen(tmp_path: Path) -> None:
    text = "\n".join(describe(save(tmp_path, FILES["vit: dino full"][1](QUERY, KEY))))
    for part in ("network   student.module.backbone (timm's names)",
                 "taken     teacher.backbone: the teacher; dino checkpoint",
                 "shape     ViT, width 64, 2 blocks of 1 head, MLPs of 96, patches of 16 pixels, 3 x 3 positions",
                 "heads     1: assumed, one for each 64 channels (to change it: --heads)", "left out  cls_token",
                 "RGB, mean 123.675, 116.28, 103.53, std 58.395, 57.12, 57.375\n",
                 "--channel-order, --pixel-mean, --pixel-std)"):  # fmt: skip
        assert part in text
    assert "stride" not in text


def test_how_much_another_interpolation_changes_is_printed(tmp_path: Path) -> None:
    written = convert_any(save(tmp_path, FILES["vit: dino full"][1](QUERY, KEY)), tmp_path / "a.pkl")
    assert 0 < written["record"]["notes"]["positions"] < 0.5
    text = "\n".join(report(written, tmp_path / "a.pkl"))
    assert "dino's own code resizes positions with an offset of 0.1" in text


def test_positions_are_resized_as_dinos_code_and_timm_do(tmp_path: Path) -> None:
    source = read_vit(save(tmp_path, QUERY))
    table = QUERY["pos_embed"][:, 1:].transpose(1, 2).reshape(1, 64, GRID, GRID)
    for how, expected in (
        ("offset", functional.interpolate(table, scale_factor=6.1 / GRID, mode="bicubic")),
        ("antialias", functional.interpolate(table, size=6, mode="bicubic", antialias=True)),
    ):
        found = resized_positions(source, 6, how)
        assert torch.equal(found[:, :1], QUERY["pos_embed"][:, :1])
        torch.testing.assert_close(found[:, 1:], expected.flatten(2).transpose(1, 2))


@pytest.mark.parametrize(("old", "new"), [(14, 16), (8, 16)])
def test_resampled_patches_give_for_resized_patches_what_the_old_ones_give(old: int, new: int) -> None:
    kernel, patches = torch.randn(5, 3, old, old), torch.randn(7, 3, old, old)
    resized = functional.interpolate(patches, size=(new, new), mode="bilinear", align_corners=False)
    expected = torch.einsum("chij,nhij->nc", kernel, patches)
    actual = torch.einsum("chij,nhij->nc", resampled(kernel, new), resized)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_patches_that_need_no_resampling_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path, vit(1))
    convert_any(path, tmp_path / "a.pkl", resample=16, verify=False)
    expected = (
        f"note: --resample-patch 16: {path} has patches of 16 pixels already, so nothing is resampled\n"
    )
    assert capsys.readouterr().out == expected
    convert_any(path, tmp_path / "b.pkl", verify=False)
    assert capsys.readouterr().out == ""


def test_small_patches_are_resampled_only_on_request(tmp_path: Path) -> None:
    path = save(tmp_path, vit(1, patch=14) | {"mask_token": torch.zeros(1, 64)})
    with pytest.raises(
        UserError, match=r"have 14 pixels; the detectors' ViTs have 16: add --resample-patch 16"
    ):
        convert_any(path, tmp_path / "a.pkl")
    assert not (tmp_path / "a.pkl").exists()
    written = convert_any(path, tmp_path / "a.pkl", resample=16)
    assert written["preprocessing"]["MODEL.VIT.PATCH_SIZE"] == 16
    assert written["preprocessing"]["MODEL.VIT.PRETRAIN_SIZE"] == 16 * GRID
    assert 0 < max(written["record"]["proof"].values()) < 1e-5
    assert 0 < written["record"]["notes"][PATCHES] < 1
    assert "patches of 16 pixels instead of 14" in "\n".join(report(written, tmp_path / "a.pkl"))
    with pytest.raises(UserError, match="resampling to smaller patches loses information"):
        convert_any(save(tmp_path, vit(1, patch=32)), tmp_path / "b.pkl", resample=16)
