"""A stand-in for a GPU: tensors of the CPU that say they are on `cuda:0`, and refuse to meet tensors that do not.

Forward and backward passes run with their values, so that the whole code of a step runs on any machine. What is found:
tensors made without a device, tensors left on another device, and what makes the CPU wait for the GPU. What is not:
kernels, numbers and memory formats of a real GPU, which `make test-gpu` looks at.
"""

import contextlib
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from pretrain.data import on_device

DEVICE = torch.device("cuda", 0)
_MOVES = {torch.Tensor.to, torch.Tensor.cuda, torch.Tensor.cpu, torch.Tensor.copy_}
# From Python values: a copy from memory that is not pinned.
_FROM_VALUES = {torch.tensor, torch.as_tensor, torch.Tensor.new_tensor, torch.from_numpy}
# The size of the result, or a Python value, depends on what the GPU has computed.
_WAITS = {
    torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.__bool__, torch.Tensor.__int__, torch.Tensor.__float__,
    torch.Tensor.__index__, torch.Tensor.nonzero, torch.nonzero, torch.Tensor.unique, torch.unique,
    torch.Tensor.masked_select, torch.masked_select, torch.equal, torch.Tensor.equal, torch.allclose,
    torch.Tensor.__contains__, torch.Tensor.repeat_interleave, torch.repeat_interleave,
}  # fmt: skip
_TO_NUMPY = {torch.Tensor.numpy, torch.Tensor.__array__}
_STRICT = {torch.cat, torch.stack}  # take no scalar of another device either
_INDEXING = {torch.Tensor.__getitem__, torch.Tensor.__setitem__}


