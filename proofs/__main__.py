"""`python -m proofs [NAME] [--html FILE]`: run the proofs, show one, write a page."""

import argparse
import os
import sys
import time
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 only where every row is proved and reproduced."""
    missing = _missing()
    if missing:
        print(
            f"the proofs need {', '.join(missing)}: pip install {' '.join(missing)}",
            file=sys.stderr,
        )
        return 2
    from . import _show
    from ._catalogue import STATEMENTS

    names = [one.name for one in STATEMENTS]
    parser = argparse.ArgumentParser("python -m proofs", description=__doc__)
    parser.add_argument("name", nargs="?", help="one of " + ", ".join(names))
    parser.add_argument("--html", metavar="FILE", help="write all as one page")
    parser.add_argument(
        "--broken",
        metavar="HYPOTHESIS",
        action="append",
        default=[],
        help="run the named statement as if this hypothesis did not hold",
    )
    asked = parser.parse_args(arguments)
    if asked.name and asked.name not in names:
        parser.error(f"no statement {asked.name!r}; one of {', '.join(names)}")
    if asked.broken and not asked.name:
        parser.error("--broken needs the NAME of a statement")
    chosen = [one for one in STATEMENTS if asked.name in (None, one.name)]
    for one in chosen:
        known = [hypothesis.name for hypothesis in one.hypotheses]
        unknown = [name for name in asked.broken if name not in known]
        if unknown:
            parser.error(f"no hypothesis {unknown[0]!r}; one of {', '.join(known)}")

    rows, began = [], time.monotonic()
    for one in chosen:
        if not asked.name:
            print(f"{one.name} ...", file=sys.stderr, flush=True)
        rows.append(one.run(asked.broken))
    print(_show.derivation(rows[0]) if asked.name else _show.table(rows))
    if asked.html:
        Path(asked.html).write_text(_show.page(rows), encoding="utf-8")
        print(f"written: {asked.html}")
    fine = all(row.proved and row.reproduced for row in rows)
    seconds = time.monotonic() - began
    print(f"{'all' if fine else 'NOT all'} proved and reproduced, {seconds:.0f} s")
    return 0 if fine else 1


def _missing() -> list[str]:
    """Packages for the proofs that are not installed."""
    from importlib.util import find_spec

    wanted = {"sympy": "sympy", "mpmath": "mpmath", "flint": "python-flint"}
    return [package for name, package in wanted.items() if find_spec(name) is None]


if __name__ == "__main__":
    # before JAX starts
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.exit(main())
