"""Compare the report pages with the files that they were made from and with values computed by hand."""

import base64
import html
import io
import json
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pretrain.common.errors import UserError
from tests.support import browser
from transfer.demo import comparison, demo_page, mechanism_page, run, savings
from transfer.demo.networks import NETWORKS
from transfer.demo.noise import Noise
from transfer.intervals import mean_interval, paired_difference
from transfer.prepare.demo.build import FALLBACK
from transfer.report.charts import Line, chart, ticks
from transfer.visualize.drawing import COLUMN_GAP

CONFIG = """
MODEL: {ARCH: resnet50, WIDTH: 0.25, NORM: ShuffleBN, BN_GROUP_SIZE: 16, RESNETS: {DEPTH: 50}}
MOCO: {K: 1024, M: %s, T: 0.2}
INPUT: {SIZE: 64}
SOLVER: {IMS_PER_BATCH: 64, BASE_LR: 0.03, STEPS: [60, 80]}
TEST: {PICTURE_SCORE: 0.5}
SEED: 0
"""
# Colours that represent the content of the pictures.
TRUTH = (200, 30, 30)
COLOURS = {"random": (30, 30, 200), "moco": (30, 200, 30), "supervised": (200, 30, 200)}
SUPERVISED = "supervised (ImageNet, then Yahoo's open_nsfw)"
STAGES = [
    {"name": "data", "command": "python tools/prepare_data.py demo", "seconds": 61.0, "cached": True},
    {
        "name": "pretrain",
        "command": "python tools/pretrain.py --config a<b",
        "seconds": 30.4,
        "cached": False,
    },
]


