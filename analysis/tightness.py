"""How tight every tier is, on trained and on random models, layer by layer.

`python -m analysis.tightness` writes tightness.json and .png: bound
over measured for T0, for T1 centred and not, the floor, T2, T3 with its z, how far T4
reaches, violations, where T1's radius grows, and what a check costs in fp64 forwards.
Random models need transformers; they have the shapes of trained ones and no text.
"""

import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np

from studies.files import as_json, write
from studies.picture import pyplot, save
from studies.study import Study


STUDY = Study(
    "analysis.tightness",
    "tens of minutes",
    Path(__file__).parent / "results" / "tightness.json",
    ("matplotlib", "torch", "transformers"),
)
DEEP = Path(__file__).parent / "models" / "mamba1-24-layers"
TOKENS = 256
PRECISIONS = ("bf16", "fp16", "fp32")
EVERY_TIER = {"floor": True, "readouts": None, "ball": True}
# (width, layers) of the random ones: bounds by elementwise sums grow with width
RANDOM = ((64, 4), (256, 4), (768, 2))


def random_model(width: int, layers: int):
    """A Mamba-1 as transformers initialises it."""
    import torch
    import transformers

    import lyapunov

    torch.manual_seed(0)
    config = transformers.MambaConfig(
        vocab_size=256, hidden_size=width, state_size=16, num_hidden_layers=layers
    )
    folder = tempfile.mkdtemp()
    transformers.MambaForCausalLM(config).save_pretrained(folder)
    return lyapunov.load(folder)


def uncentred(model, ids, precision: str) -> list[float]:
    """T1 over measured by layer, every rounding at its worst."""
    from lyapunov.bounds.local import sublayer_bound, with_operator_norms
    from lyapunov.implementations import Emulated, mamba_ssm_prefill

    execution = mamba_ssm_prefill(precision)
    trace = Emulated(execution).trace(model, ids)
    ratios = []
    for sublayer in model.sublayers:
        held = with_operator_norms(model.parameters(sublayer.layer, execution))
        found = sublayer_bound(
            execution,
            sublayer.flow,
            next(trace),
            held,
            model.parameters(sublayer.layer),
            model.start(held),
            centred=False,
        ).comparison
        square = np.sum(found.bound_square) / np.sum(found.measured_square)
        ratios.append(float(np.sqrt(square)))
    return ratios


def rows(name: str, model, ids) -> list[dict]:
    """One row an execution."""
    import lyapunov

    began = time.perf_counter()
    check = partial(lyapunov.check, model, ids, precisions=PRECISIONS, **EVERY_TIER)
    check()
    cold = time.perf_counter() - began
    began = time.perf_counter()
    report = check()
    warm = (time.perf_counter() - began) / len(PRECISIONS)
    model.logits(ids[0])
    began = time.perf_counter()
    model.logits(ids[0])
    forward = time.perf_counter() - began
    found = []
    for precision in report.precisions:
        layers, output = precision.layers, precision.output
        reference = output.measured_rel_l2 or 0.0
        row = {
            "model": name,
            "precision": precision.precision,
            "violations": precision.count("violations"),
            "elements": precision.count("elements_bounded"),
            "unbounded": precision.count("elements_unbounded"),
            "t0": [layer.bound_t0_ratio for layer in layers],
            "t1": [layer.bound_t1_ratio for layer in layers],
            "t1_uncentred": uncentred(model, ids, precision.precision),
            "floor": [layer.floor_t1_ratio for layer in layers],
            "binding": [layer.binding_site for layer in layers],
            "measured": reference,
            "t2": output.estimate_t2 and output.estimate_t2 / reference,
            "t3": output.sigma_t3 and output.sigma_t3 / reference,
            "z": output.calibration_z,
            "withheld": output.sigma_withheld,
            "t4_until": output.certified_until_layer,
            "t4_stopped_by": output.stopped_by,
            "cost_in_forwards": warm / forward,
            "seconds": {"cold": cold, "warm": warm, "forward": forward},
        }
        print(json.dumps(row), file=sys.stderr, flush=True)
        found.append(row)
    return found


def draw(found: list[dict], path: Path) -> None:
    """T1 centred, uncentred and the floor by layer, a panel a model and format."""
    shown = [row for row in found if row["precision"] != "fp32"]
    names = list(dict.fromkeys(row["model"] for row in shown))
    figure, axes = pyplot().subplots(
        len(names),
        2,
        figsize=(9, 2.2 * len(names)),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for row in shown:
        axis = axes[names.index(row["model"])][PRECISIONS.index(row["precision"])]
        at = range(len(row["t1"]))
        for key, label, mark in (
            ("t1_uncentred", "T1, every rounding free", "^"),
            ("t1", "T1", "o"),
            ("floor", "floor of the free ones", "v"),
            ("t0", "T0, tightest tensor", "."),
        ):
            axis.plot(at, row[key], mark, label=label, markersize=4)
        axis.set_yscale("log")
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_title(f"{row['model']}, {row['precision']}", fontsize=9)
        axis.grid(alpha=0.3)
        axis.xaxis.get_major_locator().set_params(integer=True)
    for axis in axes[-1]:
        axis.set_xlabel("layer")
    for line in axes:
        line[0].set_ylabel("bound / measured")
    axes[0][0].legend(fontsize=7, loc="upper left")
    save(figure, path)


def main(given: list[str] | None = None) -> None:
    """Run the study, write table and figure."""
    out = STUDY.parser(__doc__).parse_args(given).out
    STUDY.begin(out)
    jax.config.update("jax_enable_x64", True)
    import lyapunov
    from analysis.perturbation import english

    bundled = lyapunov.load()
    tokens = english(bundled, TOKENS).reshape(1, TOKENS)
    models = {"bundled, 9 layers": bundled}
    if DEEP.exists():
        models["trained, 24 layers"] = lyapunov.load(DEEP)
    found = [row for name, m in models.items() for row in rows(name, m, tokens)]
    drawn = np.random.default_rng(0).integers(0, 256, (1, TOKENS))
    for width, layers in RANDOM:
        found += rows(f"random, width {width}", random_model(width, layers), drawn)
    result = {
        "command": "python -m analysis.tightness",
        "tokens": TOKENS,
        "environment": {"jax": jax.__version__, "numpy": np.__version__},
        "rows": found,
    }
    write(out, as_json(result))
    draw(found, out.with_suffix(".png"))
    print(f"{sum(row['violations'] for row in found)} violations in {len(found)} rows")


if __name__ == "__main__":
    main()
