"""Reads what anybody's `torch.save` wrote, tensors and plain values, without running code from the file.

torch's own `weights_only` reader refuses a file as soon as it names another class (an argparse.Namespace, a path, a
numpy number), and most training scripts save such objects beside the weights. Here each of them becomes a `StandIn`:
its name is never looked up, imported or called. Python's own unpickler does the work; its instructions that call or
change something are replaced, so that only the functions in `KNOWN` are ever called.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

_Base: Any = pickle._Unpickler  # the one written in Python: its steps can be replaced


class StandIn(dict[Any, Any]):
    """Stands in the place of an object whose class is not imported; holds the items it was given, and its state.

    Attributes:
        kind: the name of its class or function in the file.
        state: its attributes.
    """

    kind: ClassVar[str] = "an object"
    dump_patches: ClassVar[bool] = False  # torch asks the classes of whole networks for it

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()
        self.state: object = None

    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__
    __ne__ = object.__ne__

    def __reduce_ex__(self, _: object) -> Any:
        raise TypeError("a stand-in is not written")

    def append(self, _: object) -> None:
        """Take an item of a list; it is dropped."""

    def extend(self, _: object) -> None:
        """Take items of a list; they are dropped."""

    def add(self, _: object) -> None:
        """Take an item of a set; it is dropped."""


class OddTensor(StandIn):
    """Stands in the place of a tensor that is not dense; `kind` says what it is."""


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor | OddTensor:
    """Stand for `torch._utils._rebuild_tensor` and `_rebuild_tensor_v2`: a view [size] of a storage."""
    numbers = [offset, *_sequence(size), *_sequence(stride)]
    if any(type(number) is not int for number in numbers):
        raise pickle.UnpicklingError("the shape of a tensor is not of whole numbers")
    if min(numbers) < 0:
        return _odd("tensor of negative size or stride")()
    if len(rest) > 2 and rest[2]:
        return _odd("conjugate or negated view")()
    found: Tensor = torch._utils._rebuild_tensor(storage, offset, tuple(size), tuple(stride))  # type: ignore[no-untyped-call]
    return found


def _rebuild_other(*args: object) -> OddTensor:
    """Stand for `torch._utils._rebuild_tensor_v3`, which is used for types that have no storage of their own."""
    dtype = args[6] if len(args) > 6 else None
    if not isinstance(dtype, torch.dtype):
        raise pickle.UnpicklingError("the type of a tensor is no torch.dtype")
    return _odd(f"tensor of type {str(dtype).removeprefix('torch.')}")()


def _rebuild_parameter(data: object, *_: object) -> object:
    """Stand for `torch._utils._rebuild_parameter` and `_rebuild_parameter_with_state`: the tensor itself."""
    return data


def _rebuild_from_type(function: object, _: object, args: object, __: object) -> object:
    """Stand for `torch._tensor._rebuild_from_type_v2`: the plain tensor of a subclass."""
    return _call(function, args)


def _plain_dict(*args: object) -> dict[Any, Any]:
    """Stand for `defaultdict` and `Counter`."""
    return dict(args[-1]) if args and isinstance(args[-1], dict) else {}


def _sequence(value: object) -> list[Any]:
    if not isinstance(value, tuple | list):
        raise pickle.UnpicklingError("the shape of a tensor is no sequence")
    return list(value)


def _odd(kind: str) -> type[OddTensor]:
    return type("OddTensor", (OddTensor,), {"kind": kind})


KNOWN: dict[str, Callable[..., object]] = {
    **{f"torch._utils.{name}": _rebuild_tensor for name in ("_rebuild_tensor", "_rebuild_tensor_v2")},
    **{f"torch._utils.{name}": _rebuild_parameter for name in ("_rebuild_parameter", "_rebuild_parameter_with_state")},
    "torch._utils._rebuild_tensor_v3": _rebuild_other,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch._utils._rebuild_sparse_tensor": _odd("sparse tensor"),
    "torch._utils._rebuild_qtensor": _odd("quantised tensor"),
    "torch._utils._rebuild_meta_tensor_no_storage": _odd("meta tensor, which has no numbers"),
    "torch._utils._rebuild_nested_tensor": _odd("nested tensor"),
    "torch._utils._rebuild_wrapper_subclass": _odd("tensor of a class of its own"),
    "torch._utils._rebuild_device_tensor_from_numpy": _odd("tensor of another device"),
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _odd("tensor of another device"),
    "torch.Size": tuple,
    "collections.OrderedDict": OrderedDict,
    "collections.defaultdict": _plain_dict,
    "collections.Counter": _plain_dict,
    **{
        f"{module}.{kind.__name__}": kind
        for module in ("builtins", "__builtin__")
        for kind in (set, frozenset, dict, list, tuple)
    },
}
"""All functions that a file can have called, by the name that it uses."""
_CALLABLE = frozenset(map(id, KNOWN.values()))
STORAGE = "torch.storage.UntypedStorage"


def _call(function: object, args: object) -> object:
    """Call a function of `KNOWN`, or make a stand-in; refuse anything else."""
    if not isinstance(args, tuple):
        raise pickle.UnpicklingError("arguments that are no tuple")
    if id(function) in _CALLABLE:
        return function(*args)  # type: ignore[operator]
    if isinstance(function, StandIn) or (isinstance(function, type) and issubclass(function, StandIn)):
        return _stand_in(function.kind)()
    raise pickle.UnpicklingError(f"a call of {type(function).__name__}")


def _stand_in(name: str) -> type[StandIn]:
    return type("StandIn", (StandIn,), {"kind": name})


class SafeUnpickler(_Base):  # type: ignore[misc]
    """Python's unpickler, limited to calling functions of `KNOWN` and changing objects that it made itself."""

    dispatch: ClassVar[dict[int, Any]] = dict(_Base.dispatch)

    def find_class(self, module: str, name: str) -> object:
        """Return what stands for a name; nothing is imported."""
        full = f"{module}.{name}"
        if full == STORAGE:
            return torch.UntypedStorage
        dtype = getattr(torch, name, None) if module == "torch" and name.isidentifier() else None
        return dtype if isinstance(dtype, torch.dtype) else KNOWN.get(full) or _stand_in(full)

    def load_reduce(self) -> None:
        """Call a function with a tuple."""
        args = self.stack.pop()
        self.stack[-1] = _call(self.stack[-1], args)

    def load_newobj(self) -> None:
        """Make an object of a class."""
        args = self.stack.pop()
        self.stack[-1] = _call(self.stack[-1], args)

    def load_newobj_ex(self) -> None:
        """Make an object of a class, with keywords, which nothing here takes."""
        self.stack.pop()
        self.load_newobj()

    def _instantiate(self, klass: object, args: object) -> None:
        self.append(_call(klass, tuple(args)))  # type: ignore[arg-type]

    def load_build(self) -> None:
        """Give an object its state: kept beside a stand-in, dropped for a dictionary, refused for anything else."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], StandIn):
            self.stack[-1].state = state
        elif type(self.stack[-1]) not in {dict, OrderedDict}:
            raise pickle.UnpicklingError(f"a state for {type(self.stack[-1]).__name__}")

    def get_extension(self, _: int) -> None:
        """Refuse a number in the place of a name."""
        raise pickle.UnpicklingError("a class by number")

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex
    dispatch[pickle.BUILD[0]] = load_build


def _load(file: Any, **options: Any) -> object:
    return SafeUnpickler(file, **options).load()


PICKLE_MODULE = SimpleNamespace(Unpickler=SafeUnpickler, load=_load, __name__="mst.weights.unpickling")
"""For `torch.load(..., pickle_module=...)`."""
