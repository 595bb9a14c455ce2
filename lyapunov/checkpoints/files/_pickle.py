"""An interpreter for the pickles that `torch.save` writes; it cannot run anything.

Python's own unpickler imports what a pickle names and calls it; a restricted one
still lets a few bytes take all memory (a memo slot of number 2**31). This one knows
the opcodes of a state dict, builds plain containers and inert records, and stops at
everything else.
"""

import struct
from dataclasses import dataclass, field
from typing import Any

from ..._errors import (
    CorruptCheckpointError,
    UnsafeCheckpointError,
    UnsupportedCheckpointError,
)
from ._files import quote


MAX_STEPS = 4_000_000
"""Some 30 a tensor are usual."""

_STORAGES = {
    "DoubleStorage": "fp64",
    "FloatStorage": "fp32",
    "HalfStorage": "fp16",
    "BFloat16Storage": "bf16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
_ORDERED_DICT = ("collections", "OrderedDict")
_TENSOR = ("torch._utils", "_rebuild_tensor_v2")
_PARAMETER = ("torch._utils", "_rebuild_parameter")
_PARAMETER_WITH_STATE = ("torch._utils", "_rebuild_parameter_with_state")
_SIZE = ("torch", "Size")
_ALLOWED = {_ORDERED_DICT, _TENSOR, _PARAMETER, _PARAMETER_WITH_STATE, _SIZE} | {
    ("torch", name) for name in _STORAGES
}
# kinds of tensor that torch itself rebuilds and this reader does not
_OTHER_TENSORS = {
    "_rebuild_qtensor": "a quantised tensor",
    "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_sparse_csr_tensor": "a sparse tensor",
    "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_tensor_v3": "a tensor of a type without its own storage class",
    "_rebuild_meta_tensor_no_storage": "a tensor without data",
    "_rebuild_wrapper_subclass": "a tensor subclass",
    "_rebuild_device_tensor_from_numpy": "a tensor of another device",
    "_rebuild_device_tensor_from_cpu_tensor": "a tensor of another device",
}
# what a training checkpoint may name besides tensors; all of it stays inert
_INERT_MODULES = {
    "argparse", "megatron", "transformer_engine", "apex", "torch", "numpy", "signal",
    "pathlib", "enum", "collections", "copyreg", "_codecs", "_io", "io",
}  # fmt: skip
_INERT_BUILTINS = {"set", "frozenset", "bytearray", "complex", "range", "slice"}
_RESAVE = "store the state dict alone: safetensors.torch.save_file(state_dict, ...)"


@dataclass(frozen=True, eq=False)
class Global:
    """A name that the pickle refers to; never imported."""

    module: str
    name: str


@dataclass(frozen=True, eq=False)
class Storage:
    """A stretch of memory that lies in the archive under `key`."""

    key: str
    dtype: str
    size: int


@dataclass(frozen=True, eq=False)
class TensorRecord:
    """A view of a storage: element `offset` on, `strides` in elements."""

    storage: Storage
    offset: int
    shape: Any
    strides: Any


@dataclass(eq=False)
class Inert:
    """An object that the pickle describes; what it would be is never made."""

    kind: Any
    attributes: dict[Any, Any] = field(default_factory=dict)


@dataclass(eq=False)
class _Machine:
    what: str
    training: bool = False
    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def corrupt(self, reason: str) -> CorruptCheckpointError:
        return CorruptCheckpointError(
            f"the pickle in {self.what} {reason}", hint="download the file again"
        )

    def resolve(self, module: str, name: str) -> Global:
        if (module, name) in _ALLOWED:
            return Global(module, name)
        root = module.split(".")[0]
        if self.training and (
            root in _INERT_MODULES
            or (root in ("builtins", "__builtin__") and name in _INERT_BUILTINS)
        ):
            return Global(module, name)
        shown = quote(f"{module}.{name}")
        if module == "torch._utils" and name in _OTHER_TENSORS:
            raise UnsupportedCheckpointError(
                f"{self.what} holds {_OTHER_TENSORS[name]} ({name})", hint=_RESAVE
            )
        if root == "megatron" or (module, name) == ("argparse", "Namespace"):
            raise UnsupportedCheckpointError(
                f"{self.what} is a training checkpoint (Megatron keeps {shown} in it),"
                " which is not covered",
                hint=_RESAVE,
            )
        raise UnsafeCheckpointError(
            f"{self.what} names {shown}, which a file of weights does not need;"
            " loading it with pickle could run code",
            hint="get the weights as safetensors, or from a source that you trust",
        )

    def pop(self) -> Any:
        floor = self.marks[-1] if self.marks else 0
        if len(self.stack) <= floor:
            raise self.corrupt("takes a value that is not there")
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        if not self.marks:
            raise self.corrupt("closes a group that was not opened")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def top(self, kind: type) -> Any:
        found = self.stack[-1] if self.stack else None
        if type(found) is not kind:
            raise self.corrupt(f"has no {kind.__name__} where one is filled")
        return found

    def put(self, pairs: list[tuple[Any, Any]]) -> None:
        target = self.top(dict)
        for key, value in pairs:
            # tuples are left out: nested ones can take for ever to hash
            if type(key) not in (str, int, bool, float, type(None)):
                if self.training:
                    continue
                raise self.corrupt(f"has a key of type {type(key).__name__}")
            target[key] = value

    def call(self, function: Any, args: Any) -> Any:
        if type(function) is not Global or type(args) is not tuple:
            if self.training and isinstance(function, Global | Inert):
                return Inert(function)
            raise self.corrupt("calls what is no function")
        which = (function.module, function.name)
        if which == _ORDERED_DICT and not args:
            return {}
        if which == _SIZE and len(args) == 1:
            return args[0]
        if (which, len(args)) in ((_PARAMETER, 3), (_PARAMETER_WITH_STATE, 4)):
            return args[0]  # its attributes (_no_weight_decay, say) are of no use here
        if which == _TENSOR and len(args) in (6, 7):
            storage, offset, shape, strides = args[:4]
            if type(storage) is Storage and type(offset) is int:
                return TensorRecord(storage, offset, shape, strides)
        if self.training:
            return Inert(function)
        raise self.corrupt(f"calls {function.name} with arguments of another kind")

    def build(self, state: Any) -> None:
        """Attributes of the topmost object; those of an OrderedDict are of no use."""
        found = self.stack[-1] if self.stack else None
        if self.training and isinstance(found, Inert | TensorRecord):
            if isinstance(found, Inert) and isinstance(state, dict):
                found.attributes.update(state)
            return
        self.top(dict)

    def persistent(self, identity: Any) -> Storage:
        if type(identity) is tuple and len(identity) in (5, 6):
            kind, storage, key, _, size = identity[:5]
            if (
                kind == "storage"
                and type(storage) is Global
                and storage.name in _STORAGES
                and type(key) is str
                and type(size) is int
            ):
                return Storage(key, _STORAGES[storage.name], size)
        raise self.corrupt("refers to a storage in a way that torch does not")


_FIXED = {  # opcode: (bytes, how to read them)
    ord("K"): (1, lambda b: b[0]),
    ord("M"): (2, lambda b: int.from_bytes(b, "little")),
    ord("J"): (4, lambda b: int.from_bytes(b, "little", signed=True)),
    ord("G"): (8, lambda b: struct.unpack(">d", b)[0]),
}
_CONSTANT = {ord("N"): None, 0x88: True, 0x89: False}
_COUNTED = {  # opcode: (bytes of the count, how to read what follows)
    ord("X"): (4, lambda b: b.decode("utf-8", "surrogatepass")),
    0x8C: (1, lambda b: b.decode("utf-8", "surrogatepass")),
    0x8D: (8, lambda b: b.decode("utf-8", "surrogatepass")),
    ord("U"): (1, lambda b: b.decode("latin-1")),
    ord("T"): (4, lambda b: b.decode("latin-1")),
    ord("C"): (1, bytes),
    ord("B"): (4, bytes),
    0x8A: (1, lambda b: int.from_bytes(b, "little", signed=True)),
}
_TUPLES = {0x85: 1, 0x86: 2, 0x87: 3}
# classes made without a global: objects, extensions, instances of old classes
_OBJECTS = {0x81: "NEWOBJ", 0x92: "NEWOBJ_EX", ord("o"): "OBJ", ord("i"): "INST"}
_EXTENSIONS = {0x82, 0x83, 0x84}


def read_pickle(
    data: bytes, what: str, start: int = 0, *, training: bool = False
) -> tuple[Any, int]:
    """Interpret one pickle.

    **Arguments:**

    - `data`: the bytes.
    - `what`: how to name them in an error.
    - `start`: where the pickle begins.
    - `training`: allow what training checkpoints hold besides tensors, as `Inert`
        records.

    **Returns:** what it describes, and the position after it.

    **Raises:** `UnsafeCheckpointError` where it names anything but the few globals
    that a state dict needs; `CorruptCheckpointError` where it is no such pickle.
    """
    m = _Machine(what, training)
    at = start

    def take(n: int) -> bytes:
        nonlocal at
        if n < 0 or at + n > len(data):
            raise m.corrupt("ends too soon")
        at += n
        return data[at - n : at]

    def line() -> str:
        nonlocal at
        end = data.find(b"\n", at)
        if end < 0:
            raise m.corrupt("ends too soon")
        found, at = data[at:end], end + 1
        return found.decode("utf-8", "replace")

    for _ in range(MAX_STEPS):
        op = take(1)[0]
        stack = m.stack
        if op in _FIXED:
            n, convert = _FIXED[op]
            stack.append(convert(take(n)))
        elif op in _COUNTED:
            n, convert = _COUNTED[op]
            body = take(int.from_bytes(take(n), "little"))
            try:
                stack.append(convert(body))
            except UnicodeDecodeError as e:
                raise m.corrupt("holds text that is not UTF-8") from e
        elif op in _CONSTANT:
            stack.append(_CONSTANT[op])
        elif op in _TUPLES:
            items = [m.pop() for _ in range(_TUPLES[op])]
            stack.append(tuple(reversed(items)))
        elif op == ord("q"):
            m.memo[take(1)[0]] = m.pop()
            stack.append(m.memo[data[at - 1]])
        elif op in (ord("r"), 0x94):
            slot = len(m.memo) if op == 0x94 else int.from_bytes(take(4), "little")
            m.memo[slot] = value = m.pop()
            stack.append(value)
        elif op in (ord("h"), ord("j")):
            slot = int.from_bytes(take(1 if op == ord("h") else 4), "little")
            if slot not in m.memo:
                raise m.corrupt("recalls what it has not kept")
            stack.append(m.memo[slot])
        elif op == ord("("):
            m.marks.append(len(stack))
        elif op == ord("t"):
            stack.append(tuple(m.pop_mark()))
        elif op == ord("}"):
            stack.append({})
        elif op == ord("]"):
            stack.append([])
        elif op == ord(")"):
            stack.append(())
        elif op == ord("s"):
            value, key = m.pop(), m.pop()
            m.put([(key, value)])
        elif op == ord("u"):
            items = m.pop_mark()
            if len(items) % 2:
                raise m.corrupt("has a key without a value")
            m.put(list(zip(items[::2], items[1::2], strict=True)))
        elif op == ord("a"):
            value = m.pop()
            m.top(list).append(value)
        elif op == ord("e"):
            items = m.pop_mark()
            m.top(list).extend(items)
        elif op == ord("c"):
            module = line()
            stack.append(m.resolve(module, line()))
        elif op == 0x93:
            name, module = m.pop(), m.pop()
            if type(name) is not str or type(module) is not str:
                raise m.corrupt("names a global by something else than text")
            stack.append(m.resolve(module, name))
        elif op == ord("Q"):
            stack.append(m.persistent(m.pop()))
        elif op == ord("R"):
            args, function = m.pop(), m.pop()
            stack.append(m.call(function, args))
        elif op == ord("b"):
            m.build(m.pop())
        elif op == 0x80:
            version = take(1)[0]
            if version > 5:
                raise m.corrupt(f"claims protocol {version}")
        elif op == 0x95:
            take(8)  # a frame's length; the frame itself needs nothing
        elif op == ord("."):
            return m.pop(), at
        elif op == 0x81 and training:  # a new object of a class, arguments left out
            _, kind = m.pop(), m.pop()
            stack.append(Inert(kind))
        elif op == 0x8F and training:
            stack.append(set())
        elif op == 0x90 and training:
            m.pop_mark()
        elif op in _OBJECTS or op in _EXTENSIONS:
            detail = _OBJECTS.get(op, "an extension code")
            if op == ord("i"):
                module = line()
                m.resolve(module, line())
            raise UnsafeCheckpointError(
                f"{what} builds an object by {detail}, which weights do not need;"
                " loading it with pickle could run code",
                hint="get the weights as safetensors",
            )
        else:
            raise m.corrupt(f"has opcode 0x{op:02x}, which weights do not need")
    raise m.corrupt(f"takes more than {MAX_STEPS} steps")
