"""Checkpoints with activations in their configuration, and executions that follow."""

import json

import numpy as np

from lyapunov.implementations import executions_for
from lyapunov.questions._activations import quantising
from oracles.checkpoints.quantised_models import (
    RECIPES,
    quantise_folder,
    stored_arrays,
    write_safetensors,
)

from .conftest import is_quantised


TOKENS = np.arange(24)[None] % 64
KEPT = ("layers.0.mixer.out_proj", "layers.1.mixer.o_proj", "layers.2.")
"""Of Nemotron-H: one matrix of two of a Mamba-2, one of attention, all of an MLP."""


def build(source, folder, recipe, scale=None, kept=()):
    """Make a model's folder as a recipe stores it.

    **Arguments:**

    - `scale`: of activations, a function of a module's name and number.
    - `kept`: parts of names of modules that are left alone.
    """
    wanted = lambda n: is_quantised(n) and not any(part in n for part in kept)
    quantise_folder(source, folder, RECIPES[recipe], chosen=wanted)
    tensors = stored_arrays(folder)
    ends = (".input_scale", ".input_global_scale")
    for i, name in enumerate(n for n in tensors if n.endswith(ends)):
        if scale is not None:
            tensors[name] = np.full_like(tensors[name], scale(name, i))
    write_safetensors(folder / "model.safetensors", tensors)
    keep(folder, [f"*{part.rstrip('.')}*" for part in kept])
    return folder


def keep(folder, patterns):
    """Put modules on the list of what was to be left alone, whatever it is called."""
    for name in ("hf_quant_config.json", "config.json"):
        path = folder / name
        told = json.loads(path.read_text()) if path.exists() else {}
        for place in (told.get("quantization"), told.get("quantization_config")):
            for key in ("exclude_modules", "ignore", "modules_to_not_convert"):
                if place is not None and key in place:
                    place[key] = [*place[key], *patterns]
        if told:
            path.write_text(json.dumps(told))


def by_number(name, i):
    """Another one for each, of which values of a few units are clipped."""
    return 0.006 + 0.001 * i


def far_apart(name, i):
    """Of the second sublayer a fifth of that of the first."""
    return 0.002 if ".1." in name else 0.01


def followed(model, asked=None, precision="bf16"):
    bare = executions_for(
        model.config, [precision], architecture=model.layout.architecture
    )
    (found,) = quantising(bare, model.layout, "emulated", asked)
    return found
