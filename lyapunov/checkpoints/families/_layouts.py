"""Which architecture a checkpoint has."""

from .._checkpoint import Checkpoint
from .._network import NetworkLayout
from ._families import layout_of
from ._hybrid_tensors import (
    recognise_bamba,
    recognise_falcon_h1,
    recognise_granite,
    recognise_jamba,
    recognise_nemotron_h,
)
from ._hybrids import (
    bamba_config,
    falcon_h1_config,
    granite_config,
    jamba_config,
    nemotron_h_config,
)
from ._mamba import recognise_falcon_mamba, recognise_mamba1, recognise_mamba2
from ._mamba_config import (
    falcon_mamba_config,
    transformers_config,
    transformers_mamba2_config,
)
from ._mamba_ssm import (
    mamba_ssm_config,
    mamba_ssm_mamba2_config,
    mamba_ssm_mamba3_config,
    recognise_mamba_ssm,
)
from ._megatron import megatron_config, recognise_megatron
from ._openelm import openelm_config, recognise_openelm
from ._transformer import (
    gpt_neox_config,
    llama_config,
    olmo2_config,
    olmo_config,
    recognise_gpt_neox,
    recognise_llama,
    recognise_olmo,
    recognise_olmo2,
)
from ._zamba import recognise_zamba, recognise_zamba2, zamba2_config, zamba_config


_READERS = {
    ("mamba1", "transformers"): (transformers_config, recognise_mamba1),
    ("mamba1", "mamba_ssm"): (mamba_ssm_config, recognise_mamba_ssm),
    ("falcon_mamba", "transformers"): (falcon_mamba_config, recognise_falcon_mamba),
    ("mamba2", "transformers"): (transformers_mamba2_config, recognise_mamba2),
    ("mamba2", "mamba_ssm"): (mamba_ssm_mamba2_config, recognise_mamba_ssm),
    ("mamba3", "mamba_ssm"): (mamba_ssm_mamba3_config, recognise_mamba_ssm),
    ("jamba", "transformers"): (jamba_config, recognise_jamba),
    ("bamba", "transformers"): (bamba_config, recognise_bamba),
    ("granitemoehybrid", "transformers"): (granite_config, recognise_granite),
    ("falcon_h1", "transformers"): (falcon_h1_config, recognise_falcon_h1),
    ("nemotron_h", "transformers"): (nemotron_h_config, recognise_nemotron_h),
    ("zamba", "transformers"): (zamba_config, recognise_zamba),
    ("zamba2", "transformers"): (zamba2_config, recognise_zamba2),
    ("megatron", "megatron"): (megatron_config, recognise_megatron),
    ("gpt_neox", "transformers"): (gpt_neox_config, recognise_gpt_neox),
    ("llama", "transformers"): (llama_config, recognise_llama),
    ("olmo", "transformers"): (olmo_config, recognise_olmo),
    ("olmo2", "transformers"): (olmo2_config, recognise_olmo2),
    ("openelm", "transformers"): (openelm_config, recognise_openelm),
}


def recognise(checkpoint: Checkpoint) -> NetworkLayout:
    """Tell the architecture and hold the tensors to the configuration.

    **Arguments:**

    - `checkpoint`: an opened checkpoint; only names, shapes and types are looked at
        (and head against embedding, where they are tied and both are stored).

    **Returns:** the layout, which reads layers.

    **Raises:** `UnsupportedCheckpointError` for another family or a quantised model;
    `CorruptCheckpointError` where configuration and tensors disagree.
    """
    config = checkpoint.config
    sizes, recognised = _READERS[
        layout_of(config, checkpoint.source, checkpoint.names())
    ]
    return recognised(checkpoint, sizes(config))
