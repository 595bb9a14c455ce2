"""Every family: loaded, traced, bounded, and run by its own library.

`python -m analysis.families [FAMILY]...` makes small random models of each family, and
writes families.json and families.md: how far the fp64 logits are from
the library's fp32 ones (NumPy's fp64 ones where transformers lacks the family), against
the tolerance derived for them; the largest exponent; and for bf16 and fp16, whole
sequences and token by token, run by transformers itself (emulated where it lacks the
family), elements above T0 and T1 (0 or a bug) and the certified bound over the measured
error, by kind of sublayer.
"""

import json
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

from studies.files import write
from studies.problems import Problem
from studies.study import Study


STUDY = Study(
    "analysis.families",
    "hours on 2 cores",
    Path(__file__).parent / "results" / "families.json",
    ("torch", "transformers"),
)
PRECISIONS = ("bf16", "fp16")
TOKENS = 32
MODES = ("prefill", "decode")
# Whose code is not in transformers.
OTHERS = ("mamba3 SISO", "mamba3 MIMO", "mamba_ssm hybrid", "openelm", "megatron")


def of_transformers(family: str, mode: str):
    """(model, the library's logits, what may lie between, tokens)."""
    import lyapunov
    from oracles.checkpoints.configurations import CONFIGURATIONS, NO_LIMITS
    from oracles.checkpoints.transformers import logits, make, save, tolerance

    settings = next(iter(CONFIGURATIONS[family].values()))
    if mode == "decode":
        # the library's steps ignore them: another function
        settings = settings | NO_LIMITS.get(family, {})
    network = make(family, **settings)
    model = lyapunov.load(save(network, _folder()))
    tokens = np.random.default_rng(7).integers(0, model.config.vocab_size, TOKENS)
    return model, logits(network, tokens), tolerance(network, tokens), tokens


def of_another(family: str):
    """The same for a family that transformers does not have; NumPy's logits."""
    import lyapunov
    from oracles.checkpoints import megatron
    from oracles.checkpoints.mamba3 import CONFIGS as MAMBA3
    from oracles.checkpoints.mamba_ssm import (
        CONFIGS,
        drawn,
        full_config,
        mamba_ssm_shapes,
        openelm,
        save,
    )
    from oracles.checkpoints.transformers import logits, tolerance
    from oracles.networks import mamba3, mamba_ssm as hybrids, openelm as transformer
    from oracles.tolerances import exact_logits

    rng = np.random.default_rng(5)
    tokens = np.random.default_rng(7).integers(0, 37, TOKENS)
    if family == "megatron":
        folder = megatron.save(
            _folder() / "model", megatron.tensors(), 2, **megatron.SIZES
        )
        known = megatron.known()
        model = lyapunov.load(folder)
        return model, logits(known, tokens), tolerance(known, tokens), tokens
    if family.startswith("mamba3"):
        settings = MAMBA3[family.removeprefix("mamba3 ")]
        config = full_config({"ssm_cfg": {**settings, "chunk_size": 16}})
        shapes, forward = mamba3.shapes(config), mamba3.logits
    elif family == "openelm":
        (config, shapes), forward = openelm(True), transformer.openelm_logits
    else:
        config = full_config(CONFIGS["attention with a convolution"])
        shapes, forward = mamba_ssm_shapes(config), hybrids.mamba_ssm_logits
    weights = drawn(shapes, rng)
    for name, value in weights.items():
        if name.endswith("mixer.dt_bias") and family.startswith("mamba3"):
            # as mamba_ssm begins: dt from 0.001 to 0.1
            step = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), value.shape))
            weights[name] = (step + np.log(-np.expm1(-step))).astype(np.float32)
    theirs, allowed = exact_logits(weights, config, forward, tokens)
    return lyapunov.load(save(_folder(), weights, config)), theirs, allowed, tokens


def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="lyapunov-families-"))


def run(family: str, mode: str) -> dict:
    """What there is to say of one family, on one configuration."""
    import lyapunov

    apart = family in OTHERS
    model, theirs, allowed, tokens = (
        of_another(family) if apart else of_transformers(family, mode)
    )
    ours = np.asarray(model.logits(tokens))
    report = lyapunov.check(
        model,
        tokens,
        precisions=PRECISIONS,
        measure="emulated" if apart else "transformers",
        mode=mode,
        growth=False,
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
        "mode": mode,
        "measured_by": "emulation" if apart else "transformers",
        "logits_off": float(np.abs(ours - theirs).max()),
        "tolerance": float(allowed),
        "exponent_max": report.exponents.max,
        "kinds": kinds,
        "elements": sum(p.count("elements_bounded") for p in report.precisions),
        "unbounded": sum(p.count("elements_unbounded") for p in report.precisions),
        "calibration_z": {
            p.precision: p.output.calibration_z for p in report.precisions
        },
        "environment": report.environment,
    }


def _unbounded(row: dict) -> str:
    """Elements without a finite bound, which neither hold nor exceed it."""
    unbounded = row.get("unbounded", 0)
    return f" ({unbounded:,} have none)" if unbounded else ""


def table(rows: list[dict]) -> str:
    """The rows as markdown."""
    lines = [
        "| family | mode | logits off / allowed | largest exponent | above a bound |"
        " T1 / measured, bf16 | fp16 |",
        "|---|---|---|---|---|---|---|",
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
            row["mode"] + (", emulated" if row["measured_by"] == "emulation" else ""),
            f"{row['logits_off']:.1e} / {row['tolerance']:.1e}",
            "none" if exponent is None else f"{exponent:.2g}",
            f"{above} of {row['elements']:,}" + _unbounded(row),
            *(spans[p] for p in PRECISIONS),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _among_others(rows: list[dict], order: list[str], path: Path) -> list[dict]:
    """Rows of families that were named, in place of theirs in the last result."""
    before = json.loads(path.read_text())["rows"]
    anew = {row["family"] for row in rows}
    kept = [row for row in before if row["family"] not in anew and "mode" in row]
    return sorted(kept + rows, key=lambda row: order.index(row["family"]))


def main(given: list[str] | None = None) -> None:
    """Run the study and write its files."""
    parser = STUDY.parser(__doc__)
    parser.add_argument("families", nargs="*", help="all by default")
    options = parser.parse_args(given)
    STUDY.begin(options.out)
    jax.config.update("jax_enable_x64", True)
    import transformers

    from oracles.checkpoints.configurations import CONFIGURATIONS

    every = [*CONFIGURATIONS, *OTHERS]
    unknown = [family for family in options.families if family not in every]
    if unknown:
        raise Problem(f"no family {unknown[0]!r}", f"one of {', '.join(every)}")
    chosen = options.families or every
    rows = []
    for family in chosen:
        for mode in MODES:
            rows.append(run(family, mode))
            jax.clear_caches()  # each row compiles its own, gigabytes in all
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    environment = rows[0]["environment"] | {"transformers": transformers.__version__}
    if options.families and options.out.exists():
        # rows that were made elsewhere keep what they were made with
        environment = json.loads(options.out.read_text())["environment"]
        rows = _among_others(rows, every, options.out)
    else:
        for row in rows:
            row.pop("environment")
    result = {
        "command": "python -m analysis.families",
        "environment": environment,
        "tokens": TOKENS,
        "rows": rows,
    }
    write(options.out, json.dumps(result, indent=2) + "\n")
    write(options.out.with_suffix(".md"), table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
