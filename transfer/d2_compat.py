"""All fixes for incompatibilities between detectron2 (v0.6 and main) and current libraries.

`import transfer` installs an import hook (`transfer.d2_import_hook`) that imports this module right after detectron2
itself, before any of its submodules. Importing this module raises `UserError` if detectron2 cannot be imported. Each
fix is applied only where it is needed; with detectron2's main branch most of them do nothing.

Not fixed, because this project does not call them: `engine.launch` and `AMPTrainer` (they assert CUDA and hard-code
NCCL) and `default_setup` (it asks `detectron2._C` for its compiler). Always pass `use_fast_impl=False` to
`COCOEvaluator`: its fast path is in `detectron2._C`.
"""

import atexit
import importlib
import importlib.metadata
import importlib.resources
import importlib.util
import logging
import multiprocessing
import os
import sys
import types
import warnings
from pathlib import Path
from typing import Any, NoReturn

import numpy
import torch.distributed as dist
from PIL import Image
from torch import nn

from pretrain.common.errors import UserError

INSTALLER = "python tools/install_detectron2.py"


def require() -> types.ModuleType:
    """Import and return detectron2. Raise `UserError`, which names the remedy, if it cannot be imported."""
    try:
        return importlib.import_module("detectron2")
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError):
            raise UserError(f"detectron2 is not installed: run `{INSTALLER}`") from error
        raise UserError(str(error)) from error


def describe() -> dict[str, Any]:
    """Return which detectron2 this is: `version`, `origin` (sdist, build or folder), `has_C` (compiled part)."""
    package = require()
    has_c = _has_compiled_part()
    folder = _folder()
    origin = "official build" if has_c else str(folder)
    try:
        distribution = importlib.metadata.distribution("detectron2")
    except importlib.metadata.PackageNotFoundError:
        return {"version": package.__version__, "origin": origin, "has_C": has_c}
    installed_here = Path(str(distribution.locate_file("detectron2"))).resolve() == folder
    if installed_here and str(distribution.metadata["Summary"]).startswith("pb1-detectron2"):
        origin = "pb1 sdist without C++"
    return {"version": package.__version__, "origin": origin, "has_C": has_c}


def distribute(model: nn.Module, **options: Any) -> nn.Module:
    """Wrap `model` in DistributedDataParallel if there are several processes, on CPUs too.

    By default detectron2's `create_ddp_model` fills in `device_ids`, which DDP refuses for a model on a CPU.
    `device_ids=None` means the device of the model, which is right in both cases.
    """
    from detectron2.engine.defaults import create_ddp_model

    return create_ddp_model(model, device_ids=None, **options)


def set_local_process_group() -> None:
    """Tell detectron2 which processes share this machine. Collective: call it after `init_process_group`.

    Only `detectron2.engine.launch` sets this group, and `comm.get_local_rank` asserts that it is set. torchrun
    numbers the processes machine by machine and sets LOCAL_WORLD_SIZE; if it is not set, there is one machine.
    """
    from detectron2.utils import comm

    if not dist.is_initialized() or comm._LOCAL_PROCESS_GROUP is not None:
        return
    world_size = dist.get_world_size()
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    for first in range(0, world_size, local_size):
        ranks = list(range(first, min(first + local_size, world_size)))
        group = dist.new_group(ranks)  # every process has to create every group
        if dist.get_rank() in ranks:
            comm._LOCAL_PROCESS_GROUP = group
    atexit.register(forget_process_groups)


def forget_process_groups() -> None:
    """Drop detectron2's process groups before the interpreter shuts down.

    detectron2 keeps them in module variables. Gloo's threads that live until the interpreter ends sometimes (in one
    of four runs) abort the process with "terminate called without an active exception".
    """
    from detectron2.utils import comm

    comm._LOCAL_PROCESS_GROUP = None
    comm._get_global_gloo_group.cache_clear()


