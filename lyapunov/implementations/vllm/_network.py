"""A network of Mamba-1 or Mamba-2 as vLLM puts it together, in torch."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ...models import Model
from .._implementation import RefusedError
from ._batch import Pass
from ._layers import Cache, Layer, Ring
from ._norms import normalised, weighted
from ._operators import Operators, launching


class Network:
    """Embedding, layers, norm and head, in one dtype.

    **Arguments:**

    - `model`: whose weights it has. `dtype`: torch's. `operators`: vLLM's.
    - `eager`: whether nothing is compiled. `layer`: what its mixers are.
    """

    def __init__(
        self,
        model: Model,
        dtype: Any,
        operators: Operators,
        eager: bool,
        layer: type[Layer] = Layer,
    ):
        import torch

        config, layout = model.config, model.layout
        device = operators.device
        held = lambda array, dtype=dtype: torch.tensor(
            np.asarray(array, np.float32), dtype=dtype, device=device
        )
        rows = config.padded_vocab_size
        self.embedding = held(layout.embedding(np.arange(rows)))
        self.head = held(layout.head(0, rows))
        self._norm = held(layout.final_norm())
        self._epsilon = config.norm_epsilon
        self._offset = config.norm_offset
        self._eager = eager
        self._device = device
        self._operators = operators
        self.kind = config.sublayers[0].kind
        self._mixer = layer
        self.layers: list[Any] = [
            self._layer(layout.layer(i), sizes, held)
            for i, sizes in enumerate(config.sublayers)
        ]

    def _layer(self, raw: dict[str, Any], sizes: Any, held: Callable) -> Any:
        """One of its layers.

        **Arguments:**

        - `raw`: parameters as they are stored. `held`: gives them as tensors.
        """
        import torch

        # once at load, of what is stored, and kept in fp32
        A_log = torch.tensor(np.asarray(raw.pop("A_log"), np.float32))
        weights: dict[str, Any] = {"conv_bias": None}
        weights |= {name: held(array) for name, array in raw.items()}
        weights["A"] = -torch.exp(A_log).to(self._device)
        return self._mixer(weights, sizes, self._operators, self._eager)

    def caches(
        self, slots: int, window: Any, state: Any, ring: int | None, drafts: int = 1
    ) -> list[Cache]:
        """Make zeros for so many slots.

        **Arguments:**

        - `window`, `state`: torch dtypes.
        - `ring`: tokens that ReplaySSM keeps; None: it is off.
        - `drafts`: tokens of the longest window of steps.
        """
        import torch

        zeros = lambda shape, dtype: torch.zeros(
            (slots, *shape), dtype=dtype, device=self._device
        )
        found = []
        for layer in self.layers:
            sizes, channels = layer.sizes, len(layer.weights["conv_weight"])
            kept = zeros((sizes.d_conv - 2 + drafts, channels), window)
            if sizes.kind == "mamba1":
                found.append(Cache(kept, zeros((sizes.d_inner, sizes.d_state), state)))
                continue
            heads, dim, own = sizes.heads, sizes.d_inner // sizes.heads, None
            if ring is not None:
                own = Ring(
                    zeros((heads, ring, dim), self.embedding.dtype),
                    zeros((heads, ring), torch.float32),
                    zeros((sizes.groups, ring, sizes.d_state), self.embedding.dtype),
                )
            shape = (heads, dim, sizes.d_state)
            scale = zeros(shape[:2], torch.float32) if state == torch.int16 else None
            found.append(Cache(kept, zeros(shape, state), own, scale))
        return found

    def copy(self, pairs: Sequence[tuple[int, int]], caches: list[Cache]) -> None:
        """Copy what slots hold into others, in all layers.

        **Arguments:**

        - `pairs`: slots, from and to.

        **Raises:** `RefusedError` where what copies them is not there.
        """
        if self._operators.copy is None:
            raise RefusedError(
                "vLLM copies blocks by a kernel of vllm/v1/worker/mamba_utils.py, "
                "which is not among its files here",
                hint="unpack it from its wheel beside them",
            )
        with launching(self._operators):
            kept = [
                held
                for cache in caches
                for held in (cache.window, cache.state)
                if held is not None  # of layers without a recurrence
            ]
            self._operators.copy(kept, pairs)

    def run(
        self, ids: Any, plans: tuple[Pass, ...], caches: list[Cache]
    ) -> Iterator[Any]:
        """What each layer stored, by site, then what the head reads.

        **Arguments:**

        - `ids`: (tokens) of all sequences. `plans`: steps in front of prefills.
        - `caches`: are written to.
        """
        hidden, residual = self.embedding[ids], None
        for layer, cache in zip(self.layers, caches, strict=True):
            normed, residual = self._normed(
                hidden, residual, layer.weights["norm"], layer.sizes.norm_epsilon
            )
            seen = {"norm": normed, "residual": residual}
            hidden = layer.mixer(normed, plans, cache, seen)
            yield seen | {"out": hidden}
        normed, residual = self._normed(hidden, residual, self._norm, self._epsilon)
        yield normed

    def _normed(self, hidden: Any, residual: Any, weight: Any, epsilon: float):
        """The norm of the stream, and the stream as it is stored.

        Compiled, the norm reads the sum before it is stored
        (`ir.ops.fused_add_rms_norm`); the C kernel of eager runs reads what it stored.
        """
        dtype = hidden.dtype
        if residual is None:
            stored, wide = hidden, hidden.float()
        else:
            wide = hidden.float() + residual.float()
            stored = wide.to(dtype)
        read = stored.float() if self._eager else wide
        hat = normalised(read, epsilon)
        if self._offset:
            weight = weight.float() + self._offset
        return weighted(hat, weight, dtype, self._eager), stored
