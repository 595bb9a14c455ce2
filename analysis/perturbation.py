"""Perturbation bounds of every sublayer against what perturbations really do.

`python -m analysis.perturbation [CHECKPOINT]` writes perturbation.json
and a figure: for the initial state, one input and all inputs, the certified bound, the
largest deviation found by random and searched directions, and their ratio.
"""

import sys
from pathlib import Path

import jax
import numpy as np

from studies.files import as_json, write
from studies.picture import pyplot, save
from studies.study import Study


STUDY = Study(
    "analysis.perturbation",
    "minutes",
    Path(__file__).parent / "results" / "perturbation.json",
    ("matplotlib",),
)
TOKENS = 256
TOKEN = 32
SIZES = {"initial_state": 1e-3, "one_input": 1e-4, "all_inputs": 1e-4}


def study(source: str | None) -> dict:
    """Every sublayer, every kind; one row each."""
    import lyapunov
    from lyapunov.bounds.sublayer_perturbation import sublayer_perturbation

    model = lyapunov.load(source)
    tokens = english(model)
    rows = []
    for record in lyapunov.trace(model, tokens):
        if isinstance(record, lyapunov.HeadRecord):
            break
        stream = np.asarray(record.residual + record.hidden)[0]
        for kind, size in SIZES.items():
            result = sublayer_perturbation(
                model, record.layer, stream, kind=kind, size=size, token=TOKEN
            )
            bounds = result.bound_by_token
            # two fp64 forwards differ by their own rounding as well
            slack = 1e-12 * np.linalg.norm(np.asarray(record.output)[0], axis=-1)
            rows.append(
                {
                    "layer": record.layer,
                    "kind": kind,
                    "size": size,
                    "bound": result.bound.value,
                    "measured": result.measured,
                    "ratio": result.bound.value / result.measured,
                    "violations": int(
                        np.sum(
                            ~(result.measured_by_token <= bounds + slack)
                            & np.isfinite(bounds)
                        )
                    ),
                    "unbounded": int(np.sum(~np.isfinite(bounds))),
                    "bound_by_token": bounds.tolist(),
                    "measured_by_token": result.measured_by_token.tolist(),
                }
            )
        print(f"layer {record.layer} done", file=sys.stderr)
    return {
        "command": "python -m analysis.perturbation",
        "checkpoint": model.source,
        "tokens": TOKENS,
        "token": TOKEN,
        "environment": {"jax": jax.__version__, "numpy": np.__version__},
        "rows": rows,
    }


def english(model, count: int = TOKENS) -> np.ndarray:
    """The bundled held-out text as bytes, or seeded tokens for other vocabularies."""
    import importlib.resources

    if model.config.vocab_size == 256:
        home = importlib.resources.files("lyapunov") / "assets" / "mamba1-bytes"
        return np.frombuffer(home.joinpath("heldout.txt").read_bytes(), np.uint8)[
            :count
        ].astype(np.int64)
    return np.random.default_rng(0).integers(0, model.config.vocab_size, count)


def draw(result: dict, path: Path) -> None:
    """Bound and measured by token for each kind, all layers."""
    figure, axes = pyplot().subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    for axis, kind in zip(axes, SIZES, strict=True):
        rows = [row for row in result["rows"] if row["kind"] == kind]
        for row in rows:
            shade = 0.25 + 0.7 * row["layer"] / max(1, len(rows) - 1)
            bound = np.array(row["bound_by_token"])
            found = np.array(row["measured_by_token"])
            axis.semilogy(
                np.where(bound > 0, bound, np.nan), color=(0.8, 0.3, 0, shade)
            )
            axis.semilogy(
                np.where(found > 0, found, np.nan), color=(0, 0.3, 0.6, shade)
            )
        axis.plot([], [], color=(0.8, 0.3, 0), label="certified bound")
        axis.plot([], [], color=(0, 0.3, 0.6), label="largest found")
        axis.set_title(f"{kind.replace('_', ' ')}, size {SIZES[kind]:g}")
        axis.set_xlabel("token")
    axes[0].set_ylabel("deviation of a sublayer's output (L2)")
    axes[0].legend(frameon=False, fontsize=8)
    save(figure, path)


def main(given: list[str] | None = None) -> None:
    """Run the study and write its files."""
    parser = STUDY.parser(__doc__)
    parser.add_argument("checkpoint", nargs="?", help="the bundled model by default")
    options = parser.parse_args(given)
    STUDY.begin(options.out)
    jax.config.update("jax_enable_x64", True)
    result = study(options.checkpoint)
    draw(result, options.out.with_suffix(".png"))
    write(options.out, as_json(result))
    for kind in SIZES:
        rows = [row for row in result["rows"] if row["kind"] == kind]
        ratios = [row["ratio"] for row in rows]
        violations = sum(row["violations"] for row in rows)
        print(
            f"{kind}: bound over measured {min(ratios):.3g} to {max(ratios):.3g}, "
            f"{violations} violations in {len(rows)} sublayers"
        )


if __name__ == "__main__":
    main()
