"""Numbers and findings in words, the same in every form of the report."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lyapunov.findings._advice import layers_text
from lyapunov.findings._catalogue import CATALOGUE
from lyapunov.results._audit import AuditReport
from lyapunov.results._check import (
    Exponents,
    Finding,
    LayerDivergence,
    LayerExponents,
    MemoryTokens,
    PrecisionReport,
    ReferenceLoss,
    Report,
)
from lyapunov.results._ranking import WeightRanking


NOTHING = "–"


def number(value: float | None, digits: int = 2) -> str:
    """Short and even in width: `-1.2e-3`, `0.31`, `45`, `inf`, a dash for nothing."""
    if value is None:
        return NOTHING
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if value == 0:
        return "0"
    if 0.01 <= abs(value) < 10_000:
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
        return f"{value:.{decimals}f}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def ratio(value: float | None) -> str:
    """How many times: `45×`, `1.4×`."""
    if value is None or not math.isfinite(value):
        return number(value)
    return f"{number(value) if value < 10_000 else f'{value:.0e}'}×"


def count(value: float | None) -> str:
    """A count cut short: `312`, `1.2k`, `129M`."""
    if value is None:
        return NOTHING
    if not math.isfinite(value):
        return number(value)
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            scaled = value / unit
            return f"{scaled:.0f}{name}" if scaled >= 100 else f"{scaled:.2g}{name}"
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def decay(value: float | None) -> str:
    """A decay; near 1 its distance to 1 is what matters: `1-1.5e-3`, `1+4.0e-3`."""
    if value is None or value == 1 or not 0.99 < value < 1.01:
        return number(value)
    return f"1{'-' if value < 1 else '+'}{number(abs(1 - value))}"


def memory(value: MemoryTokens | None) -> str:
    """The 90th percentile of the effective memory, starred beyond the sample."""
    if value is None:
        return NOTHING
    return f"{count(value.p90)}{'*' if value.exceeds_sample else ''}"


def above(row: LayerDivergence, value: str) -> str:
    """Elements above their bounds, starred where some elements have no finite bound;
    a dash where none has.

    **Arguments:**

    - `value`: the number as the form at hand writes it.
    """
    if not row.elements_unbounded:
        return value
    if not row.elements_bounded and not row.violations:
        return NOTHING
    return f"{value}*"


def relative(value: float | None, reference: float | None) -> float | None:
    """A norm over the reference's; nothing where either is missing or 0."""
    if value is None or not reference or not math.isfinite(reference):
        return None
    return value / reference


def plural(n: int, noun: str) -> str:
    """`1 warning`, `2 warnings`, `no warnings`."""
    return f"{n or 'no'} {noun}{'' if n == 1 else 's'}"


@dataclass(frozen=True)
class Row:
    """One sublayer: its exponents beside what each execution did to it."""

    layer: int
    kind: str
    module: str | None
    exponents: LayerExponents | None
    divergences: list[LayerDivergence | None]


def rows(report: Report) -> list[Row]:
    """One row a sublayer, in order."""
    exponents = {row.layer: row for row in report.exponents.layers}
    divergences = [{d.layer: d for d in p.layers} for p in report.precisions]
    layers = sorted(set(exponents).union(*divergences))
    made = []
    for layer in layers:
        found = [by_layer.get(layer) for by_layer in divergences]
        known = [row for row in (exponents.get(layer), *found) if row is not None]
        module = next((row.module for row in known if row.module), None)
        made.append(Row(layer, known[0].kind, module, exponents.get(layer), found))
    return made


def short_modules(modules: Sequence[str | None]) -> list[str]:
    """The modules without what all their names begin with: `0.mamba`, `0.mlp`."""
    paths = [(module or NOTHING).split(".") for module in modules]
    shared = 0
    while paths and all(
        len(path) > shared + 1 and path[shared] == paths[0][shared] for path in paths
    ):
        shared += 1
    if len(paths) == 1:  # nothing to tell it from
        shared = 0
    return [".".join(path[shared:]) for path in paths]


@dataclass(frozen=True)
class Group:
    """Findings of one code and precision, told together."""

    code: str
    severity: str
    title: str
    precision: str | None
    where: str
    message: str
    """The message of the first, with a word on how many more there are."""
    findings: list[Finding]

    @property
    def explanation(self) -> str:
        """What it means and what to do, of every finding of the code."""
        return CATALOGUE[self.code].explanation if self.code in CATALOGUE else ""


_OF_THE_LOGITS = ("LYA002", "LYA003", "LYA004", "LYA015")
_OF_THE_REFERENCE = ("LYA016", "LYA017")
_OF_THE_ADAPTER = ("LYA014", "LYA019")


def _where(members: Sequence[Finding], modules: Mapping[int, str]) -> str:
    """The layers of findings of one code; without any, what the code is about."""
    code = members[0].code
    layers = {member.layer for member in members if member.layer is not None}
    (only,) = layers if len(layers) == 1 else (None,)
    if only is not None and only in modules:
        return f"{layers_text(members)} ({modules[only]})"
    if any(member.layer is not None for member in members) or code in _OF_THE_LOGITS:
        return layers_text(members)
    if code in _OF_THE_REFERENCE:
        return "the reference's logits"
    return "the adapter" if code in _OF_THE_ADAPTER else "the network"


def modules_of(report: Report) -> dict[int, str]:
    """The sublayers' modules by number, where a number alone would be taken for a layer
    of config.json: of networks whose layers hold several sublayers."""
    facts = report.checkpoint
    if facts.n_blocks in (None, facts.n_layers):
        return {}
    return {row.layer: row.module for row in rows(report) if row.module}


