"""Where parameters lie: stored names and shapes, as transformers has them.

A family is described by sizes and, for each sublayer, by a table of its parameters.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, NamedTuple

from .. import sublayers
from .._errors import CorruptCheckpointError
from .files._files import disagreeing, quote


class Part(NamedTuple):
    """Where a parameter lies, and how it is made of what is stored there."""

    name: str | tuple[str, ...]
    """Stored name; several of one shape are stacked along a new first axis."""
    shape: tuple[int, ...]
    """As stored."""
    take: Callable[[Any], Any] | None = None
    """From the stored array to the canonical one; None where they are the same."""
    rows: tuple[int, ...] | None = None
    """Of each of several that are joined along their first axis, not stacked."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every stored name."""
        return (self.name,) if isinstance(self.name, str) else self.name

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every stored name and its shape."""
        if self.rows is None:
            return dict.fromkeys(self.names, self.shape)
        own = zip(self.names, self.rows, strict=True)
        return {name: (rows, *self.shape[1:]) for name, rows in own}

    def read(self, stored: Callable[[str], Any]) -> Any:
        """Make the parameter of what `stored` reads by name."""
        import numpy as np

        arrays = [stored(name) for name in self.names]
        if self.rows is not None:
            array = np.concatenate(arrays)
        else:
            array = arrays[0] if isinstance(self.name, str) else np.stack(arrays)
        return array if self.take is None else self.take(array)


class TopNames(NamedTuple):
    """Stored names of what stands around the sublayers."""

    embedding: str
    final_norm: str | None
    head: str
    inside: tuple[str, ...]
    """Beginnings of the names that belong to the model."""
    final_norm_bias: str | None = None
    embedding_norm: str | None = None
    embedding_norm_bias: str | None = None

    @property
    def norms(self) -> tuple[str | None, ...]:
        """Weights and biases of the norms around the sublayers."""
        own = self.embedding_norm, self.embedding_norm_bias
        return (*own, self.final_norm, self.final_norm_bias)


class Described(NamedTuple):
    """What a family's reader makes of a checkpoint."""

    config: "sublayers.NetworkConfig"
    names: TopNames
    parts: Sequence[dict[str, Part]]
    """The parameters of each sublayer, by canonical name."""
    ignored: Sequence[str] = ()
    """Stored names that the model has no use for, and that are no error."""
    layers: int | None = None
    """How many config.json counts, where that is not the number of sublayers."""


def top_names(
    config: "sublayers.NetworkConfig",
    root: str,
    embedding: str,
    norm: str,
    head: str = "lm_head",
) -> TopNames:
    """Names around the layers of a model whose own begin with `root`."""
    embedded = f"{root}.{embedding}.weight"
    return TopNames(
        embedding=embedded,
        final_norm=f"{root}.{norm}.weight",
        head=embedded if config.tie_embeddings else f"{head}.weight",
        inside=(f"{root}.",),
    )


