"""transformers' own code in torch, watched from outside.

The modules run unchanged, block by block; hooks copy what goes in and out of them.
What happens between modules (the conv, dt, the scan) is not seen, so there T0 covers
a longer stretch.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from .._errors import MissingExtraError
from .._trace import HeadRecord, SublayerRecord, Trace
from ..executions import Execution
from ..models import Model
from ._torch import copied, import_torch, state_dict, torch_dtype, watched


class Transformers:
    """Run a network with transformers' classes, on CPU unless told otherwise.

    **Arguments:**

    - `execution`: whose `precision` says the dtype of the weights.
    - `device`: a torch device.
    """

    def __init__(self, execution: Execution, device: str = "cpu"):
        self.execution = execution
        self._device = device

    def trace(self, model: Model, tokens) -> Trace:
        """Records of all sublayers, then the head."""
        torch, network = _build(model, self.execution.precision, self._device)
        seen: dict[str, np.ndarray] = {}
        with torch.no_grad():
            ids = torch.as_tensor(np.asarray(tokens), device=self._device)
            stream = network.backbone.embeddings(ids)
            residual, hidden = copied(stream), np.zeros(tuple(stream.shape))
            for layer, block in zip(
                model.sublayers, network.backbone.layers, strict=True
            ):
                with watched(block, seen):
                    stream = block(stream)
                output = seen.pop("mixer")
                stored = {name: jnp.asarray(x) for name, x in seen.items()}
                seen.clear()
                yield SublayerRecord(
                    layer.layer,
                    layer.kind,
                    jnp.asarray(residual),
                    jnp.asarray(hidden),
                    jnp.asarray(output),
                    stored | {"out": jnp.asarray(output)},
                    {},
                )
                # what the block added up itself, rounded as it rounds
                residual = _add(torch, residual, hidden, model, self.execution)
                hidden = output
            normed = network.backbone.norm_f(stream)
            normed = normed.to(network.lm_head.weight.dtype)

            def logits(start, stop):
                with torch.no_grad():
                    rows = network.lm_head.weight[start:stop]
                    return jnp.asarray(copied(normed @ rows.T))

            yield HeadRecord(jnp.asarray(residual), jnp.asarray(hidden), logits)


def _build(model: Model, precision: str, device: str) -> Any:
    torch = import_torch()
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError(
            f"measuring with transformers needs it installed ({error})",
            hint="pip install 'lyapunov-check[torch]'",
        ) from None
    config = model.config
    settings = transformers.MambaConfig(
        vocab_size=config.padded_vocab_size,
        hidden_size=config.d_model,
        state_size=config.d_state,
        num_hidden_layers=config.n_layers,
        layer_norm_epsilon=config.norm_epsilon,
        expand=config.d_inner // config.d_model,
        conv_kernel=config.d_conv,
        time_step_rank=config.dt_rank,
        use_bias=config.proj_bias,
        use_conv_bias=config.conv_bias,
        residual_in_fp32=config.residual_in_fp32,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        network = transformers.MambaForCausalLM(settings)
    dtype = torch_dtype(torch, precision)
    state = {
        name: torch.tensor(array, device=device).to(dtype)
        for name, array in state_dict(model, "backbone.embeddings.weight")
    }
    network.load_state_dict(state, assign=True, strict=True)
    return torch, network.eval()


def _add(torch, residual, hidden, model: Model, execution: Execution) -> np.ndarray:
    """The residual that the block's addition made: one torch addition, repeated."""
    dtype = torch_dtype(
        torch, "fp32" if model.config.residual_in_fp32 else execution.precision
    )
    return copied(torch.tensor(residual).to(dtype) + torch.tensor(hidden).to(dtype))
