"""How often error bars cover where a slow drift lies under fast noise.

Log decays are white noise plus a first-order autoregression with a share of the
variance and a correlation time. For every share, time and length, of 2000 runs: in how
many `SlowestCosines` gives a bar, how many of these at 95 % hold the exponent, and how
wide they are beside 1.96 true standard errors.

A bar is *wrong* where it is given and misses. *Counted* are, of all runs, wrong bars,
and where the sample holds 10 correlation times or more 7 % of the withheld ones as
well: 7 % counted means that wrong bars are at most 7 % of all runs below 10 times, and
7 % of the bars given from 10 on. Beside it stands the *least* that could be counted:
what a rule would reach that knows this very drift and only has to treat white noise of
this length as it must, by the bound in `analysis._coverage_bound`, which says exactly
what such a rule sees. One rule for all drifts does worse: `TOGETHER` are cells, found
by descent, of which none can have less than `together` counted in each.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import signal, stats

from analysis._coverage_bound import least, spectrum
from studies.files import write
from studies.picture import pyplot, save
from studies.study import Study


STUDY = Study(
    "analysis.coverage",
    "about 20 minutes on a busy CPU core",
    Path(__file__).parent / "results" / "coverage.json",
    ("matplotlib",),
)
SHARES = (0.001, 0.002, 0.003, 0.005, 0.01, 0.02)
CORRELATIONS = (1, 10, 30, 100, 300, 1000, 3000)
LENGTHS = (1000, 4096, 16384)
RUNS, CHUNK = 2000, 250
SEED = 20240600209
MOST_WINDOWS = 1024
COSINES = 40
"""That `SlowestCosines` sees."""
MOST = 0.07
ENOUGH = 10
"""Correlation times from which a sample shows how large a drift is."""
TOGETHER = (
    ((1000, 0.001, 1000), 0.19, 0.26),
    ((1000, 0.002, 300), 0.05, 0.08),
    ((1000, 0.01, 100), 0.05, 0.27),
    ((1000, 0.02, 100), 0.07, 0.06),
    ((4096, 0.01, 1000), 0.60, 0.30),
    ((16384, 0.002, 3000), 0.04, 0.03),
)
"""Cells, and their weights of 40 and of 256 cosines."""


def log_decays(
    rng: np.random.Generator, runs: int, tokens: int, share: float, correlation: float
) -> Float[np.ndarray, "runs tokens"]:
    """White noise of variance 1, and a drift of variance `share`, of mean 0."""
    series = rng.normal(size=(runs, tokens))
    if share:
        carried = np.exp(-1 / correlation)
        noise = rng.normal(size=(runs, tokens))
        noise[:, 1:] *= np.sqrt(1 - carried**2)  # stationary from the first token
        drift = signal.lfilter([1.0], [1.0, -carried], noise, axis=1)
        series += np.sqrt(share) * drift
    return series


def mean_variance(tokens: int, share: float, correlation: float) -> float:
    """Variance of a mean over `tokens` of `log_decays`, times the tokens."""
    lags = np.arange(1, tokens)
    decay = (1 - lags / tokens) * np.exp(-lags / correlation)
    return 1 + share * (1 + 2 * float(np.sum(decay)))


def windows_of(
    series: Float[np.ndarray, "runs tokens"],
) -> tuple[Float[np.ndarray, "runs windows"], int]:
    """Means over windows, as `lyapunov_spectrum` takes them, and their width."""
    runs, tokens = series.shape
    width = -(-tokens // MOST_WINDOWS)
    windows = tokens // width
    return series[:, : windows * width].reshape(runs, windows, width).mean(2), width


def runs_of(rng, tokens: int, share: float, correlation: float) -> dict[str, Any]:
    """Half widths, which are given, and errors, of every run."""
    from lyapunov.exponents import SlowestCosines, slowest_cosines

    found: dict[str, list] = {"half": [], "given": [], "error": []}
    for _ in range(RUNS // CHUNK):
        series = log_decays(rng, CHUNK, tokens, share, correlation)
        rate, width = windows_of(series)
        windows = rate.shape[1]
        bars = slowest_cosines(rate.T, windows, np)
        t = stats.t.ppf(0.975, SlowestCosines.degrees)
        found["half"].append(t * np.sqrt(bars.variance * width / tokens))
        found["given"].append(bars.given)
        found["error"].append(np.abs(series.mean(axis=1)))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def part_withheld(tokens: int, correlation: float) -> float:
    """As what part of a wrong bar one that is withheld counts."""
    return MOST if tokens >= ENOUGH * correlation else 0.0


def row(runs: dict, tokens: int, share: float, correlation: float) -> dict:
    """What a table says of one cell."""
    true = np.sqrt(mean_variance(tokens, share, correlation) / tokens)
    given = runs["given"]
    wrong = float(np.mean(given & (runs["error"] > runs["half"])))
    part = part_withheld(tokens, correlation)
    expected = spectrum(tokens, share, correlation, COSINES)[None]
    return {
        "tokens": tokens,
        "share": share,
        "correlation": correlation if share else None,
        "correlation_times": tokens / correlation if share else None,
        "tau": float(true**2 * tokens),
        "given": float(given.mean()),
        "covers": float(1 - wrong / given.mean()) if given.any() else None,
        "wrong": wrong,
        "counted": wrong + part * float(1 - given.mean()),
        "least": least(expected, np.ones(1), np.array([part])) if share else None,
        "width": float(runs["half"][given].mean() / (1.96 * true)),
    }


def together() -> dict[str, float]:
    """Bound what is counted in one of `TOGETHER`, by how many cosines a rule sees."""
    cells = [cell for cell, *_ in TOGETHER]
    parts = np.array([part_withheld(tokens, time) for tokens, _, time in cells])
    found = {}
    for i, cosines in enumerate((40, 256), 1):
        weights = np.array([one[i] for one in TOGETHER])
        spectra = np.array([spectrum(*cell, cosines) for cell in cells])
        found[str(cosines)] = least(spectra, weights / weights.sum(), parts)
    return found


def study(lengths=LENGTHS, shares=SHARES, correlations=CORRELATIONS) -> dict:
    """One row a length, share and correlation time; a generator of its own each."""
    rows = []
    for tokens in lengths:
        white = runs_of(np.random.default_rng([SEED, tokens]), tokens, 0, 1)
        rows.append(row(white, tokens, 0, 1))
        for i, share in enumerate(shares):
            for correlation in correlations:
                rng = np.random.default_rng([SEED, tokens, i, correlation])
                drifting = runs_of(rng, tokens, share, correlation)
                rows.append(row(drifting, tokens, share, correlation))
    return {
        "runs": RUNS,
        "level": 0.95,
        "seed": SEED,
        "together": together(),
        "rows": rows,
    }


def table(result: dict) -> str:
    """All rows, and what they come to, by correlation times in the sample."""
    lines = [
        "# Coverage of 95 % error bars under a slow drift",
        "",
        f"`python -m analysis.coverage`, {result['runs']} runs a row. *Wrong*: given "
        "and missing, of all runs. *Counted*: wrong, and from 10 correlation times on "
        "7 % of those withheld as well. *Least*: what a rule that knows this drift "
        "would have counted.",
        "",
        *summary(result),
        "",
        "| tokens | share | correlation time | tokens / time | tau | bars given | "
        "cover | wrong | counted | least | width / ideal |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in result["rows"]:
        drift = one["share"] > 0
        cells = [
            one["tokens"],
            one["share"],
            one["correlation"] if drift else "",
            f"{one['correlation_times']:.3g}" if drift else "",
            f"{one['tau']:.3g}",
            f"{one['given']:.1%}",
            "" if one["covers"] is None else f"{one['covers']:.1%}",
            f"{one['wrong']:.1%}",
            f"{one['counted']:.1%}",
            f"{one['least']:.1%}" if drift else "",
            f"{one['width']:.2f}",
        ]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def summary(result: dict) -> list[str]:
    """Ranges of coverage by how often the drift's correlation time is in the sample."""
    lines = [
        "| correlation times in the sample | rows | bars given | cover | counted | "
        "least |",
        "|---|---|---|---|---|---|",
    ]
    groups = [("no drift", None, None), ("30 and more", 30, np.inf)]
    groups += [("10 to 30", 10, 30), ("4 to 10", 4, 10), ("less than 4", 0, 4)]
    for name, low, high in groups:
        rows = [
            one
            for one in result["rows"]
            if (one["share"] == 0 if low is None else
                one["share"] > 0 and low <= one["correlation_times"] < high)
        ]  # fmt: skip
        if not rows:
            continue
        cells = [name, str(len(rows)), _range(rows, "given"), _range(rows, "covers")]
        cells.append(_range(rows, "counted"))
        cells.append("" if low is None else _range(rows, "least"))
        lines.append("| " + " | ".join(cells) + " |")
    could = [row for row in result["rows"] if row["share"] and row["least"] <= MOST]
    most = max(row["counted"] for row in could)
    held = sum(row["counted"] <= MOST for row in could)
    few, many = (f"{100 * x:.1f} %" for x in result["together"].values())
    return [
        *lines,
        "",
        f"Of {len(could)} cells in which a rule that knows the drift could have 7 % "
        f"counted, {held} have at most that, and all at most {100 * most:.1f} %. No "
        "rule that is one for all of them and sees 40 cosines can have less than "
        f"{few} in each; of 256 cosines it is {many}.",
    ]


