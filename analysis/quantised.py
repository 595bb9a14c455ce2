"""What quantising does to trained networks, kind by kind, and what is best kept.

`python -m analysis.quantised` takes the trained networks and asks of each:

- what weights in each format do to the logits, of all sublayers that quantisers round
  and of each kind alone: KL and changed tokens, measured in fp64, and the relative
  distance of the logits beside what its first order predicts;
- what W8A8 and W4A4 add: bf16 with what products read quantised, of the network whose
  weights are in the format already, against its own fp64 reference, beside bf16 alone;
- of the hybrid, what checkpoints do whose configurations have activations quantised and
  some modules left alone, followed module by module, and their weights alone;
- what `rank_weights` says should stay in 16 bits, how far its predictions are from what
  it measured, and how much keeping a tenth of the quantised numbers gives back.

Texts are one passage of 256 bytes of held-out text: KL and flips are of these tokens
and have their spread. Weights are rounded to nearest without calibration. Of Mamba-3 no
quantised activations are declared. NVFP4's fixed scale is 6 * 448 over the largest
stored activation, as calibration on this text would have it.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from studies.files import as_json, write
from studies.study import Study, promote

from ._quantised_configured import with_configured
from ._quantised_page import draw, page
from .state_formats import passages


ROOT = Path(__file__).parents[1]
STUDY = Study(
    "analysis.quantised",
    "20 minutes of one core; a cut run goes on",
    Path(__file__).parent / "results" / "quantised.json",
    ("matplotlib",),
)
MODELS = ("mamba1", "mamba2", "mamba3", "gated_delta", "hybrid", "kimi_delta")
FORMATS = ("fp8_e4m3", "int8", "int4", "nvfp4")
RANKED = ("fp8_e4m3", "int4", "nvfp4")
ACTIVATIONS = (
    ("fp8_e4m3-row", "fp8_e4m3-token"),
    ("int8", "int8-token"),
    ("nvfp4", "nvfp4="),
)
TOKENS = 256


def text(model: Any) -> np.ndarray:
    """One passage, (1, tokens)."""
    return passages(model)[:1, :TOKENS]


def by_kind(model: Any, tokens: np.ndarray) -> list[dict[str, Any]]:
    """Weights of all kinds and of each, in every format."""
    import lyapunov

    kinds = list(dict.fromkeys(one.kind for one in model.config.sublayers))
    groups = ["all", *(kinds if len(kinds) > 1 else ())]
    asked = [f"{name}:{group}" for name in FORMATS for group in groups]
    report = lyapunov.check(
        model, tokens, measure="none", effort="quick", round_weights=asked
    )
    return [
        {
            "format": change.name.partition(":")[0],
            "group": change.name.partition(":")[2],
            "kl_mean": change.output.kl_mean,
            "kl_max": change.output.kl_max,
            "flips": change.output.argmax_flips,
            "tokens": change.output.argmax_total,
            "rel_l2": change.output.measured_rel_l2,
            "predicted_rel_l2": change.predicted_rel_l2,
        }
        for change in report.parameter_changes
    ]


def with_activations(model: Any, tokens: np.ndarray) -> list[dict[str, Any]]:
    """What an execution in bf16 does, and one that quantises activations as well."""
    import lyapunov
    from lyapunov.questions import rounded_weights

    rows = []
    for weights, activations in ACTIVATIONS:
        held = rounded_weights(model, weights).model
        for name in (None, activations):
            if name is not None and name.endswith("="):
                name = f"{name}{6 * 448 / rows[-1]['largest']:.4g}"
            report = lyapunov.check(
                held,
                tokens,
                precisions="bf16",
                effort="quick",
                quantise_activations=name,
            )
            (found,) = report.precisions
            output = found.output
            largest = [max((row.max_abs_stored or {}).values()) for row in found.layers]
            rows.append(
                {
                    "weights": weights,
                    "activations": name,
                    "kl_mean": output.kl_mean,
                    "flips": output.argmax_flips,
                    "tokens": output.argmax_total,
                    "rel_l2": output.measured_rel_l2,
                    "predicted_rel_l2": output.sigma_t3,
                    "calibration_z": output.calibration_z,
                    "largest": max(largest),
                }
            )
    return rows


def ranked(model: Any, tokens: np.ndarray, name: str) -> dict[str, Any]:
    """The first matrices in a format, and what keeping a tenth gives back."""
    import lyapunov

    found = lyapunov.rank_weights(model, tokens, format=name, measured=6)
    kept = found.kept
    assert kept.measured_all is not None
    assert kept.measured is not None
    return {
        "format": name,
        "matrices": [
            {
                "module": row.module,
                "share": row.share,
                "quantised": row.quantised,
                "kept": row.kept,
                "predicted_kl": row.predicted_kl,
                "predicted_stderr": row.predicted_stderr,
                "measured_kl": None if row.measured is None else row.measured.kl_mean,
            }
            for row in found.matrices
        ],
        "kept": kept.modules,
        "share": kept.share,
        "predicted_kl_all": kept.predicted_kl_all,
        "kl_all": kept.measured_all.kl_mean,
        "flips_all": kept.measured_all.flips,
        "predicted_kl_kept": kept.predicted_kl,
        "kl_kept": kept.measured.kl_mean,
        "flips_kept": kept.measured.flips,
        "given_back": kept.given_back,
    }


def parts(name: str) -> dict[str, Any]:
    """What is asked of one network, by name."""
    found: dict[str, Any] = {f"rank {fmt}": (ranked, fmt) for fmt in RANKED}
    if name != "mamba3":
        found["activations"] = (with_activations,)
    if name == "hybrid":
        found["configured"] = (with_configured,)
    return {"kinds": (by_kind,), **found}


def study(path: Path) -> dict[str, Any]:
    """Fill in what the file lacks, part by part."""
    import lyapunov

    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name in MODELS:
        own = result.setdefault(name, {})
        waiting = [part for part in parts(name) if part not in own]
        model = lyapunov.load(ROOT / "experiments" / "models" / name)
        for part in waiting:
            began = time.perf_counter()
            run, *more = parts(name)[part]
            own[part] = run(model, text(model), *more)
            write(path, as_json(result))
            taken = time.perf_counter() - began
            print(f"{name}, {part}: {taken:.0f} s", file=sys.stderr, flush=True)
    return result


def main(given: list[str] | None = None) -> None:
    """Run what is missing, and write it all."""
    asked = STUDY.parser(__doc__).parse_args(given)
    STUDY.begin(asked.out)
    working = STUDY.working(asked.out)
    working.parent.mkdir(parents=True, exist_ok=True)
    result = study(working)
    write(working.with_suffix(".md"), page(result))
    draw(result, working.with_suffix(".png"))
    promote(working, asked.out, [])


if __name__ == "__main__":
    main()
