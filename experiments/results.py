"""What an experiment found, on disk: rows kept whole, resumed and never counted twice.

A file is `experiments/results/NAME.json`:

    {"command": ...,
     "environments": [{"device": ..., "torch": ..., "git_commit": ..., ...}, ...],
     "rows": [{"settings": {...}, "values": {...}, "seconds": 1.2, "date": "...",
               "environment": 0}, ...],
     "figures": {"KEY OF paper.toml": {"value": 0.1, "low": 0.0, "high": 0.2,
                                       "unit": "...", "n": 5}, ...},
     ...}

A row is what one run found; its settings are its key. A second row of the same settings
replaces the first, so that a run that was cut and given again counts once. Several
processes may add to one file at the same time.
"""

import fcntl
import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from studies.files import as_json, finite, write


FOLDER = Path(__file__).parent / "results"
_MODULES = ("torch", "transformers", "peft", "mamba_ssm", "causal_conv1d", "jax")


def _version(module: str) -> str | None:
    """Without importing it, which takes seconds for some."""
    try:
        return metadata.version(module)
    except metadata.PackageNotFoundError:
        return None


def environment(device: str = "cpu") -> dict[str, Any]:
    """Device, versions and code of this process; `device` is "cpu" or "cuda"."""
    import torch

    from experiments.bundled.environment import git_commit

    cuda = device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "cuda": torch.version.cuda if cuda else None,
        "python": platform.python_version(),
        **{module: _version(module) for module in _MODULES},
        "git_commit": git_commit(),
    }


def key(settings: dict[str, Any]) -> str:
    """One name for settings, whatever order they are given in."""
    return json.dumps(settings, sort_keys=True, allow_nan=False)


def figure(
    value: float | None,
    unit: str,
    n: int,
    low: float | None = None,
    high: float | None = None,
    note: str = "",
) -> dict[str, Any]:
    """One figure beside a published one.

    **Arguments:**

    - `value`, `unit`: what was found; the unit is that of paper.toml's row.
    - `n`: runs behind it (seeds, or repetitions of a timing).
    - `low`, `high`: its 95 % interval, where there is one.
    - `note`: what differs from what was published, in a few words.
    """
    found = {"value": value, "low": low, "high": high, "unit": unit, "n": n}
    return finite(found | ({"note": note} if note else {}))


def machines(content: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """Devices and versions that these rows are from, a line of markdown each."""
    used = {row["environment"] for row in rows}
    shown = dict.fromkeys(
        ", ".join(f"{k} {v}" for k, v in where.items() if v and k != "git_commit")
        for number, where in enumerate(content["environments"])
        if number in used
    )
    return [f"- {one}" for one in shown]


class Results:
    """The rows of one experiment.

    - `path`: the file; beside it lies an empty `.NAME.lock` while it is changed.
    - `command`: how the experiment is run, for the file's reader.
    """

    def __init__(self, path: Path, command: str = "") -> None:
        self.path = path
        self.command = command

    def read(self) -> dict[str, Any]:
        """The file as it is now; an empty one if there is none."""
        empty = {"command": self.command, "environments": [], "rows": [], "figures": {}}
        if not self.path.exists():
            return empty
        try:
            return empty | json.loads(self.path.read_text())
        except json.JSONDecodeError as error:
            raise SystemExit(
                f"error: {self.path} is damaged: {error}\n"
                "hint: move it away to begin the experiment anew"
            ) from error

    def rows(self, **settings: Any) -> list[dict[str, Any]]:
        """Rows whose settings hold these; all of them if none are given."""
        wanted = finite(settings).items()
        return [row for row in self.read()["rows"] if wanted <= row["settings"].items()]

    def has(self, settings: dict[str, Any]) -> bool:
        """Whether there is a row of exactly these settings."""
        wanted = key(settings)
        return any(key(row["settings"]) == wanted for row in self.read()["rows"])

    def add(
        self,
        settings: dict[str, Any],
        values: dict[str, Any],
        seconds: float,
        where: dict[str, Any],
    ) -> None:
        """Add a row, or put it in the place of that of the same settings.

        **Arguments:**

        - `settings`: all that decides the row, seed included: its key. Plain values.
        - `values`: what was found.
        - `seconds`: that it took.
        - `where`: `environment(...)` of the process.
        """
        with self._changing() as content:
            if where not in content["environments"]:
                content["environments"].append(where)
            row = {
                "settings": finite(settings),
                "values": finite(values),
                "seconds": round(seconds, 2),
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "environment": content["environments"].index(where),
            }
            mine = key(settings)
            rows = [old for old in content["rows"] if key(old["settings"]) != mine]
            content["rows"] = [*rows, row]

    def put(self, **parts: Any) -> None:
        """Set other parts of the file: figures=..., or an experiment's own."""
        with self._changing() as content:
            content.update(finite(parts))

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        """The content, to be changed; written when left, no other process between."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = self.path.with_name(f".{self.path.name}.lock")
        with lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            content = self.read()
            content["command"] = self.command or content["command"]
            yield content
            write(self.path, as_json(content))
