"""One token a sequence through a network whose caches are already there.

Random weights and random caches in bf16: what a step costs does not depend on what
they hold, and a prompt of 128k tokens need not be read to time the token after it.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from .shapes import Shape


_EPSILON = 1e-5


@dataclass(frozen=True)
class Kernel:
    """A way to attend: one of torch's kernels, None being its own choice.

    `folded`: the queries that share keys are handed over as so many tokens, which
    is the same where nothing is masked, and reads the keys once.
    """

    backend: str | None
    folded: bool

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.backend or 'default'}{', folded' if self.folded else ''}"

    def attend(self, q: Any, keys: Any, values: Any) -> torch.Tensor:
        """q: batch x heads x head_dim; returns the same."""
        groups = keys.shape[1]
        q = q.unflatten(1, (groups, -1)) if self.folded else q[:, :, None]
        chosen: Any = nullcontext()
        if self.backend:
            chosen = sdpa_kernel(getattr(SDPBackend, self.backend))
        with chosen:
            found = F.scaled_dot_product_attention(
                q, keys, values, enable_gqa=not self.folded
            )
        return found.flatten(1, 2)


KERNELS = tuple(
    Kernel(backend, folded)
    for backend in (None, "FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION")
    for folded in (True, False)
)


class Attention(torch.nn.Module):
    """Queries of one token against all keys. Rotary positions are left out.

    The cache is two tensors, batch x groups x context x head_dim; the token's own keys
    and values are written at its end.
    """

    def __init__(self, shape: Shape, **made: Any) -> None:
        super().__init__()
        self.shape = shape
        rows = (shape.heads + 2 * shape.groups) * shape.head_dim
        self.in_proj = torch.nn.Linear(shape.width, rows, bias=False, **made)
        inner = shape.heads * shape.head_dim
        self.out_proj = torch.nn.Linear(inner, shape.width, bias=False, **made)
        self.kernel = KERNELS[0]

    def cache(self, batch: int, context: int, **made: Any) -> tuple[torch.Tensor, ...]:
        """Keys and values of a context, random."""
        sizes = (batch, self.shape.groups, context, self.shape.head_dim)
        return tuple(torch.empty(sizes, **made).normal_() for _ in range(2))

    def forward(self, x: torch.Tensor, cache: Any) -> torch.Tensor:
        """x: batch x width."""
        s, (keys, values) = self.shape, cache
        parts = [s.heads * s.head_dim, s.groups * s.head_dim, s.groups * s.head_dim]
        q, k, v = self.in_proj(x).split(parts, dim=-1)
        keys[:, :, -1] = k.unflatten(-1, (s.groups, s.head_dim))
        values[:, :, -1] = v.unflatten(-1, (s.groups, s.head_dim))
        q = q.unflatten(-1, (s.heads, s.head_dim))
        return self.out_proj(self.kernel.attend(q, keys, values).flatten(1))


class Mlp(torch.nn.Module):
    """Squared ReLU between two projections."""

    def __init__(self, shape: Shape, **made: Any) -> None:
        super().__init__()
        wide = shape.feed_forward
        self.up = torch.nn.Linear(shape.width, wide, bias=False, **made)
        self.down = torch.nn.Linear(wide, shape.width, bias=False, **made)

    def cache(self, batch: int, context: int, **made: Any) -> tuple[torch.Tensor, ...]:
        """None."""
        return ()

    def forward(self, x: torch.Tensor, cache: Any) -> torch.Tensor:
        """x: batch x width."""
        return self.down(F.relu(self.up(x)).square())


class Mamba2(torch.nn.Module):
    """mamba_ssm's step on a GPU; elsewhere the same in torch, its state in fp32.

    The cache is the window, batch x channels x conv, and the state, batch x heads x
    head_dim x state.
    """

    def __init__(self, shape: Shape, **made: Any) -> None:
        super().__init__()
        self.shape = shape
        if torch.device(made["device"]).type == "cuda":
            from mamba_ssm.modules.mamba2 import Mamba2 as Theirs

            self.theirs: Any = Theirs(
                shape.width, d_state=shape.state, d_conv=shape.conv,
                expand=shape.inner // shape.width, headdim=shape.ssm_head_dim,
                ngroups=shape.ssm_groups, layer_idx=0, **made,
            )  # fmt: skip
            return
        self.theirs = None
        heads, inner = shape.ssm_heads, shape.inner
        rows = inner + shape.conv_channels + heads
        self.in_proj = torch.nn.Linear(shape.width, rows, bias=False, **made)
        self.conv1d = torch.nn.Conv1d(
            shape.conv_channels, shape.conv_channels, shape.conv,
            groups=shape.conv_channels, **made,
        )  # fmt: skip
        self.dt_bias = torch.nn.Parameter(torch.zeros(heads, **made))
        self.A_log = torch.nn.Parameter(torch.zeros(heads, **made))
        self.D = torch.nn.Parameter(torch.ones(heads, **made))
        self.norm = torch.nn.RMSNorm(inner // shape.ssm_groups, _EPSILON, False)
        self.gain = torch.nn.Parameter(torch.ones(inner, **made))
        self.out_proj = torch.nn.Linear(inner, shape.width, bias=False, **made)

    def cache(
        self, batch: int, context: int, state: Any = None, **made: Any
    ) -> tuple[torch.Tensor, ...]:
        """A random window and state. `state`: its dtype, if another than the rest's."""
        s = self.shape
        # channels lie beside each other, as causal_conv1d wants them
        window = torch.empty((batch, s.conv, s.conv_channels), **made).normal_()
        made = made | ({"dtype": state} if state is not None else {})
        held = torch.empty((batch, s.ssm_heads, s.ssm_head_dim, s.state), **made)
        return window.transpose(1, 2), held.normal_()

    def forward(self, x: torch.Tensor, cache: Any) -> torch.Tensor:
        """x: batch x width."""
        window, state = cache
        if self.theirs is not None:
            return self.theirs.step(x[:, None], window, state)[0][:, 0]
        s = self.shape
        parts = [s.inner, s.conv_channels, s.ssm_heads]
        z, mixed, dt = self.in_proj(x).split(parts, dim=-1)
        window.copy_(torch.roll(window, -1, dims=-1))
        window[:, :, -1] = mixed
        bias: Any = self.conv1d.bias
        mixed = F.silu((window * self.conv1d.weight[:, 0]).sum(-1) + bias)
        groups = s.ssm_groups * s.state
        u, B, C = mixed.split([s.inner, groups, groups], dim=-1)
        per_head = s.ssm_heads // s.ssm_groups
        B, C = (
            one.unflatten(-1, (s.ssm_groups, s.state)).repeat_interleave(per_head, 1)
            for one in (B, C)
        )
        u = u.unflatten(-1, (s.ssm_heads, s.ssm_head_dim))
        dt = F.softplus(dt.float() + self.dt_bias.float())
        decay = torch.exp(dt * -torch.exp(self.A_log.float()))
        inflow = (dt[..., None] * u)[..., None] * B[:, :, None]
        state.copy_(decay[..., None, None] * state + inflow)
        y = (state * C[:, :, None]).sum(-1) + self.D[:, None] * u
        y = y.flatten(1).to(x.dtype) * F.silu(z)
        y = self.norm(y.unflatten(-1, (s.ssm_groups, -1))).flatten(1) * self.gain
        return self.out_proj(y)


