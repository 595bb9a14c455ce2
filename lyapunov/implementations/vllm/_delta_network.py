"""A network of delta rules and MLPs as vLLM puts it together, in torch.

After `models/qwen3_next.py`, whose norms have weights as distances from 1 and are the
same compiled or not, and `models/kimi_k3/nvidia/model.py`, which is never compiled.
"""

from collections.abc import Callable
from typing import Any

from ..._errors import UsageError
from ...models import Model
from .._launch import Launch
from .._stacks import DELTA
from ._delta_layers import DeltaLayer, MlpLayer
from ._layers import Cache
from ._network import Network
from ._operators import Operators
from ._plain import refuse_others


FAMILIES = ("qwen3_next", "qwen3_5", "kimi_linear")
"""Whose mixers are put together here."""
FP32 = {"gated_delta": ("A_log",), "kimi_delta": ("A_log", "dt_bias", "conv_weight")}
"""Parameters that vLLM holds in fp32."""


class DeltaNetwork(Network):
    """Embedding, layers, norm and head, in one dtype.

    **Arguments:** as of `Network`, and how the server was started.
    """

    def __init__(self, model: Model, dtype: Any, operators: Operators, launch: Launch):
        # as vLLM runs models that it does not compile
        eager = model.config.sublayers[0].kind == "kimi_delta"
        super().__init__(model, dtype, operators, eager)
        # Kimi's convolution rounds no product, so no site says what its window is in
        self._window = dtype if eager and launch.window is None else None

    def _layer(self, raw: dict[str, Any], sizes: Any, held: Callable) -> Any:
        import torch

        fp32 = FP32.get(sizes.kind, ())
        weights: dict[str, Any] = {"conv_bias": None}
        for name, array in raw.items():
            weights[name] = held(array, torch.float32) if name in fp32 else held(array)
        if sizes.recurrent:
            return DeltaLayer(weights, sizes, self._operators)
        return MlpLayer(weights, sizes)

    def caches(
        self, slots: int, window: Any, state: Any, ring: int | None, drafts: int = 1
    ) -> list[Cache]:
        """Make zeros for so many slots; of MLPs there is nothing in them.

        **Arguments:** as of `Network.caches`; there is no ring.
        """
        import torch

        assert ring is None
        zeros = lambda shape, dtype: torch.zeros(
            (slots, *shape), dtype=dtype, device=self._device
        )
        found = []
        for layer in self.layers:
            sizes = layer.sizes
            if not sizes.recurrent:
                found.append(Cache(None, None))
                continue
            channels, heads = map(
                len, (layer.weights["conv_weight"], layer.weights["A_log"])
            )
            kept = zeros((sizes.d_conv - 2 + drafts, channels), self._window or window)
            shape = heads, sizes.value_dim, sizes.key_dim
            found.append(Cache(kept, zeros(shape, state)))
        return found


def refuse_other_delta(model: Model, launch: Launch) -> None:
    """Refuse a network of delta rules that is not put together here as vLLM does.

    **Raises:** `UsageError`.
    """
    config = model.config
    mixers: list[Any] = [s for s in config.sublayers if s.recurrent]
    others: list[Any] = [s for s in config.sublayers if not s.recurrent]
    why = None
    if model.layout.architecture not in FAMILIES:
        why = f"it is of {model.layout.architecture}"
    elif any(one != mixers[0] for one in mixers) or config.sublayers[0] != mixers[0]:
        why = "its mixers are not alike, or not in front"
    elif any(one.kind != "mlp" for one in others):
        kinds = sorted({one.kind for one in others} - {"mlp"})
        why = f"it has {', '.join(kinds)} beside mixers"
    elif any(
        not one.gated
        or one.activation != "silu"
        or (one.gate_multiplier, one.down_multiplier, one.out_multiplier) != (1, 1, 1)
        for one in others
    ):
        why = "its MLPs are no gated ones with silu"
    elif any(one.beside or one.keeps != 1.0 for one in config.sublayers):
        why = "its sublayers stand beside one another"
    elif not (config.embedding_multiplier == config.logits_multiplier == 1.0):
        why = "it multiplies its embedding or its logits"
    elif any(
        {*model.raw_parameters(i)} != {"norm", "up", "gate", "down"}
        for i, one in enumerate(config.sublayers)
        if one.kind == "mlp"
    ):
        why = "its MLPs have other parameters than three matrices"
    if why is not None:
        raise UsageError(
            "networks of one delta rule of Qwen3-Next, Qwen3.5 or Kimi Linear and "
            f"gated MLPs alone are run on vLLM's operators, and {why}",
            hint="--measure vllm_emulated follows vLLM's flow for the others",
        )
    if launch.ring is not None or launch.flashinfer:
        raise UsageError(
            "ReplaySSM and FlashInfer's step are of Mamba-2",
            hint="leave out --use-replayssm and --mamba-backend",
        )


def network_of(
    model: Model, dtype: Any, operators: Operators, launch: Launch
) -> Network:
    """Put a network together on a device.

    **Raises:** `UsageError` for one that is not put together here as vLLM does.
    """
    if not {one.kind for one in model.config.sublayers} & DELTA:
        refuse_others(model)
        return Network(model, dtype, operators, launch.eager)
    refuse_other_delta(model, launch)
    return DeltaNetwork(model, dtype, operators, launch)
