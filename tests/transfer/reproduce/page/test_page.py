"""The page of a reproduced table: its content, and its behaviour in a real browser."""

import base64
import csv
import io
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from pretrain import config as pretrain_config
from tests.support import browser, reproduce_runs
from tests.support.browser import Browser
from transfer.config.load import read_config
from transfer.linear import config as linear_config
from transfer.reproduce.jobs import worker
from transfer.reproduce.jobs.job import Job
from transfer.reproduce.page import curves, facts, page
from transfer.reproduce.page.table import trials
from transfer.reproduce.plan.options import Options
from transfer.reproduce.plan.plan import Cell
from transfer.reproduce.plan.recipe_changes import pretraining_changes, recipe_value
from transfer.reproduce.plan.tables import Column, Init, Row, Table
from transfer.reproduce.results import collect, text_tables
from transfer.reproduce.results.verdict import compare

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)> \"'{{ 7*7 }}"
PROOF = {"res2": 1.25e-15, "res5": 3.5e-14}
WEIGHTS = {
    "path": "w.pkl", "sha256": "e" * 64,
    "record": {"source": "moco", "branch": "module.encoder_q", "source_sha256": "a" * 64, "proof": PROOF},
}  # fmt: skip


class Page(HTMLParser):
    """Tables as rows of texts, pictures, all text and all tags of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self.images: list[tuple[str, str]] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text, self.cell, self.silent = "", False, False
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self.silent = tag in ("script", "style")
        values = dict(attrs)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.cell = True
        if tag == "img":
            self.images.append((values["alt"] or "", values["src"] or ""))

    def handle_endtag(self, tag: str) -> None:
        self.cell = self.cell and tag not in ("td", "th")
        self.silent = False

    def handle_data(self, data: str) -> None:
        if self.cell:
            self.rows[-1][-1] = f"{self.rows[-1][-1]} {' '.join(data.split())}".strip()
        if not self.silent:
            self.text += f" {' '.join(data.split())}"

    def row(self, name: str, *, after: int = 0) -> list[str]:
        """Return the first row with this head, or the one `after` rows below it."""
        return self.rows[next(i for i, row in enumerate(self.rows) if row and row[0] == name) + after]


def write(folder: Path, table: dict[str, Any]) -> Page:
    page.write(folder / "report.html", table)
    return Page(folder / "report.html")


def full(folder: Path, **more: Any) -> dict[str, Any]:
    """Return a table: two rows with three seeds each, a row with other settings, and one that cannot run."""
    groups = {
        name: [
            reproduce_runs.run(
                folder / f"{name}-seed{seed}", [base + step for base in bases], seed=seed, colour=colour,
                weights=None if name == "random" else WEIGHTS,
            )
            for seed, step in enumerate((-0.2, 0.0, 0.2))
        ]
        for name, bases, colour in (
            ("random", (60.2, 35.8, 30.1), (200, 30, 30)),
            ("moco", (81.5, 55.9, 62.6), (30, 30, 200)),
            ("other", (70.0, 50.0, 60.0), (30, 200, 30)),
        )
    }  # fmt: skip
    changes = ["SOLVER.BASE_LR: 0.04 instead of 0.02"]
    return reproduce_runs.table(
        {
            "random init": reproduce_runs.cell(groups["random"], (60.2, 33.8, 33.1)),
            "MoCo v1": reproduce_runs.cell(groups["moco"], (81.5, 55.9, 62.6)),
            "other recipe": reproduce_runs.cell(groups["other"], (81.5, 55.9, 62.6), changes=changes),
            "IG-1B": reproduce_runs.cell(
                [], (82.2, 57.2, 63.7), why_not="needs --init ig1b=FILE: never released"
            ),
        },
        **more,
    )


def test_cells_have_numbers_verdicts_and_reasons(tmp_path: Path) -> None:
    found = write(tmp_path, full(tmp_path))
    assert (
        "<h1>Faster R-CNN R50-C4 on VOC, 24k</h1>" in found.source
        and "He et al. 2020, Table 2(b)" in found.text
    )
    _, *cells = found.row("random init")
    # mean 60.2, std 0.2; t(0.975, 2) x 0.2 / sqrt(3) = 4.303 x 0.1155 = 0.497
    assert cells[0].startswith("60.2 ± 0.2 [59.7, 60.7] paper 60.2 ≈ 0.0 within noise 1 p = 1")
    assert "paper 33.8 ▲ +2.0 above 1" in cells[1] and "paper 33.1 ▼ −3.0 below 1" in cells[2]
    assert found.row("other recipe")[1:] == [
        "70.0 ± 0.2 [69.5, 70.5] paper 81.5 ⊘ not comparable",
        "50.0 ± 0.2 [49.5, 50.5] paper 55.9 ⊘ not comparable",
        "60.0 ± 0.2 [59.5, 60.5] paper 62.6 ⊘ not comparable",
    ]
    assert "SOLVER.BASE_LR: 0.04 instead of 0.02" in found.row("other recipe", after=1)[0]
    assert found.row("IG-1B")[1] == "– paper 82.2"
    assert found.row("IG-1B", after=1)[0] == "No number: needs --init ig1b=FILE: never released"
    assert "Welch's t test against the paper's mean" in found.text
    assert (
        "random init: not distinguishable from the paper in bbox.AP50; above the paper in bbox.AP (+2.0)"
        in found.text
    )
    assert "other recipe: not comparable" in found.text and "IG-1B: above" not in found.text


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"smoke": True}, "SMOKE RUN"), ({"schedule": 0.1}, "NOT THE PAPER'S SCHEDULE: 0.1")],
)
def test_smoke_and_shortened_runs_are_never_compared(
    tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    found = write(tmp_path, full(tmp_path, **changed))
    assert words in found.text and 'class="banner"' in found.source
    assert all("not comparable" in cell for cell in found.row("random init")[1:])
    assert not re.search("within noise|▲|▼|distinguishable", found.text)
    assert "nothing" in found.text.partition("What follows")[2][:200]


def test_facts_of_the_runs(tmp_path: Path) -> None:
    table = full(tmp_path)
    needs = {"name": "pretrain/moco", "folder": str(tmp_path / "pre"), "seconds": 7200.0,
             "command": "python -m torch.distributed.run --nproc-per-node 4 tools/pretrain.py"}  # fmt: skip
    fetch = {
        "name": "fetch/moco",
        "folder": str(tmp_path / "fetch"),
        "seconds": 60.0,
        "command": "python -m fetch",
    }
    for run in table["rows"][1]["cells"][0]["tried"][""]:
        run["needs"] = [needs, fetch]
    changed = tmp_path / "moco-seed2/results.json"
    changed.write_text(changed.read_text().replace("2.6.0", "2.7.0"))
    found = write(tmp_path, table)
    assert found.row("cat")[1:] == ["40.8", "60.9", "55.0"]
    weights = next(row for row in found.rows if row and row[0] == "MoCo v1" and "moco" in row)
    assert weights[1:4] == ["moco", "module.encoder_q", "3.5e-14"]
    assert "res2 1.2e-15" in weights[4] and weights[5:] == ["a" * 12 + "…", "e" * 12 + "…"]
    assert found.row("torch")[1] == "differs: 2.6.0 (8 runs); 2.7.0 (1 runs)"
    assert found.row("pretrain/moco")[1:] == ["2:00:00", "4", "8.0", "–"]
    assert found.row("fetch/moco")[1:4] == ["1:00", "1", "–"]
    assert found.row("finetune/voc/moco-seed0")[1:] == ["30:00", "8", "4.0", "node1"]
    assert "11 jobs, 6:31:00 in total" in found.text  # 9 x 30 min + 2 h + 1 min
    assert "44.0 GPU hours" in found.text  # 9 x 8 x 0.5 + 4 x 2
    assert "d" * 64 in found.text and "c" * 64 in found.text and "tools/train_net.py moco-seed0" in found.text


def test_painted_shapes_of_the_demo_are_said_to_be_some(tmp_path: Path) -> None:
    table = full(tmp_path)
    assert "painted shapes" not in write(tmp_path, table).text
    for path in tmp_path.rglob("results.json"):
        path.write_text(path.read_text().replace("voc_test", "demo_quick_val").replace("AP-cat", "AP-disc"))
    assert "painted shapes on the 14 photographs" in write(tmp_path, table).text


def test_pictures_are_of_the_same_images_in_a_small_page(tmp_path: Path) -> None:
    found = write(tmp_path, full(tmp_path))
    assert len(found.images) == 4 * (1 + 3)
    names = [alt.partition(":")[0] for alt, _ in found.images]
    assert names == [f"{n:02}.jpg" for n in range(4) for _ in range(4)]
    (_, truth), (alt, first), (_, second), _ = found.images[:4]
    assert alt == "00.jpg: found from random init"
    channels = [Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).getpixel((30, 17))
                for uri in (truth, first, second)]  # fmt: skip
    assert min(channels[0]) > 200 and channels[1][0] > 150 > 90 > channels[1][2] and channels[2][2] > 150
    assert len(found.source) < 300_000


def test_pictures_have_a_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transfer.reproduce.page.pictures._BUDGET", 6_000)
    table = full(tmp_path)
    found = write(tmp_path, table)
    assert sum(len(uri) for _, uri in found.images) <= 6_000 and len(found.images) < 16


def test_page_loads_nothing(tmp_path: Path) -> None:
    found = write(tmp_path, full(tmp_path))
    assert not re.search(r"https?://|url\(|@import", found.source) and "link" not in found.tags
    assert all(
        value and value.startswith("data:") for key, value in found.attributes if key in ("src", "srcset")
    )


def test_foreign_texts_inject_nothing(tmp_path: Path) -> None:
    weights = {"sha256": HOSTILE, "record": {"source": HOSTILE, "branch": HOSTILE, "proof": {HOSTILE: 1e-9}}}
    run = reproduce_runs.run(tmp_path / "run", (1, 2, 3), weights=weights, versions={HOSTILE: HOSTILE},
                             hardware={"gpu": HOSTILE}, config_sha256=HOSTILE, data={HOSTILE: {"sha256": HOSTILE}},
                             metrics={"x": {HOSTILE: {f"AP-{HOSTILE}": 1.0}}})  # fmt: skip
    run |= {"name": HOSTILE, "command": HOSTILE, "needs": []}
    cell = reproduce_runs.cell([run], (1, 2, 3), why_not=HOSTILE, changes=[HOSTILE])
    table = reproduce_runs.table({HOSTILE: cell}, title=HOSTILE, source=HOSTILE, note=HOSTILE)
    clean = write(tmp_path / "..", reproduce_runs.table({"a": reproduce_runs.cell([run], (1, 2, 3))}))
    found = write(tmp_path, table)
    assert found.tags.count("script") == clean.tags.count("script") == 1
    assert not [key for key, _ in found.attributes if key.startswith("on")]
    assert HOSTILE not in found.source and "{{ 7*7 }}" in found.text


@pytest.mark.parametrize(
    "results",
    ["", "[]", "{", '{"metrics": [], "pictures": "x", "versions": 3, "hardware": [], "weights": "y", "data": 1}',
     '{"metrics": {"a": 1, "b": {"c": 2}}, "pictures": [null, "../../secret.jpg", "/etc/passwd", "\\u0000"]}',
     '{"weights": {"record": {"proof": {"res2": "big"}}}, "hardware": {"processes": "many"}}'],
)  # fmt: skip
def test_foreign_files_of_other_shapes_are_left_out(tmp_path: Path, results: str) -> None:
    run = reproduce_runs.run(tmp_path / "run", (1, 2, 3))
    Image.new("RGB", (70, 30), (1, 2, 3)).save(tmp_path / "secret.jpg")
    (tmp_path / "run/results.json").write_text(results)
    (tmp_path / "run/metrics.json").write_text(
        '{"iteration": "x", "loss": 1}\n[]\n{"iteration": 1, "loss": "a"}\n{'
    )
    found = write(tmp_path, reproduce_runs.table({"a": reproduce_runs.cell([run], (1, 2, 3))}))
    assert found.row("a")[1].startswith("1.0 paper 1") and not found.images


def test_tuned_beside_untuned(tmp_path: Path) -> None:
    tried = {
        value: [reproduce_runs.run(tmp_path / f"lr{value}", (ap, ap, ap))]
        for value, ap in (("0.01", 70.0), ("0.02", 71.0), ("0.04", 73.5))
    }
    cell = reproduce_runs.cell(tried["0.04"], (81.5, 55.9, 62.6)) | {"tried": tried, "best": "0.04"}
    own = recipe_value("transfer/voc_R50_C4_24k.yaml", "SOLVER.BASE_LR")
    assert own == 0.02  # the published detectron2 config
    found = write(tmp_path, reproduce_runs.table({"MoCo": cell}, sweep="SOLVER.BASE_LR"))
    assert found.row("MoCo", after=1) == ["tuned: SOLVER.BASE_LR 0.04, the best of 3 values"]
    assert found.row("0.02") == ["0.02", "71.0", "71.0", "71.0", "1", "recipe’s value (untuned)"]
    assert found.row("0.04")[-1] == "★ best (tuned)" and "Tuned minus untuned, bbox.AP50: +2.5" in found.text
    assert recipe_value("transfer/voc_R50_C4_24k.yaml", "SOLVER.NONE") is None
    assert recipe_value("linear/imagenet.yaml", "SOLVER.BASE_LR") == 30  # He et al. Sec. 4.1


def test_curves_are_means_of_the_seeds() -> None:
    assert curves.mean([[(1, 2.0), (2, 4.0)], [(1, 4.0), (2, 6.0), (3, 1.0)]]) == [(1, 3.0), (2, 5.0)]
    assert curves.mean([]) == []
    long = [(float(i), float(i % 2)) for i in range(1, 1501)]
    short = curves.thinned(long)
    assert len(short) == 150 and short[-1][0] == 1500 and all(y == 0.5 for _, y in short)


def test_curves_show_seeds_behind_means(tmp_path: Path) -> None:
    found = write(tmp_path, full(tmp_path))
    loss, tests = re.findall(r'<figure class="chart">.*?</figure>', found.source, re.DOTALL)
    assert loss.count('class="s0 thin"') == 3
    assert len(re.findall(r'class="s0" points', loss)) == 2  # the mean and the legend
    assert "random init: from 2 to 1.1." in loss  # seeds 0, 1, 2 add 0, 0.1 and 0.2 to 1.9 and 1.0
    assert "bbox.AP50 on the test images" in tests


def test_processes_are_read_from_the_command() -> None:
    assert facts._processes("python -m torch.distributed.run --nnodes=2 --nproc_per_node=8 tools/a.py") == 16
    assert facts._processes("python tools/a.py") == 1


def test_collected_runs_become_a_page(tmp_path: Path) -> None:
    """A page made through `collect`: job folders, flat results of a linear probe, an undefined metric, needed jobs."""
    convert = Job("convert/moco", ("python", "x"), "", "weights.pkl")
    probe = Job("linear/moco/seed0", ("python", "y", "{0}"), "", "results.json", (convert,))
    empty = Job("linear/other/seed0", ("python", "y"), "", "results.json")
    for job, content in ((convert, {}), (probe, {"top1": 60.5}), (empty, {"top1": None})):
        folder = job.folder(tmp_path)
        worker.prepare(job, tmp_path)
        (folder / "state.json").write_text(json.dumps({"state": "done", "seconds": 90.0, "host": "h"}))
        (folder / job.product).write_text(json.dumps(content))
    (convert.folder(tmp_path) / "record.json").write_text(json.dumps({"record": WEIGHTS["record"]}))
    column = Column(("top1",), config="linear/imagenet.yaml")
    rows = (
        Row(Init("moco", "MoCo"), (60.6,)),
        Row(Init("other", "Other"), (50.0,)),
        Row(Init("c", "Cited"), (1.0,)),
    )
    table = Table("t", "Linear", "somewhere", (column,), rows)
    cells = [
        Cell(rows[0], column, {"": (probe,)}),
        Cell(rows[1], column, {"": (empty,)}),
        Cell(rows[2], column, {}, "no"),
    ]
    found = write(tmp_path, collect.collect(table, cells, Options(), runs=tmp_path, failed={}))
    assert found.row("MoCo")[1] == "60.5 paper 60.6 ? −0.1 too few trials"
    assert found.row("Other", after=1)[0].endswith("results.json has no top1")
    assert found.row("Cited", after=1) == ["No number: no"]
    assert found.row("convert/moco")[1:] == ["1:30", "1", "–", "h"]
    assert "3.5e-14" in found.text


# --- what is collected ---

VOC = "transfer/voc_R50_C4_24k.yaml"
PLAIN = ["MODEL.INIT", "random"]


def job(
    name: str,
    runs: Path,
    content: str | dict[str, Any] | None,
    *,
    settings: str = "",
    needs: tuple[Job, ...] = (),
) -> Job:
    """Return a finished job with this results.json and config.yaml; without content, an unfinished one."""
    made = Job(name, ("python", "y"), "", "results.json", needs)
    if content is not None:
        folder = made.folder(runs)
        worker.prepare(made, runs)
        (folder / "state.json").write_text(json.dumps({"state": "done", "seconds": 90.0, "host": "h"}))
        (folder / "results.json").write_text(content if isinstance(content, str) else json.dumps(content))
        if settings:
            (folder / "config.yaml").write_text(settings)
    return made


def boxes(ap: float | None, **others: float | None) -> dict[str, Any]:
    return {"metrics": {"voc_2007_test": {"bbox": {"AP": ap, "AP50": 81.5, "AP75": 62.6, **others}}}}


def gathered(runs: Path, tried: dict[str, list[Job]], *, config: str = VOC, **options: Any) -> dict[str, Any]:
    """Collect a table with one row, whose published numbers are those of MoCo v1."""
    metrics = ("bbox.AP50", "bbox.AP", "bbox.AP75") if config == VOC else ("top1",)
    row = Row(Init("moco", "MoCo"), (81.5, 55.9, 62.6) if config == VOC else (60.6,))
    column = Column(metrics, config=config)
    cell = Cell(row, column, {value: tuple(jobs) for value, jobs in tried.items()})
    table = Table("t", "Boxes", "somewhere", (column,), (row,), trials=5)
    return collect.collect(table, [cell], Options(**options), runs=runs, failed={})


def only(table: dict[str, Any]) -> dict[str, Any]:
    return table["rows"][0]["cells"][0]


@pytest.mark.parametrize(
    ("runs", "verdict"),
    [
        ([57.3] * 3, "no spread between runs"),  # numpy gives 8.7e-15 as their standard deviation
        ([55.1] * 5, "no spread between runs"),
        ([57.3], "too few trials"),
        ([57.3, 57.3001, 57.2999], "above"),
    ],
)
def test_equal_runs_have_no_spread(runs: list[float], verdict: str) -> None:
    found = compare(runs, 55.3)
    assert (found.verdict, found.p is None) == (verdict, verdict != "above")
    assert found.std in (None, 0.0) or verdict == "above"
    # t = 2 / (0.2 / 5**0.5) with 4 degrees of freedom
    assert compare([57.3] * 3, 55.3, std=0.2, trials=5).p == pytest.approx(2.3e-5, rel=0.05)


def test_settings_are_those_that_the_run_has_had(tmp_path: Path) -> None:
    """Settings that come with the weights (`--follow-weights`) are only in config.yaml, not in the plan."""
    msra = ["INPUT.FORMAT", "BGR", "MODEL.PIXEL_MEAN", "[103.53, 116.28, 123.675]", "MODEL.PIXEL_STD",
            "[1.0, 1.0, 1.0]", "MODEL.RESNETS.STRIDE_IN_1X1", "True"]  # fmt: skip
    cases: dict[str, tuple[list[str], list[str]]] = {
        "same": (
            ["SEED", "3", "DATALOADER.NUM_WORKERS", "1", "OUTPUT_DIR", "x", "LOG.TENSORBOARD", "False"],
            [],
        ),
        "deeper": (["MODEL.RESNETS.DEPTH", "101"], ["MODEL.RESNETS.DEPTH is 101, in the recipe 50"]),
        "cropped": (["INPUT.CROP.ENABLED", "True"], ["INPUT.CROP.ENABLED is True, in the recipe False"]),
        "undecayed": (
            ["SOLVER.WEIGHT_DECAY_NORM", "0.1"],
            ["SOLVER.WEIGHT_DECAY_NORM is 0.1, in the recipe 0.0"],
        ),
        "supervised": (msra, []),
        "half supervised": (msra[:2], ["INPUT.FORMAT is BGR, in the recipe RGB"]),
    }
    default = read_config(VOC, PLAIN).SOLVER.WEIGHT_DECAY_NORM
    for name, (overrides, expected) in cases.items():
        settings = read_config(VOC, [*PLAIN, *overrides]).dump()
        cell = only(gathered(tmp_path, {"": [job(name, tmp_path, boxes(50.0), settings=settings)]}))
        assert [text.replace(f"recipe {default}", "recipe 0.0") for text in cell["changes"]] == expected, name
        comparable = [number["verdict"] != "not comparable" for number in cell["numbers"]]
        assert comparable == [not expected] * 3, name
    damaged = job("damaged", tmp_path, boxes(50.0), settings="- 1")
    assert "not a YAML mapping" in only(gathered(tmp_path, {"": [damaged]}))["changes"][0]


def test_the_precision_of_pre_training_is_a_change(tmp_path: Path) -> None:
    def found(name: str, value: str) -> list[str]:
        recipe, cfg = (pretrain_config.load(name, more) for more in ((), ("SOLVER.AMP", value)))
        return list(pretraining_changes(cfg, recipe))

    expected = ["SOLVER.AMP of pre-training is bf16, in the paper off (float32)"]
    assert [found("pretrain/moco_v2_R50.yaml", value) for value in ("off", "bf16")] == [[], expected]
    v3 = "pretrain/moco_v3_R50_100ep.yaml"  # README of facebookresearch/moco-v3: mixed precision by default
    assert found(v3, "fp16") == [] and "in the recipe fp16" in found(v3, "off")[0]
    before = Job("pretrain/x", ("python",), "", "checkpoint_last.pth.tar", changes=tuple(expected))
    plain = job("half", tmp_path, boxes(50.0), settings=read_config(VOC, PLAIN).dump(), needs=(before,))
    cell = only(gathered(tmp_path, {"": [plain]}))
    assert cell["changes"] == expected
    assert {number["verdict"] for number in cell["numbers"]} == {"not comparable"}


def test_a_sweep_inside_a_linear_probe_is_a_change(tmp_path: Path) -> None:
    tree = yaml.safe_load(linear_config.defaults().dump())
    for swept, expected in (([], []), ([10.0, 30.0], ["SWEEP is [10.0, 30.0], in the recipe []"])):
        probe = job(f"linear{len(swept)}", tmp_path, {"top1": 60.5, "config": tree | {"SWEEP": swept}})
        cell = only(gathered(tmp_path, {"": [probe]}, config="linear/imagenet.yaml"))
        assert cell["changes"] == expected and cell["numbers"][0]["ours"] == [60.5]


@pytest.mark.parametrize("options", [{"smoke": True}, {"schedule": 0.1}, {}])
def test_every_output_says_what_is_not_comparable(tmp_path: Path, options: dict[str, Any]) -> None:
    settings = read_config(VOC, [*PLAIN, *([] if options else ["MODEL.RESNETS.DEPTH", "101"])]).dump()
    jobs = [job(f"seed{seed}", tmp_path, boxes(50.0 + seed), settings=settings) for seed in (0, 1)]
    table = gathered(tmp_path, {"": jobs}, seeds=(0, 1), **options)
    number = only(table)["numbers"][1]
    assert (number["verdict"], number["p"], number["difference"], number["test"]) == (
        "not comparable",
        None,
        None,
        "",
    )
    found = list(csv.DictReader(io.StringIO(text_tables.as_csv(table))))
    assert {line["verdict"] for line in found} == {"not comparable"}
    assert {line["p"] + line["difference"] for line in found} == {""}
    text = text_tables.latex(table)
    assert "50.5 $\\pm$ 0.7$^\\dagger$ {\\scriptsize (55.9)}" in text and "within noise" not in text
    assert "$^\\dagger$ Not comparable with the paper." in text and text_tables.protocol(table) in text
    assert "50.5 ± 0.7 [44.1, 56.9] (paper 55.9: not comparable)" in text_tables.markdown(table)


@pytest.mark.parametrize("content", ["", "{", "[]", '"x"', "[" * 100_000, "{}"])
def test_damaged_results_are_a_reason(tmp_path: Path, content: str) -> None:
    table = gathered(tmp_path, {"": [job("seed0", tmp_path, content)]})
    assert "is damaged; remove its folder" in only(table)["why_not"]
    assert "| MoCo | no number (paper 81.5) |" in text_tables.markdown(table)
    assert write(tmp_path, table).row("MoCo", after=1)[0].startswith("No number: ")


@pytest.mark.parametrize("value", ["NaN", "Infinity", '"high"', "null", "true", "1" + "0" * 400, "[]"])
@pytest.mark.parametrize(
    "whole", ['{"metrics": {"t": {"bbox": {"AP": %s}}}}', '{"metrics": %s}', '{"metrics": {"t": %s}}']
)
def test_odd_numbers_are_a_reason(tmp_path: Path, value: str, whole: str) -> None:
    table = gathered(tmp_path, {"": [job("seed0", tmp_path, whole % value)]})
    assert only(table)["why_not"].endswith("results.json has no bbox.AP50, bbox.AP, bbox.AP75")
    text_tables.write(tmp_path / "out", table)  # refuses NaN


def test_an_undefined_metric_costs_only_itself(tmp_path: Path) -> None:
    jobs = [
        job(f"seed{s}", tmp_path, boxes(55.8 + s / 10, **({"AP75": None} if s == 1 else {})))
        for s in range(3)
    ]
    table = gathered(tmp_path, {"": jobs}, seeds=(0, 1, 2))
    assert [len(number["ours"]) for number in only(table)["numbers"]] == [3, 3, 2]
    text = text_tables.markdown(table)
    assert text.count("n = 2 of 3") == 1 and "MoCo: Incomplete: " in text and "has no bbox.AP75" in text
    found = write(tmp_path, table)
    assert "n = 2 of 3" in found.row("MoCo")[3] and "n =" not in found.row("MoCo")[2]


def test_missing_runs_are_counted(tmp_path: Path) -> None:
    jobs = [job(f"seed{s}", tmp_path, boxes(55.8 + s / 10) if s < 2 else None) for s in range(3)]
    table = gathered(tmp_path, {"": jobs}, seeds=(0, 1, 2))
    assert (
        text_tables.markdown(table).count("n = 2 of 3") == text_tables.latex(table).count("n = 2 of 3") == 3
    )
    assert {line["planned"] for line in csv.DictReader(io.StringIO(text_tables.as_csv(table)))} == {"3"}
    assert "One run is missing: not run yet" in text_tables.latex(table)
    found = write(tmp_path, table)
    assert (
        found.row("MoCo", after=1) == ["One run is missing: not run yet"]
        and "n = 2 of 3" in found.row("MoCo")[1]
    )
    assert "planned with seeds 0, 1, 2; n is given where a run is missing" in found.text
    assert "at most 0.05, since papers print one decimal" in found.text


def test_only_a_finished_value_can_be_the_best(tmp_path: Path) -> None:
    tried = {
        value: [
            job(f"lr{value}-{s}", tmp_path, boxes(ap, AP50=ap + s) if s < have else None) for s in range(3)
        ]
        for value, ap, have in (("0.01", 70.0, 3), ("0.02", 69.0, 3), ("0.04", 80.0, 1))
    }
    options: dict[str, Any] = {"seeds": (0, 1, 2), "sweep": ("SOLVER.BASE_LR", tuple(tried))}
    table = gathered(tmp_path, tried, **options)
    assert only(table)["best"] == "0.01" and only(table)["numbers"][0]["mean"] == 71.0
    assert "best of 2 finished, of 3 values of SOLVER.BASE_LR: 0.01" in text_tables.markdown(table)
    assert "| MoCo, untuned | 70.0 ± 1.0" in text_tables.markdown(
        table
    ) and "MoCo, untuned & 70.0" in text_tables.latex(table)
    lines = list(csv.DictReader(io.StringIO(text_tables.as_csv(table))))
    assert [(line["sweep"], line["mean"]) for line in lines[::3]] == [
        ("SOLVER.BASE_LR=0.01", "71.0"), ("SOLVER.BASE_LR=0.02", "70.0"),
    ]  # fmt: skip
    found = write(tmp_path, table)
    assert "tuned: SOLVER.BASE_LR 0.01, the best of 2 finished, of 3 values" in found.text
    nothing = gathered(tmp_path, {value: [job(f"none{value}", tmp_path, None)] for value in tried}, **options)
    assert only(nothing)["best"] == "" and "best of" not in text_tables.markdown(nothing)
    assert "tuned:" not in write(tmp_path, nothing).text


def test_names_are_no_commands_of_latex(tmp_path: Path) -> None:
    table = gathered(tmp_path, {"": [job("seed0", tmp_path, boxes(50.0))]})
    table["rows"][0]["title"] = r"[h] a_1 $x^2$ {b} ~ \input{/etc/passwd} 5% #&"
    assert (
        r"{[}h] a\_1 \$x\textasciicircum{}2\$ \{b\} \textasciitilde{} \textbackslash{}input\{/etc/passwd\} 5\% \#\& & "
        in text_tables.latex(table)
    )


def test_trials_are_said_of_the_columns_that_have_them() -> None:
    rows = (Row(Init("a", "A"), (76.5, 81.3), std=(None, 0.2)),)
    columns = (
        Column(("top1",), config="linear/imagenet.yaml", title="linear"),
        Column(("bbox.AP50",), config=VOC, title="VOC"),
    )
    table = Table("t", "Both", "somewhere", columns, rows, trials=5)
    cells = [Cell(rows[0], column, {}, "no") for column in columns]
    found = collect.collect(table, cells, Options(), runs=Path(), failed={})
    assert trials(found) == "The paper’s numbers under VOC are means of 5 trials."


needs_browser = pytest.mark.skipif(not browser.PROGRAM, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser.started() as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with everything: an answer, a baseline, a sweep, two columns, long names, and a hostile name."""
    folder = tmp_path_factory.mktemp("page")
    table = full(folder)
    for row in table["rows"]:
        row["cells"] = row["cells"] * 2
    table["columns"] = [table["columns"][0] | {"title": title} for title in ("VOC 24k", "VOC 9k")]
    cell = table["rows"][1]["cells"][0]
    table["rows"][1]["cells"][0] = cell | {"tried": {"0.02": cell["tried"][""], "0.04": []}, "best": "0.02"}
    table["rows"][0]["title"] = f"random init {HOSTILE} {'long' * 30}"
    more = {"baseline": "MoCo v1", "answer": [HOSTILE * 3], "sweep": "SOLVER.BASE_LR", "schedule": 0.5}
    page.write(folder / "report.html", table | more)
    return folder / "report.html"


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_in_a_browser(chromium: Browser, report: Path, width: int, scheme: str) -> None:
    chromium.open(report, width=width, scheme=scheme)
    assert chromium.complaints() == [] and chromium.requests() == [report.resolve().as_uri()]
    assert chromium.value("document.title") == "Faster R-CNN R50-C4 on VOC, 24k"
    pictures = chromium.value("[...document.images].map((image) => image.complete && image.naturalWidth)")
    assert len(pictures) == 2 * 16 and min(pictures) > 0
    assert chromium.value("document.documentElement.scrollWidth") <= width
    assert chromium.value("window.scrollTo(500, 0), window.scrollX") == 0
    assert (poor := chromium.value(browser.POOR_CONTRAST)) == [], poor


