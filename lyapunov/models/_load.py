"""From a path or a Hub id to a model whose layers are read as they are needed."""

import importlib.resources
import os
import sys
from typing import Any

from .._arguments import shown, text
from .._errors import ArgumentError
from ..checkpoints import open_checkpoint, recognise
from . import Model


BUNDLED = "the bundled model"


def load(
    source: str | os.PathLike | None = None, *, revision: str | None = None
) -> Model:
    """Load the model of a checkpoint, by its place.

    **Arguments:**

    - `source`: a folder, a file, or `org/name[@revision]` of the Hugging Face Hub; a
      path that exists wins. None is the bundled model.
    - `revision`: branch, tag or commit of a Hub model.

    **Raises:** `LyapunovError` with a hint, for whatever cannot be read.
    """
    if source is None:
        folder = importlib.resources.files("lyapunov") / "assets" / "mamba1-bytes"
        checkpoint = open_checkpoint(str(folder))
        return Model(recognise(checkpoint), BUNDLED, checkpoint)
    if not isinstance(source, str | os.PathLike):
        raise ArgumentError(
            f"a checkpoint's place is {shown(source)}",
            hint="a path or org/name; for a torch module: lyapunov.from_torch",
        )
    revision = text(revision, "revision", "main")
    checkpoint = open_checkpoint(source, revision=revision)
    return Model(recognise(checkpoint), checkpoint.source, checkpoint)


def model_of(given: Any) -> Model:
    """The model that is meant: one that was read, a torch module, or where it lies.

    **Arguments:**

    - `given`: a `Model`; a torch module, as for `from_torch`; a path or Hub id; None
      is the bundled model.

    **Raises:** `LyapunovError` as `load` and `from_torch`, and for anything else.
    """
    if isinstance(given, Model):
        return given
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(given, torch.nn.Module):
        from ._from_torch import from_torch

        return from_torch(given)
    if given is None or isinstance(given, str | os.PathLike):
        return load(given)
    raise ArgumentError(
        f"the model is {shown(given)}",
        hint="what lyapunov.load gives, a torch module, a path or a Hub id",
    )


def demand_head(model: Model) -> None:
    """Refuse a model without logits where they are compared.

    **Raises:** `UsageError` that says what can be done without.
    """
    if not model.has_head:
        model.head(0, 1)
