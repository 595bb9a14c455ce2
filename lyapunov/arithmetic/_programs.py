"""Programs: what XLA made of a function, once for what they share, and kept on request.

`program` is `equinox.filter_jit` for functions of the library: arrays among the
arguments are traced, all else is what the program is made for. Like that it waits for
what it computes: no more is in memory than what is at work.

Where a folder is given (`keep_in`, which the command does), a program is found there by
what it was made from, so that nothing is traced or lowered a second time: the source of
this library and the versions of what it rests on, the shapes, all else that was given,
XLA's flags, the device. What cannot be told apart by its content, such as a function
of a user's own, is not kept. JAX's own cache finds what is compiled by what was
lowered; it stays in use for whatever is not found here.
"""

import contextlib
import functools
import hashlib
import inspect
import io
import math
import os
import pickle
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, Final

import equinox as eqx
import jax
import numpy as np
from jax._src import config
from jax.core import Tracer
from jax.experimental import serialize_executable

from .._devices import chosen_device, devices


OURS: Final = __name__.partition(".")[0]
RESTS_ON: Final = ("jax", "jaxlib", "equinox", "numpy", "ml-dtypes")
"""Distributions whose code takes part in tracing."""
TOLD_APART: Final = frozenset(
    (OURS, "jax", "jaxlib", "equinox", "numpy", "ml_dtypes", *sys.stdlib_module_names)
)
"""Modules whose functions and classes are known by their name and version."""
_DIGEST_BYTES = 32
_PLACE = "\0an array"
_programs: weakref.WeakSet = weakref.WeakSet()
_folder: Path | None = None
_failed: set[str] = set()


def keep_in(folder: Path | None, failed: set[str]) -> None:
    """Keep programs in a folder that is the user's alone, or no longer (None).

    **Arguments:**

    - `failed`: gets the names of those that could not be read or written.
    """
    global _folder, _failed
    _folder, _failed = folder, failed


def forget() -> None:
    """Make every program anew, as `jax.clear_caches` has it."""
    for one in _programs:
        one.clear()


@jax.tree_util.register_static
class _Form:
    """What is given or returned, with places where its arrays go."""

    def __init__(self, whole: Any):
        leaves, self._structure = jax.tree.flatten(whole)
        self._arrays = [x for x in leaves if eqx.is_array(x)]
        self._leaves = tuple(_PLACE if eqx.is_array(x) else x for x in leaves)

    def taken(self) -> list:
        """The arrays, which are no part of the form, nor held on to."""
        arrays, self._arrays = self._arrays, []
        return arrays

    def filled(self, arrays: list) -> Any:
        """The whole again."""
        following = iter(arrays)
        leaves = (next(following) if x == _PLACE else x for x in self._leaves)
        return jax.tree.unflatten(self._structure, leaves)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Form) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __getstate__(self) -> tuple:
        return self._key

    @property
    def _key(self) -> tuple:
        return self._structure, self._leaves


class Program:
    """A function that XLA compiles, once for each form of what it is given."""

    def __init__(self, function: Callable, options: dict[str, Any]):
        functools.update_wrapper(self, function)
        self.__wrapped__ = function
        self._signature = inspect.signature(function)
        self.__name__, self.__qualname__ = function.__name__, function.__qualname__

        def run(arrays, given):
            positional, named = given.filled(arrays)
            form = _Form(function(*positional, **named))
            return form.taken(), form

        run.__name__ = function.__name__
        self._jitted = jax.jit(run, static_argnums=1, **options)
        self._made: dict[Any, Callable] = {}
        self._making = threading.Lock()
        self._locks: dict[Any, threading.Lock] = {}
        _programs.add(self)

    def clear(self) -> None:
        """Forget what was made."""
        self._made.clear()

    def __call__(self, *positional, **named):
        given = self._given(positional, named)
        arrays = given.taken()
        if any(isinstance(x, Tracer) for x in arrays):  # a part of another program
            returned, form = self._jitted(arrays, given)
            return form.filled(returned)
        # of random keys the type is named alike by all that are drawn in one way
        types = tuple(
            (x.shape, str(x.dtype), getattr(x, "weak_type", None)) for x in arrays
        )
        key = (
            given,
            types,
            chosen_device(),
            jax.config.read("jax_enable_x64"),
            _folder,
        )
        run = self._made.get(key)
        returned, form = self._first(arrays, key) if run is None else run(arrays)
        return form.filled(jax.block_until_ready(returned))

    def _given(self, positional: tuple, named: dict[str, Any]) -> _Form:
        """With or without its name, an argument is the same one."""
        bound = self._signature.bind(*positional, **named)
        return _Form((bound.args, bound.kwargs))

    def _first(self, arrays: list, key: tuple) -> tuple:
        """Run what was not yet run; of several threads one makes it."""
        with self._making:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            run = self._made.get(key)
            if run is None:
                run = self._from_folder(arrays, key)
                try:
                    found = run(arrays)
                except Exception:
                    if not isinstance(run, _Kept):
                        raise
                    _failed.add(self.__name__)  # it is compiled again, and said
                    run = self._made_now(arrays, key, None)
                    found = run(arrays)
                self._made[key] = run
                return found
        return run(arrays)

    def _from_folder(self, arrays: list, key: tuple) -> Callable:
        """The program that was kept, or one that is made now."""
        given, types, _, wide, folder = key
        here = devices()
        if folder is None or len(here) > 1:
            return self._made_now(arrays, key, None)
        written = io.BytesIO()
        try:
            content = _Content(written, pickle.HIGHEST_PROTOCOL)
            content.fast = True  # equal or the same makes no difference
            content.dump((self.__wrapped__, given, types, wide))
        except (_NotTellableError, TypeError, AttributeError, RecursionError):
            return self._made_now(arrays, key, None)
        digest = hashlib.sha256(_surroundings() + _of(here[0]) + written.getvalue())
        path = folder / f"{self.__name__}-{digest.hexdigest()}-program"
        kept = _read(path, arrays, here[0]) if path.exists() else None
        return kept or self._made_now(arrays, key, path)

    def _made_now(self, arrays: list, key: tuple, path: Path | None) -> Callable:
        """Trace and compile it, for the folder where a path is given."""
        if path is None:
            return lambda arrays: self._jitted(arrays, key[0])
        with _for_nobody_else():
            made = self._jitted.lower(arrays, key[0]).compile()
        _write(path, made)
        return made