def shape_of(name: str, stored: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape of a tensor; a `CorruptCheckpointError` where there is none."""
    if name not in stored:
        raise CorruptCheckpointError(
            f"no tensor {quote(name)}", hint="is the checkpoint whole?"
        )
    return stored[name].shape


def named(stored: Container[str], *names: str) -> str:
    """The first of these names that is stored; the first of them where none is."""
    return next((name for name in names if name in stored), names[0])


def inside_of(stored: Container[str], leaf: str, *prefixes: str) -> str:
    """The first prefix with which this name is stored; the first where none is."""
    name = named(stored, *(f"{prefix}{leaf}" for prefix in prefixes))
    return name.removesuffix(leaf)


def ending(stored: Mapping[str, Any], *ends: str) -> list[str]:
    """The names of buffers that training left behind."""
    return [name for name in stored if name.endswith(ends)]


def rows(start: int, stop: int) -> Callable[[Any], Any]:
    """Rows `start` to `stop` of a tensor that holds several parameters."""
    return lambda array: array[start:stop]


def rows_of_each(groups: int, start: int, stop: int | None) -> Callable[[Any], Any]:
    """Rows `start` to `stop` of each of so many equal groups of rows."""

    def take(array: Any) -> Any:
        grouped = array.reshape(groups, -1, *array.shape[1:])
        return grouped[:, start:stop].reshape(-1, *array.shape[1:])

    return take


def gate_and_up(hidden: int, names: str = "gate up") -> dict[str, tuple[int, int]]:
    """The rows of both in one tensor, the first of `names` first."""
    first, second = names.split()
    return {first: (0, hidden), second: (hidden, 2 * hidden)}


def without_middle_axis(array: Any) -> Any:
    """A depthwise convolution's weight, (channels, 1, taps) to (channels, taps)."""
    return array[:, 0, :]


def conv_parts(
    stored: Mapping[str, Any], prefix: str, channels: int, taps: int
) -> dict[str, Part]:
    """A depthwise convolution over queries, keys and values without a bias, whole or in
    three tensors whose rows mean something only when they are joined: transformers
    saves it in thirds, wherever these fall.

    **Raises:** `CorruptCheckpointError` where the three have not that many rows.
    """
    shape = (channels, 1, taps)
    if (whole := f"{prefix}conv1d.weight") in stored:
        return {"conv_weight": Part(whole, shape, without_middle_axis)}
    names = tuple(f"{prefix}{part}_conv1d.weight" for part in "qkv")
    own = tuple(sum(shape_of(name, stored)[:1]) for name in names)
    if sum(own) != channels:
        raise disagreeing(
            f"{', '.join(map(quote, names))} have {', '.join(map(str, own))} rows;"
            f" config.json asks for {channels} in all"
        )
    return {"conv_weight": Part(names, shape, without_middle_axis, own)}


def under(prefix: str, parts: dict[str, Part]) -> dict[str, Part]:
    """The parts with a prefix before their stored names."""
    own = lambda part: (
        f"{prefix}{part.name}"
        if isinstance(part.name, str)
        else tuple(f"{prefix}{name}" for name in part.name)
    )
    return {key: part._replace(name=own(part)) for key, part in parts.items()}


def norm_parts(name: str | None, width: int, centred: bool = False) -> dict[str, Part]:
    """The weight of a norm, and its bias where it is a LayerNorm; None: no norm."""
    if name is None:
        return {}
    parts = {"norm": Part(f"{name}.weight", (width,))}
    if centred:
        parts["norm_bias"] = Part(f"{name}.bias", (width,))
    return parts


def linear_parts(
    key: str,
    name: str,
    shape: tuple[int, int],
    stored: Container[str],
    take: Callable[[Any], Any] | None = None,
) -> dict[str, Part]:
    """A matrix, and its bias where one is stored: `q_proj` and `q_bias`."""
    parts = {key: Part(f"{name}.weight", shape, take)}
    if f"{name}.bias" in stored:
        bias = f"{key.removesuffix('_proj')}_bias"
        parts[bias] = Part(f"{name}.bias", shape[:1], take)
    return parts


def mamba1_parts(
    c: "sublayers.Mamba1Sizes",
    stored: Container[str],
    prefix: str,
    norm: str,
    mixer_norms: bool = False,
) -> dict[str, Part]:
    """The parameters of a Mamba-1 mixer and the norm before it.

    Rows of in_proj are x then z, those of x_proj dt, B, C.

    **Arguments:**

    - `prefix`: of the mixer's names. `norm`: the norm's name.
    - `mixer_norms`: whether the norms over dt, B and C have weights.
    """
    del stored
    conv = Part("conv1d.weight", (c.d_inner, 1, c.d_conv), without_middle_axis)
    parts = {
        "in_proj": Part("in_proj.weight", (2 * c.d_inner, c.d_model)),
        "conv_weight": conv,
        "x_proj": Part("x_proj.weight", (c.dt_rank + 2 * c.d_state, c.d_inner)),
        "dt_proj": Part("dt_proj.weight", (c.d_inner, c.dt_rank)),
        "dt_bias": Part("dt_proj.bias", (c.d_inner,)),
        "A_log": Part("A_log", (c.d_inner, c.d_state)),
        "D": Part("D", (c.d_inner,)),
        "out_proj": Part("out_proj.weight", (c.d_model, c.d_inner)),
    }
    if c.conv_bias:
        parts["conv_bias"] = Part("conv1d.bias", (c.d_inner,))
    if c.proj_bias:
        parts["in_proj_bias"] = Part("in_proj.bias", (2 * c.d_inner,))
        parts["out_proj_bias"] = Part("out_proj.bias", (c.d_model,))
    if mixer_norms:
        parts["dt_norm"] = Part("dt_layernorm.weight", (c.dt_rank,))
        parts["B_norm"] = Part("b_layernorm.weight", (c.d_state,))
        parts["C_norm"] = Part("c_layernorm.weight", (c.d_state,))
    return norm_parts(norm, c.d_model, c.norm_centred) | under(prefix, parts)


def mamba2_parts(
    c: "sublayers.Mamba2Sizes", stored: Mapping[str, Any], prefix: str, norm: str
) -> dict[str, Part]:
    """The parameters of a Mamba-2 mixer and the norm before it.

    Rows of in_proj are z, x, B, C, dt; channels of the conv x, B, C. D is one a head,
    or one a channel where it is stored so.

    **Arguments:**

    - `prefix`: of the mixer's names. `norm`: the norm's name.
    """
    conv = c.d_inner + 2 * c.groups * c.d_state
    in_rows = c.d_inner + conv + c.heads
    d_stored = stored.get(f"{prefix}D")
    own = d_stored is not None and d_stored.shape == (c.d_inner,)
    parts = {
        "in_proj": Part("in_proj.weight", (in_rows, c.d_model)),
        "conv_weight": Part("conv1d.weight", (conv, 1, c.d_conv), without_middle_axis),
        "dt_bias": Part("dt_bias", (c.heads,)),
        "A_log": Part("A_log", (c.heads,)),
        "D": Part("D", (c.d_inner,) if own else (c.heads,)),
        "out_proj": Part("out_proj.weight", (c.d_model, c.d_inner)),
    }
    if c.gate_norm:
        parts["gate_norm"] = Part("norm.weight", (c.d_inner,))
    if c.conv_bias:
        parts["conv_bias"] = Part("conv1d.bias", (conv,))
    if c.proj_bias:
        parts["in_proj_bias"] = Part("in_proj.bias", (in_rows,))
    if c.proj_bias if c.out_bias is None else c.out_bias:
        parts["out_proj_bias"] = Part("out_proj.bias", (c.d_model,))
    return norm_parts(norm, c.d_model, c.norm_centred) | under(prefix, parts)


def attention_parts(
    a: "sublayers.AttentionSizes",
    stored: Container[str],
    prefix: str,
    norm: str | None = None,
) -> dict[str, Part]:
    """Parameters named q_proj, k_proj, v_proj, o_proj, with biases where stored."""
    width = a.width or a.d_model
    inner, kv = a.heads * a.head_dim, a.kv_heads * a.head_dim
    parts = norm_parts(norm, width)
    takes = dict.fromkeys("qkvo")
    if a.gates:
        # a head's gate lies behind its queries, in the same tensor
        takes["q"] = rows_of_each(a.heads, 0, a.head_dim)
        shape, take = (2 * inner, width), rows_of_each(a.heads, a.head_dim, None)
        parts |= linear_parts("g_proj", f"{prefix}q_proj", shape, stored, take)
    for name, shape in (
        ("q", (2 * inner if a.gates else inner, width)),
        *(("k", (kv, width)), ("v", (kv, width)), ("o", (a.d_model, inner))),
    ):
        where = f"{prefix}{name}_proj"
        parts |= linear_parts(f"{name}_proj", where, shape, stored, takes[name])
    return parts


def mlp_parts(
    m: "sublayers.MlpSizes",
    stored: Container[str],
    prefix: str,
    norm: str | None = None,
) -> dict[str, Part]:
    """Parameters named gate_proj, up_proj, down_proj, with biases where stored."""
    parts = norm_parts(norm, m.d_model)
    for name in ("up", "gate") if m.gated else ("up",):
        shape = (m.d_hidden, m.d_model)
        parts |= linear_parts(name, f"{prefix}{name}_proj", shape, stored)
    shape = (m.d_model, m.d_hidden)
    return parts | linear_parts("down", f"{prefix}down_proj", shape, stored)


def fused_mlp_parts(
    m: "sublayers.MlpSizes",
    both: str,
    down: str,
    *,
    order: str = "gate up",
    stored: Container[str] = (),
) -> dict[str, Part]:
    """Gate and up in one tensor, in this order; with biases where `stored` has them."""
    parts = linear_parts("down", down, (m.d_model, m.d_hidden), stored)
    for key, place in gate_and_up(m.d_hidden, order).items():
        shape = (2 * m.d_hidden, m.d_model)
        parts |= linear_parts(key, both, shape, stored, rows(*place))
    return parts


EXPERT_NAMES = {name: f"{name}_proj" for name in ("up", "gate", "down")}


def expert_parts(
    e: "sublayers.ExpertsSizes",
    stored: Container[str],
    prefix: str,
    names: Mapping[str, str] = EXPERT_NAMES,
) -> dict[str, Part]:
    """Experts stored one by one under these names, or together with gate and up in one
    tensor."""
    width, hidden = e.width or e.d_model, e.d_hidden
    if f"{prefix}down_proj" in stored:
        if e.gated:
            return joined_experts(e, f"{prefix}gate_up_proj", f"{prefix}down_proj")
        return {
            "down": Part(f"{prefix}down_proj", (e.experts, width, hidden)),
            "up": Part(f"{prefix}up_proj", (e.experts, hidden, width)),
        }
    shapes = {"up": (hidden, width), "down": (width, hidden)}
    if e.gated:
        shapes["gate"] = (hidden, width)
    return {
        name: Part(
            tuple(f"{prefix}{i}.{names[name]}.weight" for i in range(e.experts)), shape
        )
        for name, shape in shapes.items()
    }


def joined_experts(
    e: "sublayers.ExpertsSizes", both: str, down: str
) -> dict[str, Part]:
    """All experts in two tensors, gate and up in one: (experts, rows, columns)."""
    width, hidden = e.width or e.d_model, e.d_hidden
    parts = {"down": Part(down, (e.experts, width, hidden))}
    for name, place in gate_and_up(hidden).items():
        middle = lambda array, place=place: array[:, slice(*place)]
        parts[name] = Part(both, (e.experts, 2 * hidden, width), middle)
    return parts
