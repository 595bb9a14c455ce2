"""What is known of implementations that an audit calls wrong: their defects, by way.

Each entry was seen: by running that version, by reading its source, or by a report
that names it. Of any other version, way or place nothing is said.
"""

from dataclasses import replace
from importlib import metadata
from typing import NamedTuple

from ..implementations._ways import Variant, parse_variant
from ..results._audit import BUG, FirstViolation, KnownDefect, VariantAudit


class Defect(NamedTuple):
    """One defect of an implementation.

    **Arguments:**

    - `families`: architectures whose code has it.
    - `since`, `until`: the first and the last version in which it was seen.
    - `ways`: kinds of `Variant` that meet it.
    - `tensor`: the first one, in the order of the flow, that it spoils.
    - `what`: goes wrong. `source`: where that is written.
    """

    implementation: str
    families: tuple[str, ...]
    since: tuple[int, int]
    until: tuple[int, int]
    ways: tuple[str, ...]
    tensor: str
    what: str
    source: str


DEFECTS = (
    Defect(
        "transformers",
        ("mamba1",),
        (5, 24),
        (5, 24),
        ("chunks",),
        "gated",
        "a call over several tokens keeps the window of the convolution and starts the "
        "scan from a state of zeros, whatever the cache holds",
        "modeling_mamba.py of 5.24, whose mamba_selective_scan takes no initial state; "
        "the same in Mamba-2 was https://github.com/huggingface/transformers/issues/"
        "46032, mended by pull request 46084",
    ),
    Defect(
        "transformers",
        ("mamba1",),
        (5, 15),
        (5, 24),
        ("padded_right",),
        "conv",
        "a prompt with padding on the right leaves zeros in the cached window of the "
        "convolution, and the cached state decays over the padding",
        "https://github.com/huggingface/transformers/issues/48256, open in August 2026",
    ),
)


def known_defect(
    implementation: str,
    version: tuple[int, ...] | None,
    family: str,
    variant: Variant,
    seq: int,
    first: FirstViolation,
) -> KnownDefect | None:
    """The defect that a run met, if it is a known one of this version.

    It is known where the first thing that went wrong is the tensor that the defect
    spoils first, at the first token behind the first call.

    **Arguments:**

    - `version`: of the implementation, as (5, 24, ...); None: not known.
    - `seq`: tokens of the text.
    """
    if version is None:
        return None
    calls = variant.calls(seq)
    behind = calls[1].start if len(calls) > 1 else None
    for defect in DEFECTS:
        if (
            implementation == defect.implementation
            and variant.kind in defect.ways
            and family in defect.families
            and defect.since <= tuple(version[:2]) <= defect.until
            and (first.tensor, first.token) == (defect.tensor, behind)
        ):
            return KnownDefect(
                defect.implementation,
                _version(defect.since),
                _version(defect.until),
                defect.what,
                defect.source,
            )
    return None


def _version(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


def installed(implementation: str) -> tuple[int, ...] | None:
    """The version of an installed package, without importing it; None for none."""
    try:
        parts = metadata.version(implementation).split(".")
    except metadata.PackageNotFoundError:
        return None
    numbers = []
    for part in parts:
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)


def with_known(
    results: list[VariantAudit], implementation: str, family: str, seq: int
) -> list[VariantAudit]:
    """The runs of an installed implementation, each with what is known of its bug."""
    version = installed(implementation)
    told = []
    for result in results:
        first = result.first_violation
        known = None
        if result.verdict == BUG and first is not None:
            variant = parse_variant(result.variant)
            known = known_defect(implementation, version, family, variant, seq, first)
        told.append(replace(result, known=known))
    return told