class Step(torch.nn.Module):
    """Ids of one token a sequence to the likeliest next ones."""

    def __init__(self, shape: Shape, **made: Any) -> None:
        super().__init__()
        kinds = {"M": Mamba2, "*": Attention, "-": Mlp}
        norm: Any = torch.nn.LayerNorm if shape.layer_norm else torch.nn.RMSNorm
        one = lambda: norm(shape.width, eps=_EPSILON, **made)
        self.embedding = torch.nn.Embedding(shape.vocabulary, shape.width, **made)
        self.norms = torch.nn.ModuleList(one() for _ in shape.layers)
        self.layers = torch.nn.ModuleList(kinds[k](shape, **made) for k in shape.layers)
        self.last = one()
        self.head = torch.nn.Linear(shape.width, shape.vocabulary, bias=False, **made)

    def caches(self, batch: int, context: int, state: Any, **made: Any) -> list[Any]:
        """Of every layer. `state`: dtype of Mamba-2's states."""
        layers: Any = self.layers
        return [
            layer.cache(batch, context, state=state, **made)
            if isinstance(layer, Mamba2)
            else layer.cache(batch, context, **made)
            for layer in layers
        ]

    def forward(self, ids: torch.Tensor, caches: list[Any]) -> torch.Tensor:
        """ids: batch."""
        x = self.embedding(ids)
        for norm, layer, cache in zip(self.norms, self.layers, caches, strict=True):
            x = x + layer(norm(x), cache)
        return self.head(self.last(x)).argmax(-1)


def random_step(shape: Shape, device: torch.device, dtype: torch.dtype) -> Step:
    """A network of this shape with random weights, made where it runs."""
    with torch.no_grad():
        made = Step(shape, device=device, dtype=dtype).eval()
        for name, parameter in made.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
            elif name.endswith("A_log"):
                parameter.uniform_(0, 2.7)
    return made.requires_grad_(False)
