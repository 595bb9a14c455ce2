"""Tables and picture of the study of quantised networks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from studies.picture import pyplot, save


TITLES = {
    "mamba1": "Mamba-1",
    "mamba2": "Mamba-2",
    "mamba3": "Mamba-3",
    "gated_delta": "Gated DeltaNet",
    "kimi_delta": "Kimi Delta Attention",
    "hybrid": "Mamba-2 with one attention and MLPs",
}
COLOURS = ("#2b6ca3", "#c8691c", "#3d8b52", "#8250a0", "#a33b4a", "#59636e")


def page(result: dict[str, Any]) -> str:
    """All tables as Markdown."""
    lines = ["# Quantised networks", "", "`python -m analysis.quantised --commit`", ""]
    lines += _kinds(result)
    lines += _activations(result)
    lines += _configured(result)
    lines += _rankings(result)
    return "\n".join(lines) + "\n"


def _row(*cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _head(*cells: str) -> list[str]:
    return [_row(*cells), _row(*["---"] * len(cells))]


def _of(result: dict[str, Any], part: str) -> Iterator[tuple[str, Any]]:
    for name, own in result.items():
        if part in own:
            yield TITLES[name], own[part]


def _flips(row: dict[str, Any]) -> str:
    return f"{row['flips']} of {row['tokens']}"


def _kinds(result: dict[str, Any]) -> list[str]:
    lines = [
        "## Weights in a format, by kind",
        "",
        "KL in nats a token against the fp64 reference; predicted: the relative"
        " distance of the logits to first order.",
        "",
        *_head("network", "format", "of", "KL", "changed", "rel L2", "predicted"),
    ]
    for title, rows in _of(result, "kinds"):
        lines += [
            _row(
                title,
                row["format"],
                row["group"],
                f"{row['kl_mean']:.2e}",
                _flips(row),
                f"{row['rel_l2']:.3g}",
                f"{row['predicted_rel_l2']:.3g}",
            )
            for row in rows
        ]
    return [*lines, ""]


def _activations(result: dict[str, Any]) -> list[str]:
    lines = [
        "## What quantised activations add",
        "",
        "bf16, of the network whose weights are in the format already, against its own"
        " fp64 reference; T3 is the predicted relative distance of the logits.",
        "",
        *_head(
            *("network", "weights", "activations", "KL", "changed", "rel L2"),
            *("T3's sigma", "z"),
        ),
    ]
    for title, rows in _of(result, "activations"):
        lines += [
            _row(
                title,
                row["weights"],
                row["activations"] or "bf16",
                f"{row['kl_mean']:.2e}",
                _flips(row),
                _number(row["rel_l2"]),
                _number(row["predicted_rel_l2"]),
                _number(row["calibration_z"]),
            )
            for row in rows
        ]
    return [*lines, ""]


CONFIGURED = {
    "ct-fp8-channel": "FP8 a row, a token",
    "ct-fp8-static": "FP8 a tensor, fixed",
    "ct-nvfp4-both": "NVFP4",
}


def _configured(result: dict[str, Any]) -> list[str]:
    lines = [
        "## Activations as a configuration has them",
        "",
        "bf16 of checkpoints that compressed-tensors' layout holds, against their own"
        " fp64 reference. Scale: of fixed scales, over what calibration on this text"
        " gives. Clipped: the largest share of what one matrix reads that stands at the"
        " end of a fixed scale.",
        "",
        *_head(
            *("network", "weights and activations", "left alone", "scale"),
            *("activations", "KL", "changed", "rel L2", "T3's sigma", "clipped"),
        ),
    ]
    for title, rows in _of(result, "configured"):
        lines += [
            _row(
                title,
                CONFIGURED[row["recipe"]],
                row["kept"] or "the head",
                row["scale"] or "",
                row["activations"],
                f"{row['kl_mean']:.2e}",
                _flips(row),
                _number(row["rel_l2"]),
                _number(row["predicted_rel_l2"]),
                "" if row["clipped"] is None else f"{row['clipped']:.1e}",
            )
            for row in rows
        ]
    return [*lines, ""]


def _number(value: float | None) -> str:
    return "withheld" if value is None else f"{value:.3g}"


def _rankings(result: dict[str, Any]) -> list[str]:
    lines = [
        "## A tenth kept in 16 bits",
        "",
        "Kept: the matrices with the most divergence for their size, up to a tenth of"
        " the quantised numbers or the first one. Measured over predicted: of the"
        " matrices that were run alone, smallest, median and largest.",
        "",
        *_head(
            *("network", "format", "KL of all", "predicted", "kept", "share"),
            *("KL with these kept", "predicted", "given back", "measured/predicted"),
        ),
    ]
    for name, own in result.items():
        for part, row in own.items():
            if not part.startswith("rank "):
                continue
            found = ratios(row)
            low, middle, high = np.quantile(found, [0, 0.5, 1])
            lines.append(
                _row(
                    TITLES[name],
                    row["format"],
                    f"{row['kl_all']:.2e}",
                    f"{row['predicted_kl_all']:.2e}",
                    len(row["kept"]),
                    f"{row['share']:.1%}",
                    f"{row['kl_kept']:.2e}",
                    f"{row['predicted_kl_kept']:.2e}",
                    f"{row['given_back']:.0%}",
                    f"{low:.2f}, {middle:.2f}, {high:.2f}",
                )
            )
    lines += ["", "Kept:", ""]
    for name, own in result.items():
        lines += [
            f"- {TITLES[name]}, {row['format']}: {', '.join(row['kept'])}"
            for part, row in own.items()
            if part.startswith("rank ")
        ]
    return [*lines, ""]


def ratios(row: dict[str, Any]) -> list[float]:
    """Measured over predicted, of the matrices that were run alone."""
    return [
        one["measured_kl"] / one["predicted_kl"]
        for one in row["matrices"]
        if one["measured_kl"] is not None and one["predicted_kl"] > 0
    ]


def draw(result: dict[str, Any], path: Path) -> None:
    """Predicted against measured, and what a tenth gives back."""
    figure, axes = pyplot().subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    ends = []
    # side by side, so that none hides another
    places = [0.08 * (i - (len(result) - 1) / 2) for i in range(len(result))]
    told = zip(COLOURS, places, result.items(), strict=False)
    for colour, place, (name, own) in told:
        ranked = [(part, row) for part, row in own.items() if part.startswith("rank ")]
        rows = [row for _, row in ranked]
        pairs = [
            (one["predicted_kl"], one["measured_kl"])
            for row in rows
            for one in row["matrices"]
            if one["measured_kl"]
        ]
        axes[0].loglog(*zip(*pairs, strict=True), "o", ms=4, color=colour)
        ends += [x for pair in pairs for x in pair]
        given = {part.removeprefix("rank "): row["given_back"] for part, row in ranked}
        axes[1].plot(
            [beside + place for beside in range(len(given))],
            [100 * share for share in given.values()],
            "o",
            color=colour,
            label=TITLES[name],
        )
        axes[1].set_xticks(range(len(given)), list(given))
    line = [min(ends), max(ends)]
    axes[0].plot(line, line, color="#59636e", lw=0.8)
    axes[0].set_xlabel("predicted KL of a matrix, nats a token")
    axes[0].set_ylabel("measured alone")
    axes[1].set_xlabel("format of the rest")
    axes[1].set_ylabel("given back by a tenth in 16 bits (%)")
    axes[1].axhline(0, color="#59636e", lw=0.8)
    axes[1].set_ylim(top=100)
    axes[1].legend(frameon=False, fontsize=8)
    save(figure, path)
