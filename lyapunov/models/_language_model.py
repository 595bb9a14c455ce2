"""A checkpoint's network: which flow each sublayer follows, with which parameters."""

import dataclasses
import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._errors import TokensError
from ..arithmetic import Exact, Weight
from ..arithmetic._fp64 import in_fp64
from ..arithmetic._programs import program
from ..checkpoints import NetworkLayout
from ..formats import Format
from ..sublayers.kinds import registered
from ..sublayers.norm import Norm, normalise
from ..sublayers.residual import Stream, final_norm, logits, sublayer
from ._read_ahead import ReadAhead
from ._token_ids import check_range, integer_tokens
from .held import held


# Rows of the head that are held in fp64 at once: 16 MiB at d_model 1024.
VOCABULARY_SLICE = 2048


@runtime_checkable
class ParameterFormats(Protocol):
    """Whatever says which format a parameter is held in, such as an execution."""

    def parameter_format(self, name: str) -> Format:
        """The format of the parameter of that name."""
        ...


@runtime_checkable
class Function(Protocol):
    """Whatever says what a program computes otherwise than the model."""

    @property
    def dt_limit(self) -> tuple[float, float] | None:
        """Between which dt is clipped; None: as the model says."""
        ...


class VocabularySlice(NamedTuple):
    """Hold where a slice of the vocabulary begins and ends."""

    start: int
    stop: int
    behind: Any
    """How many of its first rows the slice before it has as well: they count there. An
    array, which a compiled program takes without being made anew."""


class Sublayer(NamedTuple):
    """Hold the place, kind and flow of a mixer, attention or MLP and its norm."""

    layer: int
    kind: str
    flow: Callable
    shares: bool = False
    """Whether the next one stands beside it and reads the same stream."""
    aside: bool = False
    """Whether its output goes to the next one alone, and not into the residual."""
    embedded: bool = False
    """Whether it reads the embedding beside the stream."""


