"""Checks of the saved state that a run resumes from, for all tools that have `--resume`.

The state is a user's file: whatever it holds, the run resumes exactly or refuses it in one line. Nothing in it is
executed and nothing is taken on trust: names, types, shapes and values are compared with what this run would have
written. Learning rates and all other settings come from the run's config, never from the file.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch

from pretrain.common.configs import equal
from pretrain.common.console import say
from pretrain.common.errors import UserError, brief, label
from pretrain.tensor_files import checkpoint
from pretrain.yaml_text import parse_yaml

LARGEST = 1 << 53  # no count in a state is larger
_LONGEST = 1_000_000  # characters of a stored config
# Settings of optimizers that change the result. The others choose between implementations or depend on torch's version.
_SETTINGS = (
    "lr", "momentum", "dampening", "nesterov", "weight_decay", "betas", "eps", "amsgrad", "maximize",
)  # fmt: skip
_SHOWN = 3  # different settings in a note


@dataclass(frozen=True)
class Stored:
    """What a file holds that a run resumes from. Its methods check one entry each, and raise `UserError`.

    Attributes:
        contents: the entries by name; nothing about them has been checked.
        tool: the program that writes such files.
        advice: what to do if the file cannot be used.
    """

    path: Path
    contents: dict[str, Any]
    tool: str
    advice: str

    def damaged(self, what: str) -> UserError:
        """Return the error for contents that no run would have written."""
        return UserError(
            f"--resume: {self.path}: {what}: the file is damaged or was written by another version of "
            f"{self.tool}; {self.advice}"
        )

    def count(self, key: str, low: int = 0, high: int = LARGEST) -> int:
        """Return an entry that must be an integer from `low` to `high`."""
        value = self.contents.get(key)
        if type(value) is not int:
            raise self.damaged(f"its `{key}` is missing or not a number")
        if not low <= value <= high:
            raise self.damaged(f"its `{key}` is {brief(value)}, not between {low} and {high}")
        return value

    def seconds(self) -> float:
        """Return the entry `seconds`, the time that the run has taken so far."""
        value = self.contents.get("seconds")
        if not is_finite(value) or value < 0:
            raise self.damaged("its `seconds` is missing or not a time")
        return float(value)

    def digests(self, key: str) -> dict[str, str | None]:
        """Return an entry that must map names to digests; None stands for an unknown one."""
        value = self.contents.get(key)
        if not isinstance(value, dict) or not all(
            isinstance(name, str) and isinstance(digest, str | None) for name, digest in value.items()
        ):
            raise self.damaged(f"its `{key}` is missing or not a dict of digests")
        return value

    def settings(self) -> dict[str, Any]:
        """Return the config that the run had, as nested dicts. The values in it have not been checked."""
        text = self.contents.get("config")
        try:
            if not isinstance(text, str) or len(text) > _LONGEST:
                raise ValueError
            before = parse_yaml(text)
            if not isinstance(before, dict):
                raise ValueError
        except Exception:  # PyYAML raises many classes on hostile text, RecursionError among them
            raise self.damaged("its `config` is not a YAML mapping") from None
        return before

    def tensor(self, name: str, value: Any, own: torch.Tensor, *, finite: bool = True) -> torch.Tensor:
        """Return a value that must be a tensor on the CPU with the shape and type of the run's `own`.

        Args:
            name: what to call it in the error.
            finite: refuse infinite values and NaN.
        """
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.device.type != "cpu":
            raise self.damaged(f"its {name} is not a plain tensor")
        if value.shape != own.shape or value.dtype != own.dtype:
            raise self.damaged(
                f"its {name} is {label(tuple(value.shape))} {value.dtype}; this run needs "
                f"{label(tuple(own.shape))} {own.dtype}"
            )
        if finite and not torch.isfinite(value).all():
            raise self.damaged(f"its {name} holds infinite values or NaN")
        return value

    def tensors(
        self, key: str, value: Any, own: Mapping[str, torch.Tensor], *, finite: bool = True
    ) -> dict[str, torch.Tensor]:
        """Return a value that must be a dict of tensors with the names, shapes and types of the run's `own`."""
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            raise self.damaged(f"its `{key}` is not a dict of tensors")
        for name in own:
            if name not in value:
                raise self.damaged(f"its `{key}` lacks {name}")
        for name in value:
            if name not in own:
                raise self.damaged(f"its `{key}` holds {brief(name, 80)}, which this run does not have")
            self.tensor(name, value[name], own[name], finite=finite)
        return value

    def restore_optimizer(
        self, optimizer: torch.optim.Optimizer, *, iteration: int, finite: bool = True
    ) -> None:
        """Load the momenta of SGD or AdamW. Learning rates and other settings of the optimizer stay.

        Args:
            iteration: the number of steps done.
            finite: refuse infinite values and NaN.
        """
        before = self.contents.get("optimizer")
        state, groups = (
            (before.get("state"), before.get("param_groups")) if isinstance(before, dict) else (None, None)
        )
        if not isinstance(state, dict) or not all(isinstance(values, dict) for values in state.values()):
            raise self.damaged("its `optimizer` holds no state")
        expected = len(optimizer.param_groups)
        if not isinstance(groups, list) or list(map(type, groups)) != [dict] * expected:
            raise self.damaged(f"its `optimizer` does not hold {expected} group(s) of settings")
        if momenta := self._momenta(state, optimizer, iteration, finite=finite):
            optimizer.load_state_dict({**optimizer.state_dict(), "state": momenta})

    def _momenta(
        self, state: dict[Any, dict], optimizer: torch.optim.Optimizer, iteration: int, *, finite: bool
    ) -> dict[int, dict[str, torch.Tensor]]:
        """Return the checked state of each parameter by its number: of all, or of none if no step was taken yet."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        # SGD without momentum writes None in some versions of torch
        found = {index: {k: v for k, v in values.items() if v is not None} for index, values in state.items()}
        found = {index: values for index, values in found.items() if values}
        without_momentum = all(group.get("momentum") == 0 for group in optimizer.param_groups)
        # A scaler skips the first steps, until its scale fits.
        needed = iteration > 0 and not without_momentum and self.contents.get("scaler") is None
        if (found or needed) and found.keys() != set(range(len(parameters))):
            raise self.damaged(f"its `optimizer` has {len(found)} momenta for {len(parameters)} parameters")
        adam = isinstance(optimizer, torch.optim.AdamW)
        names = ("exp_avg", "exp_avg_sq") if adam else ("momentum_buffer",)
        momenta: dict[int, dict[str, torch.Tensor]] = {}
        for index, parameter in enumerate(parameters if found else []):
            shapes = {
                **dict.fromkeys(names, parameter.detach()),
                **({"step": torch.zeros(())} if adam else {}),
            }
            values = self.tensors(f"optimizer, parameter {index}", found[index], shapes, finite=finite)
            least = 1 if self.contents.get("scaler") is None else 0
            if adam and not (least <= (steps := float(values["step"])) <= iteration and steps.is_integer()):
                raise self.damaged(
                    f"its `step` of parameter {index} is {steps:g}, not between {least} and {iteration}"
                )
            # The fused step reads weight and momentum in memory order, and a GPU's weights are channels-last.
            laid_out = {name: torch.empty_like(parameter).copy_(values[name]) for name in names}
            momenta[index] = {**laid_out, **({"step": values["step"]} if adam else {})}
        return momenta

    def note_settings(self, optimizer: torch.optim.Optimizer) -> None:
        """Print a note if the state was saved with other settings than those of `optimizer`, which are used.

        Call it after `restore_optimizer`, when `optimizer` has the learning rates at which the state was saved.
        """
        different = [
            f"{key} {brief(was.get(key), 40)} instead of {brief(now[key])}"
            for was, now in zip(
                self.contents["optimizer"]["param_groups"], optimizer.param_groups, strict=True
            )
            for key in _SETTINGS
            if key in now and (key in was or key == "lr") and not _same(was.get(key), now[key])
        ]
        if different := list(dict.fromkeys(different)):  # groups often share their settings
            shown = ", ".join(different[:_SHOWN]) + (", ..." if len(different) > _SHOWN else "")
            say(f"note: --resume: {self.path} was saved with {shown}: the settings of this run are used")

    def restore_scaler(self, scaler: torch.amp.GradScaler) -> None:
        """Restore the scale of float16 losses and its count of good steps; do nothing if there was none."""
        before = self.contents.get("scaler")
        if before is None:  # the precision was different
            return
        scale, steps = (
            (before.get(key) for key in ("scale", "_growth_tracker")) if isinstance(before, dict) else (0, 0)
        )
        if not isinstance(scale, float) or not 0 < scale < float("inf"):
            raise self.damaged("its `scaler` has no positive scale")
        if type(steps) is not int or not 0 <= steps < 1 << 31:
            raise self.damaged("its `scaler` has no count of steps")
        scaler.load_state_dict({**scaler.state_dict(), "scale": scale, "_growth_tracker": steps})


def load(path: Path, *, tool: str, advice: str) -> Stored:
    """Read a state without running any code in it. Raises `UserError` with `advice` if it is not readable."""
    try:
        stored = Stored(path, checkpoint.load(path), tool, advice)
    except UserError as error:
        raise UserError(f"--resume: {error}; {advice}") from error
    if not isinstance(stored.contents, dict):
        raise stored.damaged(f"it holds a {type(stored.contents).__name__}")
    return stored


def is_finite(value: Any) -> TypeGuard[float]:
    """Whether an untrusted value is a number, neither a bool nor infinite or NaN, that a float can hold."""
    return type(value) in (int, float) and abs(value) <= 1e300 and math.isfinite(value)


def _same(was: Any, now: Any) -> bool:
    # Tolerance: a cosine may differ in its last bit between machines. Of other types, `==` may give a tensor.
    return isinstance(was, bool | int | float | list | tuple) and equal(was, now, tolerance=1e-9)
