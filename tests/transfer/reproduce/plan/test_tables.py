"""The tables as data, the plans made from them, the verdicts on their numbers, and the command."""

import json
import math
import re
import shlex
import shutil
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pretrain import config as pretrain_config
from pretrain.common.configs import find_config
from pretrain.common.errors import UserError
from tests.support.checkpoints import plain_file, small_network
from tests.support.scripts import run_script
from tests.support.vit.layouts import vit
from transfer.reproduce import progress
from transfer.reproduce.jobs import worker
from transfer.reproduce.jobs.job import Job, in_order, made_by
from transfer.reproduce.listing import listing
from transfer.reproduce.plan import weights
from transfer.reproduce.plan.options import Options
from transfer.reproduce.plan.overrides import shorter
from transfer.reproduce.plan.plan import plan
from transfer.reproduce.plan.tables import read
from transfer.reproduce.results import collect, text_tables
from transfer.reproduce.results.verdict import compare

BOOK = read()
ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(root=tmp_path)


# --- tables as data ---


@pytest.mark.parametrize("name", BOOK.tables)
def test_every_row_has_a_number_for_each_metric_and_every_config_is_there(name: str) -> None:
    table = BOOK.tables[name]
    for row in table.rows:
        assert len(row.paper) in (0, len(table.metrics)) and len(row.std) in (0, len(table.metrics))
        assert set(row.cited) <= {column.config for column in table.columns if column.config}
        assert not row.config or find_config(row.config)
    for column in table.columns:
        assert bool(column.config) != bool(column.cited)
        assert not column.config or (find_config(column.config) and column.config in BOOK.hours)
    # A collected row is named after its init.
    assert len({row.init.name for row in table.rows}) == len(table.rows)


def test_every_init_says_where_its_weights_come_from() -> None:
    for init in BOOK.inits.values():
        ways = [init.random, init.pretrain, init.file, init.needs, init.cited]
        assert sum(map(bool, ways)) == 1, init.name
        assert not init.pretrain or (find_config(init.pretrain) and init.pretrain in BOOK.hours)


