"""The parts of a comparison: schedules, the split, leaks, inits, and the sentences of the answer."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pretrain.common.errors import UserError
from tests.support.checkpoints import plain_file, small_network
from tests.support.vit.layouts import vit
from transfer.compare import answer, command, data, schedule
from transfer.compare.arguments import parse
from transfer.compare.inits import inits, network
from transfer.compare.schedule import Schedule
from transfer.reproduce.plan.released import Registry, Released, read

DATA = ["--train", "a.json", "--train-images", "a", "--test", "b.json", "--test-images", "b"]
TWO = ["--init", "mine=a.pth", "--init", "random"]


# --- the command line ---


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*DATA, "--init", "random"], "--init: give two or more"),
        ([*DATA[:4], *TWO], "--test and --test-images: give both, or --holdout"),
        ([*DATA[:6], *TWO], "--test and --test-images: give both"),
        ([*DATA, *TWO, "--holdout", "0.2"], "leave out --test"),
        ([*DATA[:4], *TWO, "--holdout", "1"], "--holdout 1: give a share between 0 and 1"),
        ([*DATA, *TWO, "--fractions", "0.1", "2"], "--fractions 2: give numbers above 0"),
        ([*DATA, *TWO, "--fractions", "1", "1.0"], "give each share once"),
        ([*DATA, *TWO, "--seeds", "0"], "--seeds 0: give 1 or more"),
        ([*DATA, *TWO, "--hours", "-1"], "--hours -1: give a number above 0"),
        ([*DATA, *TWO, "--hour", "x"], "invalid float value"),
    ],
)
def test_mistakes_on_the_command_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        parse("", words)
    assert message in str(error.value)


# --- schedules ---


def test_the_usual_schedule_is_that_of_the_papers_smallest_set() -> None:
    """9,000 iterations of 16 images for 5,011 images (Table 4), rounded to 29 epochs; small sets get more epochs."""
    assert schedule.usual(5011, 1.0, 16).iterations == math.ceil(29 * 5011 / 16) == 9083
    assert schedule.usual(5011, 0.1, 16).iterations == math.ceil(29 * 501 / 16)
    assert schedule.usual(45, 1.0, 16).iterations == 500
    assert Schedule(1200).overrides(100) == (
        "SOLVER.MAX_ITER", "1200", "SOLVER.STEPS", "(900, 1100)", "SOLVER.WARMUP_ITERS", "100",
    )  # fmt: skip
    assert Schedule(120).overrides(100)[-1] == "12"


@pytest.mark.parametrize("hours", [0.12, 0.3, 0.6, 100.0])
def test_a_schedule_fits_and_keeps_its_proportions(hours: float) -> None:
    lengths = [Schedule(1000), Schedule(9000)]
    found = schedule.fitted(lengths, runs=6, each=0.05, fixed=20.0, seconds=3600 * hours)
    spent = 6 * sum(each.iterations * 0.05 + 20.0 for each in found)
    assert spent <= 3600 * hours and all(each.iterations >= 100 for each in found)
    if hours == 100:
        assert found == lengths
    elif hours > 0.2:  # with less, the shorter one is at its least length
        assert found[1].iterations / found[0].iterations == pytest.approx(9, rel=0.02)
        assert spent > 3600 * hours - 6 * 2 * 0.05 * 2  # nothing is left over


def test_too_little_time_is_refused_with_what_would_be_needed() -> None:
    with pytest.raises(
        UserError, match=r"--hours 0\.1: even 100 iterations of each of the 12 runs take 1\.3 hours"
    ):
        schedule.fitted([Schedule(500)] * 2, runs=6, each=3.0, fixed=100.0, seconds=360)


# --- data ---


def coco(path: Path, files: dict[str, tuple[int, ...]]) -> Path:
    """Write a COCO file: name of an image -> the classes of its objects."""
    images = [{"id": n, "file_name": name, "width": 8, "height": 8} for n, name in enumerate(files, 1)]
    objects = [(n, kind) for n, kinds in enumerate(files.values(), 1) for kind in kinds]
    notes = [
        {"id": k, "image_id": n, "category_id": kind, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}
        for k, (n, kind) in enumerate(objects, 1)
    ]
    categories = [{"id": kind, "name": f"kind{kind}"} for kind in (1, 2)]
    path.write_text(json.dumps({"images": images, "annotations": notes, "categories": categories}))
    return path


def test_the_split_is_stratified_repeatable_and_loses_nothing(tmp_path: Path) -> None:
    """80 images of class 1, 20 that also show the rare class 2, 10 without objects; a fifth of each is held out."""
    files = {f"{n}.jpg": (1,) if n < 80 else (1, 2) if n < 100 else () for n in range(110)}
    json_file = coco(tmp_path / "all.json", files)
    train, test, said = data.hold_out(json_file, 0.2, tmp_path / "out")
    parts = [json.loads(path.read_text()) for path in (train, test)]
    names = [{image["file_name"] for image in part["images"]} for part in parts]
    assert not names[0] & names[1] and names[0] | names[1] == set(files) and "22 images" in said
    assert sum(each["category_id"] == 2 for each in parts[1]["annotations"]) == 4
    assert sum(int(name.split(".")[0]) >= 100 for name in names[1]) == 2
    for part, found in zip(parts, names, strict=True):
        of = {image["id"]: image["file_name"] for image in part["images"]}
        assert {of[each["image_id"]] for each in part["annotations"]} <= found
    again = data.hold_out(json_file, 0.2, tmp_path / "again")
    assert [path.read_bytes() for path in again[:2]] == [train.read_bytes(), test.read_bytes()]
    other = data.hold_out(json_file, 0.2, tmp_path / "other", seed=1)
    assert other[1].read_bytes() != test.read_bytes()
    with pytest.raises(UserError, match="0 would be held out"):
        data.hold_out(coco(tmp_path / "two.json", {"a": (1,), "b": (2,)}), 0.2, tmp_path / "none")


def test_the_same_picture_in_both_parts_is_named_whatever_its_file_is_called(tmp_path: Path) -> None:
    for folder, names in (("train", "abc"), ("test", "xyz")):
        (tmp_path / folder).mkdir()
        for name in names:
            Image.new("RGB", (8, 8), (ord(name), 0, 0)).save(tmp_path / folder / f"{name}.png")
    parts = [
        coco(tmp_path / f"{folder}.json", {f"{name}.png": (1,) for name in names})
        for folder, names in (("train", "abc"), ("test", "xyz"))
    ]
    places = (parts[0], tmp_path / "train", parts[1], tmp_path / "test")
    data.refuse_leaks(*places)
    (tmp_path / "test/y.png").write_bytes((tmp_path / "train/b.png").read_bytes())
    with pytest.raises(UserError, match=r"1 picture\(s\) are in both \(b\.png = y\.png\)"):
        data.refuse_leaks(*places)


# --- inits and the answer ---


def test_inits_by_name_and_by_file(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    file.touch()
    known = {"moco_v2_800ep": Released("moco_v2_800ep", "https://x/y", "md5 00000000", "free"),
             "hidden": Released("hidden", "", "", "free", missing="its host is gone")}  # fmt: skip
    released = Registry(known, {"best": "moco_v2_800ep"})
    found = inits([f"mine={file}", "random", "best"], released)
    assert [(each.name, each.random, each.file) for each in found] == [
        ("mine", False, file), ("random", True, None), ("best", False, known["moco_v2_800ep"]),
    ]  # fmt: skip
    for words, message in (
        (["moco_v2_80ep"], "did you mean moco_v2_800ep?"),
        (["mine=none.pth"], "no such checkpoint"),
        (["mine="], "write NAME=FILE"),
        (["random", "random"], "given twice"),
        (["hidden"], "--init hidden: its host is gone; download it by hand and give --init hidden=FILE"),
        ([f"moco_v2_800ep={file}"], "not the released file: its md5 is d41d8cd98f00b204e9800998ecf8427e"),
    ):
        with pytest.raises(UserError) as error:
            inits(words, released)
        assert message in str(error.value)


def test_random_weights_have_the_network_of_the_users_files(tmp_path: Path) -> None:
    files = {
        name: plain_file(tmp_path / f"{name}.pth", small_network(width=width).state_dict())
        for name, width in (("a", 0.125), ("b", 0.125), ("wide", 0.25))
    }
    rows = inits([*(f"{name}={file}" for name, file in files.items()), "random"], Registry())
    found = network([rows[0], rows[1], rows[3]])
    pairs = dict(zip(found[::2], found[1::2], strict=True))
    assert pairs == {
        "MODEL.RESNETS.DEPTH": "50", "MODEL.RESNETS.NUM_GROUPS": "1", "MODEL.RESNETS.WIDTH_PER_GROUP": "8",
        "MODEL.RESNETS.STEM_OUT_CHANNELS": "8", "MODEL.RESNETS.RES2_OUT_CHANNELS": "32",
    }  # fmt: skip
    with pytest.raises(UserError, match=r"must have one shape.*a is a ResNet-50, width 0\.125.*wide is a"):
        network(rows)
    assert network(rows[3:]) == ()
    (tmp_path / "text.pth").write_text("no network")
    with pytest.raises(UserError, match="--init mine: "):
        network(inits([f"mine={tmp_path / 'text.pth'}"], Registry()))


def test_vits_give_their_settings_and_do_not_mix_with_resnets(tmp_path: Path) -> None:
    files = {
        "a": plain_file(tmp_path / "a.pth", vit(1)),
        "b": plain_file(tmp_path / "b.pth", vit(2)),
        "deep": plain_file(tmp_path / "deep.pth", vit(1, depth=3)),
        "resnet": plain_file(tmp_path / "resnet.pth", small_network(width=0.125).state_dict()),
    }
    rows = inits([*(f"{name}={file}" for name, file in files.items()), "random"], Registry())
    found = network([rows[0], rows[1], rows[4]])
    assert dict(zip(found[::2], found[1::2], strict=True)) == {
        "MODEL.BACKBONE.NAME": "build_vit_sfp_backbone", "MODEL.VIT.PATCH_SIZE": "16", "MODEL.VIT.WIDTH": "64",
        "MODEL.VIT.DEPTH": "2", "MODEL.VIT.HEADS": "1", "MODEL.VIT.MLP_RATIO": "1.5", "MODEL.VIT.NORM_EPS": "1e-06",
        "MODEL.VIT.PRETRAIN_SIZE": "48", "MODEL.VIT.CLASS_POSITION": "True",
    }  # fmt: skip
    for mixed in (rows[:3], [rows[0], rows[3]]):
        with pytest.raises(UserError, match="must have one shape"):
            network(mixed)


@pytest.mark.parametrize(
    ("backbone", "shape", "message"),
    [
        ("build_resnet_fpn_backbone", ("MODEL.VIT.DEPTH", "12"), "is a ViT: .* transfer/custom_ViTS_SFP.yaml"),
        ("build_vit_sfp_backbone", ("MODEL.RESNETS.DEPTH", "50"), "is a ResNet: .* transfer/custom_R50_FPN.yaml"),
    ],
)  # fmt: skip
def test_a_config_of_another_kind_is_refused_and_one_that_fits_is_named(
    backbone: str, shape: tuple[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        command._check_backbone(backbone, shape, parse("", [*DATA, *TWO]))


def test_vits_that_need_a_flag_must_be_converted_first(tmp_path: Path) -> None:
    dinov2 = plain_file(tmp_path / "a.b.pth", vit(1, patch=14))
    narrow = plain_file(tmp_path / "b.pth", vit(1, width=48))
    coarse = plain_file(tmp_path / "c.pth", vit(1, patch=32))
    for file, message in (
        (dinov2, f"python tools/convert_to_d2.py {dinov2} a_d2.pkl --resample-patch 16, and give --init mine=a_d2.pkl"),
        (narrow, f"python tools/convert_to_d2.py {narrow} b_d2.pkl --heads N, and give --init mine=b_d2.pkl"),
        (coarse, "its patches have 32 pixels, the detectors' 16: use another ViT"),
    ):  # fmt: skip
        with pytest.raises(UserError) as error:
            network(inits([f"mine={file}", "random"], Registry()))
        assert str(error.value).startswith("--init mine: ") and str(error.value).endswith(message)


def test_heads_that_are_only_assumed_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = plain_file(tmp_path / "a.pth", vit(1, width=128))
    network(inits([f"mine={file}"], Registry()))
    assert capsys.readouterr().out == (
        "note: mine: 2 heads are assumed, since no tensor shows them; if it has another number N, convert it first: "
        f"python tools/convert_to_d2.py {file} a_d2.pkl --heads N, and give --init mine=a_d2.pkl\n"
    )
    network(inits([f"dino_ViTB={file}"], read()))  # whose number is known
    assert not capsys.readouterr().out


def test_vits_may_differ_in_the_size_of_their_table_of_positions(tmp_path: Path) -> None:
    """A detector interpolates the table, so this is the same network; each run then follows its own weights."""
    files = [plain_file(tmp_path / f"{grid}.pth", vit(1, grid=grid)) for grid in (3, 4)]
    found = network(inits([f"{file.stem}={file}" for file in files] + ["random"], Registry()))
    assert "MODEL.VIT.PRETRAIN_SIZE" not in found and "MODEL.VIT.NORM_EPS" in found


def test_released_vits_are_compared_before_they_are_downloaded(tmp_path: Path) -> None:
    found = network(inits(["dino_ViTB", "random", "mae_ViTB", "dinov2_ViTB"], read()))
    assert dict(zip(found[::2], found[1::2], strict=True)) == {
        "MODEL.BACKBONE.NAME": "build_vit_sfp_backbone", "MODEL.VIT.PATCH_SIZE": "16", "MODEL.VIT.WIDTH": "768",
        "MODEL.VIT.DEPTH": "12", "MODEL.VIT.HEADS": "12", "MODEL.VIT.MLP_RATIO": "4.0",
    }  # fmt: skip
    mine = plain_file(tmp_path / "a.pth", vit(1))
    for other, message in (
        ("moco_v3_ViTS_300ep", "moco_v3_ViTS_300ep is a ViT, width 384, 12 blocks of 12 heads"),
        ("imagenet", "imagenet is a ResNet-50, width 1,"),
        (f"mine={mine}", "mine is a ViT, width 64, 2 blocks of 1 head, MLPs of 96"),
    ):
        with pytest.raises(UserError) as error:
            network(inits(["dino_ViTS", other], read()))
        assert message in str(error.value)
        assert "dino_ViTS is a ViT, width 384, 12 blocks of 6 heads" in str(error.value)


def test_a_file_of_a_released_network_needs_no_flag_of_the_users(tmp_path: Path) -> None:
    file = plain_file(tmp_path / "a.pth", vit(1, patch=14))
    (row,) = inits([f"dinov2_ViTB={file}"], read())
    assert row.released == read().networks["dinov2_ViTB"]
    assert "48" in network([row])  # 3 x 3 patches of 16 pixels


def test_a_released_network_of_another_shape_is_refused_and_otherwise_sets_that_of_random_weights(
    tmp_path: Path,
) -> None:
    file = plain_file(tmp_path / "a.pth", small_network(width=0.125).state_dict())
    with pytest.raises(UserError) as error:
        network(inits([f"mine={file}", "imagenet"], read()))
    assert "mine is a ResNet-50, width 0.125" in str(error.value)
    assert "imagenet is a ResNet-50, width 1," in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(
        UserError, match=r"open_nsfw is a ResNet-50, width 0\.5.*imagenet is a ResNet-50, width 1"
    ):
        network(inits(["open_nsfw", "random", "imagenet"], read()))
    found = network(inits(["random", "open_nsfw"], read()))
    assert dict(zip(found[::2], found[1::2], strict=True)) == {
        "MODEL.RESNETS.DEPTH": "50", "MODEL.RESNETS.NUM_GROUPS": "1", "MODEL.RESNETS.WIDTH_PER_GROUP": "32",
        "MODEL.RESNETS.STEM_OUT_CHANNELS": "64", "MODEL.RESNETS.RES2_OUT_CHANNELS": "128",
    }  # fmt: skip


def table(*, mean: float, half: float | None, seeds: int) -> dict[str, Any]:
    number = {"minus_baseline": {"mean": mean, "half": half, "seeds": seeds}}
    rows = [
        {"init": "mine", "cells": [{"numbers": [{}]}]},
        {"init": "imagenet", "cells": [{"numbers": [number]}]},
    ]
    return {"columns": [{"title": "10 %"}], "rows": rows}


def test_the_answer_in_sentences() -> None:
    """With a spread of 1 AP, three seeds have an interval of ± 2.484 (4.303 / sqrt(3)), and four one of ± 1.591."""
    better = answer.sentences(table(mean=-1.8, half=0.9, seeds=3), "mine")
    assert better == [
        "mine is better than imagenet by 1.8 AP with 10 % of the labels (95 % interval +0.9 to +2.7; 3 seeds)."
    ]
    (worse,) = answer.sentences(table(mean=2.0, half=0.5, seeds=5), "mine")
    assert worse.startswith("mine is worse than imagenet by 2.0 AP")
    (open_,) = answer.sentences(table(mean=-1.6, half=2.484, seeds=3), "mine")
    # 3.182 / sqrt(4) = 1.591 < 1.6
    assert "no difference shown" in open_ and "about 4 would show a difference of this size" in open_
    (never,) = answer.sentences(table(mean=-0.01, half=2.484, seeds=3), "mine")
    assert "more than 100 seeds" in never
    (one,) = answer.sentences(table(mean=-3.0, half=None, seeds=1), "mine")
    assert (
        one
        == "mine minus imagenet: +3.0 AP with 10 % of the labels; one seed is too few to tell a difference from noise."
    )