@needs_browser
def test_tables_sort_in_a_browser(chromium: Browser, tmp_path: Path) -> None:
    page.write(tmp_path / "report.html", full(tmp_path))
    chromium.open(tmp_path / "report.html", width=1280)
    heads = "[...document.querySelectorAll('.main tbody tr:first-child th')].map((head) => head.textContent)"
    click = "document.querySelectorAll('.main thead button')[{}].click()"
    paper = ["random init", "MoCo v1", "other recipe", "IG-1B"]
    assert chromium.value(heads) == paper
    chromium.value(click.format(1))  # AP50, best first; rows without a number stay last
    assert chromium.value(heads) == ["MoCo v1", "other recipe", "random init", "IG-1B"]
    assert chromium.value("document.querySelector('.main [aria-sort]').ariaSort") == "descending"
    chromium.value(click.format(1))
    assert chromium.value(heads) == ["random init", "other recipe", "MoCo v1", "IG-1B"]
    chromium.value(click.format(0))
    assert chromium.value(heads) == ["IG-1B", "MoCo v1", "other recipe", "random init"]
    notes = "[...document.querySelectorAll('.main .notes')].map((row) => row.previousElementSibling.textContent.trim())"
    assert [text.split("\n")[0].strip() for text in chromium.value(notes)] == [
        "IG-1B–",
        "other recipe70.0 ± 0.2",
    ] or all(text.startswith(("IG-1B", "other recipe")) for text in chromium.value(notes))
    classes = "[...document.querySelectorAll('.classes tbody th')].map((head) => head.textContent)"
    chromium.value("document.querySelectorAll('.classes thead button')[1].click()")
    assert chromium.value(classes) == ["cat", "dog"]
    chromium.value("document.querySelectorAll('.classes thead button')[1].click()")
    assert chromium.value(classes) == ["dog", "cat"]


@needs_browser
def test_page_is_whole_without_scripts(chromium: Browser, report: Path) -> None:
    chromium.open(report, width=390, scripts=False)
    chromium.screenshot(report.with_suffix(".png"), whole=False)
    assert Image.open(report.with_suffix(".png")).width == 390 and chromium.requests() == [
        report.resolve().as_uri()
    ]
