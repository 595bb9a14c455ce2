"""What a format of the cached state costs: error, KL, flips, and what binds.

`python -m analysis.state_formats [CHECKPOINT]` decodes several texts with the state
held in every format and writes state_formats.json and a figure. Beside
each error stands what T3 predicts of it, with its calibration z: a report withholds the
prediction where z says that roundings are not independent. Three comparisons name the
cause from the measurement, beside the name that the library reads off the reference;
each asks for most of the KL, which grows as the square of a small error:

- the state in fp32: if half of the KL stays, it is the model, not the precision;
- the same significand with an unlimited exponent: if half is gone, range binds;
- the same format rounded stochastically. Its squared error at a store is twice that of
  nearest rounding, without a bias: KL = bias + noise becomes 2 noise. If that is less
  than KL, most of it is bias: stagnation binds, else the mantissa.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from studies.files import write
from studies.picture import pyplot, save
from studies.study import Study


STUDY = Study(
    "analysis.state_formats",
    "minutes",
    Path(__file__).parent / "results" / "state_formats.json",
    ("matplotlib",),
)
TEXTS, TOKENS = 4, 512
BASES = ("bf16", "fp16", "fp8_e4m3", "fp8_e5m2")
VARIANTS = ("", "-scaled", "-stochastic", "-scaled-stochastic")
WEIGHTS = ("fp32", "bf16")


def study(source: str | None) -> dict:
    """Every state format under fp32 and bf16 weights; one row each."""
    import lyapunov
    from lyapunov.formats import Format, state_format_named
    from lyapunov.implementations import Emulated, Reference, mamba_ssm_decode

    model = lyapunov.load(source)
    texts = passages(model)
    formats = [state_format_named(name) for name in BASES]
    reference = Reference(
        tuple(f.unit_roundoff for f in formats),
        tuple(f.smallest_normal for f in formats),
    )
    records = list(lyapunov.trace(model, texts, runner=reference))
    exact = logits(model, records.pop())

    def run(weights, cache):
        execution = mamba_ssm_decode(
            weights, state_precision=cache if isinstance(cache, str) else "fp32"
        )
        if not isinstance(cache, str):
            sites = execution.sites | {"state": cache}
            execution = dataclasses.replace(execution, sites=sites)
        trace = lyapunov.trace(model, texts, runner=Emulated(execution))
        return compare(exact, logits(model, list(trace)[-1]))

    rows = []
    for weights in WEIGHTS:
        wide = run(weights, "fp32")
        rows.append({"weights": weights, "state": "fp32"} | wide)
        for i, base in enumerate(BASES):
            found = {v: run(weights, base + v) for v in VARIANTS}
            free = Format(base, formats[i].significand_bits, -900, 1e270)
            unlimited = run(weights, free)
            for variant, row in found.items():
                rows.append(
                    {"weights": weights, "state": base + variant}
                    | row
                    | predicted(model, texts, records, weights, base + variant)
                    | {
                        "unlimited_exponent_kl": unlimited["kl_mean"],
                        "cause_measured": measured_cause(
                            row, variant, found, unlimited, wide
                        ),
                        "cause": library_cause(records, i, base + variant, row, wide),
                    }
                )
            print(f"{weights} weights, {base} done", file=sys.stderr)
    return {
        "command": "python -m analysis.state_formats",
        "checkpoint": model.source,
        "texts": TEXTS,
        "tokens": TOKENS,
        "environment": {"jax": jax.__version__, "numpy": np.__version__},
        "rows": rows,
    }


def passages(model) -> np.ndarray:
    """Passages of the bundled held-out text, or seeded tokens."""
    import importlib.resources

    shape = TEXTS, TOKENS
    if model.config.vocab_size != 256:
        return np.random.default_rng(0).integers(0, model.config.vocab_size, shape)
    home = importlib.resources.files("lyapunov") / "assets" / "mamba1-bytes"
    text = np.frombuffer(home.joinpath("heldout.txt").read_bytes(), np.uint8)
    starts = np.linspace(0, len(text) - TOKENS, TEXTS).astype(int)
    return np.stack([text[s : s + TOKENS] for s in starts]).astype(np.int64)


def logits(model, head) -> np.ndarray:
    """All logits of a run, (texts, tokens, vocabulary)."""
    with jax.enable_x64(True):
        parts = [
            np.asarray(head.logits(rows.start, rows.stop))[..., rows.behind :]
            for rows in model.vocabulary_slices()
        ]
        return np.concatenate(parts, axis=-1)


def compare(exact: np.ndarray, other: np.ndarray) -> dict:
    """Error, KL(reference || execution) and flips, over all texts and by text.

    Of equal logits the lowest index is chosen, on both sides; a choice of another of
    the reference's own equal leaders is a tie.
    """
    if not np.isfinite(other).all():
        return {
            "rel_l2": None,
            "kl_mean": None,
            "kl_max": None,
            "flips": None,
            "non_finite_tokens": int((~np.isfinite(other)).any(-1).sum()),
            "tokens": int(exact[..., 0].size),
        }
    centred = [x - x.mean(-1, keepdims=True) for x in (exact, other)]
    kl = divergences(*centred)
    choice = other.argmax(-1)
    differs = exact.argmax(-1) != choice
    there = np.take_along_axis(exact, choice[..., None], -1)[..., 0]
    tied = differs & (there == exact.max(-1))
    return {
        "rel_l2": float(np.linalg.norm(centred[1] - centred[0]))
        / float(np.linalg.norm(centred[0])),
        "kl_mean": float(kl.mean()),
        "kl_max": float(kl.max()),
        "kl_by_text": kl.mean(-1).tolist(),
        "flips": int((differs & ~tied).sum()),
        "ties": int(tied.sum()),
        "tokens": int(differs.size),
    }


def divergences(exact: np.ndarray, other: np.ndarray) -> np.ndarray:
    """KL(reference || execution) of every token, in nats: (texts, tokens)."""
    log_p, log_q = (
        x - np.logaddexp.reduce(x, -1, keepdims=True) for x in (exact, other)
    )
    return np.maximum((np.exp(log_p) * (log_p - log_q)).sum(-1), 0.0)


def measured_cause(row, variant: str, found: dict, unlimited: dict, wide: dict) -> str:
    """The cause by experiment, as the module's docstring says."""
    kl = row["kl_mean"]
    if kl is None:
        return "range"
    if kl < 2 * wide["kl_mean"]:
        return "the model"
    scaled = "scaled" in variant
    if not scaled and unlimited["kl_mean"] * 2 < kl:
        return "range"
    drawn = found["-scaled-stochastic" if scaled else "-stochastic"]["kl_mean"]
    if "stochastic" not in variant and drawn is not None and drawn < kl:
        return "stagnation"
    return "mantissa"


