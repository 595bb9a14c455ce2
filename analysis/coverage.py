"""How often error bars cover where a slow drift lies under fast noise.

Log decays are white noise plus a first-order autoregression with a share of the
variance and a correlation time. For every share, time and length, of 2000 runs: in how
many `SlowestCosines` gives a bar, how many of these at 95 % hold the exponent, and how
wide they are beside 1.96 true standard errors.

Beside it stands about the best that any rule can do: a rule that gives white noise of
this length a bar in 95 % of runs, of at most 1.3 times the ideal width in the mean,
takes some of the drifting runs for white. At least as many are taken as the likelihood
ratio of white noise against this very drift takes, at a level of 5 %; in these its bars
can be no wider than 1.37 times the ideal of white noise. In all others they cover, by
assumption.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import signal, stats

from studies.files import write
from studies.picture import pyplot, save
from studies.study import Study


STUDY = Study(
    "analysis.coverage",
    "about 10 minutes on a busy CPU core",
    Path(__file__).parent / "results" / "coverage.json",
    ("matplotlib",),
)
SHARES = (0.001, 0.002, 0.003, 0.005, 0.01, 0.02)
CORRELATIONS = (1, 10, 30, 100, 300, 1000, 3000)
LENGTHS = (1000, 4096, 16384)
RUNS, CHUNK = 2000, 250
SEED = 20240600209
MOST_WINDOWS = 1024
TESTED = 64
"""Cosines that the likelihood ratio sees."""
BEYOND = 1.3 / 0.95


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


def spectrum(tokens: int, share: float, correlation: float) -> np.ndarray:
    """Expected power of the first `TESTED` cosines."""
    carried = np.exp(-1 / correlation)
    turns = np.cos(np.pi * np.arange(1, TESTED + 1) / tokens)
    return 1 + share * (1 - carried**2) / (1 - 2 * carried * turns + carried**2)


def runs_of(rng, tokens: int, share: float, correlation: float) -> dict[str, Any]:
    """Half widths, which are given, errors, and power of the cosines, of every run."""
    from lyapunov.exponents import SlowestCosines, slowest_cosines

    found: dict[str, list] = {"half": [], "given": [], "error": [], "power": []}
    for _ in range(RUNS // CHUNK):
        series = log_decays(rng, CHUNK, tokens, share, correlation)
        rate, width = windows_of(series)
        windows = rate.shape[1]
        bars = slowest_cosines(rate.T, windows, np)
        t = stats.t.ppf(0.975, SlowestCosines.degrees)
        found["half"].append(t * np.sqrt(bars.variance * width / tokens))
        found["given"].append(bars.given)
        found["error"].append(np.abs(series.mean(axis=1)))
        at = np.pi * (np.arange(windows) + 0.5) / windows
        cosines = np.cos(np.outer(at, np.arange(1, TESTED + 1)))
        found["power"].append((rate @ cosines) ** 2 * (2 * width / windows))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def row(runs: dict, white: dict, tokens: int, share: float, correlation: float) -> dict:
    """What a table says of one cell.

    **Arguments:**

    - `white`: the runs of white noise of the same length.
    """
    true = np.sqrt(mean_variance(tokens, share, correlation) / tokens)
    given = runs["given"]
    missed = given & (runs["error"] > runs["half"])
    best = None
    if share:
        weights = 1 - 1 / spectrum(tokens, share, correlation)
        limit = np.quantile(white["power"] @ weights, 0.95)
        taken = runs["power"] @ weights <= limit
        wide = BEYOND * 1.96 / np.sqrt(tokens)
        best = float(1 - np.mean(taken & (runs["error"] > wide)))
    return {
        "tokens": tokens,
        "share": share,
        "correlation": correlation if share else None,
        "correlation_times": tokens / correlation if share else None,
        "tau": float(true**2 * tokens),
        "given": float(given.mean()),
        "covers": float(1 - missed.sum() / given.sum()) if given.any() else None,
        "missed_of_all": float(missed.mean()),
        "width": float(runs["half"][given].mean() / (1.96 * true)),
        "best": best,
    }


def study(lengths=LENGTHS, shares=SHARES, correlations=CORRELATIONS) -> dict:
    """One row a length, share and correlation time; a generator of its own each."""
    rows = []
    for tokens in lengths:
        white = runs_of(np.random.default_rng([SEED, tokens]), tokens, 0, 1)
        rows.append(row(white, white, tokens, 0, 1))
        for i, share in enumerate(shares):
            for correlation in correlations:
                rng = np.random.default_rng([SEED, tokens, i, correlation])
                drifting = runs_of(rng, tokens, share, correlation)
                rows.append(row(drifting, white, tokens, share, correlation))
    return {"runs": RUNS, "level": 0.95, "seed": SEED, "rows": rows}


def table(result: dict) -> str:
    """All rows, and what they come to, by correlation times in the sample."""
    lines = [
        "# Coverage of 95 % error bars under a slow drift",
        "",
        f"`python -m analysis.coverage`, {result['runs']} runs a row. *Best*: about "
        "what any rule could cover at most that treats white noise as it must.",
        "",
        *summary(result),
        "",
        "| tokens | share | correlation time | tokens / time | tau | bars given | "
        "cover | missed, of all runs | width / ideal | best |",
        "|---|---|---|---|---|---|---|---|---|---|",
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
            f"{one['missed_of_all']:.1%}",
            f"{one['width']:.2f}",
            f"{one['best']:.1%}" if drift else "",
        ]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def summary(result: dict) -> list[str]:
    """Ranges of coverage by how often the drift's correlation time is in the sample."""
    lines = ["| correlation times in the sample | rows | bars given | cover | best |"]
    lines.append("|---|---|---|---|---|")
    groups = [("no drift", None, None), ("30 and more", 30, np.inf)]
    groups += [("13 to 30", 13, 30), ("4 to 13", 4, 13), ("less than 4", 0, 4)]
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
        cells.append("" if low is None else _range(rows, "best"))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _range(rows: list[dict], key: str) -> str:
    values = [one[key] for one in rows if one[key] is not None]
    return f"{100 * min(values):.1f} to {100 * max(values):.1f} %"


def draw(result: dict, path: Path) -> None:
    """Coverage and bars given, over the correlation times in the sample."""
    figure, axes = pyplot().subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    for i, share in enumerate(SHARES):
        for tokens, mark in zip(LENGTHS, "os^", strict=True):
            rows = [
                one
                for one in result["rows"]
                if one["share"] == share and one["tokens"] == tokens
            ]
            at = [one["correlation_times"] for one in rows]
            for axis, key in zip(axes, ("covers", "given"), strict=True):
                axis.plot(
                    at, [100 * one[key] for one in rows], mark, color=f"C{i}", ms=4
                )
            axes[0].plot(at, [100 * one["best"] for one in rows], "_", color=f"C{i}")
    for i, share in enumerate(SHARES):
        axes[1].plot([], [], "o", color=f"C{i}", label=f"drift of {100 * share:g} %")
    for tokens, mark in zip(LENGTHS, "os^", strict=True):
        axes[1].plot([], [], mark, color="0.4", label=f"{tokens} tokens")
    axes[1].plot([], [], "_", color="0.4", label="best that any rule can do")
    axes[0].axhline(95, color="0.7", lw=0.8)
    axes[0].axhline(93, color="0.7", lw=0.8, ls="--")
    axes[0].set_ylabel("bars that hold the exponent, of those given (%)")
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
