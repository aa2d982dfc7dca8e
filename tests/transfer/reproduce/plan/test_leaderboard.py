"""A table with released networks: which rows it has, what they start from, and how quoted numbers are shown."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest

from pretrain.common.errors import UserError
from tests.support.checkpoints import plain_file, small_network
from tests.support.vit.layouts import vit
from transfer.reproduce.jobs.job import Job, in_order
from transfer.reproduce.page import page
from transfer.reproduce.plan import tables
from transfer.reproduce.plan.leaderboard import ALL, fitting, joined
from transfer.reproduce.plan.options import Options
from transfer.reproduce.plan.plan import plan
from transfer.reproduce.plan.tables import Table
from transfer.reproduce.results import collect, text_tables

BOOK = tables.read()


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(root=tmp_path)


def board(options: Options, name: str = "coco_FPN_1x", **more: list[str]) -> tuple[Table, Options]:
    return joined(BOOK.tables[name], options, BOOK.released, **more)


def jobs(table: Table, options: Options) -> dict[str, Job]:
    found = [job for cell in plan(table, options) for runs in cell.runs.values() for job in runs]
    return {job.name: job for job in in_order(found)}


def test_without_a_released_name_nothing_changes(options: Options) -> None:
    for inits in ((), ("random", "moco_v1")):
        assert board(replace(options, inits=inits)) == (
            BOOK.tables["coco_FPN_1x"],
            replace(options, inits=inits),
        )


def test_all_released_networks_run_by_the_same_config(options: Options, tmp_path: Path) -> None:
    file = plain_file(tmp_path / "mine.pth", small_network().state_dict())
    table, wanted = board(replace(options, inits=(ALL,), extra={"mine": file}))
    names = [row.init.name for row in table.rows]
    assert names[:4] == ["random", "supervised", "moco_v1", "moco_v1_ig1b"] and "open_nsfw" not in names
    assert set(fitting(table, BOOK.released)) - {"msra_R50", "moco_v1_200ep"} == set(names[4:])
    found = jobs(table, wanted)
    assert not any(name.startswith("pretrain/") for name in found)
    start = ("MODEL.INIT", "random", "--follow-weights", "MODEL.WEIGHTS")
    commands = {
        tuple(part for part in job.command if "{" not in part and part not in start)
        for name, job in found.items()
        if name.startswith("finetune/")
    }
    assert len(commands) == 1 and sum(name.startswith("finetune/") for name in found) > 30
    assert "finetune/coco_R50_FPN/mine/seed0" in found and "finetune/coco_R50_FPN/random/seed0" in found
    # The folders are those of --fetch.
    fetched = jobs(BOOK.tables["coco_FPN_1x"], replace(options, fetch=True))
    assert all(found[name].key == job.key for name, job in fetched.items())
    why = {cell.row.init.name: cell.why_not for cell in plan(table, wanted) if cell.why_not}
    assert why["soco_C4_100ep"].startswith("needs --init soco_C4_100ep=FILE: its owners offer it as")


def test_names_and_aliases_add_single_rows(options: Options) -> None:
    table, wanted = board(replace(options, inits=("imagenet", "pixpro_100ep")), named=["swav_800ep"])
    assert wanted.inits == ("supervised", "pixpro_100ep")
    assert [row.init.name for row in table.rows][4:] == ["swav_800ep", "pixpro_100ep"]
    table, wanted = board(options, name="voc_C4", named=["moco_v2_800ep"])
    (row,) = (row for row in table.rows if row.init.name == "moco_v2_800ep")
    assert row.paper == (82.5, 57.4, 64.0) and row.trials == {"transfer/voc_R50_C4_24k.yaml": 5}
    assert "fetch/moco_v2_800ep" in jobs(table, wanted)


def test_a_users_file_takes_the_place_of_a_released_one(options: Options, tmp_path: Path) -> None:
    file = plain_file(tmp_path / "a.pth", small_network().state_dict())
    table, wanted = board(replace(options, inits=("random", "swav_800ep"), extra={"swav_800ep": file}))
    assert "convert/swav_800ep" in jobs(table, wanted) and "fetch/swav_800ep" not in jobs(table, wanted)
    with pytest.raises(UserError, match=r"--init pixpro_400ep=.*: this is not the released file: its md5 is"):
        board(replace(options, extra={"pixpro_400ep": file}))


def test_a_table_has_only_networks_of_its_detectors_kind_and_shape(options: Options) -> None:
    vits = {name for name, network in BOOK.released.networks.items() if network.is_vit}
    assert not vits & set(fitting(BOOK.tables["coco_FPN_1x"], BOOK.released))
    table, wanted = board(replace(options, inits=(ALL,)), "vitdet_B")
    rows = [row.init.name for row in table.rows]
    base = ["dino_ViTB", "ibot_ViTB", "dinov2_ViTB", "deit_ViTB"]  # MoCo v3's and MAE's are rows already
    assert rows == ["random", "vit_supervised", "vit_moco_v3", "vit_mae", *base]
    assert wanted.inits == ("random", "vit_moco_v3", *base[:2], "vit_mae", *base[2:])
    found = jobs(table, replace(wanted, inits=("vit_mae", "dinov2_ViTB")))
    assert {"fetch/mae_ViTB", "finetune/coco_ViTB_SFP_100ep/mae_ViTB/seed0"} <= found.keys()
    assert found["convert/dinov2_ViTB"].command[-2:] == ("--resample-patch", "16")
    assert found["convert/dinov2_ViTB"].settings and not found["convert/mae_ViTB"].settings


def test_networks_that_need_flags_are_read_and_converted_with_them(options: Options) -> None:
    table, wanted = board(replace(options, inits=(ALL,)), "vitdet_T")
    assert [row.init.name for row in table.rows] == ["random", "vitT_supervised", "vitT_moco_v3", "vitT_mae"]
    found = jobs(table, wanted)
    flags = ("--heads", "12", "--branch", "model.base_encoder")
    for job in ("fetch/maelite_moco_v3_ViTT", "convert/maelite_moco_v3_ViTT"):
        assert found[job].command[-4:] == flags
    assert found["convert/maelite_mae_ViTT"].command[-2:] == flags[:2]


def test_a_users_file_of_a_released_vit_is_converted_with_its_flags(options: Options, tmp_path: Path) -> None:
    file = plain_file(tmp_path / "a.pth", vit(1, patch=14))
    table, wanted = board(replace(options, inits=("dinov2_ViTB",), extra={"dinov2_ViTB": file}), "vitdet_B")
    job = jobs(table, wanted)["convert/dinov2_ViTB"]
    assert job.command[-2:] == ("--resample-patch", "16") and str(file) in job.command


@pytest.mark.parametrize(
    ("name", "flags"), [("mae_ViTB", ()), ("maelite_mae_ViTT", ("--heads", "12")), ("dinov2_ViTB", ())]
)
def test_a_vit_is_probed_as_it_was_released(options: Options, name: str, flags: tuple[str, ...]) -> None:
    """A converted one has no class token; the flag that resamples DINOv2's patches is not for the probe."""
    table, wanted = board(replace(options, inits=(name,)), "linear")
    probe = jobs(table, wanted)[f"linear/{name}/seed0"]
    assert [job.name for job in probe.needs] == [f"fetch/{name}"]
    start = probe.command.index("--weights")
    assert probe.command[start : start + 2 + len(flags)] == ("--weights", "{0}", *flags)
    assert "--resample-patch" not in probe.command


