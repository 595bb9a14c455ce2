"""Exponents of the cells that state-space models are compared with.

`python -m analysis.cells` writes cells.{json,md,png}: the spectra of
an LSTM, a GRU, xLSTM's two cells, linear attention, RWKV-4, RWKV-6, Mamba-1 and Mamba-2
at initialisation, all on the same random tokens. Mamba's are means of dt A; those of
the other cells that are linear in their state are means of their log decays as well.

An LSTM carries h and c, and its exponents are those of both. Some published studies
follow h alone: the product of d h' / d h with c held fixed leaves out the path through
which an LSTM remembers. Both are in the table.
"""

import datetime
import json
import platform
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from studies.files import write
from studies.picture import pyplot, save
from studies.study import Study


STUDY = Study(
    "analysis.cells",
    "minutes",
    Path(__file__).parent / "results" / "cells.json",
    ("matplotlib",),
)
TOKENS, D_MODEL, WIDTH, HEADS, D_HEAD = 128, 16, 16, 2, 8
SEED = 20240600209


def study() -> dict:
    """One row a cell."""
    from lyapunov.exponents import (
        finite_time_exponents,
        lyapunov_spectrum,
        transient_growth,
    )

    tokens = jnp.asarray(np.random.default_rng(SEED).normal(size=(TOKENS, D_MODEL)))
    rows = []
    for name, structure, (recurrence, start, inputs) in systems(tokens):
        found = lyapunov_spectrum(recurrence, start, inputs)
        local = finite_time_exponents(recurrence, start, inputs, window=16)
        grown = transient_growth(recurrence, start, inputs)
        exponents = np.asarray(found.repeated)
        finite = exponents[np.isfinite(exponents)]
        rows.append(
            {
                "cell": name,
                "structure": structure,
                "coordinates": int(exponents.size),
                "largest": float(exponents[0]),
                "median": float(np.median(exponents)),
                "smallest_finite": float(finite.min()),
                "minus_infinity": int(exponents.size - finite.size),
                "windows": [float(w) for w in np.asarray(local.exponents)[:, 0]],
                "largest_log_norm": float(grown.max_log_norm),
                "exponents": [
                    x if np.isfinite(x) else None for x in exponents.tolist()
                ],
            }
        )
        print(f"{name}: {exponents[0]:.4f} to {exponents[-1]:.4f}")
    return {
        "command": "python -m analysis.cells",
        "tokens": TOKENS,
        "d_model": D_MODEL,
        "rows": rows,
    }


def systems(tokens):
    """Name, structure and (recurrence, start, inputs) of every cell."""
    from lyapunov.recurrences import cells

    key = jax.random.key(SEED)
    lstm = cells.LSTM.drawn(key, D_MODEL, WIDTH)
    heads = HEADS, D_HEAD
    drawn = [
        ("LSTM (h, c)", "dense", lstm),
        ("GRU", "dense", cells.GRU.drawn(key, D_MODEL, WIDTH)),
        ("xLSTM: sLSTM", "dense", cells.SLSTM.drawn(key, D_MODEL, WIDTH)),
        ("xLSTM: mLSTM", "scalar a head", cells.MLSTM.drawn(key, D_MODEL, *heads)),
        ("linear attention", "identity",
         cells.LinearAttention.drawn(key, D_MODEL, *heads)),
        ("RWKV-4", "diagonal, constant", cells.RWKV4.drawn(key, D_MODEL, WIDTH)),
        ("RWKV-6", "diagonal", cells.RWKV6.drawn(key, D_MODEL, *heads)),
    ]  # fmt: skip
    yield "LSTM, h alone", "dense", hidden_alone(lstm, tokens)
    for name, structure, cell in drawn:
        yield name, structure, (cell, cell.start(), tokens)
    yield "Mamba-1", "diagonal", mamba1(tokens, key)
    yield "Mamba-2", "scalar a head", mamba2(tokens, key)


def hidden_alone(lstm, tokens):
    """The linear system of d h' / d h along the LSTM's own trajectory."""

    def advance(state, x):
        J = lstm.step_jacobian(state, x)[:WIDTH, :WIDTH]
        return lstm.step(state, x), J

    _, jacobians = jax.lax.scan(advance, lstm.start(), tokens)
    return (lambda v, J: J @ v), jnp.zeros(WIDTH), jacobians


