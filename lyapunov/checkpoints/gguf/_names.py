"""Handing a file's tensors out under the names that transformers has for them."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..._errors import CorruptCheckpointError, UnsupportedCheckpointError
from ..files._files import listing, quote
from ..quantised._tensor import Format
from ._changes import (
    Change,
    Source,
    halves_apart,
    joined,
    log_of_negative,
    made,
    reshaped,
    taken,
    with_middle_axis,
)
from ._kinds import demand_readable
from ._tensors import GgufTensor


@dataclass(frozen=True)
class ScaledTensor:
    """Multiply a tensor by a scale that the file holds beside it (NVFP4).

    **Arguments:**

    - `scale`: (1), or (experts) of as many matrices.
    """

    stored: GgufTensor
    scale: GgufTensor

    @property
    def name(self) -> str:
        """Name it as the file does."""
        return self.stored.name

    @property
    def kinds(self) -> tuple[str, ...]:
        """Name the kind that it is stored in."""
        return self.stored.kinds

    @property
    def format(self) -> Format | None:
        """Say how its blocks are stored; None where it has none."""
        return self.stored.format

    @property
    def stored_bytes(self) -> int:
        """Bytes in the file."""
        return self.stored.stored_bytes + self.scale.stored_bytes

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return self.stored.shape

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def dtype(self) -> str:
        """How it is stored, in words; it is read in fp64."""
        return self.stored.dtype

    def read(self) -> np.ndarray:
        """Read the whole tensor; the product is taken in fp64."""
        scale = self.scale.read().astype(np.float64)
        return self.stored.read() * scale.reshape(-1, *(1,) * (len(self.shape) - 1))

    def read_rows(self, start, stop: int | None = None) -> np.ndarray:
        """Read rows `start` to `stop` of axis 0, or the rows that an array names."""
        if self.scale.size > 1:
            whole = self.read()
            return whole[start] if stop is None else whole[start:stop]
        scale = self.scale.read().astype(np.float64)
        return self.stored.read_rows(start, stop) * scale


class Names:
    """Take each tensor of a file once; what nobody took is refused.

    **Arguments:**

    - `shown`: the file, for messages.
    """

    def __init__(self, tensors: Mapping[str, GgufTensor], shown: str):
        self.found: dict[str, Any] = {}
        """By the names of transformers."""
        self._tensors = tensors
        self._taken: set[str] = set()
        self._shown = shown

    def has(self, name: str) -> bool:
        """Tell whether the file has a tensor of this name."""
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Tell the shape of a tensor.

        **Raises:** `CorruptCheckpointError` where there is none.
        """
        return self._stored(name).shape

    def source(self, name: str) -> Source:
        """Take a tensor, with the scale beside it where there is one.

        **Raises:** `CorruptCheckpointError` where there is no such tensor;
        as `demand_readable`.
        """
        one = self._stored(name)
        self._taken.add(name)
        demand_readable(one.kind, f"{self._shown}: {quote(name)}")
        beside = name.removesuffix(".weight")
        # what activations are quantised by is an execution's
        self._taken.add(f"{beside}.input_scale")
        scale = self._tensors.get(f"{beside}.scale")
        if scale is None or not name.endswith(".weight"):
            return one
        self._taken.add(scale.name)
        experts = one.shape[:1] if len(one.shape) == 3 else ()
        if scale.shape not in ((1,), experts):
            raise CorruptCheckpointError(
                f"{self._shown}: {quote(scale.name)} has the shape {scale.shape}, and"
                f" {quote(name)} {one.shape}",
                hint="take all weights from the same file",
            )
        return ScaledTensor(one, scale)

    def put(self, ours: str, *theirs: str, change: Change | None = None) -> None:
        """Hand out tensors under one name, changed where they are stored otherwise."""
        sources = [self.source(name) for name in theirs]
        if change is not None:
            self.found[ours] = made(sources, change)
        else:
            (self.found[ours],) = sources

    def put_if(self, ours: str, theirs: str, change: Change | None = None) -> None:
        """Hand a tensor out if it is there."""
        if self.has(theirs):
            self.put(ours, theirs, change=change)

    def leave(self, beginnings: Iterable[str]) -> None:
        """Take what begins so, for no use."""
        starts = tuple(beginnings)
        self._taken |= {name for name in self._tensors if name.startswith(starts)}

    def demand_all_taken(self) -> None:
        """Refuse tensors that the model would have to use and that nobody took.

        **Raises:** `UnsupportedCheckpointError` that names them.
        """
        left = [name for name in self._tensors if name not in self._taken]
        if left:
            raise UnsupportedCheckpointError(
                f"{self._shown} has {len(left)} tensors that are not known here:"
                f" {listing(left)}",
                hint="check the checkpoint that it was made from",
            )

    def _stored(self, name: str) -> GgufTensor:
        if name not in self._tensors:
            raise CorruptCheckpointError(
                f"{self._shown} has no tensor {quote(name)}",
                hint="is the file whole? A model in several needs all of them",
            )
        return self._tensors[name]