def groups(
    findings: Sequence[Finding], modules: Mapping[int, str] | None = None
) -> list[Group]:
    """Findings by code and precision, in the order given.

    **Arguments:**

    - `modules`: by sublayer, to be named where findings are of one.
    """
    together: dict[tuple[str, str | None], list[Finding]] = {}
    for finding in findings:
        together.setdefault((finding.code, finding.precision), []).append(finding)
    made = []
    for (code, precision), members in together.items():
        kind = CATALOGUE.get(code)
        message = members[0].message
        if len({member.message for member in members}) > 1:
            first = members[0].layer
            place = "" if first is None else f" (layer {first})"
            message += f"{place}, and {len(members) - 1} more like it"
        made.append(
            Group(
                code,
                members[0].severity,
                kind.title if kind else "",
                precision,
                _where(members, modules or {}),
                message,
                members,
            )
        )
    return made


def tool(report: Report | AuditReport | WeightRanking) -> str:
    """Name and version."""
    return f"{report.tool.get('name', '')} {report.tool.get('version', '')}".strip()


def duration(seconds: float) -> str:
    """A time that nobody should take to the second: `0.4 s`, `40 s`, `3 min`, `2 h`."""
    if seconds < 100:
        return f"{number(seconds, 1 if seconds >= 10 else 2)} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h"


def size(n: int) -> str:
    """Bytes: `310 MiB`, `1.4 GiB`."""
    return f"{n / 2**20:.0f} MiB" if n < 2**30 else f"{number(n / 2**30)} GiB"


def seconds(report: Report | AuditReport) -> str:
    """How long it took."""
    taken = report.summary.seconds
    return f"{taken:.1f} s" if taken < 60 else f"{taken / 60:.1f} min"


def tokens_sentence(report: Report | AuditReport | WeightRanking) -> str:
    """Which tokens, how many."""
    tokens = report.tokens
    return f"{tokens.source}, {tokens.batch} × {tokens.length}"


def checkpoint_sentence(report: Report | AuditReport | WeightRanking) -> str:
    """Architecture, size and stored format."""
    facts = report.checkpoint
    return (
        f"{facts.architecture}, {layers(facts.n_layers, facts.n_blocks)}, "
        f"{parameters(facts.n_params)} parameters, {facts.dtype}"
    )


def layers(n_sublayers: int, n_blocks: int | None) -> str:
    """`24 layers`, or `2 layers, 6 sublayers` where the two are not the same."""
    if n_blocks is None:
        return plural(n_sublayers, "sublayer")
    if n_blocks == n_sublayers:
        return plural(n_blocks, "layer")
    return f"{plural(n_blocks, 'layer')}, {n_sublayers} sublayers"


def parameters(n: int) -> str:
    """A number of parameters: `1.35M`, `129M`."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= unit:
            return f"{n / unit:.3g}{name}"
    return str(n)


def execution_sentence(precision: PrecisionReport, exponents: Exponents) -> str:
    """How an execution's numbers came about; of a state where there is one."""
    recurrent = any(row.reason is None for row in exponents.layers)
    state = f"state {precision.state_precision}, " if recurrent else ""
    return (
        f"{precision.execution}; {state}{precision.mode}, "
        f"measured by: {precision.measured_by}"
    )


def exponent_sentence(exponents: Exponents) -> str:
    """The largest exponent with its standard error, and the smallest."""
    if exponents.max is None:
        return "no recurrence found"
    error = f" ± {number(exponents.stderr, 1)}" if exponents.stderr else ""
    dead = f", {exponents.n_minus_inf:,} at -inf" if exponents.n_minus_inf else ""
    layer = "" if exponents.max_layer is None else f" in layer {exponents.max_layer}"
    by_sums = sum(
        row.multiplicity * sum(row.heads.unresolved)
        for row in exponents.layers
        if row.heads is not None
    )
    hidden = f", {by_sums:,} known by their sums alone" if by_sums else ""
    smallest = f"smallest {'at most ' if by_sums else ''}{number(exponents.min, 3)}"
    return f"largest {number(exponents.max, 3)}{error}{layer}, {smallest}{dead}{hidden}"


def loss_sentence(loss: ReferenceLoss) -> str:
    """The reference's loss beside what guessing and counting need, in bits."""
    error = f" ± {loss.stderr:.2g}" if loss.stderr is not None else ""
    text = f"{number(loss.loss_bits_per_token, 3)}{error} bits a token"
    if loss.bits_per_byte is not None:
        text += f", {number(loss.bits_per_byte, 3)} a byte"
    guesses = [f"uniform guess {number(loss.uniform_bits, 3)}"]
    if loss.unigram_bits is not None:
        guesses.append(f"the text's frequencies {number(loss.unigram_bits, 3)}")
    text += f" ({', '.join(guesses)})"
    return text if loss.judged else f"{text}; not judged: {loss.reason}"


@dataclass(frozen=True)
class GrowthRow:
    """How perturbations grow through sublayers of one kind: medians."""

    kind: str
    sublayers: int
    gain: float
    response: dict[int, float]
    """By distance in tokens."""


def growth_rows(layers: Sequence[LayerExponents]) -> list[GrowthRow]:
    """One a kind, in the order in which kinds first come; none where none was found."""
    kinds: dict[str, list] = {}
    for row in layers:
        if row.growth is not None:
            kinds.setdefault(row.kind, []).append(row.growth)
    return [
        GrowthRow(
            kind,
            len(found),
            statistics.median(one.gain for one in found),
            {
                distance: statistics.median(one.response[i] for one in found)
                for i, distance in enumerate(found[0].distances)
            },
        )
        for kind, found in kinds.items()
    ]