def _range(rows: list[dict], key: str) -> str:
    values = [one[key] for one in rows if one[key] is not None]
    return f"{100 * min(values):.1f} to {100 * max(values):.1f} %"


def draw(result: dict, path: Path) -> None:
    """Wrong bars and bars given, over the correlation times in the sample."""
    figure, axes = pyplot().subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    for i, share in enumerate(SHARES):
        for tokens, mark in zip(LENGTHS, "os^", strict=True):
            rows = [
                one
                for one in result["rows"]
                if one["share"] == share and one["tokens"] == tokens
            ]
            at = [one["correlation_times"] for one in rows]
            for axis, key in zip(axes, ("counted", "given"), strict=True):
                axis.plot(
                    at, [100 * one[key] for one in rows], mark, color=f"C{i}", ms=4
                )
            axes[0].plot(at, [100 * one["least"] for one in rows], "_", color=f"C{i}")
    for i, share in enumerate(SHARES):
        axes[1].plot([], [], "o", color=f"C{i}", label=f"drift of {100 * share:g} %")
    for tokens, mark in zip(LENGTHS, "os^", strict=True):
        axes[1].plot([], [], mark, color="0.4", label=f"{tokens} tokens")
    axes[1].plot([], [], "_", color="0.4", label="least of a rule that knows the drift")
    axes[0].axhline(100 * MOST, color="0.7", lw=0.8, ls="--")
    axes[0].set_ylabel("wrong bars, and withheld ones in part (% of runs)")
    axes[1].set_ylabel("runs that have a bar (%)")
    for axis in axes:
        axis.set_xscale("log")
        axis.set_xlabel("correlation times of the drift within the sample")
    axes[1].legend(frameon=False, fontsize=8, loc="lower right")
    save(figure, path)


def main(given: list[str] | None = None) -> None:
    """Run the study and write its files."""
    out = STUDY.parser(__doc__).parse_args(given).out
    STUDY.begin(out)
    start = time.monotonic()
    result = study()
    draw(result, out.with_suffix(".png"))
    write(out, json.dumps(result, indent=1) + "\n")
    write(out.with_suffix(".md"), table(result))
    print("\n".join(summary(result)))
    print(f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
