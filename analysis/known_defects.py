"""Defects of mamba_ssm's kernels that are known, looked for on a GPU.

`python -m analysis.known_defects` needs an NVIDIA GPU with mamba_ssm. Four that others
have met, or that reading the kernels shows:

- `softplus`: Triton's is log(exp(x) + 1) without log1p: below -12 a dt is off by parts
  in a hundred, below -16.6 it is 0. The trained Mamba-2 with dt's bias lowered.
- `limits of dt`: a step of Mamba-2 does not apply them. The trained Mamba-2 with dt
  limited to its median, read and generated.
- `16-bit state`: a step keeps its state in the weights' format unless told otherwise.
  The trained Mamba-1 and -2, generating with the state in fp32, bf16 and fp16.
- `narrow heads`: Mamba-3 (SISO) with heads below 64 channels. Random weights.

For each the same check as any user's: violations of the bounds, the distance of the
logits from exact arithmetic, measured and as predicted, and what the check says of it.
It writes known_defects.json, .md and .png. `--measure emulated` follows the
first three on a CPU, where a step that ignores limits is not seen.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from studies.files import write
from studies.problems import demand
from studies.study import Study

from . import pictures
from ._cross_cases import TRAINED


STUDY = Study(
    "analysis.known_defects",
    "8 minutes on an H200",
    Path(__file__).parent / "results" / "known_defects.json",
    ("torch", "transformers", "safetensors", "matplotlib"),
    more="an NVIDIA GPU with mamba_ssm, or --measure emulated",
)
LOWERED = (0.0, 6.0, 9.0, 12.0, 15.0)  # what is taken off dt's bias
HEAD_DIMS = (128, 64, 32, 16)
STATES = ("fp32", "bf16", "fp16")

Case = tuple[str, Callable[[Path], Path], dict[str, Any]]


def _changed(
    name: str,
    folder: Path,
    weights: Callable[[dict], None] | None = None,
    settings: Callable[[dict], None] | None = None,
) -> Path:
    """The trained network with other weights or settings, in `folder`."""
    from safetensors.numpy import load_file, save_file

    source = TRAINED[name]
    stored = load_file(source / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    if weights is not None:
        weights(stored)
    if settings is not None:
        settings(config)
    save_file(stored, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _lowered(by: float) -> Callable[[Path], Path]:
    def lower(stored: dict) -> None:
        for key in stored:
            if key.endswith("dt_bias"):
                stored[key] = stored[key] - np.float32(by)

    return lambda folder: _changed("mamba2", folder, weights=lower)


def _limited(high: float) -> Callable[[Path], Path]:
    def limit(config: dict) -> None:
        config["ssm_cfg"]["dt_limit"] = [0.0, high]

    return lambda folder: _changed("mamba2", folder, settings=limit)


def _narrow(head_dim: int) -> Callable[[Path], Path]:
    """Mamba-3 of two layers, eight heads of `head_dim` channels and a state of 64."""

    def make(folder: Path) -> Path:
        import torch

        from experiments.trained.export import write_checkpoint
        from experiments.trained.networks import fresh
        from experiments.trained.shapes import HEADS, equal_shapes

        shape = equal_shapes(HEADS * head_dim // 2, 2)["mamba3"]
        torch.manual_seed(0)
        network = fresh(replace(shape, state=64), 0.0, torch.device("cuda"))
        write_checkpoint(folder, network.shape, network.stored())
        return folder

    return make


def cases(median: float, only: list[str]) -> Iterator[Case]:
    """Names, how to have the checkpoint, and the check's settings.

    `median`: of the trained Mamba-2's dt.
    """
    as_trained = lambda name: lambda folder: TRAINED[name]
    if "softplus" in only:
        for by in LOWERED:
            yield f"softplus, bias less {by:g}", _lowered(by), {"mode": "prefill"}
    if "limits" in only:
        for mode in ("prefill", "decode"):
            yield f"limits of dt, {mode}", _limited(median), {"mode": mode}
    if "state" in only:
        for name in ("mamba1", "mamba2"):
            for held in STATES:
                given = {"mode": "decode", "state_precision": held}
                yield f"16-bit state, {name}, {held}", as_trained(name), given
    if "heads" in only:
        for head_dim in HEAD_DIMS:
            what = f"narrow heads, {head_dim} channels"
            yield what, _narrow(head_dim), {"mode": "prefill"}


def looked_for(
    name: str, make: Callable[[Path], Path], settings: dict, ids: np.ndarray, by: str
) -> dict[str, Any]:
    """One case, checked; a kernel that refuses is an answer, too."""
    import lyapunov

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            report = lyapunov.check(
                str(make(Path(scratch))), ids, precisions=["bf16"], measure=by,
                growth=False, **settings,
            )  # fmt: skip
        except (Exception, SystemExit) as error:  # Triton's, torch's, ours: recorded
            told = f"{type(error).__name__}: {str(error).strip()[:300]}"
            return {"case": name, "refused": told}
    one = report.precisions[0]
    layers = report.exponents.layers
    least = [layer.dt_min for layer in layers if layer.dt_min is not None]
    most = [layer.dt_max for layer in layers if layer.dt_max is not None]
    return {
        "case": name,
        "execution": one.execution,
        "violations": one.count("violations"),
        "elements": one.count("elements_bounded"),
        "unbounded": one.count("elements_unbounded"),
        "first": next(
            (la.first_violation for la in one.layers if la.first_violation), None
        ),
        "rel_l2": one.output.measured_rel_l2,
        "sigma_t3": one.output.sigma_t3,
        "kl_mean": one.output.kl_mean,
        "flips": one.output.argmax_flips,
        "reference_ties": one.output.reference_ties,
        "tokens": one.output.argmax_total,
        "stagnation": max((la.stagnation or 0.0 for la in one.layers), default=0.0),
        "dt_min": min(least, default=None),
        "dt_max": max(most, default=None),
        "findings": [f"{found.code} {found.message}" for found in report.findings],
        "seconds": round(time.perf_counter() - began, 1),
    }


def median_dt() -> float:
    """Of the first layer of the trained Mamba-2, without its input: softplus(bias)."""
    from safetensors.numpy import load_file

    stored = load_file(TRAINED["mamba2"] / "model.safetensors")
    bias = stored["backbone.layers.0.mixer.dt_bias"].astype(np.float64)
    return float(np.median(np.logaddexp(0.0, bias)))


def page(result: dict) -> str:
    """known_defects.md."""
    lines = [
        "# Known defects of mamba_ssm's kernels",
        "",
        "; ".join(f"{key} {value}" for key, value in result["environment"].items()),
        "",
        f"bf16, one text of {result['tokens']} bytes. `{result['command']}`",
        "",
        "| case | above a bound | of | distance of logits | predicted | KL | flips |"
        " smallest dt | lost updates |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    number = lambda value: "-" if value is None else f"{value:.2e}"
    for row in result["rows"]:
        if "refused" in row:
            lines.append(f"| {row['case']} | refused: {row['refused']} |" + " |" * 7)
            continue
        cells = [row["case"], f"{row['violations']:,}", f"{row['elements']:,}"]
        cells += [number(row[key]) for key in ("rel_l2", "sigma_t3", "kl_mean")]
        cells += [f"{row['flips']} of {row['tokens']}", number(row["dt_min"])]
        lines.append(f"| {' | '.join([*cells, number(row['stagnation'])])} |")
    ran = [row for row in result["rows"] if "refused" not in row]
    if any("reference_ties" not in row for row in ran):
        lines += [
            "",
            "Flips and findings under the rule of an earlier version: a top token that "
            "changed into one of several equal logits of the execution was counted "
            "apart, as a tie, and is not among the flips.",
        ]
    lines += ["", "What the check says of each:", ""]
    for row in result["rows"]:
        told = "; ".join(row.get("findings", [])) or "nothing"
        lines.append(f"- {row['case']}: {told}")
    return "\n".join(lines) + "\n"


def environment(measure: str) -> dict[str, Any]:
    """What ran."""
    import torch

    found: dict[str, Any] = {"torch": torch.__version__, "measured by": measure}
    if measure == "mamba_ssm":
        import mamba_ssm

        found |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
        found["mamba_ssm"] = mamba_ssm.__version__
    return found


def main(given: list[str] | None = None) -> None:
    """The command."""
    parser = STUDY.parser(__doc__, "--results")
    kinds = ["softplus", "limits", "state", "heads"]
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--measure", default="mamba_ssm")
    options = parser.parse_args(given)
    STUDY.begin(options.out)
    if options.measure == "mamba_ssm":
        demand("mamba_ssm", "causal_conv1d")
    text = b"We hold these truths to be self-evident, that all men are created equal. "
    ids = np.frombuffer(text * (options.tokens // len(text) + 1), np.uint8)
    ids = ids[: options.tokens].astype(np.int64)
    rows = []
    for case in cases(median_dt(), options.only):
        rows.append(looked_for(*case, ids, options.measure))
        print(json.dumps(rows[-1])[:400], flush=True)
    result = {
        "command": "python -m analysis.known_defects",
        "environment": environment(options.measure),
        "tokens": options.tokens,
        "rows": rows,
    }
    write(options.out, json.dumps(result, indent=1) + "\n")
    write(options.out.with_suffix(".md"), page(result))
    pictures.known_defects(result, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
