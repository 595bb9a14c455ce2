"""Checkpoints of W8A8 and W4A4 whose configurations say what is left alone.

Each is written as compressed-tensors stores it and checked as it is: activations are
followed module by module. Fixed scales are calibrated on the text that is checked, each
module's largest input over the format's largest.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Asked(NamedTuple):
    """One checkpoint: its recipe, what is left alone, and a share of fixed scales."""

    recipe: str
    kept: str | None = None
    scale: float | None = None


ASKED = (
    Asked("ct-fp8-channel"),
    Asked("ct-fp8-channel", "attention"),
    Asked("ct-fp8-channel", "out_proj"),
    Asked("ct-fp8-static", None, 1.0),
    Asked("ct-fp8-static", None, 0.25),
    Asked("ct-nvfp4-both", None, 1.0),
    Asked("ct-nvfp4-both", "out_proj", 1.0),
)
LARGEST = {"ct-fp8-static": 448.0, "ct-nvfp4-both": 6 * 448.0}


def with_configured(model: Any, tokens: np.ndarray) -> list[dict[str, Any]]:
    """What an execution in bf16 does that follows each configuration, and one that runs
    its weights alone."""
    rows, largest = [], {}
    for asked in ASKED:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "model"
            _written(model, folder, asked, largest)
            for option in (None, "none"):
                row, seen = _checked(folder, tokens, option)
                rows.append(asked._asdict() | row)
                if option is None and not largest:
                    largest = seen
    return rows


def _checked(folder: Path, tokens: np.ndarray, option: str | None):
    """A row of one check, and the largest that each module read."""
    import lyapunov

    model = lyapunov.load(folder)
    report = lyapunov.check(
        model,
        tokens,
        precisions="bf16",
        effort="quick",
        quantise_activations=option,
    )
    (found,) = report.precisions
    output = found.output
    clipped = [share for row in found.layers for share in (row.clipped or {}).values()]
    row = {
        "activations": option or "as configured",
        "kl_mean": output.kl_mean,
        "flips": output.argmax_flips,
        "tokens": output.argmax_total,
        "rel_l2": output.measured_rel_l2,
        "predicted_rel_l2": output.sigma_t3,
        "clipped": max(clipped, default=None),
    }
    return row, _largest(model, found.layers)


def _largest(model: Any, layers: Any) -> dict[str, float]:
    """By module the largest magnitude of what it read, where that is a site."""
    from lyapunov.implementations import OPERANDS

    found = {}
    for row, sizes, parts in zip(
        layers, model.config.sublayers, model.layout.parts, strict=True
    ):
        for site, matrices in OPERANDS.get(sizes.kind, {}).items():
            most = (row.max_abs_stored or {}).get(site)
            for name in (n for m in matrices if m in parts for n in parts[m].names):
                if most is not None:
                    found[name.removesuffix(".weight")] = most
    return found


def _written(
    model: Any, folder: Path, asked: Asked, largest: Mapping[str, float]
) -> None:
    """The model's folder as compressed-tensors stores it."""
    from oracles.checkpoints.quantised_models import (
        RECIPES,
        quantise_folder,
        stored_arrays,
        write_safetensors,
    )

    modules = _modules(model)
    kept = [name for name, of in modules.items() if asked.kept in of]
    chosen = {f"{name}.weight" for name in modules if name not in kept}
    source = model.checkpoint.folder
    quantise_folder(source, folder, RECIPES[asked.recipe], chosen.__contains__)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["ignore"] = ["lm_head", *kept]
    path.write_text(json.dumps(config))
    if asked.scale is None:
        return
    tensors = stored_arrays(folder)
    for name in tensors:
        module, _, last = name.rpartition(".")
        if last == "input_scale":
            value = asked.scale * largest[module] / LARGEST[asked.recipe]
        elif last == "input_global_scale":
            value = LARGEST[asked.recipe] / largest[module] / asked.scale
        else:
            continue
        tensors[name] = np.full_like(tensors[name], value)
    write_safetensors(folder / "model.safetensors", tensors)


def _modules(model: Any) -> dict[str, tuple[str, ...]]:
    """Modules in front of which activations can be quantised, with the kind of their
    sublayer and the matrices that lie there."""
    from lyapunov.implementations import OPERANDS

    found: dict[str, tuple[str, ...]] = {}
    for sizes, parts in zip(model.config.sublayers, model.layout.parts, strict=True):
        for matrix in (m for of in OPERANDS.get(sizes.kind, {}).values() for m in of):
            for name in parts[matrix].names if matrix in parts else ():
                module = name.removesuffix(".weight")
                found[module] = (*found.get(module, (sizes.kind,)), matrix)
    return found
