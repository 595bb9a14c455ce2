"""Which architecture a checkpoint has."""

from ._checkpoint import Checkpoint
from ._families import layout_of
from ._mamba1 import Mamba1Layout, recognise_mamba1
from ._mamba1_config import mamba_ssm_config, transformers_config


def recognise(checkpoint: Checkpoint) -> Mamba1Layout:
    """Tell the architecture and hold the tensors to the configuration.

    **Arguments:**

    - `checkpoint`: an opened checkpoint; only names, shapes and types are looked at
        (and head against embedding, where they are tied and both are stored).

    **Returns:** the layout, which reads layers.

    **Raises:** `UnsupportedCheckpointError` for another family, a quantised model or
    one without an SSM layer; `CorruptCheckpointError` where configuration and tensors
    disagree.
    """
    config = checkpoint.config
    layout = layout_of(config, checkpoint.source, checkpoint.names())
    sizes = transformers_config if layout == "transformers" else mamba_ssm_config
    return recognise_mamba1(checkpoint, sizes(config))
