"""What is known of implementations that an audit calls wrong: their defects, by way.

Each implementation says its own; of any other version, way or place nothing is said.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ..implementations import AbstractImplementation
from ..implementations._ways import Variant, parse_variant
from ..results._audit import BUG, FirstViolation, KnownDefect, VariantAudit


def known_defect(
    implementation: AbstractImplementation,
    version: tuple[int, ...] | None,
    family: str,
    variant: Variant,
    seq: int,
    first: FirstViolation,
    sublayers: Iterable[Any],
) -> KnownDefect | None:
    """The defect that a run met, if it is a known one of this version.

    It is known where the first thing that went wrong is the tensor that the defect
    spoils first, at the first token that it can: that behind padding, or behind the
    first call.

    **Arguments:**

    - `version`: of the implementation, as (5, 24, ...); None: not known.
    - `seq`: tokens of the text.
    - `sublayers`: sizes of the network's.
    """
    if version is None:
        return None
    calls = variant.calls(seq)
    behind = calls[1].start if len(calls) > 1 else None
    behind = 0 if variant.kind == "padded_left" else behind
    for defect in implementation.defects:
        if (
            variant.kind in defect.ways
            and family in defect.families
            and any(
                defect.needs is None or getattr(sizes, defect.needs, None)
                for sizes in sublayers
            )
            and defect.since <= tuple(version[:2]) <= defect.until
            and (first.tensor, first.token) == (defect.tensor, behind)
        ):
            return KnownDefect(
                implementation.name,
                _version(defect.since),
                _version(defect.until),
                defect.what,
                defect.source,
            )
    return None


def _version(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


def with_known(
    results: list[VariantAudit],
    implementation: AbstractImplementation,
    family: str,
    seq: int,
    sublayers: Iterable[Any],
) -> list[VariantAudit]:
    """The runs of an installed implementation, each with what is known of its bug."""
    version = implementation.version()
    told = []
    for result in results:
        first = result.first_violation
        known = None
        if result.verdict == BUG and first is not None:
            variant = parse_variant(result.variant)
            known = known_defect(
                implementation, version, family, variant, seq, first, sublayers
            )
        told.append(replace(result, known=known))
    return told
