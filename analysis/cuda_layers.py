"""The bundled model on mamba_ssm's CUDA kernels, every layer held to its bounds.

`python -m analysis.cuda_layers [CHECKPOINT]` needs an NVIDIA GPU with mamba_ssm and
causal_conv1d; it writes analysis/results/cuda_layers.json: for each precision and
length, mode, violations, T0 and T1 over the measured error, the logits' divergence and
what T3 predicted of it, beside the same of the emulator.
"""

import json
import sys
from pathlib import Path

import jax


RESULTS = Path(__file__).parent / "results"
PRECISIONS = ("bf16", "bf16-cast", "bf16-amp", "fp16", "fp16-amp", "fp32")
DECODED = ("bf16", "fp16", "fp32")
# one block of the kernel's scan, and one token more than its chunk of 2048
RUNS = [("prefill", p, shape) for shape in ((2, 512), (1, 2049)) for p in PRECISIONS]
# a step a token, with the state in the weights' format
RUNS += [("decode", p, (2, 256)) for p in DECODED]


def row(report) -> dict:
    """What one execution of one report says, in one line."""
    (precision,) = report.precisions
    layers = precision.layers
    t0 = [ratio for layer in layers for ratio in (layer.bound_t0 or {}).values()]
    t1 = [layer.bound_t1_ratio for layer in layers if layer.bound_t1_ratio]
    return {
        "execution": precision.execution,
        "measured_by": precision.measured_by,
        "batch": report.tokens.batch,
        "length": report.tokens.length,
        "violations": sum(layer.violations for layer in layers),
        "elements": sum(layer.elements_total for layer in layers),
        "t0_ratio": [min(t0), max(t0)],
        "t1_ratio": [min(t1), max(t1)],
        "rel_l2": precision.output.measured_rel_l2,
        "sigma_t3": precision.output.sigma_t3,
        "calibration_z": precision.output.calibration_z,
        "predicted_stable": precision.output.decisions.predicted_stable,
        "predicted_flipped": precision.output.decisions.predicted_flipped,
        "kl_mean": precision.output.kl_mean,
        "flips": precision.output.argmax_flips,
        "ties": precision.output.argmax_ties,
    }


def main() -> None:
    """Run the study and write its file."""
    jax.config.update("jax_enable_x64", True)
    import mamba_ssm
    import torch

    import lyapunov
    from analysis.perturbation import english

    model = lyapunov.load(sys.argv[1] if len(sys.argv) > 1 else None)
    rows, environment = [], {}
    for mode, precision, (batch, length) in RUNS:
        tokens = english(model, batch * length).reshape(batch, length)
        for measure in ("mamba_ssm", "emulated"):
            report = lyapunov.check(
                model,
                tokens,
                precisions=[precision],
                mode=mode,
                measure=measure,
                floor=False,
                readouts=0,
                ball=False,
            )
            environment = report.environment
            rows.append(row(report))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    result = {
        "command": "python -m analysis.cuda_layers",
        "checkpoint": model.source,
        "environment": environment
        | {
            "gpu": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "mamba_ssm": mamba_ssm.__version__,
            "cuda": torch.version.cuda,
        },
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(result, indent=1) + "\n"
    (RESULTS / "cuda_layers.json").write_text(text)
    print(f"{sum(r['violations'] for r in rows)} violations in {len(rows)} executions")


if __name__ == "__main__":
    main()
