"""Which architecture a checkpoint has."""

from ._checkpoint import Checkpoint
from ._families import layout_of
from ._mamba import recognise_mamba1, recognise_mamba2
from ._mamba_config import (
    mamba_ssm_config,
    mamba_ssm_mamba2_config,
    transformers_config,
    transformers_mamba2_config,
)
from ._network import NetworkLayout
from ._transformer import (
    gpt_neox_config,
    llama_config,
    recognise_gpt_neox,
    recognise_llama,
)


_READERS = {
    ("mamba1", "transformers"): (transformers_config, recognise_mamba1),
    ("mamba1", "mamba_ssm"): (mamba_ssm_config, recognise_mamba1),
    ("mamba2", "transformers"): (transformers_mamba2_config, recognise_mamba2),
    ("mamba2", "mamba_ssm"): (mamba_ssm_mamba2_config, recognise_mamba2),
    ("gpt_neox", "transformers"): (gpt_neox_config, recognise_gpt_neox),
    ("llama", "transformers"): (llama_config, recognise_llama),
}


def recognise(checkpoint: Checkpoint) -> NetworkLayout:
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
    sizes, recognised = _READERS[
        layout_of(config, checkpoint.source, checkpoint.names())
    ]
    return recognised(checkpoint, sizes(config))
