"""How long a user waits: cold and warm, to the first line and to the last.

`python -m analysis.first_answer [ROW ...] [--device gpu] [--large]` runs
`lyapunov-check` as users do, each time in a process of its own, first with an empty
folder for what XLA compiles and then again with what that run left. It writes
first_answer.json and .md: seconds, CPU seconds, programs compiled, when the header and
the first row of exponents stand there, and peak memory, beside the goals and the
figures of before. Rows of another machine stay in the result.
"""

import argparse
import contextlib
import json
import os
import platform
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from studies.files import write
from studies.study import Study, promote

from ._first_answer_models import falcon_h1, mamba1, mamba2, mamba3_small
from ._first_answer_page import key, page


STUDY = Study(
    "analysis.first_answer",
    "10 minutes on 2 quiet cores, 5 on an H200",
    Path(__file__).parent / "results" / "first_answer.json",
    more="torch and transformers for the rows audit and falcon-h1",
)
EFFORTS = ("quick", "standard", "full")
BF16 = ("--precision", "bf16", "--length")
SMALL = partial(mamba1, layers=4, width=48, rank=3, vocabulary=256)


class Row(NamedTuple):
    """A checkpoint and what is asked of it."""

    make: Callable[[Path], None] | None
    """Writes the checkpoint into a folder; None: the bundled one."""
    arguments: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("gpu",)
    efforts: tuple[str, ...] = ("standard",)
    needs: tuple[str, ...] = ()
    large: bool = False


ROWS = {
    "bundled": Row(None, (), ("cpu", "gpu"), EFFORTS),
    "mamba1-130m": Row(
        partial(mamba1, layers=24, width=768, rank=48, vocabulary=50280),
        (*BF16, "512"),
    ),
    "mamba2-130m": Row(
        partial(mamba2, layers=24, width=768, vocabulary=50288), (*BF16, "512")
    ),
    "mamba1-2.8b": Row(
        partial(mamba1, layers=64, width=2560, rank=160, vocabulary=50280),
        (*BF16, "512"),
        large=True,
    ),
    "mamba": Row(SMALL, (*BF16, "64"), ("cpu",)),
    "falcon-h1": Row(
        falcon_h1, (*BF16, "64"), ("cpu",), needs=("torch", "transformers")
    ),
    "mamba3": Row(mamba3_small, (*BF16, "512"), ("cpu",)),
    "audit": Row(
        SMALL,
        ("--audit", "transformers", *BF16, "64"),
        ("cpu",),
        ("",),
        needs=("torch", "transformers"),
    ),
}
HEADER = re.compile(r"^\s*network\b.*\n", re.MULTILINE)
FIRST_ROW = re.compile(r"^\s*0\s+(mamba|attention|mlp)\w*\s.*\d.*\n", re.MULTILINE)
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r(?=\n)")


def run(arguments: list[str], cache: Path, device: str, limit: float) -> dict[str, Any]:
    """One run of the command in a terminal of its own.

    **Arguments:**

    - `cache`: folder that XDG_CACHE_HOME names.
    - `limit`: seconds after which it is stopped.

    **Returns:** what was measured; with `failed`, in words, where it gave no answer.
    """
    notes = cache / "notes.jsonl"
    notes.unlink(missing_ok=True)
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS", "NO_COLOR")
        # a user's Python keeps what it makes of torch's sources
        and name != "PYTHONDONTWRITEBYTECODE"
        and not name.startswith(("LYAPUNOV_", "JAX_PERSISTENT"))
    }
    environment |= {"XDG_CACHE_HOME": str(cache), "COLUMNS": "100", "TERM": "xterm"}
    environment["TF_CPP_MIN_LOG_LEVEL"] = "3"  # the command says so itself, later
    if device == "cpu":
        environment["JAX_PLATFORMS"] = "cpu"
    code = "import sys; from analysis._watched import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, str(notes), *arguments]
    load = os.getloadavg()[0]
    master, slave = pty.openpty()
    began = time.monotonic()
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=environment
    )
    os.close(slave)
    text, seen = _read(master, began, limit)
    if text is None:
        process.send_signal(signal.SIGKILL)
    os.close(master)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - began
    found = {
        "seconds": seconds,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_gib": used.ru_maxrss / 2**20,
        "exit_code": process.returncode,
        "load_before": load,
        **seen,
        **_noted(notes, began),
    }
    if text is None:
        found["failed"] = f"stopped after {limit:.0f} s"
    elif process.returncode not in (0, 1):
        found["failed"] = f"exit code {process.returncode}: {text[-300:]}"
    return found


def _read(master: int, began: float, limit: float) -> tuple[str | None, dict]:
    """All that the command wrote, None where it did not end in time; and when the
    header and the first row of exponents stood there."""
    text: str = ""
    seen: dict[str, float | None] = {"header": None, "first_row": None}
    while True:
        left = began + limit - time.monotonic()
        if left <= 0:
            return None, seen
        if not select.select([master], [], [], left)[0]:
            continue
        try:
            part = os.read(master, 2**16)
        except OSError:  # the other side is closed
            part = b""
        if not part:
            return text, seen
        text += part.decode(errors="replace")
        if None not in seen.values():
            continue
        plain = ESCAPES.sub("", text)
        for what, pattern in (("header", HEADER), ("first_row", FIRST_ROW)):
            if seen[what] is None and pattern.search(plain):
                seen[what] = time.monotonic() - began