def test_a_smoke_run_of_vits_starts_from_a_vit(options: Options) -> None:
    for name in ("stand_in.pth", "stand_in_vit.pth"):
        (options.root / name).write_text(name)
    smoke = replace(options, smoke=True, inits=("vit_mae", "dino_ViTB"))
    found = jobs(*board(smoke, "vitdet_B"))
    sources = {name: job.command[2] for name, job in found.items() if name.startswith("convert/")}
    place = str(options.root / "stand_in_vit.pth")
    assert sources == {"convert/mae_ViTB": place, "convert/dino_ViTB": place}


@pytest.mark.parametrize(
    ("table", "inits", "named", "message"),
    [
        ("coco_FPN_1x", ("pixpro_40ep",), [], "coco_FPN_1x nor a released network; did you mean pixpro_400ep?"),
        ("coco_FPN_1x", ("all-relesed",), [], "nor a released network; did you mean all-released?"),
        ("coco_FPN_1x", (), ["pixpro_40ep"], "--init pixpro_40ep: write NAME=FILE for a checkpoint of your own"),
        ("coco_FPN_1x", ("soco_FPN_100ep",), [], "--inits soco_FPN_100ep: its owners offer it as"),
        ("coco_FPN_1x", (), ["soco_FPN_100ep"], "download it by hand and give --init soco_FPN_100ep=FILE"),
        ("coco_FPN_1x", (), ["open_nsfw"], "--init open_nsfw: this is a ResNet-50, width 0.5"),
        ("demo_labels", ("imagenet",), [], "--inits imagenet: this is a ResNet-50, width 1,"),
        ("coco_FPN_1x", ("mae_ViTB",), [], "--inits mae_ViTB: this is a ViT, width 768, 12 blocks of 12 heads"),
        ("vitdet_B", (), ["imagenet"], "this is a ResNet-50, width 1,"),
        ("vitdet_B", (), ["mae_ViTL"], "ViT, width 1024, 24 blocks of 16 heads, MLPs of 4096, but vitdet_B has a"),
        ("vitdet_T", (), ["deit_ViTT"], "ViT, width 192, 12 blocks of 3 heads"),
        ("linear", (ALL,), [], "linear has no detector that a released network fits"),
    ],
)  # fmt: skip
def test_mistakes(
    options: Options, table: str, inits: tuple[str, ...], named: list[str], message: str
) -> None:
    with pytest.raises(UserError) as error:
        board(replace(options, inits=inits), name=table, named=named)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_numbers_of_other_protocols_are_marked_everywhere_and_never_compared(
    options: Options, tmp_path: Path
) -> None:
    names = ("random", "moco_v2_200ep", "insloc_FPN_200ep", "dino_R50")
    table, wanted = board(replace(options, inits=names))
    found = collect.collect(table, plan(table, replace(wanted, inits=())), wanted, runs=tmp_path, failed={})
    rows = {row["init"]: row for row in found["rows"]}
    box = rows["moco_v2_200ep"]["cells"][0]["numbers"][0]
    assert box["paper"] is None and box["elsewhere"] == [{"protocol": "H", "value": 39.8}]
    assert rows["random"]["cells"][0]["numbers"][0]["paper"] == 31.0 and "quotes" not in rows["random"]
    assert set(found["protocols"]) == {"H", "F"}

    text = text_tables.markdown(found)
    assert "| MoCo v2, 200 epochs | not run (39.8†H) | not run |" in text
    assert "| random init | not run (paper 31.0) |" in text and "(paper 39.8" not in text
    assert "- †H: not our protocol: box head of four convolutions" in text
    assert "- MoCo v2, 200 epochs: †H from limbo0000/InstanceLoc, README.md" in text
    (line,) = (
        line
        for line in csv.DictReader(io.StringIO(text_tables.as_csv(found)))
        if (line["init"], line["metric"]) == ("insloc_FPN_200ep", "segm.AP")
    )
    assert (line["paper"], line["other_protocols"]) == ("", "37.1†F")
    assert "39.8$^\\dagger$H" in text_tables.latex(found)

    page.write(tmp_path / "report.html", found)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'class="elsewhere" title="another protocol, not comparable: box head of four' in html
    assert (
        ">39.8†H</span>" in html
        and "paper 39.8" not in html
        and "†F: FPN and box head are pre-trained" in html
    )
    assert ".elsewhere { color: var(--muted); }" in html


def test_quoted_numbers_of_our_protocol_stand_beside_ours_with_their_source(
    options: Options, tmp_path: Path
) -> None:
    table, wanted = board(replace(options, inits=("pixpro_400ep", "densecl_200ep")), name="voc_C4")
    found = collect.collect(table, plan(table, wanted), wanted, runs=tmp_path, failed={})
    pixpro, densecl = ([n["paper"] for n in row["cells"][0]["numbers"]] for row in found["rows"][-2:])
    assert (pixpro, densecl) == ([83.8, 60.2, 67.7], [None, 58.7, None])
    notes = text_tables.notes(found)
    assert any("zdaxie/PixPro, README.md (how many runs is not said; taken as one)" in note for note in notes)
    assert any("WXinlong/DenseCL, README.md (means of 5 runs)" in note for note in notes)