def time_steps(key, shape, tokens, weight_size: float):
    """dt as mamba_ssm initialises it: softplus of a projection and its bias."""
    first, second = jax.random.split(key)
    at_zero = jnp.exp(
        jax.random.uniform(first, shape, jnp.float64) * (jnp.log(0.1) - jnp.log(0.001))
        + jnp.log(0.001)
    )
    bias = at_zero + jnp.log(-jnp.expm1(-at_zero))
    weight = jax.random.uniform(
        second, (*shape, D_MODEL), jnp.float64, -weight_size, weight_size
    )
    return jax.nn.softplus(tokens @ weight.T + bias)


def mamba1(tokens, key):
    """WIDTH channels of D_HEAD states, A = -(1, ..., D_HEAD)."""
    from lyapunov.recurrences import Mamba1Inputs, Mamba1Recurrence

    A = -jnp.tile(jnp.arange(1.0, D_HEAD + 1), (WIDTH, 1))
    dt = time_steps(key, (WIDTH,), tokens, D_MODEL**-0.5)
    inputs = Mamba1Inputs(dt, tokens[:, :WIDTH], tokens[:, :D_HEAD])
    return Mamba1Recurrence(A), jnp.zeros(A.shape), inputs


def mamba2(tokens, key):
    """HEADS heads of D_HEAD channels and states, A from -16 to -1."""
    from lyapunov.recurrences import Mamba2Inputs, Mamba2Recurrence

    A = -jax.random.uniform(key, (HEADS,), jnp.float64, 1, 16)
    dt = time_steps(key, (HEADS,), tokens, D_MODEL**-0.5)
    x = tokens[:, : HEADS * D_HEAD].reshape(-1, HEADS, D_HEAD)
    inputs = Mamba2Inputs(dt, x, tokens[:, None, :D_HEAD])
    return Mamba2Recurrence(A), jnp.zeros((HEADS, D_HEAD, D_HEAD)), inputs


def environment() -> dict:
    """What this was run on."""
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def table(result: dict) -> str:
    """One line a cell, in Markdown."""
    lines = [
        "# Exponents of cells at initialisation",
        "",
        f"`{result['command']}`: {result['tokens']} random tokens of "
        f"{result['d_model']} entries, the same for all; nats per token.",
        "Initialisations differ in what they are for, so the numbers are no ranking.",
        "",
        "| cell | step Jacobian | coordinates | largest | median | smallest finite "
        "| largest log norm |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['cell']} | {row['structure']} | {row['coordinates']} "
        f"| {row['largest']:.4f} | {row['median']:.4f} | {row['smallest_finite']:.4f} "
        f"| {row['largest_log_norm']:.3f} |"
        for row in result["rows"]
    ]
    lines += [
        "",
        "The largest log norm is that of the product of Jacobians over the first t "
        "tokens, largest over t: above 0, a perturbation may grow before it fades.",
        "",
        ", ".join(f"{k} {v}" for k, v in result["environment"].items()),
        "",
    ]
    return "\n".join(lines)


def draw(result: dict, path: Path) -> None:
    """Spectra over the share of coordinates, and the largest exponent by window."""
    figure, (left, right) = pyplot().subplots(
        1, 2, figsize=(12, 4), layout="constrained"
    )
    for i, row in enumerate(result["rows"]):
        exponents = np.array([np.nan if x is None else x for x in row["exponents"]])
        share = (np.arange(exponents.size) + 0.5) / exponents.size
        style = {"color": f"C{i}", "lw": 1.5, "ls": "--" if i == 0 else "-"}
        left.plot(share, exponents, **style, label=row["cell"])
        ends = np.arange(1, len(row["windows"]) + 1) * 16
        right.plot(ends, row["windows"], **style)
    left.set(
        xlabel="share of the coordinates",
        ylabel="exponent (nats per token)",
        title="spectra at initialisation",
    )
    left.set_yscale("symlog", linthresh=0.01)
    left.axhline(0, color="0.7", lw=0.6)
    figure.legend(frameon=False, fontsize=8, loc="outside right center")
    right.set_yscale("symlog", linthresh=0.01)
    right.axhline(0, color="0.7", lw=0.6)
    right.set(xlabel="token", title="the largest over windows of 16 tokens")
    save(figure, path)


def main(given: list[str] | None = None) -> None:
    """Run the study and write its files."""
    out = STUDY.parser(__doc__).parse_args(given).out
    STUDY.begin(out)
    jax.config.update("jax_enable_x64", True)
    result = study() | {"environment": environment()}
    draw(result, out.with_suffix(".png"))
    write(out, json.dumps(result, indent=1) + "\n")
    write(out.with_suffix(".md"), table(result))


if __name__ == "__main__":
    main()
