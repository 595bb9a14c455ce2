"""Which matrices should stay in 16 bits, as a document of sections."""

import json
import math
from collections.abc import Sequence
from typing import Any

from lyapunov.report import _words as words
from lyapunov.report._columns import KIND, LAYER, of
from lyapunov.report._drawing import BLUE, ORANGE, Picture, positive, whole_numbers
from lyapunov.report._sections import (
    Column,
    Columns,
    Document,
    Form,
    Line,
    Note,
    Section,
    Table,
    as_it_is,
    undigited,
    whole,
    written,
)
from lyapunov.report._sentences import percent
from lyapunov.results._ranking import RankedMatrix, WeightRanking


SHOWN = 24
"""Matrices on a terminal; the written forms have all."""

PREDICTED = (
    "KL: mean divergence a token at the logits with this one alone quantised, nats; "
    "predicted to first order in the weights and to second in the logits (an estimate, "
    "± its standard error), measured by a run with nothing else changed"
)
BESIDE = "left: quantisers leave it as it is, and it is not among what is quantised"

RANK = Column("rank", of("rank"), as_it_is)
MOVED = (
    Column("KL predicted", of("predicted_kl")),
    Column("±", of("predicted_stderr"), forms=Form.WRITTEN),
    Column("KL measured", of("measured.kl_mean")),
    Column("flips", of("measured.flips"), whole, forms=Form.WRITTEN | Form.VERBOSE),
    Column("KL max", of("measured.kl_max"), forms=Form.WRITTEN),
    Column("logits rel L2", of("measured.rel_l2"), forms=Form.WRITTEN),
)


def document(ranking: WeightRanking) -> Document:
    """What to keep, what it gives back, then every matrix and sublayer."""
    kept = ranking.kept
    first = ranking.matrices[0]
    names = words.short_modules([row.module for row in ranking.matrices])
    short = dict(zip((row.module for row in ranking.matrices), names, strict=True))
    return Document(
        title=ranking.checkpoint.source,
        verdict=f"{ranking.format}: {short[first.module]} moves the logits most, KL "
        f"{words.number(first.kl)} nats a token"
        if first.kl > 0
        else f"{ranking.format} moves nothing: the weights are held as they are",
        word="ranking",
        counts=f"{words.plural(len(ranking.matrices), 'matrix')}, "
        f"{words.duration(ranking.seconds)}".replace("matrixs", "matrices"),
        advice=_advice(ranking),
        facts=[
            Line("network", words.checkpoint_sentence(ranking)),
            Line("tokens", words.tokens_sentence(ranking)),
            Line("format", f"{ranking.format}, {ranking.meaning}"),
            Line("quantised", _all(ranking)),
            *([Line("unchanged", _unmoved(ranking))] if ranking.unmoved else []),
        ],
        sections=[
            *([_kept(ranking)] if kept.modules else []),
            _matrices(ranking, short, Form.TERMINAL, SHOWN),
            _matrices(ranking, short, Form.WRITTEN, None),
            _sublayers(ranking),
            *written(ranking),
        ],
        tool=words.tool(ranking),
    )


def _all(ranking: WeightRanking) -> str:
    kept = ranking.kept
    told = f"all of it: KL {words.number(kept.predicted_kl_all)} predicted"
    if kept.measured_all is None:
        return told
    found = kept.measured_all
    return (
        f"{told}, {words.number(found.kl_mean)} measured, {found.flips} of "
        f"{found.total:,} tokens changed"
    )


def _unmoved(ranking: WeightRanking) -> str:
    return f"{ranking.unmoved} of {len(ranking.matrices)}, held as they are"


def _advice(ranking: WeightRanking) -> list[str]:
    kept = ranking.kept
    if not kept.modules:
        return []
    many = words.plural(len(kept.modules), "matrix").replace("matrixs", "matrices")
    told = f"keep {many} in 16 bits, {percent(kept.share)} of what is quantised"
    if kept.bytes > 0:
        told += f" ({_bytes(kept.bytes)} more)"
    if kept.given_back is not None and kept.measured is not None:
        told += (
            f": KL {words.number(kept.measured.kl_mean)} measured, so that "
            f"{percent(kept.given_back)} of it is given back"
            if kept.given_back > 0
            else f": KL {words.number(kept.measured.kl_mean)} measured, which gives "
            "nothing back: what the others do weighs more"
        )
    return [told]


