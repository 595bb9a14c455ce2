"""transformers' own code in torch, watched from outside.

The modules run unchanged, block by block; hooks copy what goes in and out of them.
What happens between modules (the conv, dt, the scan) is not seen, so there T0 covers
a longer stretch.

Decoding goes token by token through all layers, so its records come only after the
last token: they wait in memory, as fp64 on the host.
"""

from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ..._errors import MissingExtraError, UsageError
from ...formats._precision import Precision
from ...models import Model
from ...sublayers.config import plain_mamba1
from .. import Execution
from .._torch import copied, import_torch, state_dict, torch_dtype, watched
from .._trace import HeadRecord, SublayerRecord, Trace, traced_in_fp64
from ._cache import given_cache
from .implementation import TransformersImplementation
from .network_runner import TransformersNetwork


class Transformers:
    """Run a network with transformers' classes, on CPU unless told otherwise.

    Nothing but Mamba-1 is built of its weights, whatever layout they came in, and goes
    block by block; every other network is loaded as transformers loads its folder.

    **Arguments:**

    - `execution`: whose `precision` says the dtype of the weights, or of autocast over
      weights in fp32, and whose `mode` says whether a cache is stepped through.
    - `device`: a torch device.

    **Raises:** `UsageError` for autocast on another device than the CPU, whose list of
    operations the execution follows; `MissingExtraError` without torch or transformers.
    """

    def __init__(self, execution: Execution, device: str = "cpu"):
        if execution.runs_in.autocast and device != "cpu":
            raise UsageError(
                f"autocast is followed on cpu, not on {device}: the lists of "
                "operations that it casts differ",
                hint="leave --device out",
            )
        self.execution = execution
        self._device = device

    @traced_in_fp64
    def trace(self, model: Model, tokens) -> Trace:
        """Records of all sublayers, then the head.

        **Raises:** `UsageError` for a checkpoint that transformers does not read, or a
        sublayer whose output no module puts out; `RefusedError` where the network
        itself raises.
        """
        if plain_mamba1(model.config) is None:
            network = TransformersNetwork(self.execution, self._device)
            yield from network.trace(model, tokens)
            return
        torch, network = _build(model, self.execution.precision, self._device)
        run = _decoded if self.execution.mode == "decode" else _layer_by_layer
        with torch.no_grad():
            ids = torch.as_tensor(np.asarray(tokens), device=self._device)
        residual, hidden, normed = None, None, None
        for seen in run(torch, network, ids, self._autocast):
            if seen.normed is not None:
                normed = seen.normed
                continue
            if residual is None:
                residual, hidden = seen.input, np.zeros(seen.input.shape)
            output = seen.stored.pop("mixer")
            layer = model.sublayers[seen.layer]
            stored = {name: jnp.asarray(x) for name, x in seen.stored.items()}
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

        def logits(start, stop):
            with torch.no_grad(), self._autocast(torch):
                rows = network.lm_head.weight[start:stop]
                return jnp.asarray(copied(normed @ rows.T))

        yield HeadRecord(jnp.asarray(residual), jnp.asarray(hidden), logits)

    def _autocast(self, torch):
        """What the modules run under: autocast, or nothing."""
        if not self.execution.runs_in.autocast:
            return nullcontext()
        dtype = torch_dtype(torch, self.execution.precision)
        return torch.autocast("cpu", dtype=dtype)


class _Seen(NamedTuple):
    """What one block was given and stored; or, at the end, what the head reads."""

    layer: int
    input: np.ndarray
    stored: dict[str, np.ndarray]
    normed: Any = None


def _layer_by_layer(torch, network, ids, autocast) -> Iterator[_Seen]:
    """The whole sequence through one block after another."""
    with torch.no_grad():
        stream = network.backbone.embeddings(ids)
    for i, block in enumerate(network.backbone.layers):
        seen: dict[str, np.ndarray] = {}
        before = copied(stream)
        with torch.no_grad(), autocast(torch), watched(block, seen):
            stream = block(stream)
        yield _Seen(i, before, _cast(torch, seen, autocast))
    with torch.no_grad(), autocast(torch):
        normed = network.backbone.norm_f(stream)
    yield _Seen(-1, np.zeros(0), {}, normed.to(network.lm_head.weight.dtype))


def _decoded(torch, network, ids, autocast) -> Iterator[_Seen]:
    """One token after another through all blocks, from a cache of zeros."""
    blocks = network.backbone.layers
    kept: list[dict[str, list[np.ndarray]]] = [{} for _ in blocks]
    inputs, normed = [], []
    with torch.no_grad(), autocast(torch):
        cache = _empty_cache(torch, network, ids)
        given = given_cache(network.backbone, cache)
        for t in range(ids.shape[1]):
            with ExitStack() as stack:
                seen = [dict[str, np.ndarray]() for _ in blocks]
                for block, into in zip(blocks, seen, strict=True):
                    stack.enter_context(watched(block, into))
                stream = network.backbone.embeddings(ids[:, t : t + 1])
                inputs.append(copied(stream))
                result = network.backbone(ids[:, t : t + 1], **given)
                normed.append(result.last_hidden_state)
            for into, step in zip(kept, seen, strict=True):
                for name, array in step.items():
                    into.setdefault(name, []).append(array)
        whole = torch.cat(normed, dim=1).to(network.lm_head.weight.dtype)
    for i, parts in enumerate(kept):
        joined = {name: np.concatenate(arrays, 1) for name, arrays in parts.items()}
        parts.clear()
        yield _Seen(i, np.concatenate(inputs, axis=1), joined)
    yield _Seen(-1, np.zeros(0), {}, whole)


def _empty_cache(torch, network, ids):
    """A cache as after no token at all, so that the first token is a step, too."""
    from transformers import DynamicCache

    cache: Any = DynamicCache(config=network.config)
    batch, config, device = ids.shape[0], network.config, ids.device
    dtype = network.backbone.layers[0].mixer.conv1d.weight.dtype
    for layer in cache.layers:
        shape = batch, config.intermediate_size
        layer.lazy_initialization(
            conv_states=torch.zeros(
                *shape, config.conv_kernel, dtype=dtype, device=device
            ),
            conv_kernel_size=config.conv_kernel,
        )
        layer.lazy_initialization(
            recurrent_states=torch.zeros(*shape, config.state_size, device=device)
        )
        layer.has_previous_state[0] = True
    return cache


def _cast(torch, seen, autocast):
    """Under autocast what in_proj and out_proj read is cast on the way in."""
    with autocast(torch):
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            for name in ("norm", "gated"):
                seen[name] = copied(torch.tensor(seen[name]).to(dtype))
    return seen


def _build(model: Model, precision: str, device: str) -> Any:
    torch = import_torch()
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError(
            f"measuring with transformers needs it installed ({error})",
            hint=TransformersImplementation.install_hint(),
        ) from None
    config = model.config
    sizes = plain_mamba1(config)
    settings = transformers.MambaConfig(
        vocab_size=config.padded_vocab_size,
        hidden_size=config.d_model,
        state_size=sizes.d_state,
        num_hidden_layers=config.n_layers,
        layer_norm_epsilon=config.norm_epsilon,
        expand=sizes.d_inner // config.d_model,
        conv_kernel=sizes.d_conv,
        time_step_rank=sizes.dt_rank,
        use_bias=sizes.proj_bias,
        use_conv_bias=sizes.conv_bias,
        residual_in_fp32=config.residual_in_fp32,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        network = transformers.MambaForCausalLM(settings)
    amp = Precision.named(precision).autocast
    dtype = torch_dtype(torch, "fp32" if amp else precision)
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
