"""Files that pretend to be weights and would run code, take memory or hold no ordinary tensors; none is obeyed."""

from __future__ import annotations

import functools
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

CALLS: list[tuple[str, str]] = [
    *(("os", name) for name in ("system", "popen", "remove", "mkdir", "execv", "putenv", "chdir", "fork", "_exit")),
    *(("posix", name) for name in ("system", "mkdir", "open", "unlink")),
    *(("builtins", name) for name in ("eval", "exec", "open", "__import__", "compile", "getattr", "setattr", "print")),
    *(("builtins", name) for name in ("bytearray", "type", "map", "filter", "classmethod", "breakpoint", "input")),
    *(("subprocess", name) for name in ("Popen", "call", "run", "check_output", "getoutput")),
    *(("pathlib", name) for name in ("Path.touch", "Path", "PosixPath")),
    *(("torch", name) for name in ("load", "save", "ops.load_library", "from_file", "empty", "zeros")),
    *(("torch.storage", name) for name in ("_load_from_bytes", "UntypedStorage.from_file", "TypedStorage")),
    *(
        ("torch._utils", name)
        for name in ("_rebuild_device_tensor_from_numpy", "_import_dotted_name", "_rebuild_sparse_tensor")
    ),
    ("torch.hub", "load"),
    ("torch.jit", "load"),
    ("torch.package", "PackageImporter"),
    ("torch.utils.cpp_extension", "load_inline"),
    ("torch.utils._config_module", "_get_config"),
    ("torch.distributed.rpc", "rpc_sync"),
    ("importlib", "import_module"),
    ("runpy", "run_path"),
    ("code", "interact"),
    ("pty", "spawn"),
    ("shutil", "rmtree"),
    ("shutil", "copy"),
    ("tempfile", "mkdtemp"),
    ("ctypes", "CDLL"),
    ("ctypes", "cdll.LoadLibrary"),
    ("pickle", "loads"),
    ("_pickle", "loads"),
    ("marshal", "loads"),
    ("types", "CodeType"),
    ("types", "FunctionType"),
    ("functools", "partial"),
    ("functools", "reduce"),
    ("operator", "attrgetter"),
    ("operator", "methodcaller"),
    ("copyreg", "_reconstructor"),
    ("copyreg", "__newobj__"),
    ("copyreg", "add_extension"),
    ("webbrowser", "open"),
    ("urllib.request", "urlopen"),
    ("socket", "create_connection"),
    ("http.client", "HTTPConnection"),
    ("multiprocessing.util", "spawnv_passfds"),
    ("numpy", "load"),
    ("numpy", "fromfile"),
    ("numpy.f2py", "compile"),
    ("numpy.testing._private.utils", "runstring"),
    ("bdb", "Bdb.run"),
    ("timeit", "timeit"),
    ("cProfile", "run"),
    ("doctest", "debug_script"),
    ("asyncio.unix_events", "_UnixSubprocessTransport._start"),
    ("mst.runtime.storage.files", "write_atomic"),
    ("mst.weights.unpickling", "KNOWN"),
    ("mst.weights.unpickling", "SafeUnpickler"),
]
"""Names that files have been seen to call, or could."""


def reduce(module: str, name: str, argument: str) -> bytes:
    """Name a function, give it a text and call it."""
    text = argument.encode()
    return f"c{module}\n{name}\n".encode() + b"X" + struct.pack("<I", len(text)) + text + b"\x85R."


def instance(module: str, name: str, argument: str) -> bytes:
    """The same by the instruction of the first protocol."""
    return b"(S" + repr(argument).encode() + b"\ni" + f"{module}\n{name}\n.".encode()


def new_object(module: str, name: str, argument: str) -> bytes:
    """The same by the instructions of the second and fourth: a name from the stack, `cls.__new__`, then a state."""
    head = b"\x80\x04" + b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, name)) + b"\x93"
    text = argument.encode()
    given = b"X" + struct.pack("<I", len(text)) + text
    return head + given + b"\x85\x81" + b"}" + given + b"K\x01sb."


SHAPES: dict[str, Callable[[str, str, str], bytes]] = {"reduce": reduce, "instance": instance, "new": new_object}


def archive(program: bytes, path: Path, extra: dict[str, bytes] | None = None) -> None:
    """Put a pickle in the place of a checkpoint's."""
    torch.save({"model": {}}, path)
    with zipfile.ZipFile(path) as source:
        entries = {info.filename: source.read(info) for info in source.infolist()}
    stem = next(name for name in entries if name.endswith("data.pkl")).removesuffix("data.pkl")
    entries[f"{stem}data.pkl"] = program
    entries |= {f"{stem}{name}": content for name, content in (extra or {}).items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as target:
        for name, content in entries.items():
            target.writestr(name, content)


def legacy(program: bytes, path: Path) -> None:
    """The same in the format before archives."""
    buffer = io.BytesIO()
    torch.save({}, buffer, _use_new_zipfile_serialization=False)
    head = io.BytesIO(buffer.getvalue())
    for _ in range(3):  # magic number, version, system
        pickle.Unpickler(head).load()
    path.write_bytes(buffer.getvalue()[: head.tell()] + program + pickle.dumps([], 2))


class Bomb:
    """Calls what it is told to when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def bombs(marker: Path) -> dict[str, Any]:
    """Objects that would write `marker`, as an ordinary pickler writes them, beside or inside good weights."""
    write = Bomb(os.system, f"touch {marker}")
    return {
        "beside": {"model": {}, "hook": write},
        "nested": {"a": [{"b": (write, {1: write})}]},
        "as a tensor": {"patch_embed.proj.weight": write},
        "as a key's value of a default": {"x": Bomb(dict, Bomb(eval, f"open({str(marker)!r}, 'w')"))},
        "in a set": {"x": {Bomb(exec, f"open({str(marker)!r}, 'w')")}},
        "in partial": {"x": Bomb(functools.partial, Bomb(getattr, 1, "real"))},
    }


def ops(number: int) -> bytes:
    """Programs without a name to call: loops, huge claims, wrong stacks, unknown instructions."""
    return (
        b"N.",
        b".",
        b"0.",
        b"\x80\x63.",
        b"(((((((((.",
        b"]" * 100_000 + b"a" * 99_999 + b".",
        b"B\xff\xff\xff\x7f.",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"r\xff\xff\xff\xff.",
        b"\x96\x10\x00\x00\x00\x00\x00\x00\x00.",
        b"\x97\x98.",
        b"\x82\x01.",
        b"\x84\x01\x00\x00\x00.",
        b"Pstorage\n.",
        b"(S'storage'\ntQ.",
        b"I" + b"9" * 100_000 + b"\n.",
        b"ctorch._utils\n_rebuild_tensor_v2\n}\x8c\x08__code__K\x01sb.",
        b"cbuiltins\nlist\n(K\x01K\x02e.",
        b"ccollections\nOrderedDict\n)R}(X\x01\x00\x00\x00aK\x01ub.",
        b"ctorch.storage\nUntypedStorage\n\x8a\x05\x00\x00\x00\x00\x10\x85R.",
        b"ctorch._utils\n_rebuild_tensor_v2\n(NK\x00(K\x02tK\x01\x85\x89}tR.",
        b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nNX\x04\x00\x00\x00true\x85NtR.",
    )[number]


OPS = 22
