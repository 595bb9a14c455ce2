"""What XLA compiled is kept for the next run, in a folder that is the user's alone.

The library's programs are found by what they are made from (`arithmetic._programs`),
so that they are not even traced again; all else is in JAX's own cache, by a hash of
what was lowered. Versions and XLA's flags, those that bounds rest on among them, are
part of both, so that no number depends on it. Whoever can write to it has their machine
code run. So it is used where nobody else can, and never a reason to fail: where it
cannot be kept, programs are compiled again.
"""

import contextlib
import dataclasses
import hashlib
import os
import platform
import re
import shutil
import stat
import threading
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from ._user_folders import user_folder


LIMIT = 2**30
"""Bytes that a run leaves behind at most; the entries used longest ago go first."""
ROOM = 2**28
"""Bytes that have to be free on the disk for more to be written."""
VARIABLE = "LYAPUNOV_COMPILE_CACHE"
OFF = ("0", "off", "no", "false")
OF_JAX = "JAX_COMPILATION_CACHE_DIR"

_FAILED = re.compile(
    r"Error (?:reading|writing) persistent compilation cache entry for '([^']+)'"
)


class NotKeptError(Exception):
    """Why what is compiled is not kept, in words."""


@dataclasses.dataclass
class Compiled:
    """Where what is compiled is kept in this run, or why it is not.

    **Arguments:**

    - `folder`: None: it is not kept here.
    - `reason`: why not; None where the user said so, or keeps it themselves.
    - `failed`: names of programs whose entries could not be read or written.
    """

    folder: Path | None = None
    reason: str | None = None
    failed: set[str] = dataclasses.field(default_factory=set)

    def told(self) -> str:
        """Say it in a line, for `-v`."""
        if self.folder is None:
            own = os.environ.get(OF_JAX)
            why = self.reason or (f"{OF_JAX} is {own}" if own else "as asked")
            return f"compiled programs are not kept: {why}"
        sizes = [found.st_size for _, found in _entries(self.folder)]
        return (
            f"{len(sizes)} compiled programs, {sum(sizes) / 2**20:.0f} MiB, "
            f"are kept in {self.folder}"
        )

    def told_of_failures(self) -> str:
        """Say which programs could not be read or kept, in a line."""
        return (
            f"{len(self.failed)} compiled programs could not be read or kept and were "
            f"compiled again: {', '.join(sorted(self.failed)[:3])}"
        )

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Keep what JAX compiles meanwhile; it must not have compiled before.

        At the end the folder is brought under `LIMIT`, and entries that could not be
        read are taken out.
        """
        if self.folder is None:
            yield
            return
        import jax

        jax.config.update("jax_compilation_cache_dir", str(self.folder))
        # small ones as well: there are hundreds, at 25 ms to compile and 4 to read
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        # what XLA keeps besides has keys of its own, which nobody looked into
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
        from ..arithmetic._programs import keep_in

        keep_in(self.folder, self.failed)
        try:
            with _heard(self.failed):
                yield
        finally:
            keep_in(None, set())
            with contextlib.suppress(OSError):
                _tidy(self.folder, self.failed)


def where_compiled_is_kept(wanted: bool = True) -> Compiled:
    """Choose the folder, unless the user said that there is none, or which."""
    if not wanted or os.environ.get(VARIABLE, "").lower() in OFF:
        return Compiled()
    if OF_JAX in os.environ:  # JAX obeys it
        return Compiled()
    try:
        return Compiled(_folder())
    except NotKeptError as error:
        return Compiled(reason=str(error))
    except OSError as error:
        return Compiled(reason=f"{error.filename}: {error.strerror}")


def _folder() -> Path:
    """The folder, made where there is none, for this machine's processor and JAX.

    **Raises:** `NotKeptError` where others could write to it, or it has no place;
    `OSError` where it cannot be made.
    """
    base = user_folder("XDG_CACHE_HOME", ".cache")
    if base is None:
        raise NotKeptError("there is no home folder")
    base.mkdir(parents=True, exist_ok=True)
    folder = base
    for name in ("lyapunov-check", "compiled", _machine()):
        folder = folder / name
        folder.mkdir(mode=0o700, exist_ok=True)
        _refuse_shared(folder)
    for path in (base.resolve(), *base.resolve().parents):
        found = path.stat()
        if found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
            raise NotKeptError(f"others may write to {path}")
    if shutil.disk_usage(folder).free < ROOM:
        raise NotKeptError(f"the disk of {folder} is nearly full")
    probe = folder / f"probe-{os.getpid()}"
    probe.touch()
    probe.unlink()
    return folder


def _refuse_shared(path: Path) -> None:
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotKeptError(f"{path} is no folder")
    if hasattr(os, "geteuid") and found.st_uid != os.geteuid():
        raise NotKeptError(f"{path} is somebody else's")
    if found.st_mode & 0o022:
        raise NotKeptError(f"others may write to {path}: chmod 700 {path}")


def _machine() -> str:
    """A name for what compiled code depends on beside its key: the processor."""
    told = [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        told += [
            line
            for line in file.read().partition("\n\n")[0].splitlines()
            if line.startswith(("model", "flags", "Features", "CPU", "vendor"))
            and not line.startswith("CPU MHz")
        ]
    digest = hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]
    return f"jax-{metadata.version('jax')}-{digest}"


# ---- what JAX says of it, and what is left behind


@contextlib.contextmanager
def _heard(failed: set[str]) -> Iterator[None]:
    """JAX's warnings of entries are collected, and not shown."""
    show = warnings.showwarning
    lock = threading.Lock()

    def heard(message, category, *where, **more):
        found = _FAILED.match(str(message))
        if found is None:
            show(message, category, *where, **more)
            return
        with lock:
            failed.add(found[1])

    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=_FAILED.pattern)
        warnings.showwarning = heard
        yield


def _entries(folder: Path) -> list[tuple[Path, os.stat_result]]:
    """The files that are there; another run may take some away meanwhile."""
    found = []
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.append((path, path.stat()))
    return [(path, seen) for path, seen in found if stat.S_ISREG(seen.st_mode)]


def _tidy(folder: Path, failed: set[str]) -> None:
    """Take out what could not be read, and what is above the limit."""
    used: list[tuple[float, int, Path]] = []
    for path, found in _entries(folder):
        if path.name.rpartition("-")[0].rpartition("-")[0] in failed:
            path.unlink(missing_ok=True)
        else:
            used.append((max(found.st_atime, found.st_mtime), found.st_size, path))
    total = sum(size for _, size, _ in used)
    for _, size, path in sorted(used):
        if total <= LIMIT:
            break
        path.unlink(missing_ok=True)
        total -= size
