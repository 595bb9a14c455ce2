"""How small a defect of a kernel is still caught, against the bound it hides behind.

`python -m analysis.detection` runs every broken kernel of `oracles.mutants` at
strengths from 1 down, in bf16 and fp16. It writes detection.json and a
figure: the share caught against effect over bound. The effect is the largest, over all
elements, of |broken - right| over the bound, both evaluated in fp64; for T0 at the
stored tensor where the fault ends, for T1 in the sublayer's output. The bound of T0 is
at least half a spacing of the store.
"""

import json
from pathlib import Path

import jax
import numpy as np

from studies.files import write
from studies.picture import pyplot, save
from studies.study import Study


STUDY = Study(
    "analysis.detection",
    "minutes",
    Path(__file__).parent / "results" / "detection.json",
    ("matplotlib", "torch", "transformers"),
)
STRENGTHS = [2.0**-power for power in range(0, 26)]
PRECISIONS = ("bf16", "fp16")
# of effect over bound, a factor of two wide
EDGES = 2.0 ** np.arange(-8, 13)


def study() -> list[dict]:
    """One row for each mutant, precision and strength."""
    import tempfile

    import lyapunov
    from oracles.checkpoints.hard import SIZES, hard_weights
    from oracles.checkpoints.mamba1 import save_transformers

    weights = hard_weights("plain")
    with tempfile.TemporaryDirectory() as home:
        saved = save_transformers(Path(home) / "model", weights, SIZES)
        return rows_of(lyapunov.load(saved), weights)


def rows_of(model, weights) -> list[dict]:
    """The mutants in layer 1 of this model."""
    from analysis.elementwise import Elementwise, exceeding
    from lyapunov.bounds.local import with_operator_norms
    from lyapunov.implementations import mamba_ssm_prefill
    from oracles.checkpoints.hard import SEQ, tokens_for
    from oracles.kernels import mamba1 as kernel
    from oracles.mutants.mamba1 import MUTANTS

    tokens = tokens_for("plain")
    flow, original = model.sublayers[1].flow, model.parameters(1)
    bounds = Elementwise(mamba_ssm_prefill("bf16"), flow, SEQ)
    rows = []
    for precision in PRECISIONS:
        execution = mamba_ssm_prefill(precision)
        p = with_operator_norms(model.parameters(1, execution))
        first, held = (
            kernel.held(kernel.layer_weights(weights, i), precision) for i in (0, 1)
        )
        embedded = weights["backbone.embeddings.weight"].astype(np.float32)
        before = kernel.cast(embedded, precision)[tokens]
        stored = kernel.Kernel(first, precision).run(before, np.zeros_like(before))
        stream = stored["residual"], stored["out"]
        right = kernel.Kernel(held, precision, wide=True)
        whole = right.run(*stream)["out"]
        for name, mutant in MUTANTS.items():
            for strength in STRENGTHS:
                stored = mutant.kernel(held, precision, strength).run(*stream)
                wrong = mutant.kernel(held, precision, strength, wide=True)
                given = *stream, stored, p, original, model.start(p)
                records, t0, t1 = bounds(execution, *given)
                ends = [
                    k.operation(mutant.site, stored, *stream) for k in (right, wrong)
                ]
                apart = np.abs(ends[1] - ends[0]) / t0[mutant.site]
                through = np.abs(wrong.run(*stream)["out"] - whole) / t1.error
                caught = exceeding(stored[mutant.site], records[mutant.site])
                common = {"mutant": name, "precision": precision, "strength": strength}
                for tier, effect, count in (
                    ("T0", apart, caught),
                    ("T1", through, exceeding(stored["out"], t1)),
                ):
                    ratio = float(np.max(effect))
                    rows.append(
                        common
                        | {"tier": tier, "effect_over_bound": ratio, "elements": count}
                    )
    return rows


def shares(rows: list[dict], tier: str, precision: str) -> list[dict]:
    """Caught and all, in each bin of effect over bound; the last is open."""
    rows = [r for r in rows if (r["tier"], r["precision"]) == (tier, precision)]
    effect = np.array([row["effect_over_bound"] for row in rows])
    caught = np.array([row["elements"] > 0 for row in rows])
    out = []
    for low, high in zip(EDGES, [*EDGES[1:], np.inf], strict=True):
        here = (effect >= low) & (effect < high)
        if here.any():
            counts = {"caught": int(caught[here].sum()), "all": int(here.sum())}
            out.append({"at_least": float(low)} | counts)
    return out


def draw(table: dict, path: Path) -> None:
    """Share caught against effect over bound: a curve for each tier and format."""
    figure, axes = pyplot().subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axis, tier in zip(axes, ("T0", "T1"), strict=True):
        for precision, colour in (("bf16", "tab:blue"), ("fp16", "tab:orange")):
            bins = table[f"{tier} {precision}"]
            at = np.array([b["at_least"] for b in bins]) * 2**0.5
            share = np.array([100 * b["caught"] / b["all"] for b in bins])
            axis.semilogx(at, share, color=colour, marker="o", ms=3, label=precision)
        axis.axvline(2, color="0.5", lw=1, ls="--")
        axis.annotate("twice the bound", (2.2, 4), color="0.35", fontsize=8)
        where = "tensor concerned" if tier == "T0" else "sublayer's output"
        axis.set_title(f"{tier}: at the {where}")
        axis.set_xlabel("largest effect over bound")
        axis.set_ylim(-3, 103)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("broken kernels caught (%)")
    axes[0].legend(frameon=False)
    save(figure, path)


def main(given: list[str] | None = None) -> None:
    """Run the study and write its files."""
    out = STUDY.parser(__doc__).parse_args(given).out
    STUDY.begin(out)
    jax.config.update("jax_enable_x64", True)
    rows = study()
    table = {
        f"{tier} {precision}": shares(rows, tier, precision)
        for tier in ("T0", "T1")
        for precision in PRECISIONS
    }
    missed = [
        row for row in rows if row["effect_over_bound"] > 2 and not row["elements"]
    ]
    result = {
        "command": "python -m analysis.detection",
        "mutants": len({row["mutant"] for row in rows}),
        "strengths": STRENGTHS,
        "environment": {"jax": jax.__version__, "numpy": np.__version__},
        "caught_by_effect_over_bound": table,
        "at_full_strength": [row for row in rows if row["strength"] == 1],
        "missed_beyond_twice_the_bound": missed,
    }
    draw(table, out.with_suffix(".png"))
    write(out, json.dumps(result) + "\n")
    for name, bins in table.items():
        above = [b for b in bins if b["at_least"] >= 2]
        caught, count = (sum(b[key] for b in above) for key in ("caught", "all"))
        below = [b for b in bins if b["at_least"] < 1]
        under, few = (sum(b[key] for b in below) for key in ("caught", "all"))
        print(
            f"{name}: {caught} of {count} caught beyond twice the bound, "
            f"{under} of {few} below it"
        )


if __name__ == "__main__":
    main()
