"""transformers' own code in torch, watched from outside.

The modules run unchanged, block by block; hooks copy what goes in and out of them.
What happens between modules (the conv, dt, the scan) is not seen, so there T0 covers
a longer stretch.
"""

from contextlib import ExitStack
from typing import Any

import jax.numpy as jnp
import numpy as np

from .._errors import MissingExtraError
from .._trace import HeadRecord, SublayerRecord, Trace
from ..executions import Execution
from ..models import Model


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
            residual, hidden = _copy(stream), np.zeros(tuple(stream.shape))
            for layer, block in zip(
                model.sublayers, network.backbone.layers, strict=True
            ):
                with ExitStack() as watching:
                    _watch(watching, block, seen)
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
                    return jnp.asarray(_copy(normed @ rows.T))

            yield HeadRecord(jnp.asarray(residual), jnp.asarray(hidden), logits)


def _build(model: Model, precision: str, device: str) -> Any:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise MissingExtraError(
            f"measuring with transformers needs torch and transformers ({error})",
            hint="pip install 'lyapunov-check[torch]'",
        ) from None
    config = model.config
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
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
    target = dtype[precision]

    def tensor(array: np.ndarray):
        return torch.tensor(array.astype(np.float32), device=device).to(target)

    state = {
        "backbone.embeddings.weight": tensor(
            model.layout.embedding(np.arange(config.padded_vocab_size))
        ),
        "backbone.norm_f.weight": tensor(model.layout.final_norm()),
        "lm_head.weight": tensor(model.layout.head(0, config.padded_vocab_size)),
    }
    names = {
        "norm": "norm.weight",
        "in_proj": "mixer.in_proj.weight",
        "in_proj_bias": "mixer.in_proj.bias",
        "conv_weight": "mixer.conv1d.weight",
        "conv_bias": "mixer.conv1d.bias",
        "x_proj": "mixer.x_proj.weight",
        "dt_proj": "mixer.dt_proj.weight",
        "dt_bias": "mixer.dt_proj.bias",
        "A_log": "mixer.A_log",
        "D": "mixer.D",
        "out_proj": "mixer.out_proj.weight",
        "out_proj_bias": "mixer.out_proj.bias",
    }
    for layer in range(config.n_layers):
        raw = model.layout.layer(layer)
        for name, array in raw.items():
            value = array[:, None, :] if name == "conv_weight" else array
            state[f"backbone.layers.{layer}.{names[name]}"] = tensor(value)
    network.load_state_dict(state, assign=True, strict=True)
    return torch, network.eval()


def _copy(tensor) -> np.ndarray:
    return tensor.detach().to("cpu").double().numpy()


def _watch(hooks: ExitStack, block, seen: dict) -> None:
    def keep_output(name):
        def hook(module, inputs, output):
            seen[name] = _copy(output)

        return hook

    def keep_input(name):
        def hook(module, inputs):
            seen[name] = _copy(inputs[0])

        return hook

    mixer = block.mixer
    for handle in (
        mixer.register_forward_hook(keep_output("mixer")),
        block.norm.register_forward_hook(keep_output("norm")),
        mixer.in_proj.register_forward_hook(keep_output("xz")),
        mixer.x_proj.register_forward_pre_hook(keep_input("conv")),
        mixer.x_proj.register_forward_hook(keep_output("x_proj")),
        mixer.out_proj.register_forward_pre_hook(keep_input("gated")),
    ):
        hooks.callback(handle.remove)


def _add(torch, residual, hidden, model: Model, execution: Execution) -> np.ndarray:
    """The residual that the block's addition made: one torch addition, repeated."""
    if model.config.residual_in_fp32:
        total = torch.tensor(residual).float() + torch.tensor(hidden).float()
        return _copy(total)
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    to = kind[execution.precision]
    return _copy(torch.tensor(residual).to(to) + torch.tensor(hidden).to(to))
