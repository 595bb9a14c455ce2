"""mamba_ssm's own classes and CUDA kernels, watched from outside.

The blocks run unchanged, one after another; hooks copy what goes in and out of their
modules. On the fused path most modules are bypassed, so T0 then covers the stretch
from the norm to the output; the unfused path shows more of the stored tensors.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from .._errors import MissingExtraError, UsageError
from .._trace import HeadRecord, SublayerRecord, Trace
from ..executions import Execution
from ..models import Model
from ._torch import copied, import_torch, state_dict, torch_dtype, watched


class MambaSsm:
    """Run a network with mamba_ssm on an NVIDIA GPU.

    **Arguments:**

    - `execution`: whose `precision` says the dtype of the weights; `bf16-cast` casts
      A_log and D as well.
    - `fused`: mamba_ssm's fast path, in one autograd function; False goes through the
      modules, with the same kernels.
    - `device`: a torch device.
    """

    def __init__(
        self, execution: Execution, *, fused: bool = True, device: str = "cuda"
    ):
        self.execution = execution
        self._fused = fused
        self._device = device

    def trace(self, model: Model, tokens) -> Trace:
        """Records of all sublayers, then the head."""
        torch, network = _build(
            model, self.execution.precision, self._fused, self._device
        )
        batch, seq = np.shape(tokens)
        seen: dict[str, np.ndarray] = {}
        with torch.no_grad():
            ids = torch.as_tensor(np.asarray(tokens), device=self._device)
            hidden, residual = network.backbone.embedding(ids), None
            before, last = copied(hidden), np.zeros(tuple(hidden.shape))
            for layer, block in zip(
                model.sublayers, network.backbone.layers, strict=True
            ):
                with watched(block, seen):
                    hidden, residual = block(hidden, residual)
                output = seen.pop("mixer")
                # the unfused path calls its projections with tokens in one axis
                stored = {
                    site: jnp.asarray(array.reshape(batch, seq, -1))
                    for site, array in seen.items()
                }
                seen.clear()
                after = copied(residual)
                yield SublayerRecord(
                    layer.layer,
                    layer.kind,
                    jnp.asarray(before),
                    jnp.asarray(last),
                    jnp.asarray(output),
                    stored
                    | {"out": jnp.asarray(output), "residual": jnp.asarray(after)},
                    {},
                )
                before, last = after, output
            normed = _final_norm(network, hidden, residual)

            def logits(start, stop):
                with torch.no_grad():
                    rows = network.lm_head.weight[start:stop]
                    return jnp.asarray(copied(normed @ rows.T))

            yield HeadRecord(jnp.asarray(before), jnp.asarray(last), logits)


def _final_norm(network, hidden, residual):
    from mamba_ssm.ops.triton.layer_norm import layer_norm_fn

    norm = network.backbone.norm_f
    if not network.backbone.fused_add_norm:
        return norm((hidden + residual).to(norm.weight.dtype))
    return layer_norm_fn(
        hidden,
        norm.weight,
        norm.bias,
        eps=norm.eps,
        residual=residual,
        prenorm=False,
        residual_in_fp32=network.backbone.residual_in_fp32,
        is_rms_norm=True,
    )


def _build(model: Model, precision: str, fused: bool, device: str) -> Any:
    torch = import_torch()
    if not torch.cuda.is_available():
        raise UsageError(
            "mamba_ssm needs an NVIDIA GPU, and torch sees none",
            hint="--measure emulated follows mamba_ssm's flow without one",
        )
    try:
        from mamba_ssm.models.config_mamba import MambaConfig
        from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
    except ImportError as error:
        raise MissingExtraError(
            f"mamba_ssm cannot be imported ({error})",
            hint="pip install 'lyapunov-check[cuda]'",
        ) from None
    # partial sums in 16 bit would be roundings that no execution declares
    matmul = torch.backends.cuda.matmul
    matmul.allow_bf16_reduced_precision_reduction = False
    matmul.allow_fp16_reduced_precision_reduction = False
    config = model.config
    settings = MambaConfig(
        d_model=config.d_model,
        n_layer=config.n_layers,
        vocab_size=config.padded_vocab_size,
        ssm_cfg={
            "d_state": config.d_state,
            "d_conv": config.d_conv,
            "expand": config.d_inner // config.d_model,
            "dt_rank": config.dt_rank,
            "conv_bias": config.conv_bias,
            "bias": config.proj_bias,
            "use_fast_path": fused,
        },
        rms_norm=True,
        residual_in_fp32=config.residual_in_fp32,
        fused_add_norm=config.fused_add_norm,
        pad_vocab_size_multiple=1,
        tie_embeddings=False,
    )
    dtype = torch_dtype(torch, precision)
    network = MambaLMHeadModel(settings, device=device, dtype=dtype)
    network.load_state_dict(
        {
            name: torch.tensor(array)
            for name, array in state_dict(model, "backbone.embedding.weight")
        }
    )
    # the model's constructor does not hand an epsilon through
    for norm in [block.norm for block in network.backbone.layers]:
        norm.eps = config.norm_epsilon
    network.backbone.norm_f.eps = config.norm_epsilon
    if precision.endswith("-cast"):
        network = network.to(dtype)
    return torch, network.eval()
