"""Why two runs have different numbers: everything that their results.json and config.yaml say otherwise.

Sorted by how likely it matters: the schedule before the augmentation, the weights before the versions.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pretrain.common.configs import flatten
from pretrain.common.errors import UserError
from transfer import results
from transfer.linear import config

_WIDEST = 44  # characters of a value
_LISTED = ("top1", "top5", "loss")  # metrics of the linear probe, which stand at the top of its file
_BY_CLASS = ("AP-", "IoU-", "ACC-")
ABSENT = "(absent)"

# Groups of config keys, the likeliest reasons first: title -> what a key of it begins with.
_CONFIG = {
    "schedule": ("SOLVER.MAX_", "SOLVER.STEPS", "SOLVER.GAMMA", "SOLVER.WARMUP", "SOLVER.LR_SCHEDULER"),
    "learning rate": ("SOLVER.BASE_LR", "SOLVER.BIAS_LR", "SOLVER.OPTIMIZER", "SWEEP"),
    "batch": ("SOLVER.IMS_PER_BATCH", "SOLVER.ACCUMULATE", "SOLVER.REFERENCE_WORLD_SIZE"),
    "data": ("DATASETS.", "DATALOADER.", "DATA."),
    "model": ("MODEL.",),
    "augmentation": ("INPUT.", "CACHE"),
    "other settings": ("",),
}
_BOOKKEEPING = (*results.IRRELEVANT, *config.IRRELEVANT, "VERSION", "VIS_PERIOD")
# Parts of results.json after the config: title -> its keys.
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
    """One side. `settings` are flat, None where the run has left no config."""

    path: Path
    results: dict[str, Any]
    settings: dict[str, Any] | None


def read(path: Path) -> Run:
    """A results.json, or the folder of a run. Raises `UserError` where it is none."""
    file = path / "results.json" if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{file}: {error.strerror}; name a results.json or the OUTPUT_DIR of a finished run"
        ) from None
    except (ValueError, RecursionError):
        raise UserError(
            f"{file}: not JSON; name a results.json or the OUTPUT_DIR of a finished run"
        ) from None
    if not isinstance(content, dict) or not (isinstance(content.get("metrics"), dict) or "top1" in content):
        raise UserError(f"{file}: no results.json of train_net.py or linear_eval.py: it has no metrics")
    return Run(file, content, settings(file.with_name("config.yaml"), content))


def settings(path: Path, content: dict[str, Any]) -> dict[str, Any] | None:
    """A run's settings, flat: of its results.json (`content`), where the linear probe writes them, or of config.yaml.

    None where there is no config.yaml. Raises `UserError` where that is damaged.
    """
    tree = content.get("config")
    if not isinstance(tree, dict):
        try:
            tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, yaml.YAMLError, RecursionError):
            raise UserError(f"{path}: not a config; remove it to compare without the settings") from None
        if not isinstance(tree, dict):
            raise UserError(f"{path}: not a config; remove it to compare without the settings")
    return flatten(tree)


def differences(a: Run, b: Run) -> dict[str, list[tuple[str, Any, Any]]]:
    """Title of a group -> (what, in A, in B) of all that differs; the groups in order, without empty ones."""
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
        if key != "SEED":  # results.json has it
            groups["bookkeeping" if key.startswith(_BOOKKEEPING) else title].append(row)
    return groups


def _unequal(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    a, b = flatten(a), flatten(b)
    keys = sorted({*a, *b})
    rows = [(key, a.get(key, ABSENT), b.get(key, ABSENT)) for key in keys]
    return [
        row for row in rows if row[1] != row[2] and not (row[1] != row[1] and row[2] != row[2])
    ]  # NaN is NaN


def metrics(a: Run, b: Run) -> list[tuple[str, Any, Any]]:
    """(name, in A, in B) of every metric but those of classes, of which only the one that differs most."""
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
    """Lines to print."""
    groups = differences(a, b)
    rows = [("metrics", "A", "B", "B - A")]
    rows += [(f"  {name}", _text(x), _text(y), _gap(x, y)) for name, x, y in metrics(a, b)]
    for title, found in groups.items():
        rows += [(title, "", "", ""), *((f"  {name}", _text(x), _text(y), "") for name, x, y in found)]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [f"A  {a.path}", f"B  {b.path}", ""]
    lines += ["  ".join((*map(str.ljust, row, widths), row[3])).rstrip() for row in rows]
    return [*lines, "", _summary(a, b, groups)]


def _summary(a: Run, b: Run, groups: dict[str, Any]) -> str:
    matters = [title for title in groups if title not in ("hardware", "bookkeeping")]
    first = f"look first at: {', '.join(title for title in matters if title != 'seed')}"
    without = [str(run.path.with_name("config.yaml")) for run in (a, b) if run.settings is None]
    if without:
        rest = f"; {first}" if set(matters) - {"seed"} else ""
        return f"no {' and '.join(without)}: settings are not compared; {_digests(a, b)}{rest}"
    if not matters:
        return "the same settings, weights, data, versions and seed: what is left is the hardware's own variation"
    if matters == ["seed"]:
        return "only the seed differs: this is the noise between runs, and no setting explains it"
    return first


def _digests(a: Run, b: Run) -> str:
    found = [run.results.get("config_sha256") for run in (a, b)]
    if None in found:
        return "no digest tells whether they are equal"
    return f"their digests are {'equal' if found[0] == found[1] else 'different'}"


def _number(value: Any) -> float | None:
    """One that can be subtracted; None for others, NaN and integers beyond a float among them."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15
    return value if usable else None


def _gap(a: Any, b: Any) -> str:
    x, y = _number(a), _number(b)
    return "" if x is None or y is None else "equal" if x == y else f"{y - x:+.2f}"


def _text(value: Any) -> str:
    """On one line, short: digests by their first characters, and no character that a terminal would obey."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if len(text) == 64 and all(letter in "0123456789abcdef" for letter in text):
        return text[:12]
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."
