"""mamba_ssm's own classes and CUDA kernels, watched from outside.

The blocks run unchanged, one after another; hooks copy what goes in and out of their
modules. On the fused path most modules are bypassed, so T0 then covers the stretch
from the norm to the output; the unfused path shows more of the stored tensors. Of
Mamba-2 neither shows what the convolution stores.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..._errors import MissingExtraError, UsageError
from ...formats._precision import Precision
from ...models import Model
from ...sublayers.config import plain_mamba1
from .. import Execution
from .._company import in_company
from .._segment import Segment
from .._torch import copied, exact_sums, import_torch, state_dict, torch_dtype, watched
from .._trace import HeadRecord, SublayerRecord, Trace, traced_in_fp64
from .._ways import Variant
from .implementation import MambaSsmImplementation


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

    @traced_in_fp64
    def trace(
        self,
        model: Model,
        tokens,
        variant: Variant | None = None,
        segments: Sequence[Segment] = (),
    ) -> Trace:
        """Records of all sublayers for the text alone, then the head.

        Decoding goes token by token through all layers (`Mamba.step` on a cache of
        zeros), so its records come after the last token.

        **Arguments:** as for `Runner.trace`; of `segments` there is one.
        """
        if segments:
            (segment,) = segments  # every call of a run is of one execution
            runner = MambaSsm(segment.execution, fused=self._fused, device=self._device)
            yield from runner.trace(model, tokens, variant)
            return
        own = slice(None)
        if variant is not None and variant.kind == "batched":
            tokens, own = in_company(np.asarray(tokens), variant.row)
        precision = self.execution.precision
        decoding = self.execution.mode == "decode"
        torch, network = _build(model, precision, self._fused, self._device, decoding)
        run = self._decoded if decoding else self._whole
        before: Any
        last: Any
        seen: Any
        normed: Any = None
        with torch.no_grad():
            ids = torch.as_tensor(np.asarray(tokens), device=self._device)
            before, last = copied(network.backbone.embedding(ids)), None
        for seen in run(torch, network, ids):
            if not isinstance(seen, dict):
                normed = seen
                continue
            layer = model.sublayers[seen.pop("layer")]
            output, after = seen.pop("mixer"), seen.pop("residual")
            last = np.zeros(before.shape) if last is None else last
            seen |= {"out": output, "residual": after}
            yield SublayerRecord(
                layer.layer,
                layer.kind,
                jnp.asarray(before[own]),
                jnp.asarray(last[own]),
                jnp.asarray(output[own]),
                {site: jnp.asarray(array[own]) for site, array in seen.items()},
                {},
            )
            before, last = after, output

        def logits(start, stop):
            with torch.no_grad(), self._autocast(torch):
                rows = network.lm_head.weight[start:stop]
                return jnp.asarray(copied(normed[own] @ rows.T))

        yield HeadRecord(jnp.asarray(before[own]), jnp.asarray(last[own]), logits)

    def _whole(self, torch, network, ids):
        """A dict a block, then what the head reads."""
        batch, seq = ids.shape
        with torch.no_grad(), self._autocast(torch):
            hidden, residual = network.backbone.embedding(ids), None
            for i, block in enumerate(network.backbone.layers):
                seen: dict[str, Any] = {}
                with watched(block, seen):
                    hidden, residual = block(hidden, residual)
                # the unfused path calls its projections with tokens in one axis
                seen = {k: array.reshape(batch, seq, -1) for k, array in seen.items()}
                seen = self._sited(seen, block.mixer)
                seen |= {"layer": i, "residual": copied(residual)}
                yield self._cast(torch, seen)
            yield _final_norm(torch, network, hidden, residual)

    def _decoded(self, torch, network, ids):
        """The same, a token at a time through all blocks."""
        from mamba_ssm.utils.generation import InferenceParams

        batch, seq = ids.shape
        blocks = network.backbone.layers
        formats = self.execution.precision, self.execution.state_precision
        kinds = [torch_dtype(torch, name) for name in formats]
        memory = {
            i: _cache(torch, block.mixer, batch, *kinds)
            for i, block in enumerate(blocks)
        }
        params = InferenceParams(
            max_seqlen=seq + 1, max_batch_size=batch, key_value_memory_dict=memory
        )
        kept: list[dict[str, list[np.ndarray]]] = [{} for _ in blocks]
        normed = []
        with torch.no_grad(), self._autocast(torch):
            for t in range(seq):
                # an offset above 0 makes every call a step, the first one too
                params.seqlen_offset = t + 1
                hidden, residual = network.backbone.embedding(ids[:, t : t + 1]), None
                for block, parts in zip(blocks, kept, strict=True):
                    seen: dict[str, np.ndarray] = {}
                    with watched(block, seen):
                        hidden, residual = block(
                            hidden, residual, inference_params=params
                        )
                    seen["residual"] = copied(residual)
                    for name, array in seen.items():
                        parts.setdefault(name, []).append(array.reshape(batch, 1, -1))
                normed.append(_final_norm(torch, network, hidden, residual))
            for i, parts in enumerate(kept):
                joined = {k: np.concatenate(arrays, 1) for k, arrays in parts.items()}
                parts.clear()
                joined = self._sited(joined, blocks[i].mixer)
                yield self._cast(torch, joined | {"layer": i})
            yield torch.cat(normed, dim=1)

    def _sited(self, seen, mixer):
        """Arrays under the names and in the shapes of the flow's sites."""
        if not hasattr(mixer, "B_norm"):
            return seen
        at = lambda name, *last: seen.pop(name).reshape(*seen["mixer"].shape[:2], *last)
        groups = mixer.mimo_rank, mixer.num_bc_heads, mixer.d_state
        found = {name: at(name, *groups) for name in ("B_norm", "C_norm")}
        if "scan_output" in seen:
            ranks = (mixer.mimo_rank,) if mixer.is_mimo else ()
            found["scan_output"] = at(
                "scan_output", *ranks, mixer.nheads, mixer.headdim
            )
        if "gated_cast" in self.execution.of("mamba3").sites:
            found["gated_cast"] = seen.pop("gated")
        return seen | found

    def _autocast(self, torch):
        """What the modules run under: autocast, or nothing."""
        if not self.execution.runs_in.autocast:
            return nullcontext()
        dtype = torch_dtype(torch, self.execution.precision)
        return torch.autocast("cuda", dtype=dtype)

    def _cast(self, torch, seen):
        """Under autocast in_proj casts what it reads: the first norm's is fp32."""
        if self.execution.runs_in.autocast and "norm" in seen:
            dtype = torch_dtype(torch, self.execution.precision)
            seen["norm"] = copied(torch.tensor(seen["norm"]).to(dtype))
        return seen


