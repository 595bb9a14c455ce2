"""Where a run took place: device, versions and code."""

import hashlib
import platform
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

import torch


def _version(module: str) -> str | None:
    try:
        return __import__(module).__version__
    except Exception:
        return None


def git_commit() -> str | None:
    """Say which commit runs; None outside a repository."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--verify", "--quiet", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
        )
    except OSError:
        return None
    return found.stdout.strip() or None


def _script() -> bytes:
    """The command's code: the module that is run, then those of this folder."""
    here = Path(__file__).parent
    files = [here.with_name("train_bundled.py"), *sorted(here.glob("*.py"))]
    return b"".join(file.read_bytes() for file in files)


def environment(device: torch.device) -> dict[str, Any]:
    """Device, versions, code and day, for training.json."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    modules = ("torch", "transformers", "safetensors", "mamba_ssm", "causal_conv1d")
    return {
        "device": name,
        "python": platform.python_version(),
        **{module: _version(module) for module in modules},
        "git_commit": git_commit(),
        "script_sha256": hashlib.sha256(_script()).hexdigest(),
        "date": date.today().isoformat(),
    }
