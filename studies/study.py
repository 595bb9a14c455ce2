"""How a study is asked for: what it needs, how long it takes, where it writes.

Everything that `python -m analysis.NAME` and `python -m experiments.NAME` have in
common. A study writes to a scratch folder; the committed files that README quotes
change only where `--commit` is given, and never to a result in which something failed.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from studies.problems import Problem, demand


SCRATCH = Path(".cache") / "results"


class Study(NamedTuple):
    """One study as a command."""

    name: str
    """As it is run: `analysis.peers`."""
    takes: str
    """About how long, and on what."""
    committed: Path | None = None
    """The result that is committed; None where its caller says where to write."""
    modules: tuple[str, ...] = ()
    """Packages beyond what the library itself needs."""
    gpu: bool = False
    more: str = ""
    """What else it needs, in words."""

    @property
    def needs(self) -> str:
        """All that it needs, in words."""
        parts = ["an NVIDIA GPU"] if self.gpu else []
        parts += [*self.modules] + ([self.more] if self.more else [])
        return f"needs {', '.join(parts) or 'nothing further'}; takes {self.takes}"

    def parser(self, doc: str | None, option: str = "--out") -> argparse.ArgumentParser:
        """Make the parser of its command, with the options that say where to write.

        **Arguments:**

        - `doc`: the module's docstring; its first paragraph is shown.
        - `option`: of these two the one that names a file or folder.
        """
        made = argparse.ArgumentParser(
            prog=f"python -m {self.name}",
            description=(doc or "").split("\n\n")[0],
            epilog=self.needs,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        if self.committed is not None:
            where = made.add_mutually_exclusive_group()
            where.add_argument(
                option,
                dest="out",
                type=Path,
                default=SCRATCH / self.committed.name,
                help="where to write; tables and pictures go beside it",
            )
            where.add_argument(
                "--commit",
                dest="out",
                action="store_const",
                const=self.committed,
                default=argparse.SUPPRESS,
                help=f"write to {self.shown}, which is committed",
            )
        return made

    @property
    def shown(self) -> str:
        """The committed result as a path in the repository."""
        found = self.committed or SCRATCH
        root = Path(__file__).parents[1]
        return str(found.relative_to(root) if found.is_relative_to(root) else found)

    def working(self, out: Path) -> Path:
        """Where to write while it runs: not over the committed result."""
        return SCRATCH / out.name if out == self.committed else out

    def begin(self, out: Path | None = None) -> None:
        """Say what is needed before anything is computed, and make the folder.

        **Raises:** `Problem` where something is missing.
        """
        where = "" if out is None else f"; writes {out}"
        print(f"{self.name}: {self.needs}{where}", file=sys.stderr, flush=True)
        demand(*self.modules)
        if self.gpu:
            demand("torch")
            import torch

            if not torch.cuda.is_available():
                raise Problem(
                    f"{self.name} needs an NVIDIA GPU, and torch finds none",
                    "run it on a machine with one; its results are committed",
                )
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)


def promote(working: Path, out: Path, failed: Sequence[str]) -> None:
    """Put a result that was written while its study ran into its place.

    **Arguments:**

    - `working`, `out`: the file that was written, with tables and pictures of its
      name beside it, and where they go; nothing is done where they are one.
    - `failed`: what did not run, in words.

    **Raises:** as `refuse_failed`; what was written stays where it is.
    """
    if working == out:
        return
    refuse_failed(out, failed)
    for made in working.parent.glob(f"{working.stem}.*"):
        shutil.copyfile(made, out.with_suffix(made.suffix))


def refuse_failed(path: Path, failed: Sequence[str]) -> None:
    """Keep a result that is there from being replaced by one that is not whole.

    **Arguments:**

    - `path`: the file that would be written.
    - `failed`: what did not run, in words; nothing where all ran.

    **Raises:** `Problem` where something failed and there is a result already.
    """
    if failed and path.exists():
        shown = "; ".join(failed[:3]) + ("; ..." if len(failed) > 3 else "")
        raise Problem(
            f"{len(failed)} of its parts failed ({shown}); {path} stays as it was",
            "mend that and run it again, or write elsewhere with --out",
        )