def _cache(torch, mixer, batch: int, activations, cache):
    """Zeros for the window, in the activations' format, and for the state.

    Mamba-3 has angles, which stay in fp32, the state, and keys and values in the
    activations' format.
    """
    if hasattr(mixer, "B_norm"):
        angles, state, *last = mixer.allocate_inference_cache(batch, 1)
        state = torch.zeros_like(state, dtype=cache)
        return angles, state, *(torch.zeros_like(x, dtype=activations) for x in last)
    window, state = mixer.allocate_inference_cache(batch, 1)
    return (
        torch.zeros_like(window, dtype=activations),
        torch.zeros_like(state, dtype=cache),
    )


def _final_norm(torch, network, hidden, residual):
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
        is_rms_norm=not isinstance(norm, torch.nn.LayerNorm),
    )


def _build(
    model: Model, precision: str, fused: bool, device: str, decoding: bool
) -> Any:
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
            hint=MambaSsmImplementation.install_hint(),
        ) from None
    exact_sums(torch)
    config = model.config
    settings = MambaConfig(
        d_model=config.d_model,
        n_layer=config.n_layers,
        vocab_size=config.padded_vocab_size,
        ssm_cfg=_settings(model, fused),
        rms_norm=not config.norm_centred,
        residual_in_fp32=config.residual_in_fp32,
        fused_add_norm=config.fused_add_norm,
        pad_vocab_size_multiple=1,
        tie_embeddings=False,
    )
    said = Precision.named(precision)
    dtype = torch_dtype(torch, "fp32" if said.autocast else precision)
    network = MambaLMHeadModel(settings, device=device, dtype=dtype)
    if config.sublayers[0].kind == "mamba3":
        _put_mamba3(model, network, decoding, device=device, dtype=dtype)
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
    for block, sizes in zip(network.backbone.layers, config.sublayers, strict=True):
        if getattr(block.mixer, "rmsnorm", False):
            block.mixer.norm.eps = sizes.gate_norm_epsilon
    if said.cast:
        network = network.to(dtype)
    return torch, network.eval()