class Page(HTMLParser):
    """The cell texts, link targets and pictures (alternative text, image) of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text()
        self.rows: list[list[str]] = []
        self.links: list[str] = []
        self.images: list[tuple[str, Image.Image]] = []
        self.cell = False
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.links += [
            values[key] or "" for key in ("src", "href", "srcset", "data", "action") if key in values
        ]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.cell = True
        if tag == "img":
            data = (values["src"] or "").removeprefix("data:image/jpeg;base64,")
            self.images.append((values["alt"] or "", Image.open(io.BytesIO(base64.b64decode(data)))))

    def handle_endtag(self, tag: str) -> None:
        self.cell = self.cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.cell:
            self.rows[-1][-1] += data

    def row(self, name: str) -> list[str]:
        """Return the cells after the first row header `name`."""
        return next(row[1:] for row in self.rows if row and row[0] == name)


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def pretrain_run(
    folder: Path, *, accuracy: float = 0.5, knn: tuple[float, ...] = (20.0, 24.0), m: str = "0.99"
):
    steps = [
        {
            "iteration": 10 * i,
            "epoch": i // 10,
            "loss": 7 - i / 10,
            "accuracy": accuracy,
            "in_batch_accuracy": accuracy,
            "positive_cosine": 0.8,
            "negative_cosine": 0.1,
        }
        for i in range(1, 21)
    ]
    probes = [{"knn": value, "epoch": 0, "iteration": 100 * i} for i, value in enumerate(knn)]
    write_lines(folder / "metrics.json", [*steps, *probes])
    (folder / "config.yaml").write_text(CONFIG % m)


def results(seed: int, box: float | None, mask: float | None) -> dict[str, Any]:
    tasks = {
        task: {"AP": value, "AP50": value and value + 10.125, "AP75": 1.25, "AP-bird": value, "AP-coin": None}
        for task, value in (("bbox", box), ("segm", mask))
    }
    return {
        "metrics": {"demo_val": tasks}, "seed": seed, "iterations": 700, "config_sha256": f"{seed:064x}",
        "pictures": ["pictures/00.jpg", "pictures/01.jpg"], "weights": None, "init": "random",
        "versions": {"torch": "2.x"}, "hardware": {"gpu": None},
    }  # fmt: skip


def finetune_run(folder: Path, found: dict[str, Any], curve: tuple[float, ...]) -> None:
    tests = [
        {"iteration": 30 * i, "bbox/AP": value, "segm/AP": value / 2} for i, value in enumerate(curve, 1)
    ]
    steps = [{"iteration": i, "loss": 3 - i / 100} for i in range(10, 100, 10)]
    write_lines(folder / "metrics.json", [*steps, *tests])
    (folder / "config.yaml").write_text(CONFIG % "0.99")
    (folder / "results.json").write_text(json.dumps(found))


def chosen_pictures(folder: Path, rows: list[str]) -> None:
    """Write three test images and the quartile, as `transfer.demo.pictures` does."""
    folder.mkdir()
    for prefix, shade in {"00": 0, "01": 20, "02": 40, "quartile": 30}.items():
        for key in ("truth", *rows):
            colour = np.minimum(np.array(TRUTH if key == "truth" else COLOURS[key]) + shade, 255)
            picture = np.full((48, 64, 3), colour, np.uint8)
            Image.fromarray(picture).save(folder / f"{prefix}-{key}.jpg", quality=95)
    shown = [{"name": f"{n}.jpg", "f1": {row: (3 - n) / 4 for row in rows}} for n in range(3)]
    rule = {"score": 0.3, "scores": [0.5, 0.3], "examined": 40, "sorted_by": "moco"}
    (folder / "pictures.json").write_text(json.dumps(rule | {"shown": shown, "quartile": shown[0]}))


def data_set(folder: Path, source: str = "debian packages") -> None:
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (320, 240), (index * 40, 90, 90)).save(folder / split / f"{index}.jpg")
    counts = {"pretrain/object": 2000, "pretrain/photo": 96, "train": 2400, "val": 300}
    state = {"source": source, "counts": counts, "classes": ["bird", "coin"], "missing": []}
    (folder / "demo.json").write_text(json.dumps(state))
    (folder / "CREDITS.txt").write_text(
        "derived from\n\nDebian package stamps (stamps_2022.06-1_all.deb)\nLicence: GPL-2 <x>\n  a.png\n"
        "  b.png\n"
        f"\n{'=' * 40}\nThe copyright file of stamps:\n\n  see http://example.org/licence\n"
    )


@pytest.fixture
def demo(tmp_path: Path):
    """Return a function that writes a demo run, given the (box, mask) AP of rows and seeds, and returns its folder."""

    def make(
        moco: list[tuple],
        random: list[tuple],
        supervised: list[tuple] = (),
        *,
        size: str = "standard",
        source: str = "debian packages",
        curves: dict[str, tuple[float, ...]] | None = None,
    ):
        folder = tmp_path / size
        pretrain_run(folder / "pretrain")
        Image.new("RGB", (528, 132)).save(folder / "pretrain/views.jpg")
        rows = {"random": random, "moco": moco} | ({"supervised": supervised} if supervised else {})
        for row, values in rows.items():
            for seed, (box, mask) in enumerate(values):
                curve = (curves or {}).get(row, (1.0, 2.0, 3.0))
                run_folder = folder / f"finetune/{row}-seed{seed}"
                finetune_run(run_folder, results(seed, box, mask), curve)
        for row in ("moco", "supervised"):
            record = {
                "source": "moco", "branch": "module.encoder_q", "dropped": {"queue": 1, "encoder_k": 320},
                "architecture": {"depth": 50, "width": 0.5}, "proof": {"res2": 1.25e-15, "res5": 3.5e-14},
            }  # fmt: skip
            if row == "supervised":
                record |= {"source": "caffe", "branch": "", "pooling": {"res2": 0.385}}
            (folder / f"{row}.json").write_text(json.dumps({"record": record, "preprocessing": {}}))
        chosen_pictures(folder / "pictures", list(rows))
        what = {"size": size, "data": str(tmp_path / "data"), "seeds": list(range(len(random)))}
        left_out = {} if supervised else {"supervised": "pip found no <network>"}
        (folder / "demo.json").write_text(
            json.dumps(what | {"rows": list(rows), "left_out": left_out, "backbone": "ResNet"})
        )
        data_set(tmp_path / "data", source)
        return folder

    return make


def write(folder: Path) -> Page:
    output = folder.parent / "report.html"
    run.write_demo(folder, STAGES, output)
    return Page(output)


def test_numbers_are_those_of_the_results(demo):
    page = write(demo([(7.1251, 6.5)], [(8.25, 6.004)], [(18.0, 9.0)], size="quick"))
    assert page.row("random init") == ["8.25", "18.38", "1.25", "6.00", "16.13", "1.25"]
    assert page.row("MoCo") == ["7.13", "17.25", "1.25", "6.50", "16.62", "1.25"]
    assert page.row(SUPERVISED) == ["18.00", "28.12", "1.25", "9.00", "19.12", "1.25"]
    assert page.row("MoCo − random") == ["−1.12", "−1.12", "0.00", "+0.50", "+0.50", "0.00"]
    assert page.row("supervised − random") == ["+9.75", "+9.75", "0.00", "+3.00", "+3.00", "0.00"]
    assert page.row("class") == ["random", "MoCo", "supervised"] * 2
    assert page.row("bird") == ["8.25", "7.13", "18.00", "6.00", "6.50", "9.00"]
    assert "MoCo minus random initialisation: −1.12 box AP, +0.50 mask AP. Supervised minus" in page.source
    assert "of one seed, and how much AP changes from seed to seed at this size is not known" in page.source
    assert "nothing can be concluded beyond these numbers" in page.source
    proofs = [row[1:] for row in page.rows if row and row[0] == "largest relative difference"]
    assert proofs == [["res2", "res3", "res4", "res5", "limit"]]
    assert ["MoCo", "1.2e−15", "not verified", "not verified", "3.5e−14", "1e−4"] in page.rows
    assert "<code>encoder_k</code> (320 tensors)" in page.source
    assert page.source.count("This alone changes the features by") == 1 and "res2 38%" in page.source
    assert page.row("data")[0] == "1:01*" and page.row("total")[0] == "1:31"
    assert page.row("pretrain") == ["0:30", "python tools/pretrain.py --config a<b"]
    assert page.row("stamps 2022.06-1") == ["GPL-2 <x>", "2"]
    assert "BSD-2-Clause" in page.source and "Left out" not in page.source


def test_a_single_seed_is_shown_with_the_noise_of_a_seed(demo, monkeypatch):
    """Of 30 and 4 AP with a spread of 2 AP of their difference: 13 times that."""
    spread = Noise({"random": (2.0,) * 6}, {"supervised": (2.0,) * 6, "moco": (1.0,) * 6})
    monkeypatch.setitem(demo_page.MEASURED, ("ResNet", "standard"), spread)
    folder = demo([(6.0, 6.0)], [(4.0, 6.0)], [(30.0, 9.0)])
    page = write(folder)
    assert page.row("random init")[0] == "4.00 (±2.0)" and page.row("MoCo")[0] == "6.00"
    assert page.row("supervised − random")[0] == "+26.00 (±2.0)"
    text = demo_page.summary(folder)[-1]
    assert "is 13.0 times that deviation, far more than seeds explain" in text
    assert "of MoCo in box AP is 2.0 times that deviation, which seeds alone may explain" in text
    assert "4.00 (±2.0)" in "\n".join(demo_page.summary(folder)) and "not known" not in text
    state = folder.parent / "data/demo.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"source": FALLBACK}))
    assert "(±" not in "\n".join(demo_page.summary(folder))  # measured on other pictures


def test_each_network_has_its_own_noise():
    """For every row that it can have, and every difference to random initialisation."""
    for network in NETWORKS.values():
        noise = demo_page.MEASURED[network.backbone, "standard"]
        trained = {network.moco, *(["supervised"] if network.supervised else [])}
        assert set(noise.rows) == {"random", *trained} and set(noise.differences) == trained


def test_a_row_that_is_left_out_is_named_with_its_reason(demo):
    folder = demo([(7.0, 6.0)], [(8.0, 6.0)])
    page = write(folder)
    assert f"Left out: {SUPERVISED}. pip found no <network>." in html.unescape(page.source)
    assert "<network>" not in page.source
    assert [row[0] for row in page.rows if row and row[0].startswith("supervised")] == []
    assert "BSD-2-Clause" not in page.source
    assert f"left out: {SUPERVISED}: pip found no <network>" in demo_page.summary(folder)


def test_the_sentence_names_the_iterations_to_the_baselines_final_ap(demo):
    curves = {"random": (1.0, 4.0, 6.0), "moco": (0.5, 1.0, 5.99), "supervised": (3.0, 6.0, 9.0)}
    folder = demo([(7.0, 6.0)], [(8.0, 6.0)], [(9.0, 7.0)], curves=curves)
    expected = (
        "Random initialisation ended at 6.00 box AP after 90 iterations; MoCo did not reach it, and "
        f"{SUPERVISED} had reached it after 60. AP was measured after 30, 60, 90 iterations."
    )
    assert expected in demo_page.summary(folder)
    page = write(folder)
    assert expected in html.unescape(page.source)
    drawn = ET.parse(folder.parent / "curves.svg").getroot()
    texts = ["".join(text.itertext()) for text in drawn.findall("{http://www.w3.org/2000/svg}text")]
    assert texts == ["Box AP on the test images", "random init", "MoCo", SUPERVISED]
    assert page.source.index("Box AP on the test images") < page.source.index('<table class="ap stack"')


def test_curves_are_means_over_seeds():
    logs = [
        [{"iteration": 30, "bbox/AP": a}, {"iteration": 60, "bbox/AP": b}] for a, b in ((1, 4), (2, None))
    ]
    assert savings.curve(logs, "bbox") == [(30, 1.5)]


def test_undefined_metrics_are_dashes(demo):
    page = write(demo([(None, math.nan)], [(8.25, 6.0)], size="quick"))
    assert page.row("MoCo") == ["–", "–", "1.25", "–", "–", "1.25"]
    assert page.row("MoCo − random")[0] == "–"
    assert page.row("coin") == ["–"] * 4
    assert not re.search(r"\b(nan|None)\b", re.sub(r"base64,[^\"]*", "", page.source))


def test_pictures_show_every_init_on_the_same_images(demo):
    page = write(demo([(7.0, 6.0)], [(8.0, 6.0)], [(9.0, 6.0)]))
    shown = [(alt, image) for alt, image in page.images if alt.startswith("Test image")]
    assert len(shown) == 3 * 4
    for number in range(3):
        row = shown[4 * number : 4 * number + 4]
        for (alt, image), colour, words in zip(
            row,
            (TRUTH, *COLOURS.values()),
            ("annotated", "random init", "MoCo", "supervised"),
            strict=True,
        ):
            assert alt.startswith(f"Test image {number + 1} ") and words in alt
            assert image.size == (64, 48)
            expected = np.minimum(np.array(colour) + 20 * number, 255)
            assert np.abs(np.asarray(image).reshape(-1, 3).mean(0) - expected).max() < 8
    assert "score of at least 0.3" in page.source and "highest of 0.5, 0.3" in page.source
    captions = re.findall(r"<figcaption>(\d · .*?)</figcaption>", page.source)
    assert captions[::4] == [
        "1 · ground truth (best)",
        "2 · ground truth (median)",
        "3 · ground truth (worst)",
    ]
    assert captions[5:8] == [f"2 · {name}, F1 0.50" for name in ("random", "MoCo", "supervised")]


def test_the_picture_of_detections_has_the_annotations_and_every_row(demo):
    folder = demo([(7.0, 6.0)], [(8.0, 6.0)])
    write(folder)
    picture = np.asarray(Image.open(folder.parent / "detections.jpg")).astype(int)
    assert picture.shape == (24 + 48, 3 * 64 + 2 * COLUMN_GAP, 3)
    for left, colour in zip((0, 70, 140), (TRUTH, COLOURS["random"], COLOURS["moco"]), strict=True):
        assert np.abs(picture[24 + 8 :, left + 8 : left + 56].mean((0, 1)) - colour - 30).max() < 8
        assert picture[:22, left : left + 64].min() < 128  # a caption


def test_four_pictures_of_detections_are_two_by_two(demo):
    folder = demo([(7.0, 6.0)], [(8.0, 6.0)], [(9.0, 6.0)])
    write(folder)
    picture = np.asarray(Image.open(folder.parent / "detections.jpg"))
    assert picture.shape == (2 * (24 + 48) + COLUMN_GAP, 2 * 64 + COLUMN_GAP, 3)


def test_page_loads_nothing_and_is_small(demo):
    page = write(demo([(7.0, 6.0)], [(8.0, 6.0)]))
    assert all(link.startswith(("data:image/jpeg;base64,", "#")) for link in page.links)
    assert not re.search(r"https?://|url\(|@import|<script|<link", page.source)
    assert all(alt for alt, _ in page.images)
    assert len(page.source) < 5e6


def test_seeds_give_intervals(demo):
    moco, random = [(7.0, 6.0), (8.0, 6.5), (9.0, 7.0)], [(6.0, 6.5), (6.9, 6.0), (8.1, 7.5)]
    page = write(demo(moco, random, size="full"))
    half = 4.303 / math.sqrt(3)  # the values 7, 8, 9 have standard deviation 1
    assert page.row("MoCo")[0] == f"8.00 ± {half:.2f}"
    # differences 1.0, 1.1, 0.9: standard deviation 0.1
    assert page.row("MoCo − random")[0] == f"+1.00 ± {0.1 * half:.2f}"
    assert "The box interval excludes zero, in favour of MoCo" in page.source
    assert "The mask interval contains zero: no difference in mask AP was shown." in page.source
    assert page.row("2") == ["8.10", "9.00", "7.50", "7.00"]


def test_fallback_data_are_said_to_be_so(demo):
    page = write(demo([(7.0, 6.0)], [(8.0, 6.0)], source="fallback photographs"))
    assert "This run used the fallback data" in page.source
    assert "that no training step has seen" not in page.source


def test_optional_artefacts_may_be_missing(demo):
    folder = demo([(7.0, 6.0)], [(8.0, 6.0)])
    pretrain_run(folder / "pretrain", knn=())
    (folder / "pretrain/views.jpg").unlink()
    page = write(folder)
    assert "kNN" not in page.source and "This run saved no picture of its views" in page.source


@pytest.mark.parametrize(
    "name",
    [
        "demo.json",
        "moco.json",
        "pretrain/metrics.json",
        "finetune/moco-seed0/results.json",
        "pictures/pictures.json",
        "pictures/01-random.jpg",
    ],
)
def test_required_artefacts_are_named(demo, name):
    folder = demo([(7.0, 6.0)], [(8.0, 6.0)])
    (folder / name).unlink()
    with pytest.raises(UserError, match=re.escape(str(folder / name))):
        write(folder)
    assert not (folder.parent / "report.html").exists()


def test_unfinished_json_and_log_lines(demo):
    folder = demo([(7.0, 6.0)], [(8.0, 6.0)])
    with open(folder / "pretrain/metrics.json", "a") as file:
        file.write('{"iteration": 9')
    write(folder)
    (folder / "moco.json").write_text("{")
    with pytest.raises(UserError, match=r"moco\.json: not valid JSON"):
        write(folder)


@pytest.mark.skipif(not browser.PROGRAM, reason="no Chromium is installed")
def test_nothing_scrolls_sideways_on_any_screen(demo, tmp_path):
    folder = demo([(7.0, 6.0), (8.0, 6.5)], [(6.0, 6.5), (6.9, 6.0)], [(31.25, 29.5), (33.5, 30.0)])
    write(folder)
    run.write_mechanism(mechanism(tmp_path / "mechanism"), STAGES, tmp_path / "mechanism.html")
    wide = (
        "[...document.querySelectorAll('.scroll, .views, html')].filter((e) => e.scrollWidth > e.clientWidth)"
    )
    names = ".map((e) => e.ariaLabel || e.className || e.tagName)"
    with browser.started() as page:
        for name in ("report.html", "mechanism.html"):
            for width, scheme in ((390, "dark"), (1280, "light")):
                page.open(tmp_path / name, width=width, scheme=scheme)
                page.value("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
                assert (page.value(wide + names), page.complaints()) == ([], [])
                assert page.value(browser.POOR_CONTRAST) == []


def mechanism(folder: Path, **no_shuffle: Any) -> Path:
    pretrain_run(folder / "shuffle_bn", knn=(20.0, 40.0))
    pretrain_run(folder / "no_shuffle", **no_shuffle)
    pretrain_run(folder / "sync_bn", knn=(20.0, 40.0))
    for m in ("0.0", "0.9", "0.999"):
        pretrain_run(folder / f"m_{float(m):g}", m=m)
    return folder


def test_mechanism_page(tmp_path):
    folder = mechanism(tmp_path / "mechanism", accuracy=0.999, knn=(20.0, 30.0, 25.0))
    run.write_mechanism(folder, STAGES, tmp_path / "mechanism.html")
    page = Page(tmp_path / "mechanism.html")
    # The losses of the last two of twenty lines are 5.1 and 5.0, and consecutive ones differ by 0.1.
    assert page.row("no shuffling") == ["5.050", "0.100", "99.9 %", "99.9 %", "20.0 %", "30.0 %", "25.0 %"]
    assert [row[0] for row in page.rows if row and row[0].startswith("m = ")] == [
        "m = 0", "m = 0.9", "m = 0.99", "m = 0.999",
    ]  # fmt: skip
    assert "+49.9 points in queue accuracy" in page.source and "−15.0 points in kNN" in page.source
    assert "both are observed here" in page.source
    assert all(link.startswith("#") for link in page.links)


@pytest.mark.parametrize(
    ("accuracy", "knn", "words"),
    [
        (0.9, 39.0, "less than its uncertainty"),
        (0.9, 60.0, "not both observed"),
        (0.1, 20.0, "not both observed"),
    ],
)
def test_mechanism_claims_no_leak_that_it_did_not_see(tmp_path, accuracy, knn, words):
    folder = mechanism(tmp_path, accuracy=accuracy, knn=(20.0, knn))
    assert words in mechanism_page.context(folder)["norm_sentences"][0]


def test_pages_link_to_each_other(demo, tmp_path):
    folder = demo([(7.0, 6.0)], [(8.0, 6.0)])
    run.write_mechanism(mechanism(tmp_path / "mechanism"), STAGES, tmp_path / "mechanism.html")
    assert "mechanism.html" in write(folder).links


def test_intervals_by_hand():
    # 1, 2, 4: mean 7/3, squared deviations 16/9 + 1/9 + 25/9 = 42/9, variance 7/3, standard error sqrt(7)/3
    mean, half = mean_interval([1, 2, 4])
    assert mean == pytest.approx(7 / 3)
    assert half == pytest.approx(4.302653 * math.sqrt(7) / 3)
    assert mean_interval([5.0]) == (5.0, None)
    assert mean_interval([1.0, None]) == mean_interval([1.0, math.nan]) == (None, None)
    assert paired_difference([3, 5, 9], [2, 3, 5]) == mean_interval([1, 2, 4])


def test_intervals_agree_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    values = [3.1, 2.7, 3.9, 3.3, 2.2]
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    mean, half = mean_interval(values)
    assert (mean - half, mean + half) == pytest.approx((low, high), abs=1e-3)


def test_rounded_zero_has_no_sign():
    assert comparison.shown((-0.001, None), signed=True) == "0.00"
    assert comparison.shown((1.5, 0.25), signed=True) == "+1.50 ± 0.25"


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.0037), (4.9, 7.1), (-0.2, 0.9), (3, 3), (0, 61_000)])
def test_ticks_enclose_the_values(low, high):
    found = ticks(low, high)
    steps = np.diff(found)
    assert found[0] <= low and high <= found[-1] and 2 <= len(found) <= 8
    assert np.allclose(steps, steps[0])


def test_chart_places_points_in_proportion():
    drawn = chart("a < b", [Line("x & y", [(0, 0), (50, 5), (100, 10)])])
    svg = ET.fromstring(str(drawn.svg))  # well-formed, names escaped
    places = [tuple(map(float, place.split(","))) for place in svg.find("polyline").get("points").split()]
    (x0, y0), (x1, y1), (x2, y2) = places
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11) and y0 - y1 == pytest.approx(y1 - y2, abs=0.11)
    assert x0 < x2 and y0 > y2
    assert chart("empty", [Line("none", [])]) is None