class OnGpu(torch.Tensor):
    """A tensor of the stand-in. What is computed from it is on the stand-in too."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func == torch.Tensor.device.__get__:
            return DEVICE
        if func == torch.Tensor.is_cuda.__get__:
            return True
        found = super().__torch_function__(func, types, args, kwargs or {})
        # `torch.Tensor` leaves gradients as they are
        is_grad = func == torch.Tensor.grad.__get__
        return found.as_subclass(cls) if is_grad and found is not None else found


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """The same values as a tensor of the CPU, without a copy."""
    return tensor.detach().as_subclass(torch.Tensor)


def _place(tensor: torch.Tensor) -> type[torch.Tensor]:
    return OnGpu if isinstance(tensor, OnGpu) else torch.Tensor


class StandIn(TorchFunctionMode):
    """Puts what is asked to be on `cuda` on the stand-in, and looks at every call of torch.

    Attributes:
        waits: the calls for which a CPU would have waited for the GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.pinned: list[torch.Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.pin_memory:
            self.pinned.append(args[0].clone())
            return self.pinned[-1]
        if func is torch._has_compatible_shallow_copy_type:  # asked by `Module.to`
            return isinstance(args[0], OnGpu) == isinstance(args[1], OnGpu)
        if kwargs.pop("pin_memory", False):
            self.pinned.append(func(*args, **kwargs))
            return self.pinned[-1]
        if func in _MOVES:
            return self._move(func, args, kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        here = any(isinstance(tensor, OnGpu) for tensor in tensors)
        if here:
            self._look(func, args, tensors)
        device = kwargs.get("device")
        wanted = None if device is None else torch.device(device).type
        if wanted is None or func is torch.Generator:
            return func(*args, **kwargs)
        if func in _FROM_VALUES and (here or wanted == "cuda"):
            self._wait(func)
        kwargs["device"] = "cpu"
        found = func(*args, **kwargs)
        kind = OnGpu if wanted == "cuda" else torch.Tensor
        return tree_map(lambda leaf: leaf.as_subclass(kind) if torch.is_tensor(leaf) else leaf, found)

    @contextlib.contextmanager
    def no_waits(self) -> Iterator[None]:
        """Fail if anything inside makes the CPU wait."""
        before = len(self.waits)
        yield
        assert self.waits[before:] == [], f"waits: {self.waits[before:]}"

    def _look(self, func: Callable[..., Any], args: Any, tensors: list[torch.Tensor]) -> None:
        name = getattr(func, "__name__", str(func))
        others = [t for t in tensors if not isinstance(t, OnGpu) and (t.ndim or func in _STRICT)]
        if func in _INDEXING:  # takes places on the CPU, too, and copies them
            places = [leaf for leaf in tree_leaves(args[1]) if torch.is_tensor(leaf)]
            others = [t for t in others if not any(t is place for place in places)]
            if any(not isinstance(t, OnGpu) or t.dtype in (torch.bool, torch.uint8) for t in places):
                self._wait(func)
        if others and name != "__set__":
            raise AssertionError(f"{name}: tensors on cuda:0 and cpu: {[tuple(t.shape) for t in tensors]}")
        if func in _TO_NUMPY:
            raise AssertionError(f"{name}: a tensor on cuda:0 has no array")
        if func in _WAITS or func is torch.Tensor.new_tensor:
            self._wait(func)

    def _wait(self, func: Callable[..., Any]) -> None:
        self.waits.append(getattr(func, "__name__", str(func)))

    def _move(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        source, *given = args
        if func is torch.Tensor.copy_:
            other, non_blocking = given[0], kwargs.get("non_blocking", len(given) > 1 and given[1])
            if _place(source) is not _place(other):
                self._copied(other, non_blocking, pinned=source if _place(other) is OnGpu else other)
            source.as_subclass(torch.Tensor).copy_(other.as_subclass(torch.Tensor))
            return source
        place = {torch.Tensor.cpu: torch.Tensor, torch.Tensor.cuda: OnGpu}.get(func, _place(source))
        for value in (*given, *kwargs.values()):
            if isinstance(value, torch.Tensor):
                place = _place(value)
            elif isinstance(value, str | torch.device):
                place = OnGpu if torch.device(value).type == "cuda" else torch.Tensor
        kinds = [value for value in given if isinstance(value, torch.dtype)]
        options = {name: kwargs[name] for name in ("dtype", "memory_format", "copy") if name in kwargs}
        found = source.as_subclass(torch.Tensor)
        if kinds or options:
            found = found.to(*kinds, **options)
        if place is not _place(source):
            self._copied(source, kwargs.get("non_blocking", False), pinned=source)
            if found.data_ptr() == source.data_ptr():
                found = found.clone()  # another device holds another copy
        elif not kinds and not options:
            return source
        return found.as_subclass(place)

    def _copied(self, source: torch.Tensor, non_blocking: bool, *, pinned: torch.Tensor) -> None:
        if not (non_blocking and any(pinned is each for each in self.pinned)):
            self.waits.append("copy to cpu" if isinstance(source, OnGpu) else "copy to cuda")


class _Event:
    """Of a stream; the stand-in computes everything at once."""

    def __init__(self, **_: Any) -> None: ...

    def record(self) -> None: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, _: "_Event") -> float:
        return 1.0


class _Autocast(torch.autocast):
    def __init__(self, device_type: str, *arguments: Any, **options: Any) -> None:
        super().__init__("cpu", *arguments, **options)


class _GradScaler(torch.amp.GradScaler):
    def __init__(self, device: str = "cuda", *arguments: Any, **options: Any) -> None:
        super().__init__("cpu", *arguments, **options)


@contextlib.contextmanager
def stand_in_gpu() -> Iterator[StandIn]:
    """Let this process see one GPU, which is a stand-in."""
    group = torch.optim.Optimizer._group_tensors_by_device_and_dtype

    def grouped(lists: Any, with_indices: bool = False) -> Any:
        found = group(lists, with_indices)
        here = any(isinstance(leaf, OnGpu) for leaf in tree_leaves(lists))
        return {(DEVICE if here else device, dtype): value for (device, dtype), value in found.items()}

    save = torch.save

    def saved(contents: Any, *arguments: Any, **options: Any) -> None:
        """Files of a GPU's tensors are read on any machine; those of the stand-in need to lose their class."""
        save(
            tree_map(lambda leaf: plain(leaf) if isinstance(leaf, OnGpu) else leaf, contents),
            *arguments,
            **options,
        )

    nothing = lambda *_, **__: None  # noqa: E731
    names: dict[str, Any] = {
        "is_available": lambda: True, "is_initialized": lambda: True, "device_count": lambda: 1,
        "current_device": lambda: 0, "set_device": nothing, "synchronize": nothing, "empty_cache": nothing,
        "is_bf16_supported": lambda including_emulation=True: True, "get_device_name": lambda *_: "a stand-in",
        "get_device_properties": lambda *_: types.SimpleNamespace(total_memory=8e9),
        "max_memory_allocated": lambda *_: 0, "Event": _Event,
    }  # fmt: skip
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    with pytest.MonkeyPatch.context() as patch, StandIn() as seen:
        for name, value in names.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(torch, "save", saved)
        patch.setattr(torch, "autocast", _Autocast)
        patch.setattr(torch.amp, "GradScaler", _GradScaler)
        patch.setattr(torch.optim.Optimizer, "_group_tensors_by_device_and_dtype", staticmethod(grouped))
        # AdamW asks whether its GPU captures a graph; the second name is that of older versions of torch.
        for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
            patch.setattr(torch.optim.Optimizer, name, nothing, raising=False)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        for cached in (on_device._constant, on_device._shifts):
            cached.cache_clear()
        try:
            yield seen
        finally:
            for cached in (on_device._constant, on_device._shifts):  # a real GPU has the same name
                cached.cache_clear()
            torch.__future__.set_overwrite_module_params_on_conversion(before)