def _settings(model: Model, fused: bool) -> dict[str, Any]:
    """What mamba_ssm's mixers are made with.

    **Raises:** `UsageError` for a network that they cannot be put together to.
    """
    config = model.config
    alone = plain_mamba1(config)
    if alone is not None:
        return {
            "d_state": alone.d_state,
            "d_conv": alone.d_conv,
            "expand": alone.d_inner // alone.d_model,
            "dt_rank": alone.dt_rank,
            "conv_bias": alone.conv_bias,
            "bias": alone.proj_bias,
            "use_fast_path": fused,
        }
    first, *others = config.sublayers
    if first.kind == "mamba3" and all(one == first for one in others):
        return {}  # its mixers are put in place after
    own = (
        first.kind == "mamba2"
        and all(one == first for one in others)
        and first.norm_groups == first.groups
        and first.out_bias in (None, first.proj_bias)
        and first.row_multipliers is None
        and first.in_multiplier == first.out_multiplier == 1.0
        and config.embedding_multiplier == config.logits_multiplier == 1.0
        and config.logits_soft_cap is None
    )
    if not own:
        raise UsageError(
            "mamba_ssm is run on plain Mamba-1, Mamba-2 and Mamba-3 models alone",
            hint="--measure emulated follows its flow for the others",
        )
    return {
        "layer": "Mamba2",
        "d_state": first.d_state,
        "d_conv": first.d_conv,
        "expand": first.d_inner // first.d_model,
        "headdim": first.d_inner // first.heads,
        "ngroups": first.groups,
        "D_has_hdim": model.raw_parameters(0)["D"].size == first.d_inner,
        "rmsnorm": first.gate_norm,
        "norm_before_gate": first.norm_before_gate,
        "dt_limit": first.dt_limit,
        "bias": first.proj_bias,
        "conv_bias": first.conv_bias,
        "chunk_size": first.chunk,
        "use_mem_eff_path": fused,
    }


def _put_mamba3(model: Model, network, decoding: bool, **placed: Any) -> None:
    """Mamba-3 mixers in place: `MambaLMHeadModel` makes those of Mamba-1 and 2 alone.

    **Raises:** `MissingExtraError` where a kernel asks for what is not installed.
    """
    from mamba_ssm.modules import mamba3

    sizes = model.config.sublayers[0]
    for needed, kernel, names in (
        (sizes.rank is not None, "mamba3_mimo_combined", "tilelang"),
        (decoding, "mamba3_step_fn", "nvidia-cutlass-dsl and quack-kernels"),
    ):
        if needed and getattr(mamba3, kernel) is None:
            what = "decodes Mamba-3" if decoding else "runs Mamba-3 of rank above 1"
            raise MissingExtraError(
                f"mamba_ssm {what} with kernels that need {names}",
                hint="install them, or --measure emulated",
            )
    for layer, block in enumerate(network.backbone.layers):
        block.mixer = mamba3.Mamba3(
            sizes.d_model,
            d_state=sizes.d_state,
            expand=sizes.d_inner // sizes.d_model,
            headdim=sizes.d_inner // sizes.heads,
            ngroups=sizes.groups,
            rope_fraction=1.0 if 2 * sizes.angles == sizes.d_state else 0.5,
            A_floor=sizes.least_rate,
            is_outproj_norm=sizes.gate_norm,
            is_mimo=sizes.rank is not None,
            mimo_rank=sizes.rank or 1,
            chunk_size=sizes.chunk,
            layer_idx=layer,
            **placed,
        )
