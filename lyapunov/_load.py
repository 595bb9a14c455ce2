"""From a path or a Hub id to a model whose layers are read as they are needed."""

import importlib.resources
import os

from .checkpoints import open_checkpoint, recognise
from .models import Model


BUNDLED = "the bundled model"


def load(
    source: str | os.PathLike | None = None, *, revision: str | None = None
) -> Model:
    """A checkpoint's model.

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
    checkpoint = open_checkpoint(source, revision=revision)
    return Model(recognise(checkpoint), checkpoint.source, checkpoint)