def _noted(notes: Path, began: float) -> dict[str, Any]:
    """What the child wrote down."""
    lines = notes.read_text().splitlines() if notes.exists() else []
    events = [json.loads(line) for line in lines]
    compiled = [one for one in events if one["what"] == "compiled"]
    each: dict[str, float] = {}
    for one in compiled:
        each[one["name"]] = each.get(one["name"], 0.0) + one["seconds"]
    slowest = sorted(each, key=lambda name: -each[name])[:5]
    at = {one["what"]: one for one in events}
    loaded, answered = at.get("loaded"), at.get("answered", {})
    memory = answered.get("device_bytes")
    return {
        "programs": len(compiled),
        "compile_seconds": sum(one["seconds"] for one in compiled),
        "slowest": {name: round(each[name], 2) for name in slowest},
        "loaded": None if loaded is None else loaded["at"] - began,
        "weights_waited_for": answered.get("waited"),
        "device_peak_gib": None if memory is None else memory / 2**30,
    }


def measured(name: str, effort: str, asked: argparse.Namespace, home: Path) -> dict:
    """Cold and warm runs of one row."""
    row = ROWS[name]
    arguments = [*row.arguments, *(["--effort", effort] if effort else [])]
    if row.make is not None:
        folder = home / name
        if not folder.exists():
            row.make(folder)
        arguments.insert(0, str(folder))
    entry: dict[str, Any] = {
        "row": name,
        "effort": effort,
        "device": asked.device,
        "arguments": list(row.arguments),
        "cold": [],
        "warm": [],
    }
    for _ in range(asked.repeats):
        cache = Path(tempfile.mkdtemp(dir=home))
        for kind in ("cold", "warm"):
            one = run(arguments, cache, asked.device, asked.limit)
            entry[kind].append(one)
            told = one.get("failed") or f"{one['seconds']:.1f} s"
            print(f"{key(entry)} {kind}: {told}", file=sys.stderr, flush=True)
            if "failed" in one:
                entry["failed"] = one["failed"]
                break
        shutil.rmtree(cache)
    return entry


def environment(device: str) -> dict[str, Any]:
    """What the figures hang on."""
    found = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "processor": _told_by("grep", "-m1", "model name", "/proc/cpuinfo"),
        "commit": _told_by("git", "rev-parse", "--short", "HEAD"),
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
    }
    for name in ("jax", "jaxlib", "numpy", "torch", "transformers"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    if device == "gpu":
        found["device"] = _told_by(
            "nvidia-smi", "--query-gpu=name", "--format=csv,noheader"
        )
    return found


def _told_by(*command: str) -> str | None:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run(command, capture_output=True, text=True, check=True)
        return told.stdout.strip().rpartition(": ")[2]
    return None


def main(given: list[str] | None = None) -> None:
    """Measure the rows that were asked for and write them beside those known."""
    parser = STUDY.parser(__doc__)
    parser.add_argument(
        "rows",
        nargs="*",
        metavar="ROW",
        help=f"of {', '.join(ROWS)}; all of the device",
    )
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--effort", action="append", choices=EFFORTS, default=[])
    parser.add_argument("--limit", type=float, default=300.0, help="seconds a run")
    parser.add_argument("--within", type=float, default=3600.0, help="seconds in all")
    parser.add_argument(
        "--large", action="store_true", help="5.6 GB of weights as well"
    )
    asked = parser.parse_args(given)
    if unknown := set(asked.rows) - set(ROWS):
        parser.error(
            f"no row {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}"
        )
    STUDY.begin(asked.out)
    working = STUDY.working(asked.out)
    known = STUDY.committed
    result = (
        json.loads(known.read_text())
        if known is not None and known.exists()
        else {"rows": [], "environments": {}}
    )
    result["command"] = "python -m analysis.first_answer"
    place = f"{asked.device}, {_told_by('date', '-u', '+%Y-%m-%dT%H:%M')}"
    result["environments"][place] = environment(asked.device)
    ended = time.monotonic() + asked.within
    failed = []
    with tempfile.TemporaryDirectory() as home:
        for name, effort in wanted(asked):
            if time.monotonic() > ended:
                failed.append(f"{name} {effort}: no time left")
                continue
            entry = measured(name, effort, asked, Path(home))
            entry["environment"] = place
            if "failed" in entry:
                failed.append(f"{key(entry)}: {entry['failed']}")
            others = [one for one in result["rows"] if key(one) != key(entry)]
            result["rows"] = [*others, entry]
            _write(result, working)
    promote(working, asked.out, failed)
    print(page(result))


def wanted(asked: argparse.Namespace) -> list[tuple[str, str]]:
    """Rows and efforts that were asked for and can be had."""
    found = []
    for name, row in ROWS.items():
        if asked.rows and name not in asked.rows:
            continue
        if not asked.rows and (
            asked.device not in row.devices or row.large > asked.large
        ):
            continue
        missing = [one for one in row.needs if _missing(one)]
        if missing:
            print(f"{name} needs {', '.join(missing)}", file=sys.stderr)
            continue
        efforts = row.efforts if row.efforts == ("",) else asked.effort or row.efforts
        found += [(name, effort) for effort in efforts]
    return found


def _missing(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return True
    return False


def _write(result: dict, path: Path) -> None:
    used = {row["environment"] for row in result["rows"]}
    kept = {k: v for k, v in result["environments"].items() if k in used}
    result["environments"] = kept
    write(path, json.dumps(result, indent=1) + "\n")
    write(path.with_suffix(".md"), page(result))
    with contextlib.suppress(ImportError):  # a machine may have no matplotlib
        from . import pictures

        pictures.first_answer(result, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
