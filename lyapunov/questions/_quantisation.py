"""What a quantised checkpoint stores how, and what is not followed of it."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..checkpoints._network import NetworkLayout
from ..checkpoints.quantised._recognise import Quantisation
from ..checkpoints.quantised._tensor import coded
from ..findings._catalogue import finding_of
from ..implementations import Execution
from ..results._check import Finding
from ..results._quantised import QuantisationFacts, StoredMatrix
from ..sublayers.groups import OUTSIDE
from ._activations import activation_lines


VECTORS = "vectors"
_HELD = (
    "weights that are stored as codes are code times scale, in fp64 and rounded nowhere"
    " in the reference; an execution rounds each once to its own format of weights, as"
    " kernels do that dequantise to it in front of a product (one that multiplies codes"
    " and scales its sums instead rounds elsewhere)"
)


def quantisation_of(layout: NetworkLayout) -> Quantisation | None:
    """What is to be said of a quantised checkpoint; None of any other."""
    return layout.checkpoint.quantisation


def quantisation_facts(
    layout: NetworkLayout, followed: str | None = None
) -> QuantisationFacts | None:
    """How each kind's matrices are stored; None where nothing is quantised.

    **Arguments:**

    - `followed`: what executions quantise activations to, in words.
    """
    told = quantisation_of(layout)
    if told is None:
        return None
    rows = _rows(layout)
    return QuantisationFacts(
        method=told.method,
        quantised_share=sum(row.share for row in rows if row.scales is not None),
        activations=told.activations,
        cache=told.cache,
        kept=list(told.kept),
        matrices=rows,
        followed=followed if told.activations else None,
    )


def _rows(layout: NetworkLayout) -> list[StoredMatrix]:
    """Matrices by kind, name and format, in the order of the network."""
    sublayers: Counter[tuple[str, str, str, str | None]] = Counter()
    parameters: Counter[tuple[str, str, str, str | None]] = Counter()
    seen: set[str] = set()
    for kind, place in _places(layout):
        here: dict[tuple[str, str, str, str | None], int] = {}
        for names, matrix in place.items():
            for name in names:
                if name in seen:
                    continue
                seen.add(name)
                tensor = layout.checkpoint.tensor(name)
                format_, scales = _format(tensor)
                axes = [axis for axis in tensor.shape if axis != 1]
                called = matrix if len(axes) > 1 else VECTORS
                key = (kind, called, format_, scales)
                here[key] = here.get(key, 0) + math.prod(tensor.shape)
        for key, count in here.items():
            sublayers[key] += 1
            parameters[key] += count
    return [
        StoredMatrix(*key, sublayers[key], count, count / layout.n_params)
        for key, count in parameters.items()
    ]


def _places(
    layout: NetworkLayout,
) -> Iterator[tuple[str, dict[tuple[str, ...], str]]]:
    """The kind of each place, and its parameters by the stored names they lie in."""
    names = layout.names
    # a tied head is the embedding
    yield OUTSIDE, {(names.head,): "head", (names.embedding,): "embedding"}
    for sizes, parts in zip(layout.config.sublayers, layout.parts, strict=True):
        joined: dict[tuple[str, ...], list[str]] = {}
        for key, part in parts.items():
            joined.setdefault(part.names, []).append(key)
        yield sizes.kind, {stored: "+".join(keys) for stored, keys in joined.items()}
    yield OUTSIDE, {(name,): VECTORS for name in names.norms if name is not None}


def _format(tensor) -> tuple[str, str | None]:
    found = coded(tensor)
    if found is not None and found.format is not None:
        return found.format.element, found.format.scaling
    return tensor.dtype, None


def quantisation_assumptions(
    layout: NetworkLayout,
    executions: Sequence[Execution] = (),
    measure: str = "runs",
    activations: str | None = None,
) -> list[str]:
    """What figures on a quantised checkpoint rest on, and on one whose files say less
    than a model needs, and what they leave out.

    **Arguments:**

    - `executions`, `measure`, `activations`: as `activation_lines`.
    """
    told = quantisation_of(layout)
    lines = list(layout.checkpoint.assumptions)
    if told is None:
        return lines
    lines.append(told.held or _HELD)
    lines += activation_lines(layout, executions, measure, activations)
    if told.cache:
        lines.append(
            "not followed: the configuration has the key-value cache quantised; keys"
            " and values are kept here in the execution's format"
        )
    return lines


def quantisation_findings(layout: NetworkLayout) -> list[Finding]:
    """LYA024 for each thing that is to be said of a quantised checkpoint."""
    told = quantisation_of(layout)
    if told is None:
        return []
    return [
        replace(finding_of("LYA024", None, note.text), hint=note.hint)
        for note in told.notes
    ]