def put_convolution(names: Names, inside: str, block: str) -> None:
    """A depthwise convolution, with a bias where there is one."""
    weight = f"{block}ssm_conv1d.weight"
    names.put(f"{inside}conv1d.weight", weight, change=with_middle_axis)
    names.put_if(f"{inside}conv1d.bias", f"{block}ssm_conv1d.bias")


def put_mamba1(names: Names, inside: str, block: str, norms: bool) -> None:
    """A Mamba-1 mixer; `norms`: with weights of the norms over dt, B and C."""
    put_convolution(names, inside, block)
    for ours, theirs in (
        ("in_proj.weight", "ssm_in.weight"),
        ("x_proj.weight", "ssm_x.weight"),
        ("dt_proj.weight", "ssm_dt.weight"),
        ("dt_proj.bias", "ssm_dt.bias"),
        ("D", "ssm_d"),
        ("out_proj.weight", "ssm_out.weight"),
    ):
        names.put(f"{inside}{ours}", f"{block}{theirs}")
    shape = names.shape(f"{block}ssm_a")
    names.put(f"{inside}A_log", f"{block}ssm_a", change=log_of_negative(*shape))
    for one in ("dt", "b", "c") if norms else ():
        names.put(f"{inside}{one}_layernorm.weight", f"{block}ssm_{one}_norm.weight")


def put_mamba2(names: Names, inside: str, block: str) -> None:
    """A Mamba-2 mixer, whose A and D are columns and whose norm lies in groups."""
    put_convolution(names, inside, block)
    names.put(f"{inside}in_proj.weight", f"{block}ssm_in.weight")
    names.put(f"{inside}dt_bias", f"{block}ssm_dt.bias")
    names.put(f"{inside}A_log", f"{block}ssm_a", change=log_of_negative(-1))
    names.put(f"{inside}D", f"{block}ssm_d", change=reshaped(-1))
    gate_norm = f"{block}ssm_norm.weight"
    names.put_if(f"{inside}norm.weight", gate_norm, change=reshaped(-1))
    names.put(f"{inside}out_proj.weight", f"{block}ssm_out.weight")


def put_attention(
    names: Names,
    inside: str,
    block: str,
    heads: tuple[int, int, int],
    turning: int | None = None,
    *,
    gates: bool = False,
) -> None:
    """Queries, keys, values and the way out, with biases where they are; the first
    three in one tensor or in three.

    **Arguments:**

    - `heads`: of queries, of keys and values, and their size.
    - `turning`: channels of a head in pairs that turn together, which the converter
        laid side by side; None: it left them as they are.
    - `gates`: queries come with gates, in twice as many rows.
    """
    count, kv, size = heads
    queries = (2 if gates else 1) * count * size
    ends = {"q": queries, "k": queries + kv * size, "v": queries + 2 * kv * size}
    for suffix in ("weight", "bias"):
        whole, start = f"{block}attn_qkv.{suffix}", 0
        for one, stop in ends.items():
            own = f"{block}attn_{one}.{suffix}"
            if names.has(whole):
                source: Source = made([names.source(whole)], taken(start, stop))
            elif suffix == "weight" or names.has(own):
                source = names.source(own)
            else:
                continue
            if turning is not None and one != "v":
                own_heads = count if one == "q" else kv
                source = made([source], halves_apart(own_heads, turning))
            names.found[f"{inside}{one}_proj.{suffix}"] = source
            start = stop
    names.put(f"{inside}o_proj.weight", f"{block}attn_output.weight")
    names.put_if(f"{inside}o_proj.bias", f"{block}attn_output.bias")


def put_mlp(names: Names, inside: str, block: str, *parts: str, of: str = "") -> None:
    """Matrices of an MLP by their first word, with biases where they are.

    **Arguments:**

    - `of`: behind the names in the file, as `_shexp` for an MLP that all share.
    """
    for one in parts:
        ours, theirs = f"{inside}{one}_proj", f"{block}ffn_{one}{of}"
        names.put(f"{ours}.weight", f"{theirs}.weight")
        names.put_if(f"{ours}.bias", f"{theirs}.bias")


def put_experts(names: Names, both: str, down: str, block: str) -> None:
    """All experts in two tensors, (experts, rows, columns), gate and up in one."""
    fused = f"{block}ffn_gate_up_exps.weight"
    if names.has(fused):
        names.put(both, fused)
    else:
        parts = [f"{block}ffn_{one}_exps.weight" for one in ("gate", "up")]
        names.put(both, *parts, change=joined(1))
    names.put(down, f"{block}ffn_down_exps.weight")