def alias_cityscapes() -> None:
    """Make `cityscapesscripts` importable under the internal name that detectron2's main branch uses.

    Do nothing if cityscapesscripts is not installed.
    """
    if importlib.util.find_spec("cityscapesscripts") is None:
        return
    # cityscapesscripts 2.3 uses in1d, which numpy 2.4 removed. It reshapes the result, so isin works as well.
    if "in1d" not in vars(numpy):
        numpy.in1d = numpy.isin  # type: ignore[attr-defined]
    parent, path = None, ""
    for part in ("deeplearning", "projects", "cityscapesApi"):
        path = f"{path}.{part}".lstrip(".")
        module = sys.modules.setdefault(path, types.ModuleType(path))
        if parent is not None:
            setattr(parent, part, module)
        parent = module
    for name in (
        "", ".helpers", ".helpers.labels", ".evaluation", ".evaluation.evalInstanceLevelSemanticLabeling",
        ".evaluation.evalPixelLevelSemanticLabeling",
    ):  # fmt: skip
        sys.modules[f"{path}.cityscapesscripts{name}"] = importlib.import_module(f"cityscapesscripts{name}")
    parent.cityscapesscripts = sys.modules["cityscapesscripts"]  # type: ignore[union-attr]


def fix_lvis() -> None:
    """Restore `np.float`, which the evaluation of lvis 0.5.3, the last release, uses."""
    if "float" not in vars(numpy):
        numpy.float = float  # type: ignore[attr-defined]


def _folder() -> Path:
    return Path(str(require().__file__)).resolve().parent


def _has_compiled_part() -> bool:
    loaded = sys.modules.get("detectron2._C")
    if loaded is not None:
        return not isinstance(loaded, _MissingExtension)
    return importlib.util.find_spec("detectron2._C") is not None


class _MissingExtension(types.ModuleType):
    """A placeholder for `detectron2._C` where it was not compiled. Using it raises a clear error."""

    def __getattr__(self, name: str) -> NoReturn:
        # This must be an AttributeError, because pickle and inspect look up names in every loaded module.
        raise AttributeError(
            f"detectron2._C.{name} needs detectron2's C++ extension, which is not compiled here; "
            f"run `{INSTALLER} --from git` in an environment without detectron2"
        )


def _apply() -> None:
    """Apply the fixes that this combination of libraries needs, and no others."""
    # Only main has create_local_process_group; its Python files work with current Pillow and numpy.
    if "def create_local_process_group" not in (_folder() / "utils" / "comm.py").read_text():
        _fix_release_06()
    if "pkg_resources" not in sys.modules and importlib.util.find_spec("pkg_resources") is None:
        sys.modules["pkg_resources"] = _pkg_resources()
    # Warnings of model_zoo, structures and the anchor generator on every start, which no user can act on.
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
    warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated")
    warnings.filterwarnings("ignore", message="torch.meshgrid: in an upcoming release")
    # a warning of DDP, in the wording of old and new versions of torch
    warnings.filterwarnings("ignore", message=".*broadcast_buffers")
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    warnings.filterwarnings(
        "ignore", message="This DataLoader will create"
    )  # recipes have workers for 8 GPUs
    # The ROI pooler of main asks torch.fx whether it is traced; newer versions answer with advice for developers.
    logging.getLogger("torch.fx._symbolic_trace").addFilter(
        lambda record: not record.getMessage().startswith("is_fx_tracing will return true")
    )


def _fix_release_06() -> None:
    # transform.py uses Image.LINEAR, the old name of BILINEAR, in a default argument; Pillow 10 removed it.
    if not hasattr(Image, "LINEAR"):
        Image.LINEAR = Image.Resampling.BILINEAR  # type: ignore[attr-defined]
    # Data sets, masks and evaluators use these names, which numpy 1.24 removed (some or all of them).
    for name, kind in {"int": int, "float": float, "bool": bool, "str": str}.items():
        if name not in vars(numpy):
            setattr(numpy, name, kind)
    # Loader workers that are not forked (the default from Python 3.14 on) need the same fixes.
    multiprocessing.set_forkserver_preload(["__main__", "transfer.d2_compat"])
    # Three modules of detectron2.layers import it at the top, for operators that this project does not use.
    if not _has_compiled_part():
        package = require()
        package._C = sys.modules["detectron2._C"] = _MissingExtension("detectron2._C")  # type: ignore[attr-defined]


def _pkg_resources() -> types.ModuleType:
    """Return a module with the part of pkg_resources, removed in setuptools 81, that `detectron2.model_zoo` calls."""

    def resource_filename(package: str, resource: str) -> str:
        return str(importlib.resources.files(package).joinpath(resource))

    module = types.ModuleType("pkg_resources")
    module.resource_filename = resource_filename  # type: ignore[attr-defined]
    return module


require()
_apply()