class _Kept:
    """A program that was read."""

    def __init__(self, run: Callable, form: _Form):
        self._run, self._form = run, form

    def __call__(self, arrays: list) -> tuple:
        return self._run(arrays), self._form


def program(function: Callable | None = None, **options: Any) -> Any:
    """Compile a function for each form of what it is given, as a decorator.

    **Arguments:**

    - `options`: of `jax.jit`.
    """
    if function is None:
        return functools.partial(program, **options)
    return Program(function, options)


# ---- what a program was made from


class _NotTellableError(Exception):
    """Something that two runs may call the same and mean differently."""


class _Content(pickle.Pickler):
    """Writes down what something is, to be hashed; nobody reads it back."""

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, np.dtype):
            return "dtype", str(obj)
        if isinstance(obj, set | frozenset):  # in any order
            return "set", sorted(obj, key=repr)
        if isinstance(obj, jax.Array | np.ndarray | ModuleType):  # closed over
            raise _NotTellableError
        if not isinstance(obj, type | FunctionType | BuiltinFunctionType | Program):
            return None
        if (obj.__module__ or "").partition(".")[0] not in TOLD_APART:
            raise _NotTellableError
        name = obj.__module__, obj.__qualname__
        if not isinstance(obj, FunctionType):
            return name
        # a lambda has no name of its own, but a place in the source
        own = obj.__code__.co_firstlineno, obj.__defaults__, obj.__kwdefaults__
        return *name, *own, [cell.cell_contents for cell in obj.__closure__ or ()]


@functools.cache
def _surroundings() -> bytes:
    """All that tracing and compiling depend on beside what is given."""
    told = hashlib.sha256(sys.version.encode())
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        told.update(f"\0{path.relative_to(root)}\0".encode())
        told.update(path.read_bytes())
    for name in RESTS_ON:
        told.update(f"\0{name} {metadata.version(name)}".encode())
    for name, value in sorted(os.environ.items()):
        if name.startswith(("JAX_", "XLA_", "LYAPUNOV_", "NVIDIA_", "TF_")):
            told.update(f"\0{name}={value}".encode())
    return told.digest()


def _of(device: jax.Device) -> bytes:
    about = device.platform, device.device_kind, device.client.platform_version
    return repr((*about, device.id, os.cpu_count())).encode()


# ---- files


@contextlib.contextmanager
def _for_nobody_else() -> Iterator[None]:
    """JAX's own cache neither gives nor takes what is compiled meanwhile.

    What it had read, XLA for CPUs does not write out whole a second time. Its keys are
    other ones where places in the source are part of them.
    """
    with (
        config.persistent_cache_min_compile_time_secs(math.inf),
        config.compilation_cache_include_metadata_in_key(True),
    ):
        yield


def _write(path: Path, made: Any) -> None:
    """Keep a program; where that is not possible it is made again next time."""
    try:
        content, _, returned = serialize_executable.serialize(made)
        arrays, form = jax.tree.unflatten(returned, [_PLACE] * returned.num_leaves)
        # the structure of a module does not survive, its instances do
        body = pickle.dumps((content, len(arrays), form.filled(arrays)))
        part = path.with_name(f"{path.name}-{os.getpid()}-{threading.get_ident()}")
        part.write_bytes(hashlib.sha256(body).digest() + body)
        part.replace(path)
    except Exception:  # whatever XLA, a disk or a pickle has to say
        _failed.add(path.name.partition("-")[0])


def _read(path: Path, arrays: list, device: jax.Device) -> _Kept | None:
    """A program that was kept whole, or nothing."""
    try:
        content = path.read_bytes()
        os.utime(path)  # what was used longest ago goes first
        digest, body = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(body).digest() != digest:
            raise OSError(f"{path} is not what was written")
        program, returns, returned = pickle.loads(body)
        form = _Form(returned)
        run = serialize_executable.deserialize_and_load(
            program,
            jax.tree.structure(((arrays,), {})),
            jax.tree.structure([0] * returns),
            backend=device.client,
            execution_devices=[device],
        )
        return _Kept(run, form)
    except Exception:  # as above; it is compiled again, and said
        _failed.add(path.name.partition("-")[0])
        return None
