"""The frictions between detectron2 (v0.6 and main) and current libraries, in one place.

`import transfer` installs an import hook (`transfer.d2_import_hook`) that imports this module right after detectron2
itself, before any of its submodules. Importing it raises `UserError` when detectron2 does not import. Each
fix applies only where it is needed; with detectron2's main branch most of them do nothing.

Not mended, because nothing here calls them: `engine.launch` and `AMPTrainer` (assert CUDA, hard-code NCCL),
`default_setup` (asks `detectron2._C` for its compiler). `COCOEvaluator` must always get
`use_fast_impl=False`: its fast path lives in `detectron2._C`.
"""

import atexit
import importlib
import importlib.metadata
import importlib.resources
import importlib.util
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
    """Import and return detectron2; raise `UserError` that names the remedy when it does not import."""
    try:
        return importlib.import_module("detectron2")
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError):
            raise UserError(f"detectron2 is not installed: run `{INSTALLER}`") from error
        raise UserError(str(error)) from error


def describe() -> dict[str, Any]:
    """Say which detectron2 this is: `version`, `origin` (sdist, build or folder), `has_C` (compiled part)."""
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
    """Wrap `model` in DistributedDataParallel where there are several processes, on CPUs too.

    detectron2's `create_ddp_model` fills in `device_ids` by itself, which DDP refuses for a model on a CPU;
    no `device_ids` means "where the model is", which is right in both cases.
    """
    from detectron2.engine.defaults import create_ddp_model

    return create_ddp_model(model, device_ids=None, **options)


def set_local_process_group() -> None:
    """Tell detectron2 which processes share this machine. Collective: call it after `init_process_group`.

    Only `detectron2.engine.launch` sets this group, and `comm.get_local_rank` asserts without it. torchrun
    numbers the processes machine by machine and sets LOCAL_WORLD_SIZE; without it there is one machine.
    """
    from detectron2.utils import comm

    if not dist.is_initialized() or comm._LOCAL_PROCESS_GROUP is not None:
        return
    world_size = dist.get_world_size()
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    for first in range(0, world_size, local_size):
        ranks = list(range(first, min(first + local_size, world_size)))
        group = dist.new_group(ranks)  # every process takes part in creating every group
        if dist.get_rank() in ranks:
            comm._LOCAL_PROCESS_GROUP = group
    atexit.register(forget_process_groups)


def forget_process_groups() -> None:
    """Let go of detectron2's process groups while Python is still whole.

    It keeps them in module variables. Gloo's threads that end with the interpreter, and not before, were
    seen to end the process with "terminate called without an active exception", once in four runs.
    """
    from detectron2.utils import comm

    comm._LOCAL_PROCESS_GROUP = None
    comm._get_global_gloo_group.cache_clear()


def alias_cityscapes() -> None:
    """Let main's Cityscapes code find `cityscapesscripts`, which it imports from a folder of its authors' company.

    Nothing to do where cityscapesscripts is not installed.
    """
    if importlib.util.find_spec("cityscapesscripts") is None:
        return
    # Gone since numpy 2.4, used by cityscapesscripts 2.3; it reshapes the result, so that isin's does as well.
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


def mend_lvis() -> None:
    """lvis 0.5.3, the last release, uses `np.float` when it counts."""
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
    """Stands for `detectron2._C` where it was not compiled; raises a clear error on use."""

    def __getattr__(self, name: str) -> NoReturn:
        # An AttributeError, because pickle and inspect look for names in every loaded module.
        raise AttributeError(
            f"detectron2._C.{name} needs detectron2's C++ extension, which is not compiled here; "
            f"run `{INSTALLER} --from git` in an environment without detectron2"
        )


def _apply() -> None:
    """Mend what this combination of libraries needs, and nothing else."""
    # main has create_local_process_group; its Python files have caught up with Pillow and numpy.
    if "def create_local_process_group" not in (_folder() / "utils" / "comm.py").read_text():
        _mend_release_06()
    if "pkg_resources" not in sys.modules and importlib.util.find_spec("pkg_resources") is None:
        sys.modules["pkg_resources"] = _pkg_resources()
    # Notices on every start that no user can act on: model_zoo, structures and the anchor generator.
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
    warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated")
    warnings.filterwarnings("ignore", message="torch.meshgrid: in an upcoming release")
    warnings.filterwarnings(
        "ignore", message=".*broadcast_buffers"
    )  # of DDP, by its old name in older torch too
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


def _mend_release_06() -> None:
    # transform.py names Image.LINEAR, the old spelling of BILINEAR, in a default argument; gone in Pillow 10.
    if not hasattr(Image, "LINEAR"):
        Image.LINEAR = Image.Resampling.BILINEAR  # type: ignore[attr-defined]
    # Used when building data sets, masks and evaluators; all or some are gone since numpy 1.24.
    for name, kind in {"int": int, "float": float, "bool": bool, "str": str}.items():
        if name not in vars(numpy):
            setattr(numpy, name, kind)
    # Loader workers that are not forked (the default from Python 3.14 on) would meet these frictions afresh.
    multiprocessing.set_forkserver_preload(["__main__", "transfer.d2_compat"])
    # Three modules of detectron2.layers import it at the top, for operators that nothing here uses.
    if not _has_compiled_part():
        package = require()
        package._C = sys.modules["detectron2._C"] = _MissingExtension("detectron2._C")  # type: ignore[attr-defined]


def _pkg_resources() -> types.ModuleType:
    """What `detectron2.model_zoo` calls of pkg_resources, which setuptools 81 dropped."""

    def resource_filename(package: str, resource: str) -> str:
        return str(importlib.resources.files(package).joinpath(resource))

    module = types.ModuleType("pkg_resources")
    module.resource_filename = resource_filename  # type: ignore[attr-defined]
    return module


require()
_apply()