def test_the_numbers_are_those_of_the_documentation() -> None:
    """docs/recipes.md was copied from the papers independently: random / supervised / MoCo v1 of each config."""
    names = {
        "voc_R50_C4_24k": "voc_C4", "voc_R50_DC5_24k": "voc_DC5", "voc07_R50_C4_9k": "voc07_C4",
        "coco_R50_FPN": "coco_FPN_1x", "coco_R50_FPN_2x": "coco_FPN_2x", "coco_R50_C4_1x": "coco_C4_1x",
        "coco_R50_C4_2x": "coco_C4_2x", "coco_R50_FPN_6x": "coco_FPN_6x", "keypoint_R50_FPN_2x": "keypoint",
        "cityscapes_R50_FPN": "cityscapes",
    }  # fmt: skip
    seen = 0
    for line in (ROOT / "docs/recipes.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        config = cells[0].strip("`")
        if config not in names or len(cells) < 7:
            continue
        table = BOOK.tables[names[config]]
        rows = {row.init.name: row.paper for row in table.rows}
        for init, cell in zip(("random", "supervised", "moco_v1"), cells[3:6], strict=True):
            if cell != "-":
                printed = [float(value) for value in re.findall(r"\d+\.\d", cell)]
                places = (0, 3) if "box AP / mask AP" in cells[2] else range(len(printed))
                assert printed == [rows[init][n] for n in places], (config, init)
                seen += 1
    assert seen == 3 * len(names) - 1  # Table 4 of the paper has no random row


def test_the_published_spread_stands_at_the_rows_that_it_is_of() -> None:
    """README of facebookresearch/moco: the supervised network, MoCo v1, and MoCo v2 of 200 and 800 epochs on VOC."""
    known = {
        (name, row.init.name): row.std[-3:]
        for name, table in BOOK.tables.items()
        for row in table.rows
        if row.std
    }
    released = ("supervised", "moco_v1", "moco_v2", "moco_v2_800ep")
    assert known == {
        pair: (0.2, 0.2, 0.4)
        for pair in [
            *(("voc_C4", name) for name in released[:2]),
            ("mechanisms_C4", "moco_v1"),
            *(("v2_table1", name) for name in released),
        ]
    }


def test_other_methods_are_quoted() -> None:
    """Quoted rows: He et al. Table 1 has 16, Table 4 has 10, App. A.4 has 1 (BN frozen); Chen et al. Table 3 has 3."""
    quoted = {name: [row for row in t.rows if row.init.cited] for name, t in BOOK.tables.items()}
    count = {"linear": 16, "voc07_C4": 10, "lvis_tuned": 1, "v2_table3": 3, "v2_table2": 3}
    assert {name: len(rows) for name, rows in quoted.items() if rows} == count
    sums = {name: sum(row.paper[0] or 0 for row in quoted[name]) for name in ("linear", "voc07_C4")}
    assert sums == pytest.approx({"linear": 894.8, "voc07_C4": 697.1})  # of the papers' first columns
    assert "fails" in BOOK.inits["moco_v1_m0"].title


def test_disk_of_a_table_by_hand() -> None:
    """Three cells, ImageNet and VOC, and the 24 checkpoints of one pre-training run."""
    table = BOOK.tables["voc_C4"]
    assert BOOK.gigabytes(table, fetch=False) == 155 + 3 + 10 + 3 * 0.5
    assert BOOK.gigabytes(table, fetch=True) == 3 + 3 * 0.5
    assert BOOK.gigabytes(BOOK.tables["densepose"], fetch=False) == 0


# --- plans ---


@pytest.mark.parametrize("name", BOOK.tables)
def test_every_table_can_be_planned(name: str, options: Options) -> None:
    table = BOOK.tables[name]
    cells = plan(table, options)
    assert len(cells) == len(table.rows) * len(table.columns)
    for cell in cells:
        init = cell.row.init
        quoted = init.cited or cell.column.cited or cell.column.config in cell.row.cited
        assert bool(cell.why_not) == bool(init.needs or quoted)
        assert bool(cell.runs) != bool(cell.why_not)
        for job in (job for jobs in cell.runs.values() for job in jobs):
            assert not job.changes or cell.column.overrides, job.changes
            assert job.missing  # there are no data here, and the job says which are missing
            assert "{" not in " ".join(job.filled(Path("runs")))


def jobs_of(options: Options, name: str = "voc_C4") -> dict[str, Job]:
    cells = plan(BOOK.tables[name], options)
    return {j.name: j for j in in_order([job for c in cells for jobs in c.runs.values() for job in jobs])}


def test_a_table_shares_its_pre_training_between_seeds(options: Options) -> None:
    jobs = jobs_of(replace(options, seeds=(0, 1, 2)))
    kinds = [name.split("/")[0] for name in jobs]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "finetune": 9,
        "fetch": 1,
        "convert": 2,
        "pretrain": 1,
    }


def test_only_what_depends_on_a_change_is_done_anew(options: Options) -> None:
    before, after = jobs_of(options), jobs_of(replace(options, schedule=0.5))
    same = {name for name in before if before[name].key == after[name].key}
    assert same == {"fetch/msra_R50", "convert/msra_R50"}
    seeds = jobs_of(replace(options, seeds=(1,)))
    assert before["convert/moco_v1_R50"].key == seeds["convert/moco_v1_R50"].key
    folder = "finetune/voc_R50_C4_24k/moco_v1_R50/seed{}"
    assert before[folder.format(0)].key != seeds[folder.format(1)].key


def test_released_files_stand_in_for_pre_training(options: Options) -> None:
    jobs = jobs_of(replace(options, fetch=True))
    assert "fetch/moco_v1_200ep" in jobs and not any(name.startswith("pretrain/") for name in jobs)
    assert "md5 b251726a" in jobs["fetch/moco_v1_200ep"].command


def test_the_same_training_runs_once_whatever_its_row_is_called(options: Options) -> None:
    """Tables share folders, so equal settings and equal released files must have equal names."""
    jobs: dict[tuple[str, ...], set[str]] = {}
    for name in BOOK.tables:
        for job in jobs_of(options, name).values():
            kind = job.name.split("/")[0]
            jobs.setdefault((kind, job.settings, *(need.key for need in job.needs)), set()).add(job.key)
    assert {len(keys) for keys in jobs.values()} == {1}
    trained = [key for key in jobs if key[0] == "pretrain"]
    recipes = [(init.pretrain, init.overrides) for init in BOOK.inits.values() if init.pretrain]
    assert len(trained) == len(set(recipes)) < len(recipes)

    def weights(table: str, init: str, options: Options = options) -> str:
        cells = plan(BOOK.tables[table], replace(options, inits=(init,)))
        (job,) = cells[0].runs[""]
        return job.needs[0].key

    same = {weights(*pair) for pair in (("linear", "moco_v1"), ("figure3", "moco_v1_K65536"),
                                        ("temperature", "moco_v1_T0.07"), ("mechanisms_C4", "moco_v1"))}  # fmt: skip
    assert len(same) == 1
    assert weights("figure3", "endtoend_K1024") == weights("mechanisms_DC5", "endtoend")
    assert weights("figure3", "memorybank_K65536") == weights("mechanisms_DC5", "memorybank")
    assert weights("figure3", "moco_v1_K4096") == weights("momentum", "moco_v1_m0.999")
    assert weights("v2_table1", "moco_v2_a") == weights("temperature", "moco_v1_mlp_T0.2")
    fetched = replace(options, fetch=True)
    assert weights("temperature", "moco_v1_T0.07", fetched) == weights("linear", "moco_v1", fetched)


def test_a_supervised_network_is_not_held_against_its_own_accuracy(options: Options) -> None:
    cells = plan(BOOK.tables["v2_table1"], replace(options, inits=("supervised",)))
    assert "supervised network itself" in cells[0].why_not and not cells[0].runs
    assert cells[1].runs and not cells[1].why_not


def test_images_count_by_their_names_not_by_their_place(options: Options, tmp_path: Path) -> None:
    for root in ("here", "there"):
        for part in ("train", "val"):
            for name in ("n01/a.jpg", "n01/b.jpg", "n02/c.jpg"):
                path = tmp_path / root / "imagenet" / part / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()

    def keys(root: str) -> set[str]:
        found = jobs_of(replace(options, root=tmp_path / root, cache=tmp_path / "out/digests.json"), "linear")
        assert not any(job.missing for job in found.values())
        return {job.key for job in found.values()}

    before = keys("here")
    assert before == keys("there") == keys("here")  # the second time, digests come from the cache
    (tmp_path / "here/imagenet/train/n02/d.jpg").touch()
    assert not before & keys("here") and keys("there") == before
    (tmp_path / "here/imagenet/train/n02/d.jpg").unlink()
    assert keys("here") == before
    (tmp_path / "out/digests.json").write_text("[")
    assert keys("here") == before
    (tmp_path / "here/imagenet/train/.DS_Store").touch()  # files that file managers create
    (tmp_path / "here/imagenet/train/n02/Thumbs.db").touch()
    assert keys("here") == before
    shutil.rmtree(tmp_path / "here")  # finished jobs no longer need these 155 GB
    found = jobs_of(replace(options, root=tmp_path / "here", cache=tmp_path / "out/digests.json"), "linear")
    assert {job.key for job in found.values()} == before and any(job.missing for job in found.values())


def test_processes_must_divide_the_batch(options: Options) -> None:
    with pytest.raises(UserError, match=r"--num-gpus 6: SOLVER.IMS_PER_BATCH 16 of .* use --num-gpus 4"):
        plan(BOOK.tables["voc_C4"], replace(options, processes=6, inits=("random",)))
    assert plan(BOOK.tables["voc_C4"], replace(options, processes=8))


def test_what_cannot_change_a_probe_is_not_in_its_key(options: Options) -> None:
    def probe(key: str, values: tuple[str, ...]) -> set[str]:
        found = plan(BOOK.tables["linear"], replace(options, inits=("moco_v1",), sweep=(key, values)))[0].runs
        return {job.key for jobs in found.values() for job in jobs}

    assert len(probe("DATA.NUM_WORKERS", ("0", "8"))) == 1
    assert len(probe("SOLVER.BASE_LR", ("10.0", "30.0"))) == 2


def test_braces_in_paths(options: Options, tmp_path: Path) -> None:
    path = tmp_path / "{x}{0}.pth"
    plain_file(path, small_network().state_dict())
    options = replace(options, root=tmp_path / "{1}", extra={"mine": path}, inits=("mine", "moco_v1"))
    commands = [job.filled(tmp_path / "{run}") for job in jobs_of(options).values()]
    parts = [part for command in commands for part in command]
    assert str(path) in parts and str(tmp_path / "{1}/imagenet/train") in parts
    assert not any(part.startswith("{") for part in parts)


def test_a_smoke_run_downloads_nothing(options: Options, tmp_path: Path) -> None:
    plain_file(tmp_path / "stand_in.pth", small_network().state_dict())
    jobs = jobs_of(replace(options, smoke=True, fetch=True))
    assert {name.split("/")[0] for name in jobs} == {"convert", "finetune"}


def test_ones_own_checkpoint_is_a_row(options: Options, tmp_path: Path) -> None:
    path = plain_file(tmp_path / "mine.pth", small_network().state_dict())
    jobs = jobs_of(
        replace(options, extra={"mine": path, "moco_v1_ig1b": path}, inits=("mine", "moco_v1_ig1b"))
    )
    assert set(jobs) == {
        "convert/mine", "finetune/voc_R50_C4_24k/mine/seed0", "convert/moco_v1_ig1b",
        "finetune/voc_R50_C4_24k/moco_v1_ig1b/seed0",
    }  # fmt: skip
    key = jobs["convert/mine"].key
    plain_file(path, small_network("resnet18").state_dict())
    assert jobs_of(replace(options, extra={"mine": path}, inits=("mine",)))["convert/mine"].key != key


@pytest.mark.parametrize("name", ["moco_v1", "supervised"])
def test_ones_own_checkpoint_does_not_replace_a_row_that_runs(
    options: Options, tmp_path: Path, name: str
) -> None:
    path = plain_file(tmp_path / "mine.pth", small_network().state_dict())
    with pytest.raises(UserError, match=f"--init {name}=...: voc_C4 already has a row .* such as my_{name}"):
        plan(BOOK.tables["voc_C4"], replace(options, extra={name: path}))


def test_a_file_that_cannot_be_converted_is_refused_while_planning(options: Options, tmp_path: Path) -> None:
    files = {"text": tmp_path / "notes.txt", "vit": tmp_path / "vit.pth"}
    files["text"].write_text("no checkpoint")
    plain_file(files["vit"], {"patch_embed.proj.weight": torch.zeros(4, 3, 2, 2)})
    for name, path in files.items():
        with pytest.raises(UserError, match=f"--init {name}: {path}"):
            plan(BOOK.tables["voc_C4"], replace(options, extra={name: path}, inits=(name,)))


def test_a_home_folder_is_expanded(options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = plain_file(tmp_path / "mine.pth", small_network().state_dict())
    jobs = jobs_of(replace(options, extra={"mine": Path("~/mine.pth")}, inits=("mine",)))
    assert str(path) in jobs["convert/mine"].command


def test_a_sweep_is_for_fine_tuning_where_a_table_has_both(options: Options) -> None:
    for key, values in (("SOLVER.BASE_LR", ("0.01", "0.02")), ("SOLVER.WARMUP_ITERS", ("50", "100"))):
        cells = plan(BOOK.tables["v2_table1"], replace(options, inits=("moco_v1",), sweep=(key, values)))
        assert [list(cell.runs) for cell in cells] == [[""], list(values)]
        assert not cells[0].runs[""][0].changes  # the probe keeps its learning rate of 30
    (cell,) = plan(
        BOOK.tables["linear"], replace(options, inits=("moco_v1",), sweep=("SOLVER.BASE_LR", ("10",)))
    )
    assert list(cell.runs) == ["10"]
    with pytest.raises(UserError, match=r"--sweep SEED: .* --seeds"):
        plan(BOOK.tables["linear"], replace(options, sweep=("SEED", ("0", "1"))))


def test_a_sweep_tries_every_value_for_every_init(options: Options) -> None:
    cells = plan(BOOK.tables["voc_C4"], replace(options, sweep=("SOLVER.BASE_LR", ("0.01", "0.02"))))
    tried = {cell.row.init.name: cell.runs for cell in cells if cell.runs}
    assert {name: list(runs) for name, runs in tried.items()} == {
        name: ["0.01", "0.02"] for name in ("random", "supervised", "moco_v1")
    }
    changes = {value: jobs[0].changes for value, jobs in tried["random"].items()}
    assert changes["0.02"] == () and changes["0.01"] == ("SOLVER.BASE_LR is 0.01, in the recipe 0.02",)


def test_a_shorter_schedule_is_in_proportion() -> None:
    from transfer.config.load import load_config

    cfg = load_config("transfer/voc_R50_C4_24k.yaml", ["MODEL.INIT", "random"])
    pairs = shorter(cfg, 0.1)
    found = dict(zip(pairs[::2], pairs[1::2], strict=True))
    assert found["SOLVER.MAX_ITER"] == "2400" and found["SOLVER.STEPS"] == "(1800, 2200)"
    assert shorter(cfg, 1) == ()
    with pytest.raises(UserError, match="--schedule 2"):
        shorter(cfg, 2)


@pytest.mark.parametrize(
    ("name", "warm_up", "whole"), [("R50_100ep", 10, 100), ("R50_1000ep", 10, 1000), ("ViTB", 40, 300)]
)
def test_a_shorter_warm_up_is_the_same_part_of_the_run(name: str, warm_up: int, whole: int) -> None:
    config = f"pretrain/moco_v3_{name}.yaml"
    for share in (0.5, 0.01, 0.001):
        cfg = pretrain_config.load(config, shorter(pretrain_config.load(config), share))
        solver = cfg.SOLVER
        assert max(1, round(share * whole)) == solver.MAX_EPOCH
        assert pytest.approx(solver.MAX_EPOCH * warm_up / whole) == solver.WARMUP_EPOCHS
    cfg = pretrain_config.load(config, ["SOLVER.MAX_ITER", "5000"])  # which also ends the run; in iterations
    solver = pretrain_config.load(config, shorter(cfg, 0.5)).SOLVER
    assert (warm_up / 2, 2500) == (solver.WARMUP_EPOCHS, solver.MAX_ITER)
    # A key that another schedule does not read stays out of its jobs.
    assert "SOLVER.WARMUP_EPOCHS" not in shorter(pretrain_config.load("pretrain/moco_v2_R50.yaml"), 0.5)


# --- verdicts ---


def test_welch_by_hand() -> None:
    found = compare([56.8, 57.0, 57.2], 55.9, std=0.2, trials=5)
    assert found.mean == pytest.approx(57.0) and found.std == pytest.approx(0.2)
    assert found.interval == pytest.approx(
        (57 - 4.302653 * 0.2 / math.sqrt(3), 57 + 4.302653 * 0.2 / math.sqrt(3))
    )
    # t = 1.1 / sqrt(0.04/3 + 0.04/5) = 7.531, df = 4.34 by Welch and Satterthwaite
    assert found.p == pytest.approx(0.0012, rel=0.05)
    assert (found.verdict, round(found.difference or 0, 1)) == ("above", 1.1)
    assert compare([55.7, 55.9, 56.1], 55.9, std=0.2, trials=5).p == pytest.approx(1)


def test_one_run_against_the_papers_spread() -> None:
    # t = 0.5 / (0.2 sqrt(6/5)) = 2.282 with 4 degrees of freedom: 2.776 is the 5 % point
    assert compare([56.4], 55.9, std=0.2, trials=5).verdict == "within noise"
    assert compare([55.2], 55.9, std=0.2, trials=5).verdict == "below"  # t = 3.195
    assert compare([56.4], 55.9).verdict == "too few trials"
    assert compare([40.0], None).verdict == ""


def test_several_runs_against_a_bare_number() -> None:
    found = compare([38.4, 38.6, 38.8], 38.5, trials=5)  # t = 0.1 / (0.2 sqrt(1/3 + 1/5)) = 0.6847
    assert found.p == pytest.approx(1 - 0.6847 / math.sqrt(0.6847**2 + 2), abs=1e-4)  # Student's t, 2 degrees
    assert found.verdict == "within noise" and "a mean of 5 runs" in found.test
    found = compare([38.4, 38.6, 38.8], 38.5)  # t = 0.1 / (0.2 sqrt(1/3 + 1)) = 0.4330
    assert found.p == pytest.approx(1 - 0.4330 / math.sqrt(0.4330**2 + 2), abs=1e-4)
    assert compare([37.0, 37.1, 36.9], 38.5).verdict == "below"
    assert compare([38.54, 38.54, 38.5401], 38.5).verdict == "within noise"  # the paper's number is rounded


@pytest.mark.parametrize(("ours", "theirs"), [(5, 1), (3, 5)])
def test_noise_alone_is_called_a_difference_in_one_of_twenty(ours: int, theirs: int) -> None:
    """Also if no spread is published. The spread here is large compared with the rounding of printed numbers."""
    random = np.random.default_rng(0)
    runs, papers = random.normal(1000, 10, (2000, ours)), random.normal(1000, 10, (2000, theirs)).mean(1)
    verdicts = [
        compare(list(run), paper, trials=theirs).verdict for run, paper in zip(runs, papers, strict=True)
    ]
    assert 0.035 < sum(verdict != "within noise" for verdict in verdicts) / 2000 < 0.065


# --- collection and outputs ---


def finish(job: Job, runs: Path, **metrics: float) -> None:
    folder = job.folder(runs)
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"metrics": {"voc_2007_test": {"bbox": metrics}}}))
    (folder / worker.STATE).write_text(json.dumps({"state": "done", "seconds": 60.0, "status": 0}))


def collected(options: Options, runs: Path) -> dict[str, Any]:
    table = BOOK.tables["voc_C4"]
    return collect.collect(table, plan(table, options), options, runs=runs, failed={})


def test_a_table_with_gaps(options: Options, tmp_path: Path) -> None:
    options, runs = replace(options, seeds=(0, 1)), tmp_path / "runs"
    jobs = jobs_of(options)
    for seed, ap in enumerate((55.8, 56.0)):
        finish(jobs[f"finetune/voc_R50_C4_24k/moco_v1_R50/seed{seed}"], runs, AP50=81.5, AP=ap, AP75=62.6)
    table = collected(options, runs)
    rows = {row["init"]: row["cells"][0] for row in table["rows"]}
    ap = rows["moco_v1"]["numbers"][1]
    assert (ap["ours"], ap["paper"], ap["verdict"]) == ([55.8, 56.0], 55.9, "within noise")
    assert rows["random"][
        "kind"
    ] == "not run" and "| random init | not run (paper 60.2)" in text_tables.markdown(table)
    # Nothing was detected.
    finish(jobs["finetune/voc_R50_C4_24k/random/seed0"], runs, AP50=None, AP=None, AP75=None)
    assert "| random init | no number (paper 60.2)" in text_tables.markdown(collected(options, runs))
    assert rows["random"]["why_not"] == "not run yet" and rows["random"]["numbers"][1]["ours"] == []
    assert "never released" in rows["moco_v1_ig1b"]["why_not"]
    text = text_tables.markdown(table)
    assert "| MoCo v1 IN-1M | 81.5 ± 0.0 [81.5, 81.5] (paper 81.5" in text
    assert "55.9 ± 0.1 [54.6, 57.2] (paper 55.9, +0.0: within noise)" in text
    assert "- random init: not run yet" in text
    lines = text_tables.as_csv(table).splitlines()
    assert len(lines) == 1 + 4 * 3 and lines[0].startswith("init,config,metric,mean")
    assert "MoCo v1 IN-1M & 81.5 $\\pm$ 0.0 {\\scriptsize (81.5)}" in text_tables.latex(table)
    paths = text_tables.write(tmp_path / "out", table)
    assert json.loads(paths[0].read_text()) == table


def test_a_table_says_that_its_jobs_were_made_by_different_code(options: Options, tmp_path: Path) -> None:
    options = replace(options, inits=("random",))
    jobs = jobs_of(replace(options, seeds=(0, 1)))
    for seed, torch_version in enumerate((metadata.version("torch"), "2.7.0")):
        job = jobs[f"finetune/voc_R50_C4_24k/random/seed{seed}"]
        finish(job, tmp_path, AP50=60.0, AP=33.0, AP75=33.0)
        state = {"state": "done", "seconds": 1.0, "made_by": {**made_by(), "torch": torch_version}}
        (job.folder(tmp_path) / worker.STATE).write_text(json.dumps(state))
        note = collected(replace(options, seeds=(0, 1)), tmp_path)["note"]
        assert note == (
            "its jobs were made with different versions of torch: see state.json of each job" if seed else ""
        )
    state["earlier"] = [{**made_by(), "sources": "0"}]  # the code that started the job before an interruption
    (job.folder(tmp_path) / worker.STATE).write_text(json.dumps(state))
    assert (
        "different versions of sources, torch" in collected(replace(options, seeds=(0, 1)), tmp_path)["note"]
    )
    alone = collected(replace(options, seeds=(1,)), tmp_path)["note"]
    assert alone.startswith("its jobs were made with different versions of sources")
    del state["earlier"]
    (job.folder(tmp_path) / worker.STATE).write_text(json.dumps(state))
    alone = collected(replace(options, seeds=(1,)), tmp_path)["note"]
    assert alone.startswith("its finished jobs were made with other versions of torch than the current ones")
    assert len(made_by()["sources"]) == 64 and made_by()["torch"] == metadata.version("torch")


def test_another_recipe_is_never_shown_as_comparable(options: Options, tmp_path: Path) -> None:
    options = replace(options, schedule=0.5)
    finish(jobs_of(options)["finetune/voc_R50_C4_24k/random/seed0"], tmp_path, AP50=50.0, AP=20.0, AP75=10.0)
    text = text_tables.markdown(collected(options, tmp_path))
    assert "NOT THE PAPER'S SCHEDULE" in text and "20.0 (paper 33.8: not comparable)" in text
    assert "SOLVER.MAX_ITER is 12000, in the recipe 24000" in text


def test_the_best_of_a_sweep_is_said_to_be_that(options: Options, tmp_path: Path) -> None:
    options = replace(options, sweep=("SOLVER.BASE_LR", ("0.02", "0.04")), inits=("random",))
    (cell,) = plan(BOOK.tables["voc_C4"], options)
    for (job,), ap in zip(cell.runs.values(), (30.0, 35.0), strict=True):
        finish(job, tmp_path, AP50=ap + 20, AP=ap, AP75=ap)
    table = collected(options, tmp_path)
    assert table["rows"][0]["cells"][0]["best"] == "0.04"
    assert "best of 2 values of SOLVER.BASE_LR: 0.04" in text_tables.markdown(table)


def test_sweeps_know_the_recipes_own_value_however_it_is_written(options: Options, tmp_path: Path) -> None:
    """Sweeps leave the other cells alone: the column of the probe, and rows that are only quoted."""
    options = replace(
        options, sweep=("SOLVER.WEIGHT_DECAY", ("1e-4", "1e-3")), inits=("supervised", "moco_v2")
    )
    table = BOOK.tables["v2_table1"]
    cells = plan(table, options)
    for cell in cells:
        for jobs in cell.runs.values():
            for job in jobs:
                finish(job, tmp_path, AP50=80.0, AP=50.0, AP75=60.0)
                if job.name.startswith("linear/"):
                    (job.folder(tmp_path) / "results.json").write_text('{"top1": 67.0}')
    found = collect.collect(table, cells, options, runs=tmp_path, failed={})
    rows = {row["title"]: row["cells"] for row in text_tables.rows(found)}
    title = next(title for title in rows if title.startswith("MoCo v2") and not title.endswith("untuned"))
    probe, detector = rows[f"{title}, untuned"]
    assert probe["numbers"][0]["ours"] == [67.0] and detector["numbers"][1]["ours"] == [50.0]
    assert detector["best"] == "1e-4"
    quoted, _ = rows[next(t for t in rows if t.startswith("supervised") and t.endswith("untuned"))]
    assert "supervised network itself" in quoted["why_not"]


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
@pytest.mark.parametrize("name", ["voc_C4", "linear", "cityscapes", "moco_v3"])
def test_a_smoke_run_has_images_for_every_process(options: Options, name: str, processes: int) -> None:
    smoke = replace(options, smoke=True, processes=processes, cpu=True)
    plain_file(options.root / "stand_in.pth", small_network().state_dict())
    jobs = in_order([j for c in plan(BOOK.tables[name], smoke) for found in c.runs.values() for j in found])
    trained = [job for job in jobs if job.resumable]
    assert len(trained) > 2
    for job in trained:
        batch = int(re.findall(r"SOLVER.IMS_PER_BATCH (\d+)", " ".join(job.command))[-1])
        assert batch % processes == 0 and batch <= 16  # images of the miniature set
        assert "DEVICE cpu" in " ".join(job.command)


def test_a_smoke_run_of_moco_v3_is_tiny(options: Options) -> None:
    """Of every recipe, the command is a valid one, and the detector's random ViT is as wide as the pre-trained one."""
    smoke = replace(options, smoke=True, processes=2, cpu=True)
    (options.root / "stand_in_vit.pth").write_text("in place of MAE's")
    jobs = {**jobs_of(smoke, "moco_v3"), **jobs_of(smoke, "demo_vit"), **jobs_of(smoke, "vitdet_B")}
    trained = [job for name, job in jobs.items() if name.startswith("pretrain/")]
    assert len(trained) == 5 + 1
    for job in trained:
        start = job.command.index("--other-processes") + 1
        cfg = pretrain_config.load(job.command[start - 2], job.command[start:], processes=2)
        assert cfg.MODEL.HIDDEN == 64 and cfg.SOLVER.MAX_ITER == 25 and cfg.SOLVER.AMP == "off"
        assert cfg.MODEL.VIT.WIDTH == 48 if cfg.MODEL.ARCH == "vit" else cfg.MODEL.WIDTH == 0.25
        assert job.changes == (
            () if "demo" in job.name else ("SOLVER.AMP of pre-training is off, in the recipe fp16",)
        )
    random = jobs["finetune/coco_ViTB_SFP_100ep/random/seed0"].command
    assert random[random.index("MODEL.VIT.WIDTH") + 1] == "48"


def test_moco_v3_is_pre_trained_by_its_recipe_and_probed_by_its_own_protocol(options: Options) -> None:
    jobs, detector = jobs_of(options, "moco_v3"), jobs_of(options, "vitdet_B")
    assert jobs["pretrain/moco_v3_ViTB"].key == detector["pretrain/moco_v3_ViTB"].key
    for name, rate in (
        ("R50_100ep", 0.4),
        ("R50_300ep", 0.4),
        ("R50_1000ep", 0.4),
        ("ViTS", 12),
        ("ViTB", 12),
    ):
        made, probe = jobs[f"pretrain/moco_v3_{name}"], jobs[f"linear/moco_v3_{name}/seed0"]
        assert not made.changes and not probe.changes  # float16 is the recipe's
        solver = json.loads(probe.settings)[0]["SOLVER"]
        assert (solver["BASE_LR"], solver["SCHEDULE"]) == (rate, "cosine")
        # A converted ViT is without its class token.
        assert [job.name for job in probe.needs] == [
            made.name if "ViT" in name else f"convert/moco_v3_{name}"
        ]
    fetched = jobs_of(replace(options, fetch=True, inits=("moco_v3_R50_300ep",)), "moco_v3")
    assert {name.split("/")[0] for name in fetched} == {"fetch", "convert", "linear"}


def test_ones_own_vit_is_probed_from_its_own_file(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read, count = plain_file(tmp_path / "mine.pth", vit(1)), weights.read_any, []
    monkeypatch.setattr(
        weights, "read_any", lambda *given, **more: count.append(given) or read(*given, **more)
    )
    jobs = jobs_of(replace(options, extra={"mine": path}, inits=("mine",), seeds=(0, 1)), "moco_v3")
    assert len(count) == 1  # it may have gigabytes
    probe, _ = jobs.values()
    assert probe.command[probe.command.index("--weights") + 1] == str(path) and not probe.needs
    plain_file(path, vit(2))
    assert (
        jobs_of(replace(options, extra={"mine": path}, inits=("mine",)), "moco_v3")[probe.name].key
        != probe.key
    )


def test_a_smoke_run_sweeps_too(options: Options) -> None:
    smoke = replace(options, smoke=True, sweep=("SOLVER.BASE_LR", ("0.01", "0.02")), inits=("random",))
    (cell,) = plan(BOOK.tables["voc_C4"], smoke)
    commands = [" ".join(job.command) for (job,) in cell.runs.values()]
    assert len({job.key for (job,) in cell.runs.values()}) == 2
    assert [re.findall(r"SOLVER.BASE_LR (\S+)", text)[-1] for text in commands] == ["0.01", "0.02"]
    (cell,) = plan(BOOK.tables["voc_C4"], replace(smoke, sweep=("SOLVER.MAX_ITER", ("24000", "48000"))))
    ((job,), _) = cell.runs.values()  # the smoke run stays short
    assert re.findall(r"SOLVER.MAX_ITER (\d+)", " ".join(job.command)) == ["3"]


@pytest.mark.parametrize("name", BOOK.tables)
def test_every_tables_dry_run_can_be_typed(options: Options, tmp_path: Path, name: str) -> None:
    """Each command names an existing tool and config, has no open placeholder, and comes after those it needs."""
    jobs = in_order(
        [job for cell in plan(BOOK.tables[name], options) for found in cell.runs.values() for job in found]
    )
    lines, made = progress.listing(jobs, tmp_path / "runs"), set()
    commands = [shlex.split(line) for line in lines if line.startswith("    python ")]
    assert len(commands) == len(jobs) and not list(tmp_path.iterdir())
    for job, parts in zip(jobs, commands, strict=True):
        assert not any(re.search(r"\{\w+\}", part) for part in parts)
        tool = next(
            part for part in parts[1:] if part.startswith("tools/") or part == "transfer.reproduce.jobs.fetch"
        )
        assert tool == "transfer.reproduce.jobs.fetch" or (ROOT / tool).is_file()
        if "--config" in parts:
            assert (ROOT / "configs" / parts[parts.index("--config") + 1]).is_file()
        assert {str(need.output(tmp_path / "runs")) for need in job.needs} <= made
        made.add(str(job.output(tmp_path / "runs")))
    assert any("licence" in line for line in lines) == any(job.name.startswith("fetch/") for job in jobs)


def test_the_list_says_what_each_row_needs() -> None:
    lines = listing()
    place = next(n for n, line in enumerate(lines) if line.startswith("voc_C4 "))
    assert "3 of 4 (--init for moco_v1_ig1b)" in lines[place + 1]
    assert all(any(line.startswith(f"{name} ") for line in lines) for name in BOOK.tables)


# --- the command ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--table", "voc_c4"], "--table voc_c4: unknown; did you mean voc_C4?"),
        ([], "give --table NAME; --list"),
        (
            ["--table", "voc_C4", "--inits", "moco"],
            "--inits moco: voc_C4 has no such row; did you mean moco_v1?",
        ),
        (["--table", "voc_C4", "--init", "mine"], "--init mine: write NAME=FILE"),
        (["--table", "voc_C4", "--init", "mine=no.pth"], "no.pth: no such checkpoint"),
        (["--table", "voc_C4", "--sweep", "SOLVER.BASE_LR"], "--sweep SOLVER.BASE_LR: write KEY=A,B"),
        (["--table", "voc_C4", "--sweep", "SOLVER.LR=1,2"], "unknown config key SOLVER.LR"),
        (["--table", "voc_C4", "--trials", "0"], "--trials 0"),
        (["--table", "voc_C4", "--seeds", "a"], "--seeds a"),
        (["--table", "voc_C4", "--schedule", "0"], "--schedule 0"),
        (["--table", "voc_C4"], "prepare_data.py voc"),
    ],
)
def test_mistakes_are_one_line_and_nothing_starts(tmp_path: Path, arguments: list[str], message: str) -> None:
    places = ["--output", str(tmp_path / "results"), "--root", str(tmp_path / "data")]
    result = run_script("tools/reproduce.py", *arguments, *places)
    assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1, (
        result.stderr
    )
    assert not (tmp_path / "results").exists()