def library_cause(records, index: int, name: str, row: dict, wide: dict) -> str | None:
    """The cause as the library names it, from the reference and the two errors."""
    from lyapunov.questions import state_cause, state_facts

    share = None
    if row["kl_mean"] is not None:
        # KL grows as the square of a small error
        share = max(0.0, 1.0 - wide["kl_mean"] / row["kl_mean"])
    found = (state_facts(record, index) for record in records)
    facts = [one for one in found if one is not None]
    return state_cause(
        name,
        facts,
        moved=row["flips"] is None or row["flips"] > 0,
        state_share=share,
    )


def predicted(model, texts, records, weights: str, state: str) -> dict:
    """T3 of the logits, its calibration, and whether a report would withhold it."""
    from lyapunov.bounds.end_to_end import EndToEnd
    from lyapunov.implementations import Emulated, Reference, mamba_ssm_decode

    execution = mamba_ssm_decode(weights, state_precision=state)
    with jax.enable_x64(True):
        end = EndToEnd(model, texts, [execution], n_readouts=0)
        for sublayer, record in zip(model.sublayers, records, strict=True):
            end.sublayer(sublayer, record)
        head: Any = list(Reference().trace(model, texts))[-1]
        run: Any = list(Emulated(execution).trace(model, texts))[-1]
        end.head(head)
        for rows in model.vocabulary_slices():
            reference, own = (x.logits(rows.start, rows.stop) for x in (head, run))
            end.logits(rows, reference, [own])
        estimate = end.estimate(0)
    return {
        "predicted_rel_l2": estimate.sigma_t3,
        "calibration_z": estimate.calibration_z,
        "withheld": estimate.sigma_withheld is not None,
    }


def draw(result: dict, path: Path) -> None:
    """KL by format, for both weights, and flips."""
    figure, axes = pyplot().subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    names = [r["state"] for r in result["rows"] if r["weights"] == WEIGHTS[0]]
    place = np.arange(len(names))
    for weights, shift, colour in zip(
        WEIGHTS, (-0.2, 0.2), ("#2b6ca3", "#c8691c"), strict=True
    ):
        rows = [r for r in result["rows"] if r["weights"] == weights]
        kl = [
            np.nan if r["kl_mean"] is None else max(r["kl_mean"], 1e-17) for r in rows
        ]
        flips = [
            np.nan if r["flips"] is None else 100 * r["flips"] / r["tokens"]
            for r in rows
        ]
        for axis, values in zip(axes, (kl, flips), strict=True):
            axis.barh(place + shift, values, 0.4, color=colour, label=weights)
            for y, value in zip(place + shift, values, strict=True):
                if np.isnan(value):
                    axis.text(0.02, y, "not finite", transform=_across(axis), size=7)
    axes[0].set_xscale("log")
    axes[0].set_xlabel("mean KL to the reference (nats a token)")
    axes[1].set_xlabel("top tokens that change (%)")
    for axis in axes:
        axis.set_yticks(place, names, size=8)
        axis.invert_yaxis()
    axes[1].legend(title="weights", frameon=False)
    save(figure, path)


def _across(axis):
    from matplotlib.transforms import blended_transform_factory

    return blended_transform_factory(axis.transAxes, axis.transData)


def main(given: list[str] | None = None) -> None:
    """Run the study and write its files."""
    parser = STUDY.parser(__doc__)
    parser.add_argument("checkpoint", nargs="?", help="the bundled model by default")
    options = parser.parse_args(given)
    STUDY.begin(options.out)
    result = study(options.checkpoint)
    draw(result, options.out.with_suffix(".png"))
    write(options.out, json.dumps(result, indent=1) + "\n")
    for row in result["rows"]:
        kl = "not finite" if row["kl_mean"] is None else f"KL {row['kl_mean']:.2e}"
        print(
            f"{row['weights']:5} {row['state']:28} {kl:12} flips {row['flips']} "
            f"measured: {row.get('cause_measured')}; library: {row.get('cause')}"
        )


if __name__ == "__main__":
    main()
