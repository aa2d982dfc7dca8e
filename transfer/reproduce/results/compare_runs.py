"""Why two runs have different numbers: everything in which their results.json and config.yaml differ.

Sorted by how likely it is to matter: the schedule before the augmentation, the weights before the versions.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from pretrain.common.configs import flatten, read_yaml
from pretrain.common.errors import UserError, label
from pretrain.common.files import load_json
from transfer import results
from transfer.linear import config

_WIDEST = 44  # characters of a value that are printed
_LISTED = ("top1", "top5", "loss")  # the linear probe writes these at the top level of its file
_BY_CLASS = ("AP-", "IoU-", "ACC-")
ABSENT = "(absent)"

# Groups of config keys, the likeliest reasons first: title -> prefixes of the keys.
_CONFIG = {
    "schedule": (
        "SOLVER.MAX_",
        "SOLVER.SCHEDULE",
        "SOLVER.STEPS",
        "SOLVER.GAMMA",
        "SOLVER.WARMUP",
        "SOLVER.LR_SCHEDULER",
    ),
    "learning rate": (
        "SOLVER.BASE_LR",
        "SOLVER.BIAS_LR",
        "SOLVER.BACKBONE_LR",
        "SOLVER.LR_DECAY",
        "SOLVER.OPTIMIZER",
        "SWEEP",
    ),
    "batch": ("SOLVER.IMS_PER_BATCH", "SOLVER.ACCUMULATE", "SOLVER.REFERENCE_WORLD_SIZE"),
    "data": ("DATASETS.", "DATALOADER.", "DATA."),
    "model": ("MODEL.",),
    "augmentation": ("INPUT.", "CACHE"),
    "other settings": ("",),
}
_BOOKKEEPING = (*results.IRRELEVANT, *config.IRRELEVANT, "VERSION", "VIS_PERIOD")
# Parts of results.json, listed after the config: title -> keys.
_PARTS = {
    "weights": ("init", "weights"),
    "versions": ("versions", "evaluators"),
    "data digests": ("data",),
    "seed": ("seed",),
    "hardware": ("hardware",),
    "PreciseBN": ("precise_bn",),
    "length": ("iterations",),
}


@dataclass(frozen=True)
class Run:
    """One of the two runs. `settings` are flattened; None if the run has no config.yaml."""

    path: Path
    results: dict[str, Any]
    settings: dict[str, Any] | None


def read(path: Path) -> Run:
    """Read a run from its results.json or its folder. Raise `UserError` if there is no valid results.json."""
    file = path / "results.json" if path.is_dir() else path
    try:
        content = load_json(file)
    except UserError as error:
        raise UserError(f"{error}; name a results.json or the OUTPUT_DIR of a finished run") from None
    if not isinstance(content, dict) or not (isinstance(content.get("metrics"), dict) or "top1" in content):
        raise UserError(
            f"{file}: it has no metrics; name a results.json that tools/train_net.py or tools/linear_eval.py wrote"
        )
    return Run(file, content, settings(file.with_name("config.yaml"), content))


def settings(path: Path, content: dict[str, Any]) -> dict[str, Any] | None:
    """Return a run's settings, flattened, from its results.json (`content`) or else from config.yaml at `path`.

    The linear probe writes its settings to results.json. Returns None if there is no config.yaml either; raises
    `UserError` if it is damaged.
    """
    tree = content.get("config")
    if not isinstance(tree, dict):
        if not os.path.lexists(path):
            return None
        try:
            tree = read_yaml(path)
        except UserError as error:
            raise UserError(f"{error}; remove it to compare without the settings") from None
    return flatten(tree)


def differences(a: Run, b: Run) -> dict[str, list[tuple[str, Any, Any]]]:
    """Return everything that differs: title of a group -> (name, value in A, value in B). Empty groups are left out."""
    found = dict(_config(a, b))
    for title, keys in _PARTS.items():
        found[title] = _unequal(*({key: run.results.get(key) for key in keys} for run in (a, b)))
    bookkeeping = found.pop("bookkeeping", [])
    weights = [row for row in found["weights"] if row[0] != "weights.path" and ".proof." not in row[0]]
    found |= {"weights": weights, "bookkeeping": bookkeeping}
    return {title: rows for title, rows in found.items() if rows}


def _config(a: Run, b: Run) -> dict[str, list[tuple[str, Any, Any]]]:
    groups: dict[str, list[tuple[str, Any, Any]]] = {title: [] for title in (*_CONFIG, "bookkeeping")}
    if a.settings is None or b.settings is None:
        return groups
    for row in _unequal(a.settings, b.settings):
        key = row[0]
        title = next(title for title, starts in _CONFIG.items() if key.startswith(starts))
        if key != "SEED" and not _is_younger(*row):  # the seed is listed from results.json
            groups["bookkeeping" if key.startswith(_BOOKKEEPING) else title].append(row)
    return groups


def _is_younger(key: str, *values: Any) -> bool:
    """Return whether one run lacks the key only because it is of an earlier version of this project."""
    if ABSENT not in values:
        return False
    probes = flatten(config.defaults()) if key.startswith(config.YOUNGER) else {}
    # With another value than its default, a key of the probe says that the runs differ.
    return key.startswith(results.YOUNGER_SECTIONS) or (key in probes and probes[key] in values)


def _unequal(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    a, b = flatten(a), flatten(b)
    keys = sorted({*a, *b})
    rows = [(key, a.get(key, ABSENT), b.get(key, ABSENT)) for key in keys]
    # Two NaNs count as equal.
    return [row for row in rows if row[1] != row[2] and not (row[1] != row[1] and row[2] != row[2])]


def metrics(a: Run, b: Run) -> list[tuple[str, Any, Any]]:
    """Return (name, value in A, value in B) of every metric; of the per-class ones, only the one that differs most."""
    found = [_metrics(run) for run in (a, b)]
    rows = [
        (key, *(values.get(key, ABSENT) for values in found)) for key in dict.fromkeys((*found[0], *found[1]))
    ]
    classes = [row for row in rows if row[0].rpartition(" ")[2].startswith(_BY_CLASS)]
    measured = [row for row in classes if None not in (_number(row[1]), _number(row[2]))]
    most = sorted(measured, key=lambda row: -abs(row[1] - row[2]))[:1]
    return [row for row in rows if row not in classes] + [
        (f"{key} (differs most)", *rest) for key, *rest in most
    ]


def _metrics(run: Run) -> dict[str, Any]:
    tree = run.results.get("metrics")
    if not isinstance(tree, dict):
        return {key: run.results[key] for key in _LISTED if key in run.results}
    return {
        f"{data} {task} {name}": value
        for data, tasks in tree.items() if isinstance(tasks, dict)
        for task, values in tasks.items() if isinstance(values, dict)
        for name, value in values.items()
    }  # fmt: skip


def table(a: Run, b: Run) -> list[str]:
    """Return the comparison as lines to print."""
    groups = differences(a, b)
    rows = [("metrics", "A", "B", "B - A")]
    rows += [(f"  {label(name)}", _text(x), _text(y), _gap(x, y)) for name, x, y in metrics(a, b)]
    for title, found in groups.items():
        rows += [(title, "", "", ""), *((f"  {label(name)}", _text(x), _text(y), "") for name, x, y in found)]
    text = tabulate(rows, tablefmt="plain", disable_numparse=True, preserve_whitespace=True)
    return [f"A  {a.path}", f"B  {b.path}", "", *text.splitlines(), "", _summary(a, b, groups)]


def _summary(a: Run, b: Run, groups: dict[str, Any]) -> str:
    matters = [title for title in groups if title not in ("hardware", "bookkeeping")]
    first = f"look first at: {', '.join(title for title in matters if title != 'seed')}"
    without = [str(run.path.with_name("config.yaml")) for run in (a, b) if run.settings is None]
    if without:
        rest = f"; {first}" if set(matters) - {"seed"} else ""
        return f"no {' and '.join(without)}: settings are not compared; {_digests(a, b)}{rest}"
    if not matters:
        return "the same settings, weights, data, versions and seed: only variation of the hardware is left"
    if matters == ["seed"]:
        return "only the seed differs: the difference is noise between runs, and no setting explains it"
    return first


def _digests(a: Run, b: Run) -> str:
    found = [run.results.get("config_sha256") for run in (a, b)]
    if None in found:
        return "a digest is missing, so nothing shows whether they are equal"
    return f"their digests are {'equal' if found[0] == found[1] else 'different'}"


def _number(value: Any) -> float | None:
    """Return `value` if it can be subtracted; None for anything else, NaN and huge integers included."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15
    return value if usable else None


def _gap(a: Any, b: Any) -> str:
    x, y = _number(a), _number(b)
    return "" if x is None or y is None else "equal" if x == y else f"{y - x:+.2f}"


def _text(value: Any) -> str:
    """Return a value on one short line; digests are cut."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = label(value)
    if len(text) == 64 and all(letter in "0123456789abcdef" for letter in text):
        return text[:12]
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."
