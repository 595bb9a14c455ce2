"""A run's state on disk: whole or not there, and checked when read."""

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch

from studies.problems import Problem


NAME = "resume.pt"
_DIGEST = hashlib.sha256().digest_size


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write the state, after its SHA-256, and only then put it in the old one's place.

    `state` holds tensors, numbers, strings, lists and dicts only.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    part = folder / f".part-{NAME}"
    with part.open("wb") as file:
        file.write(hashlib.sha256(data).digest() + data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, folder / NAME)


def load(folder: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The state of an earlier run with the same settings, if there is one."""
    file = folder / NAME
    if not file.exists():
        return None
    data = file.read_bytes()
    if hashlib.sha256(data[_DIGEST:]).digest() != data[:_DIGEST]:
        raise Problem(
            f"{file} is damaged: it is not what was written",
            "delete it to begin this run anew",
        )
    state = torch.load(io.BytesIO(data[_DIGEST:]), map_location="cpu")
    if state["settings"] != settings:
        other = [
            f"{name} {state['settings'].get(name)!r}, not {value!r}"
            for name, value in settings.items()
            if state["settings"].get(name) != value
        ]
        raise Problem(
            f"{file} is of a run with other settings: {'; '.join(other)}",
            "give these settings again to go on with it, or use another --out",
        )
    return state


def generators(device: torch.device) -> list[torch.Tensor]:
    """States of torch's generators."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def set_generators(states: list[torch.Tensor], device: torch.device) -> None:
    """Put torch's generators into these states."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
