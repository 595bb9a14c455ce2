"""What rounding a group of weights does to a model: by format, measured and bounded.

`python -m analysis.parameter_changes [CHECKPOINT]...` writes
parameter_changes.json and a table beside it; for the bundled model,
and some groups of the one of 24 layers, where no checkpoint is given. Everything but
the weights is exact, so the figures say what the weights alone cost.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path

import jax
import numpy as np

from studies.files import write
from studies.study import Study

from .perturbation import english


STUDY = Study(
    "analysis.parameter_changes",
    "minutes",
    Path(__file__).parent / "results" / "parameter_changes.json",
)
DEEP = Path(__file__).parent / "models" / "mamba1-24-layers"
TOKENS = 256
GROUPS = (
    *("all", "projections", "conv", "norms", "embedding_and_head"),
    *("A_log", "dt_bias", "D"),
)
SCALED = ("fp8_e4m3", "int8", "int4", "nf4", "nvfp4", "mxfp4")
MATRICES = ("embedding_and_head",)
DEEP_GROUPS = ("all", "projections", "A_log", "dt_bias")


def crossed(formats, groups) -> list[str]:
    """FORMAT:GROUP of every pair, format by format."""
    return [f"{fmt}:{group}" for fmt in formats for group in groups]


def study(source: str | None, roundings: list[str]) -> dict:
    """One report a rounding, as `bf16:A_log`."""
    import lyapunov
    from lyapunov.questions import parameter_changes, rounded_weights

    model = lyapunov.load(source)
    tokens = english(model, TOKENS)
    changes = []
    for rounding in roundings:
        began = time.perf_counter()
        try:
            change = rounded_weights(model, rounding)
            (report,) = parameter_changes(model, tokens, [change])
        except lyapunov.LyapunovError as error:
            changes.append({"name": rounding, "refused": error.message})
            continue
        found = dataclasses.asdict(report)
        changes.append(found | {"seconds": time.perf_counter() - began})
        print(f"{model.source}: {report.name}", file=sys.stderr)
    return {
        "checkpoint": model.source if source is None else Path(source).name,
        "tokens": TOKENS,
        "layers": model.config.n_layers,
        "changes": changes,
    }


def table(study: dict) -> str:
    """A row a change, in Markdown."""
    lines = [
        f"## {study['checkpoint']}: {study['layers']} layers, {study['tokens']} tokens",
        "",
        "| weights | logits, rel. L2 | first order | beyond it | mean KL | flips |"
        " bound / measured | floor | violations |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for change in study["changes"]:
        if "refused" in change:
            lines.append(f"| {change['name']} | {change['refused']} |" + " |" * 7)
            continue
        output, rows = change["output"], change["layers"]
        ratios = [row["bound_ratio"] for row in rows if row["bound_ratio"]]
        floors = [row["floor_ratio"] for row in rows if row["floor_ratio"]]
        span = lambda x: f"{min(x):.2g} to {max(x):.2g}" if x else ""
        beyond = change["nonlinearity"]
        lines.append(
            f"| {change['name']} | {output['measured_rel_l2']:.2e} |"
            f" {change['predicted_rel_l2']:.2e} |"
            f" {'' if beyond is None else f'{beyond:.1%}'} |"
            f" {output['kl_mean']:.1e} | {output['argmax_flips']} |"
            f" {span(ratios)} | {span(floors)} |"
            f" {sum(row['violations'] for row in rows)} |"
        )
    return "\n".join(lines) + "\n"


HEAD = """# Rounded weights

`python -m analysis.parameter_changes`. Exact arithmetic but for the weights, which are
rounded to nearest once. Logits: the changed network against the base, relative L2
without each token's mean; *first order*: the tangent along the change, and what it
leaves of the effect. Bound: certified for every weight set within the same elementwise
distances, a sublayer at a time on the base's own input (least to most over layers);
*floor*: the largest effect that a search found among such weight sets, over the
measured one. Beyond about 1e4 a bound says nothing.

"""


def main(given: list[str] | None = None) -> None:
    """Run the studies and write their files."""
    parser = STUDY.parser(__doc__)
    parser.add_argument(
        "checkpoints", nargs="*", help="the bundled model and one of 24 layers"
    )
    options = parser.parse_args(given)
    STUDY.begin(options.out)
    jax.config.update("jax_enable_x64", True)
    from lyapunov.formats import PLAIN_FORMATS

    # a format with scales is one of matrices: of the other groups there are none
    every = crossed(PLAIN_FORMATS, GROUPS) + crossed(SCALED, ("all", *MATRICES))
    studies = [study(source, every) for source in options.checkpoints]
    if not studies:
        few = crossed(("bf16", "fp8_e4m3-unscaled"), DEEP_GROUPS)
        studies = [study(None, every), study(str(DEEP), few)]
    document = {
        "command": "python -m analysis.parameter_changes",
        "environment": {"jax": jax.__version__, "numpy": np.__version__},
        "studies": studies,
    }
    write(options.out, json.dumps(document, allow_nan=False) + "\n")
    text = HEAD + "\n".join(table(one) for one in studies)
    write(options.out.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main()
