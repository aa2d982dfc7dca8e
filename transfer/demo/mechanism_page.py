"""Collects the content of the page about batch norm (Figure A.1 of He et al. 2020) and momentum (Section 4.1)."""

import itertools
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transfer.demo.comparison import ABSENT
from transfer.prepare.demo.recipe import RECIPES
from transfer.report.charts import Chart, Line, chart, points
from transfer.report.run_files import read_config, read_log

BATCH_NORM = {"shuffle_bn": "ShuffleBN", "no_shuffle": "no shuffling", "sync_bn": "SyncBN"}
MOMENTUM = ("m_0", "m_0.9", "m_0.99", "m_0.999")
KNN_IMAGES = RECIPES["standard"].knn_val  # number of images classified in each kNN measurement
IN_BATCH, LOSS = "Contrastive accuracy, batch", "Loss"  # titles of charts
TAIL = 0.1  # the end value of a run is the mean over this share of its log lines, the last ones


@dataclass(frozen=True)
class Variant:
    """A run with one setting. `log` is the whole log, `cfg` the effective config."""

    name: str
    log: list[dict[str, Any]]
    cfg: dict[str, Any]
    style: int

    def end(self, key: str, *, scale: float = 1.0) -> float | None:
        """Return the mean of a value over the last tenth of its log lines; None if it was never logged."""
        values = [y for _, y in points(self.log, key, scale=scale)]
        return statistics.fmean(values[-max(round(TAIL * len(values)), 1) :]) if values else None

    def knn(self) -> list[float]:
        """Return the kNN accuracies in percent, in order. The first one is that of the random initialisation."""
        return [y for _, y in points(self.log, "knn")]

    def swing(self) -> float | None:
        """Return the mean change of the loss between consecutive log lines in the second half of the run."""
        losses = [y for _, y in points(self.log, "loss")]
        losses = losses[len(losses) // 2 :]
        steps = [abs(after - before) for before, after in itertools.pairwise(losses)]
        return statistics.fmean(steps) if steps else None


def context(folder: Path) -> dict[str, Any]:
    """Return all variables of `templates/mechanism.html` except the stages. Raises `UserError` if a file is missing."""
    norms = [_read(folder / key, name, style) for style, (key, name) in enumerate(BATCH_NORM.items())]
    momenta = _momenta(folder, norms[0])
    return {
        "cfg": norms[0].cfg,
        "norm_charts": _charts(norms),
        "norm_rows": [_row(variant) for variant in norms],
        "norm_sentences": leak_sentences(*norms),
        "momentum_charts": _charts(momenta),
        "momentum_rows": [_row(variant) for variant in momenta],
        "momentum_sentences": momentum_sentences(momenta),
    }


def pictures(context: dict[str, Any]) -> dict[str, Chart]:
    """Return the charts that are also written as files: name -> chart."""
    wanted = {"batch_norm.svg": ("norm_charts", IN_BATCH), "momentum.svg": ("momentum_charts", LOSS)}
    return {
        name: drawn
        for name, (part, title) in wanted.items()
        for drawn in context[part]
        if drawn.title == title
    }


def _read(folder: Path, name: str, style: int) -> Variant:
    return Variant(name, read_log(folder / "metrics.json"), read_config(folder / "config.yaml"), style)


def _momenta(folder: Path, shuffled: Variant) -> list[Variant]:
    """Return the runs with different momentum, in increasing order. The ShuffleBN run is the one for its momentum."""
    found = [_read(folder / key, "", 0) for key in MOMENTUM if (folder / key).is_dir()]
    if all(variant.cfg["MOCO"]["M"] != shuffled.cfg["MOCO"]["M"] for variant in found):
        found.append(shuffled)
    found.sort(key=lambda variant: float(variant.cfg["MOCO"]["M"]))
    return [
        Variant(f"m = {variant.cfg['MOCO']['M']:g}", variant.log, variant.cfg, style)
        for style, variant in enumerate(found)
    ]


def _charts(variants: list[Variant]) -> list[Chart]:
    def draw(
        title: str, key: str, *, scale: float = 1.0, unit: str = "", from_zero: bool = True
    ) -> Chart | None:
        lines = [Line(v.name, points(v.log, key, scale=scale), v.style) for v in variants]
        return chart(title, lines, unit=unit, from_zero=from_zero)

    drawn = [
        draw("Contrastive accuracy, queue", "accuracy", scale=100, unit="%"),
        draw(IN_BATCH, "in_batch_accuracy", scale=100, unit="%"),
        draw("kNN accuracy", "knn", unit="%"),
        draw(LOSS, "loss", from_zero=False),
    ]
    return [found for found in drawn if found]


def _row(variant: Variant) -> tuple[str, list[str]]:
    """Return name and cells: loss and swing; queue and in-batch accuracy; kNN at the start, best and at the end."""
    knn = variant.knn()
    cells = [
        _text(variant.end("loss")),
        _text(variant.swing()),
        _text(variant.end("accuracy", scale=100), "%"),
        _text(variant.end("in_batch_accuracy", scale=100), "%"),
        *(_text(value, "%") for value in ((knn[0], max(knn), knn[-1]) if knn else (None, None, None))),
    ]
    return variant.name, cells


def leak_sentences(shuffled: Variant, unshuffled: Variant, synced: Variant) -> list[str]:
    """Return sentences that compare no shuffling and SyncBN with ShuffleBN, as in Figure A.1."""
    sentences = []
    for other in (unshuffled, synced):
        accuracy = _gap(other.end("accuracy", scale=100), shuffled.end("accuracy", scale=100))
        batch = _gap(other.end("in_batch_accuracy", scale=100), shuffled.end("in_batch_accuracy", scale=100))
        knn = _gap(_last(other), _last(shuffled))
        text = (
            f"Compared with ShuffleBN, the run with {other.name} ended at {_points(accuracy)} in queue accuracy, "
            f"{_points(batch)} in in-batch accuracy and {_points(knn)} in kNN."
        )
        if accuracy is not None and knn is not None:
            text += " " + _leak(accuracy, knn, noise=_noise(shuffled, other))
        sentences.append(text)
    return sentences


def _leak(accuracy: float, knn: float, *, noise: float) -> str:
    sign = "Higher contrastive accuracy with lower kNN is a sign of a leak"
    if accuracy > 0 and knn < -noise:
        return f"{sign}: both are observed here."
    if accuracy > 0 and knn < noise:
        return f"{sign}: only the former is observed; kNN differs by less than its uncertainty of ±{noise:.1f} points."
    return f"{sign}: they are not both observed here."


def momentum_sentences(variants: list[Variant]) -> list[str]:
    """Return sentences about Section 4.1: with which momentum kNN ended highest, and the loss changed most."""
    sentences = []
    measured = {variant.name: knn for variant in variants if (knn := _last(variant)) is not None}
    if measured:
        best, worst = max(measured, key=measured.__getitem__), min(measured, key=measured.__getitem__)
        noise = _noise(*variants)
        within = measured[best] - measured[worst] < noise
        sentences.append(
            f"kNN ended highest with {best} ({measured[best]:.1f} %) and lowest with {worst} "
            f"({measured[worst]:.1f} %). The difference is {'smaller' if within else 'larger'} than its uncertainty "
            f"of ±{noise:.1f} points."
        )
    swings = {variant.name: swing for variant in variants if (swing := variant.swing()) is not None}
    if swings:
        wildest = max(swings, key=swings.__getitem__)
        values = ", ".join(f"{name}: {value:.3f}" for name, value in swings.items())
        sentences.append(
            f"In the second half of the run, the loss changed most between log lines with {wildest} ({values})."
        )
    return sentences


def _last(variant: Variant) -> float | None:
    knn = variant.knn()
    return knn[-1] if knn else None


def _noise(*variants: Variant) -> float:
    """Return twice the (binomial) standard error of a difference between two kNN measurements, in points."""
    shares = [knn / 100 for variant in variants if (knn := _last(variant)) is not None]
    share = statistics.fmean(shares) if shares else 0.5
    return 200 * math.sqrt(2 * share * (1 - share) / KNN_IMAGES)


def _gap(value: float | None, reference: float | None) -> float | None:
    return None if value is None or reference is None else value - reference


def _points(gap: float | None) -> str:
    return ABSENT if gap is None else f"{gap:+.1f} points".replace("-", "−")


def _text(value: float | None, unit: str = "") -> str:
    if value is None:
        return ABSENT
    return f"{value:.1f} {unit}" if unit else f"{value:.3f}"
