"""A second device with real numbers, where there is none: "gpu:0", whose tensors compute on the CPU.

What it does as an accelerator does: an operation on tensors of two devices is refused as on CUDA, a tensor on it has no
`numpy()`, a network that moves to it keeps its parameters, and float64 can be refused as on MPS. It counts what makes
the host wait: `waits`. What it does not do: kernels of its own, whose rounding and missing operations are its own too;
speed; streams; memory that can be full or pinned; random numbers of its own; autocast in bfloat16; more than one of it.

torch is changed for the whole process, so tests use it in another one: `run_on_second_device`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

HERE = Path(__file__).parent
KIND = "gpu"
DEVICE = torch.device("cpu")  # until `start`, which registers the device: torch knows none of this name before
CPU = torch.device("cpu")
NO_FLOAT64 = "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
REGISTER = "_setup_privateuseone_for_python_backend"  # experimental in torch, and absent in older ones

COPIES = ("aten::_to_copy", "aten::copy_")
BY_INDEX = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
# The size of what these give, or the way that the program takes, depends on numbers that the host has to read.
READ_BY_THE_HOST = {
    "aten::_local_scalar_dense": "value",
    **{f"aten::{name}": name for name in ("nonzero", "masked_select", "equal", "is_nonzero", "repeat_interleave")},
    **{f"aten::{name}": "unique" for name in ("_unique", "_unique2", "unique_dim", "unique_consecutive")},
}

# What made the host wait for the device, and where in kdlib: {("value", "trainer.py:12"): 3}. The kinds are those of
# READ_BY_THE_HOST, "list", "boolean index", and the copies that block, "to the host" and "to the device".
waits: Counter[tuple[str, str]] = Counter()

_float64 = True


def run_on_second_device(code: str, float64: bool = True) -> str:
    """What the code prints in a process with a second device, `DEVICE`, which `kdlib.devices.resolve` gives.

    The code begins after `from second_device import *`. float64: whether the device has it, as CUDA; else as MPS.
    The test is skipped where torch cannot register a device from Python, and fails where the process does.
    """
    if not hasattr(backend_registration, REGISTER):
        pytest.skip(f"torch {torch.__version__} cannot register a device from Python")
    start = f"from second_device import *\nimport second_device\nDEVICE = second_device.start({float64})\n"
    paths = os.pathsep.join([str(HERE), str(HERE.parent)])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, "-c", start + dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


class SecondDeviceTensor(Tensor):
    """A tensor that says it is on the second device. inner: its numbers, on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> SecondDeviceTensor:
        if inner.dtype in (torch.float64, torch.complex128) and not _float64:
            raise _said(TypeError(f"{NO_FLOAT64} (made in {_place()})"))
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"{self.inner!r} on {DEVICE}"

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, other: SecondDeviceTensor) -> None:
        Tensor.data.__set__(self, other)
        self.inner = other.inner

    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(_without_lists(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_without_lists(index), value)

    def tolist(self) -> Any:
        _wait("list")
        return self.inner.tolist()

    def numpy(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(
            f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory "
            "first."
        )

    __array__ = numpy

    def new_tensor(self, data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=device or DEVICE, requires_grad=requires_grad)


def _without_lists(index: Any) -> Any:
    """An index with tensors for the lists in it, which torch would make in C++, past `__torch_dispatch__`."""
    if isinstance(index, tuple):
        return tuple(_without_lists(one) for one in index)
    return torch.tensor(index, device=DEVICE) if isinstance(index, list) else index


class _EveryOperation(TorchDispatchMode):
    """Also those without a tensor on the device, which may make one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})


class _Backend:
    """What torch asks a backend for; its generator is one that nothing draws from."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_rng_state(self, device: Any = 0) -> Tensor:
        return torch.zeros(1, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: Any = 0) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def start(float64: bool = True) -> torch.device:
    """Register the device, for this process and for good; kdlib takes it where "auto" or nothing is asked for."""
    global DEVICE, _float64
    getattr(backend_registration, REGISTER)(KIND, backend_module=_Backend())
    DEVICE, _float64 = torch.device(KIND, 0), float64
    # Else a network that moves here would get other parameters, of this class, and CUDA's are the same ones.
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch.tensor, torch.as_tensor = _on_device(torch.tensor), _on_device(torch.as_tensor)
    _let_kdlib_know()
    _EveryOperation().__enter__()
    return DEVICE


def _on_device(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch.tensor and torch.as_tensor make their tensors in C++, past `__torch_dispatch__`."""

    def made(
        data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False, **options: Any
    ) -> Tensor:
        if device is None or not _is_here(device):
            found = make(data, dtype=dtype, device=device, **options)
        else:
            found = make(data, dtype=dtype, **options).to(device)
        return found.requires_grad_() if requires_grad else found

    return made


def _let_kdlib_know() -> None:
    from kdlib import devices
    from kdlib.losses._common import off_mps

    resolve = devices.resolve

    def with_second(device: str = "auto", precision: str = "auto", compile: bool = False) -> devices.DeviceConfig:
        if device != "auto" and not str(device).startswith(KIND):
            return resolve(device, precision, compile)
        return devices.DeviceConfig(DEVICE, False, compile)

    devices.resolve = with_second
    if not _float64:
        off_mps.__code__ = _off_this.__code__  # not its name, which others have imported
        devices.has_float64 = lambda device: torch.device(device).type != KIND


def _off_this(tensor: Tensor) -> Tensor:
    return tensor.cpu() if tensor.device.type == "gpu" else tensor  # not KIND: it runs among the names of off_mps


# -------------------- operations


def _dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute on the CPU; refuse what a device refuses, count what it would wait for, and say where the result is."""
    name = func.overloadpacket._qualified_op_name
    flat, structure = pytree.tree_flatten((args, kwargs))
    here = [x for x in flat if isinstance(x, SecondDeviceTensor)]
    asked = kwargs.get("device")
    to_here = bool(here) if asked is None else _is_here(asked)
    if name == "aten::copy_":
        to_here = isinstance(args[0], SecondDeviceTensor)
    if here or to_here:
        _refuse_two_devices(name, args, flat, here)
        _refuse_float64(name, args, kwargs, here)
        _count_waits(name, args, kwargs, here, to_here)
    inner = [x.inner if isinstance(x, SecondDeviceTensor) else x for x in flat]
    inner_args, inner_kwargs = pytree.tree_unflatten(inner, structure)
    if asked is not None and _is_here(asked):
        inner_kwargs["device"] = CPU
    known = {id(x.inner): x for x in here}  # what an operation in place gives is its argument

    def wrapped(made: Any) -> Any:
        if not isinstance(made, Tensor) or isinstance(made, SecondDeviceTensor):
            return made
        if id(made) in known:
            return known[id(made)]
        return SecondDeviceTensor(made) if to_here else made

    return pytree.tree_map(wrapped, func(*inner_args, **inner_kwargs))


def _is_here(device: Any) -> bool:
    return torch.device(device).type == KIND


def _refuse_two_devices(name: str, args: Any, flat: list[Any], here: list[SecondDeviceTensor]) -> None:
    """Raise RuntimeError, as CUDA does; a number without dimensions may lie on the CPU, and so may indices."""
    if name in COPIES:
        return
    tensors = [args[0], *args[2:3]] if name in BY_INDEX else flat  # indices may lie on the CPU, but not the other way
    if not here or not any(_on_cpu(x) for x in tensors):
        return
    problem = f"found at least two devices, {DEVICE} and cpu! (when checking arguments of {name}, called in {_place()})"
    raise _said(RuntimeError(f"Expected all tensors to be on the same device, but {problem}"))


def _said(error: Exception) -> Exception:
    """The error, printed: one that is raised within a backward pass ends the process, without its text."""
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    return error


def _on_cpu(x: Any) -> bool:
    return isinstance(x, Tensor) and not isinstance(x, SecondDeviceTensor) and x.device == CPU and x.ndim > 0


def _refuse_float64(name: str, args: Any, kwargs: dict[str, Any], here: list[SecondDeviceTensor]) -> None:
    """Raise TypeError for a copy from MPS that also converts; what is made on the device is refused as it is made."""
    wanted = args[0].dtype if name == "aten::copy_" else kwargs.get("dtype")
    if not _float64 and here and name in COPIES and wanted == torch.float64:
        raise _said(TypeError(f"{NO_FLOAT64} (copied in {_place()})"))


def _count_waits(name: str, args: Any, kwargs: dict[str, Any], here: list[SecondDeviceTensor], to_here: bool) -> None:
    if name in READ_BY_THE_HOST and here:
        _wait(READ_BY_THE_HOST[name])
    elif name in BY_INDEX:
        indices = [x for x in args[1] if isinstance(x, Tensor)]
        if any(x.dtype in (torch.bool, torch.uint8) for x in indices):
            _wait("boolean index")
        elif any(_on_cpu(x) for x in indices):
            _wait("to the device")
    elif name in COPIES:
        source = args[1] if name == "aten::copy_" else args[0]
        waiting = not (kwargs.get("non_blocking") or (name == "aten::copy_" and any(args[2:])))
        if waiting and isinstance(source, SecondDeviceTensor) != to_here and not _moved_by_kdlib():
            _wait("to the device" if to_here else "to the host")


def _moved_by_kdlib() -> bool:
    """Whether `kdlib.devices.to_device` copies: to CUDA it does so without waiting."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "to_device" and frame.f_code.co_filename.endswith("devices.py"):
            return True
        frame = frame.f_back
    return False


def _wait(what: str) -> None:
    waits[what, _place()] += 1


def _place() -> str:
    """The innermost line of kdlib that runs."""
    root = str(HERE.parent / "kdlib") + os.sep
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(root):
            return f"{frame.f_code.co_filename.removeprefix(root)}:{frame.f_lineno}"
        frame = frame.f_back
    return "no line of kdlib"
