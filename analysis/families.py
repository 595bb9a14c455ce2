"""Every family: loaded, traced, bounded, and run by its own library.

`python -m analysis.families [FAMILY]...` makes small random models of each family with
transformers, and writes analysis/results/families.json and families.md: how far the
fp64 logits are from the library's fp32 ones, against the tolerance derived for them;
the largest exponent; and for bf16 and fp16, run by transformers itself, elements above
T0 and T1 (0 or a bug) and the certified bound over the measured error, by kind of
sublayer. Families whose code is not in transformers are tested in `tests/families`.
"""

import json
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np


RESULTS = Path(__file__).parent / "results"
PRECISIONS = ("bf16", "fp16")
TOKENS = 32


def run(family: str, settings: dict) -> dict:
    """What there is to say of one family, on one configuration."""
    import lyapunov
    from tests.families.library import logits, make, save, tolerance

    network = make(family, **settings)
    folder = save(network, Path(tempfile.mkdtemp(prefix="lyapunov-families-")))
    model = lyapunov.load(folder)
    tokens = np.random.default_rng(7).integers(0, model.config.vocab_size, TOKENS)
    ours, theirs = np.asarray(model.logits(tokens)), logits(network, tokens)
    report = lyapunov.check(
        model,
        tokens,
        precisions=PRECISIONS,
        measure="transformers",
        floor=False,
        readouts=0,
        ball=False,
    )
    kinds: dict[str, dict] = {}
    for precision in report.precisions:
        for row in precision.layers:
            kind = kinds.setdefault(row.kind, {})
            found = kind.setdefault(precision.precision, {"violations": 0, "t1": []})
            found["violations"] += row.violations
            found["t1"].append(row.bound_t1_ratio)
    for kind in kinds.values():
        for found in kind.values():
            known = [ratio for ratio in found["t1"] if ratio is not None]
            found["t1"] = [round(min(known), 2), round(max(known), 2)]
    return {
        "family": family,
        "logits_off": float(np.abs(ours - theirs).max()),
        "tolerance": float(tolerance(network, tokens)),
        "exponent_max": report.exponents.max,
        "kinds": kinds,
        "elements": sum(
            row.elements_total for p in report.precisions for row in p.layers
        ),
        "calibration_z": {
            p.precision: p.output.calibration_z for p in report.precisions
        },
        "environment": report.environment,
    }


def table(rows: list[dict]) -> str:
    """The rows as markdown."""
    lines = [
        "| family | logits off / allowed | largest exponent | above a bound |"
        " T1 / measured, bf16 | fp16 |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        spans = {
            precision: "; ".join(
                f"{kind} {found[precision]['t1'][0]:.3g} to"
                f" {found[precision]['t1'][1]:.3g}"
                for kind, found in row["kinds"].items()
            )
            for precision in PRECISIONS
        }
        above = sum(
            found[p]["violations"] for found in row["kinds"].values() for p in found
        )
        exponent = row["exponent_max"]
        cells = [
            row["family"],
            f"{row['logits_off']:.1e} / {row['tolerance']:.1e}",
            "none" if exponent is None else f"{exponent:.2g}",
            f"{above} of {row['elements']:,}",
            *(spans[p] for p in PRECISIONS),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the study and write its files."""
    jax.config.update("jax_enable_x64", True)
    import transformers

    from tests.families.configurations import CONFIGURATIONS

    chosen = sys.argv[1:] or list(CONFIGURATIONS)
    rows = []
    for family in chosen:
        settings = next(iter(CONFIGURATIONS[family].values()))
        rows.append(run(family, settings))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    environment = rows[0]["environment"] | {"transformers": transformers.__version__}
    for row in rows:
        row.pop("environment")
    result = {
        "command": "python -m analysis.families",
        "environment": environment,
        "tokens": TOKENS,
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "families.json").write_text(json.dumps(result, indent=2) + "\n")
    (RESULTS / "families.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
