"""The columns of a check's tables: what of a sublayer is shown, and how."""

import dataclasses
import functools
from collections.abc import Callable, Container, Sequence
from typing import Any

from lyapunov.report import _words as words
from lyapunov.report._sections import Column, Form, as_it_is, undigited, whole
from lyapunov.report._sentences import percent
from lyapunov.results._check import LayerDivergence, LayerExponents, OutputDivergence


def of(path: str) -> Callable[[Any], Any]:
    """A field of a row, or of a part of it: None where the part is missing."""

    def value(row: Any) -> Any:
        for name in path.split("."):
            row = None if row is None else getattr(row, name)
        return row

    return value


def looked_for(columns: Sequence[Column], left_out: Container[str]) -> list[Column]:
    """The columns of figures that somebody looked for."""
    return [column for column in columns if column.figure not in left_out]


def within(part: Callable[[Any], Any], columns: Sequence[Column]) -> list[Column]:
    """Columns of a part of a row, which it may not have."""

    def inside(of: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def value(row: Any) -> Any:
            found = part(row)
            return None if found is None else of(found)

        return value

    return [dataclasses.replace(column, of=inside(column.of)) for column in columns]


_named = functools.partial(Column, show=as_it_is, word=True)
_count = functools.partial(Column, show=whole)
_times = functools.partial(Column, show=undigited(words.ratio))
_short = functools.partial(Column, show=undigited(words.count))
_share = functools.partial(Column, show=undigited(percent))
_paged = functools.partial(Column, forms=Form.PAGE)

LAYER = Column("#", of("layer"), as_it_is, long="layer")
KIND = _named("kind", of("kind"))
EXECUTION = _named("precision", of("precision"))
PLACE = (LAYER, KIND, _named("module", of("module"), path=True))

BOUND_LOST = (
    _named("bound lost at", of("binding_site"), figure="binding_site"),
    _share("share of radius", of("binding_share"), figure="binding_share"),
    _share("share of variance", of("sigma_share"), figure="sigma_share"),
    Column("certified radius", of("certified_l2"), figure="certified_l2"),
)

LOGITS = (
    Column("rel L2", of("measured_rel_l2")),
    Column("max", of("measured_max")),
    Column("KL mean", of("kl_mean")),
    Column("KL max", of("kl_max")),
    _count("flips", of("argmax_flips")),
    _count("ties", of("argmax_ties")),
    _count("of", of("argmax_total"), long="tokens"),
)


def margins(outputs: Sequence[OutputDivergence]) -> list[Column]:
    """The reference's margins, at the quantiles that are known."""
    known = {q for output in outputs for q in output.margin_quantiles or {}}

    def at(output: OutputDivergence, quantile: str) -> float | None:
        return (output.margin_quantiles or {}).get(quantile)

    return [
        Column(
            f"margin at {float(q):g}",
            functools.partial(at, quantile=q),
            forms=Form.WRITTEN,
        )
        for q in sorted(known, key=float)
    ]


def exponents(layers: Sequence[LayerExponents]) -> list[Column]:
    """Exponents, memory and what they come from."""
    columns = [
        Column("λ max", of("max"), alarm=lambda value: not value < 0),
        _paged("± stderr", of("stderr")),
        Column("λ min", of("min")),
        _short("memory p50", of("memory_tokens.p50"), forms=Form.PAGE),
        Column("memory p90", of("memory_tokens"), undigited(words.memory)),
        _short("memory max", of("memory_tokens.max"), forms=Form.PAGE),
        _paged("decay min", of("decay_min")),
        _paged("decay max", of("decay_max"), undigited(words.decay)),
        _paged("dt min", of("dt_min")),
        _paged("dt mean", of("dt_mean")),
        _paged("dt max", of("dt_max")),
        _paged("|state| max", of("max_abs_state")),
        _paged("|output| max", of("max_abs_output")),
    ]
    if any(row.heads for row in layers):
        columns += [
            _paged("λ max ≥", functools.partial(_bracket, end="lower")),
            _paged("λ max ≤", functools.partial(_bracket, end="upper")),
            _paged("least left", of("heads.least_left")),
        ]
    if any(row.growth for row in layers):
        columns += [
            _paged("gain", of("growth.gain")),
            _paged("1 token later", lambda row: _response(row, 1)),
            _paged("farthest", lambda row: _response(row, None)),
        ]
    return [*columns, _paged("note", _remarks, as_it_is, word=True)]


def _bracket(row: LayerExponents, end: str) -> float | None:
    """An end of the bracket of the head whose exponent is the largest."""
    if row.heads is None:
        return None
    return getattr(row.heads, end)[row.heads.max.index(max(row.heads.max))]


def _response(row: LayerExponents, index: int | None) -> float | None:
    """The growth after so many tokens, or as far as it was followed."""
    if row.growth is None:
        return None
    last = len(row.growth.response) - 1
    return row.growth.response[last if index is None else min(index, last)]


def _remarks(row: LayerExponents) -> str:
    told = [row.reason or "", *row.suspicions]
    if row.memory_tokens and row.memory_tokens.exceeds_sample:
        told.append("memory longer than the sample")
    return "; ".join(text for text in told if text)


def growth(distances: Sequence[int]) -> list[Column]:
    """How perturbations grow through a kind of sublayer."""

    def after(row: words.GrowthRow, distance: int) -> float:
        return row.response[distance]

    return [
        Column("gain", of("gain")),
        *(
            Column(f"+{distance}", functools.partial(after, distance=distance))
            for distance in distances
        ),
    ]


def divergences() -> list[Column]:
    """What an execution did to a sublayer, beside its bounds."""
    return [
        Column("rel L2", lambda row: words.relative(row.local_l2, row.reference_l2)),
        _paged("local L2", of("local_l2")),
        _paged("local max", of("local_max")),
        _paged("accumulated L2", of("accumulated_l2")),
        _paged("weights alone L2", of("weights_l2")),
        _paged("T1 bound L2", of("bound_t1_l2"), figure="bound_t1_l2"),
        _times(
            "T1",
            of("bound_t1_ratio"),
            long="T1 bound/measured",
            figure="bound_t1_ratio",
        ),
        _times(
            "free roundings",
            of("floor_t1_ratio"),
            forms=Form.WRITTEN,
            figure="floor_t1_ratio",
        ),
        _times(
            "T0 bound/measured",
            of("bound_t0_ratio"),
            forms=Form.PAGE,
            figure="bound_t0_ratio",
        ),
        _paged("T1 radius L2", of("radius_l2"), figure="radius_l2"),
        _above(undigited(words.count), Form.TERMINAL),
        _above(whole, Form.WRITTEN),
        _count(
            "elements",
            of("elements_total"),
            forms=Form.PAGE,
            figure="elements_total",
        ),
        _count(
            "without a finite bound",
            of("elements_unbounded"),
            forms=Form.PAGE,
            figure="elements_unbounded",
        ),
        _paged("largest stored", _largest),
        _paged("stagnation", of("stagnation"), undigited(_stagnation)),
        *(dataclasses.replace(column, forms=Form.PAGE) for column in BOUND_LOST),
    ]


def _above(show: Callable[[Any, int], str], forms: Form) -> Column:
    """Elements above their bound; the row itself is the value, which says of how many
    there is one."""

    def text(row: LayerDivergence, digits: int) -> str:
        if not (row.elements_total or row.violations):
            return words.NOTHING
        return words.above(row, show(row.violations or 0, digits))

    return Column(
        "viol",
        lambda row: row,
        lambda row, digits: words.NOTHING if row is None else text(row, digits),
        alarm=lambda row: bool(row.violations),
        figure="violations",
        long="above bound",
        forms=forms,
    )


def _largest(row: LayerDivergence) -> float | None:
    return max((row.max_abs_stored or {}).values(), default=None)


def _stagnation(value: float | None) -> str:
    return words.NOTHING if value is None else f"{value:.2%}"


CHANGE = (
    Column("effect L2", of("local_l2")),
    Column("effect max", of("local_max")),
    Column("bound L2", of("bound_l2"), figure="bound_l2"),
    _times("bound/effect", of("bound_ratio"), figure="bound_ratio"),
    _times("free roundings", of("floor_ratio"), figure="floor_ratio"),
    _count(
        "above bound",
        of("violations"),
        alarm=lambda value: value > 0,
        figure="violations",
    ),
    _count(
        "without a finite bound", of("elements_unbounded"), figure="elements_unbounded"
    ),
    Column("accumulated L2", of("accumulated_l2")),
    Column("reference L2", of("reference_l2")),
    _named(
        "weights moved",
        lambda row: ", ".join(
            f"{name} {words.number(moved)}" for name, moved in row.weights.items()
        ),
    ),
)
"""What a changed weight set does to a sublayer."""
