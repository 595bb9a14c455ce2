"""Kernels of a server in Python: of an installed package, or of files of its wheel."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from .._errors import MissingExtraError, UsageError
from ._implementation import installed
from ._torch import import_torch


Found = TypeVar("Found", bound=Any)


class Replaceable(Generic[Found]):
    """What a function finds, unless a block says otherwise.

    **Arguments:**

    - `find`: gives a named tuple of functions.
    """

    def __init__(self, find: Callable[[], Found]):
        self._find = find
        self._instead: Found | None = None

    def __call__(self) -> Found:
        """Find them; **Raises:** as `find`."""
        return self._instead or self._find()

    @contextmanager
    def replaced(self, **others: Any) -> Iterator[None]:
        """Have networks that run in this block call other functions, by field."""
        before, self._instead = self._instead, self()._replace(**others)
        try:
            yield
        finally:
            self._instead = before


class KernelFiles(NamedTuple):
    """Where a server's kernels may lie on this machine."""

    stack: str
    """As its makers write it."""
    package: str
    """The module, and the distribution that has it."""
    variable: str
    """The environment variable that names a folder of unpacked files."""
    version: str
    """Whose operators are called here as it calls them."""
    patches: bool
    """Whether every release of that version will do."""
    inside: tuple[str, ...]
    """Files and folders that such a folder has to have."""
    install: str
    """What to type where they are not there."""

    def demand_device(self) -> bool:
        """Whether Triton interprets them on the CPU.

        **Raises:** `UsageError` where it does not, and torch sees no GPU;
        `MissingExtraError` where there is no Triton.
        """
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        if not interpreted and not import_torch().cuda.is_available():
            raise UsageError(
                f"{self.stack}'s operators need an NVIDIA GPU, and torch sees none",
                hint=f"--measure {self.package}_emulated follows {self.stack}'s flow "
                "without one",
            )
        try:
            import triton  # noqa: F401
        except ImportError as error:
            raise MissingExtraError(
                f"{self.stack}'s operators need Triton ({error})", hint=self.install
            ) from None
        return interpreted

    def importable(self, stand_in: Callable[[Path], None]) -> tuple[str, bool]:
        """Have `import` find the kernels: of which version, and whether the package as
        a whole is there.

        **Arguments:**

        - `stand_in`: has files below a folder import what they ask for.

        **Raises:** `MissingExtraError` where they are nowhere; `UsageError` for a
        folder without them, and for another version.
        """
        if installed(self.package) is not None:
            return self._held_to_version(metadata.version(self.package)), True
        named = os.environ.get(self.variable)
        if not named:
            raise MissingExtraError(f"{self.stack} is not installed", hint=self.install)
        folder = Path(named)
        self.demand(folder, self.inside)
        said = [
            path.name.removeprefix(f"{self.package}-").removesuffix(".dist-info")
            for path in folder.glob(f"{self.package}-*.dist-info")
        ]
        version = self._held_to_version(said[0]) if said else "unknown"
        stand_in(folder)
        return version, False

    def demand(self, folder: Path, inside: tuple[str, ...]) -> None:
        """**Raises:** `UsageError` for a folder that has not all of it."""
        for one in inside:
            place = folder / one
            if not (place.is_file() if place.suffix else place.is_dir()):
                raise UsageError(
                    f"{self.variable} is {os.environ.get(self.variable)!r}, where "
                    f"there is no {one}",
                    hint=self.install,
                )

    def _held_to_version(self, found: str) -> str:
        begins = self.patches and found.startswith(f"{self.version}.")
        if not begins and (self.patches or found != self.version):
            raise UsageError(
                f"{self.stack} is {found} here, and its operators are called as "
                f"{self.version} calls them",
                hint=self.install,
            )
        return found