def _kept(ranking: WeightRanking) -> Section:
    kept = ranking.kept
    readers = {
        "ignore": "llm-compressor, compressed-tensors",
        "exclude_modules": "ModelOpt",
        "modules_to_not_convert": "FP8 of Qwen and DeepSeek",
    }
    lines = [
        Line(
            f"{key} ({readers[key]})",
            "",
            json.dumps(names),
            forms=Form.EVERY if key == "ignore" else Form.VERBOSE | Form.WRITTEN,
        )
        for key, names in kept.ignore.items()
    ]
    notes = [
        "chosen by divergence a number, up to "
        f"{percent(kept.limit)} of the quantised numbers; what vLLM holds in one "
        "matrix (q, k, v; gate, up) together. vLLM reads each list from the "
        "checkpoint's config"
    ]
    return Section("To keep in 16 bits", lines=lines, notes=list(map(Note, notes)))


def _matrices(
    ranking: WeightRanking, short: dict[str, str], form: Form, most: int | None
) -> Section:
    rows = ranking.matrices[:most]
    columns = [
        Column("share", of("share"), undigited(percent)),
        Column("saves", of("saved_bytes"), undigited(_bytes), forms=Form.WRITTEN),
        Column("W moved", of("relative_change"), forms=Form.WRITTEN),
        *MOVED,
        Column("KL a MiB", _a_mebibyte),
        Column("16 bits", _mark, as_it_is, word=True),
    ]

    def module(row: RankedMatrix) -> str:
        return short[row.module] if form is Form.TERMINAL else row.module

    keys = [RANK, Column("matrix", module, as_it_is, word=True), KIND]
    notes = [Note(PREDICTED)]
    if any(not row.quantised for row in rows):
        notes.append(Note(BESIDE))
    if len(rows) < len(ranking.matrices):
        notes.append(Note(f"the first {most} of {len(ranking.matrices)}; -o has all"))
    return Section(
        "Matrices", table=Table(rows, keys, [Columns(columns)]), notes=notes, forms=form
    )


def _bytes(n: int) -> str:
    sign, n = "-" if n < 0 else "", abs(n)
    return f"{sign}{n / 2**20:.2g} MiB" if n < 2**27 else f"{sign}{words.size(n)}"


def _a_mebibyte(row: RankedMatrix) -> float | None:
    return row.kl / (row.saved_bytes / 2**20) if row.saved_bytes > 0 else None


def _mark(row: RankedMatrix) -> str:
    return "keep" if row.kept else "" if row.quantised else "left"


def _sublayers(ranking: WeightRanking) -> Section:
    columns = [Column("share", of("share"), undigited(percent)), *MOVED]
    keys = [
        RANK,
        LAYER,
        KIND,
        Column("module", of("module"), as_it_is, word=True, forms=Form.WRITTEN),
    ]
    return Section(
        "Sublayers",
        table=Table(ranking.sublayers, keys, [Columns(columns)])
        if ranking.sublayers
        else None,
        notes=[Note("with all that quantisers round in a sublayer, and nothing else")],
        pictures=lambda prefix: _pictures(ranking, prefix),
    )


def _pictures(ranking: WeightRanking, prefix: str) -> Sequence[Picture]:
    rows = sorted(ranking.sublayers, key=lambda row: row.layer)
    if not any(row.kl > 0 for row in rows):
        return []
    numbers = [row.layer for row in rows]
    found = [
        positive(None if row.measured is None else row.measured.kl_mean) for row in rows
    ]

    def draw(axes: Any) -> None:
        axes.bar(
            numbers,
            [positive(row.predicted_kl) for row in rows],
            yerr=[row.predicted_stderr for row in rows],
            width=0.7,
            color=BLUE,
            alpha=0.5,
            linewidth=0,
            label="predicted ± standard error",
        )
        if any(map(math.isfinite, found)):
            axes.plot(numbers, found, "D", color=ORANGE, label="measured alone")
        axes.set_yscale("log")
        axes.set_axisbelow(True)
        axes.set_xlabel("sublayer")
        axes.set_ylabel("KL of the logits, nats a token")
        whole_numbers(axes.xaxis)

    top = max(rows, key=lambda row: row.kl)
    return [
        Picture(
            f"{prefix}ranking",
            f"What quantising each sublayer does, {ranking.format}",
            "Divergence at the logits with one sublayer quantised and all else exact: "
            "an estimate from one reverse pass, and runs of the first.",
            f"KL of the logits by quantised sublayer; largest: sublayer {top.layer}, "
            f"{top.kind}, {words.number(top.kl)} nats.",
            draw,
        )
    ]