class Model:
    """Read a network from a checkpoint. Nothing is held but the present layer and the
    next, which is read while the present one is at work.

    Parameters come in fp64, rounded first to the formats that an execution holds
    them in when one is given.
    """

    def __init__(self, layout: NetworkLayout, source: str = "", checkpoint=None):
        self.layout = layout
        self.config = layout.config
        self.source = source
        self.checkpoint = checkpoint

    def __repr__(self) -> str:
        layout = self.layout
        return (
            f"Model({self.source or 'in memory'}: {layout.architecture}, "
            f"{layout.n_blocks} layers, {len(self.config.sublayers)} sublayers, "
            f"{layout.n_params:,} parameters, {layout.dtype})"
        )

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"

    @property
    def sublayers(self) -> tuple[Sublayer, ...]:
        """List all sublayers, in order.

        **Raises:** `UsageError` for one of a kind that is not registered.
        """
        sizes = [registered(one) for one in self.config.sublayers]
        shares_with_next = [one.beside for one in sizes[1:]] + [False] * bool(sizes)
        return tuple(
            Sublayer(i, one.kind, one.flow, shares, one.aside, one.embedded)
            for i, (one, shares) in enumerate(zip(sizes, shares_with_next, strict=True))
        )

    def _read_ahead(self, read: Callable[..., dict], places: Sequence) -> ReadAhead:
        """A live module's weights are in memory, and may change: nothing is read
        before it is asked for."""
        return ReadAhead(read, places, ahead=bool(self.layout.checkpoint.files))

    @cached_property
    def _layers(self) -> ReadAhead:
        return self._read_ahead(self.layout.layer, range(len(self.config.sublayers)))

    @cached_property
    def _slices(self) -> ReadAhead:
        rows = lambda of: {"head": self.layout.head(*of)}
        return self._read_ahead(rows, list(self.vocabulary_slices()))

    def raw_parameters(self, layer: int) -> dict[str, np.ndarray]:
        """Read parameters as stored; the last layer asked for stays in memory."""
        return self._layers.at(layer).raw

    @in_fp64
    def parameters(
        self,
        layer: int,
        formats: ParameterFormats | None = None,
        *,
        function: Function | None = None,
    ) -> Any:
        """Make the parameters of one sublayer in fp64, as its flow takes them.

        What formats leave as it is, is one array for all who ask for this layer.

        **Arguments:**

        - `formats`: an execution, in whose formats they are held and whose own
          function they describe.
        - `function`: an execution whose own function they describe, exactly held.
        """
        here = self._layers.at(layer)
        sizes = _as_computed(self.config.sublayers[layer], function or formats)
        get = lambda name: here.array(name, formats) if name in here.raw else None
        return registered(sizes).parameters(get)

    @in_fp64
    def arrays(self, layer: int) -> dict[str, Array]:
        """Give the stored parameters of one sublayer in fp64, by canonical name."""
        here = self._layers.at(layer)
        return {name: here.array(name, None) for name in here.raw}

    @in_fp64
    def parameters_of(self, layer: int, arrays: Mapping[str, Any]) -> Any:
        """Make what a sublayer's flow takes of arrays such as `arrays` gives."""
        return registered(self.config.sublayers[layer]).parameters(arrays.get)

    def held_exactly(self, layer: int, formats: ParameterFormats) -> bool:
        """Tell whether the execution's formats hold this layer's parameters unchanged,
        and its function is the model's."""
        here = self._layers.at(layer)
        return self.same_function(layer, formats) and all(
            here.array(name, formats) is here.array(name, None) for name in here.raw
        )

    def same_function(self, layer: int, function: Any) -> bool:
        """Tell whether an execution computes this layer as the model says it."""
        sizes = self.config.sublayers[layer]
        return _as_computed(sizes, function) == sizes

    @in_fp64
    def start(self, p: Any) -> Any:
        """Make the state before the first token of a sublayer with these parameters."""
        return _start(p)

    @in_fp64
    def embed(
        self, tokens: Int[np.ndarray, "*batch seq"], formats=None
    ) -> Float[Array, "*batch seq d_model"]:
        """Look up rows of the embedding, normalised or multiplied where the model
        does."""
        rows = self.embedding_rows(tokens, formats)
        return normalise(Exact(), rows, self.embedding_norm(formats))

    @in_fp64
    def embedding_rows(
        self, tokens: Int[np.ndarray, "*batch seq"], formats=None
    ) -> Float[Array, "*batch seq d_model"]:
        """Look up rows of the embedding, multiplied where the model does; each distinct
        token is read once."""
        distinct, place = np.unique(tokens, return_inverse=True)
        rows = held(self.layout.embedding(distinct), "embedding", formats)
        rows = rows * self.config.embedding_multiplier
        return jax.device_put(rows[place.reshape(tokens.shape)])

    @in_fp64
    def embedding_norm(self, formats=None) -> Norm | None:
        """Make the parameters of the norm of the embedding, where there is one."""
        epsilon = self.config.embedding_norm_epsilon
        if epsilon is None:
            return None
        raw = self.layout.embedding_norm(), self.layout.embedding_norm_bias()
        return Norm(*_around(raw, "embedding_norm", formats), epsilon, True)

    @in_fp64
    def final_norm(self, formats=None) -> Norm:
        """Make the parameters of the norm in front of the head."""
        raw = self.layout.final_norm(), self.layout.final_norm_bias()
        c = self.config
        return Norm(
            *_around(raw, "norm_f", formats),
            c.norm_epsilon,
            c.norm_centred,
            c.norm_offset,
        )

    @property
    def has_head(self) -> bool:
        """Tell whether there are logits."""
        return self.layout.has_head

    def vocabulary_slices(self) -> Iterator[VocabularySlice]:
        """Cut the vocabulary into slices, padding excluded.

        None where there is no head. All are of one size, so that one program takes
        them: where the size does not divide the vocabulary, the last slice begins in
        the one before.
        """
        if not self.has_head:
            return
        last = max(self.config.vocab_size - VOCABULARY_SLICE, 0)
        for start in range(0, self.config.vocab_size, VOCABULARY_SLICE):
            behind = max(start - last, 0)
            start -= behind
            stop = min(start + VOCABULARY_SLICE, self.config.vocab_size)
            yield VocabularySlice(start, stop, np.asarray(behind))

    @in_fp64
    def head(self, start: int, stop: int, formats=None) -> Weight:
        """Make rows of the head in fp64."""
        here = self._slices.at((start, stop))
        return Weight(here.array("head", formats))

    @in_fp64
    def logits(self, tokens: Int[np.ndarray, " seq"]) -> Float[Array, "seq vocab"]:
        """Run the fp64 reference forward of one sequence.

        **Arguments:**

        - `tokens`: (seq), integers below the vocabulary's size.
        """
        if not self.has_head:
            self.head(0, 1)  # which says so
        rows = integer_tokens(tokens)
        if len(rows) > 1:
            raise TokensError(
                f"tokens are {len(rows)} sequences",
                hint="one at a time: integers of shape (seq)",
            )
        check_range(rows, self.config.vocab_size)
        tokens = rows[0]
        stream = Stream.start(self.embed(tokens), self.sublayers)
        for layer in self.sublayers:
            p = self.parameters(layer.layer)
            residual, output = _forward(
                layer.flow, stream.incoming(layer), p, self.start(p)
            )
            stream = stream.after(layer, residual, output, jnp.add)
        normed = _normed(stream.residual, stream.hidden, self.final_norm())
        found = np.zeros((len(tokens), self.config.vocab_size))
        for start, stop, _ in self.vocabulary_slices():
            rows = self.head(start, stop)
            found[:, start:stop] = _logits(normed, rows, self.config.logits_end)
        return jax.device_put(found)


def _around(raw, name: str, formats) -> tuple[Any, Any]:
    """Weight and bias of a norm as they are held, where it has them."""
    weight, bias = (
        None if one is None else jax.device_put(held(one, name, formats)) for one in raw
    )
    return weight, bias


def _as_computed(sizes: Any, function: Any) -> Any:
    """The sizes with an execution's own limits of dt in place of the model's."""
    limit = getattr(function, "dt_limit", None)
    if limit is None or not hasattr(sizes, "dt_limit"):
        return sizes
    return dataclasses.replace(sizes, dt_limit=limit)


@program
def _start(p):
    return p.initial_state()


@program
def _normed(residual, hidden, p):
    return final_norm(Exact(), residual, hidden, p)


@program
def _logits(normed, rows, end):
    return logits(Exact(), normed, rows, end)


@program
def _forward(flow, incoming, p, start):
    return sublayer(Exact(), flow, incoming, p, start)[:2]
