"""`python -m docs.picture`: the picture of README and front page, from result files."""

import json
from pathlib import Path

from docs.tables import ROOT
from studies.picture import pyplot


PICTURE = ROOT / "docs" / "pages" / "assets" / "overview.svg"
COLORS = {"fp32": "#009e73", "fp16": "#0072b2", "bf16": "#d55e00", "fp8": "#8a5a9e"}
STATES = ("fp32", "fp16", "bf16", "bf16-stochastic", "fp8_e4m3-stochastic", "fp8_e4m3")


def known(name: str) -> dict:
    """A result of `analysis`."""
    return json.loads((ROOT / "analysis" / "results" / f"{name}.json").read_text())


def predicted(axis) -> None:
    """Distances of logits, predicted and measured with the kernels."""
    for form in ("bf16", "fp16"):
        rows = [
            (row["sigma_t3"], row["rel_l2"])
            for row in known("cross_check")["rows"]
            if row["precision"].startswith(form) and row["sigma_t3"]
        ]
        axis.scatter(*zip(*rows, strict=True), s=16, color=COLORS[form], label=form)
    ends = (3e-4, 4e-2)
    axis.plot(ends, ends, color="#888", linewidth=0.8, zorder=0)
    axis.set(xscale="log", yscale="log", xlabel="predicted", ylabel="measured")
    axis.set_title("How far do the logits move?\nprediction against kernels on an H200")
    axis.legend(frameon=False, loc="upper left")


def faults(axis) -> None:
    """Elements above their certified bound, of right runs and of planted faults."""
    lines = known("faults")["faults"]
    right = [x for x in lines if x["right"]]
    planted = sorted(
        (x["violations"] / x["elements"] for x in lines if x not in right), reverse=True
    )
    axis.bar(range(len(planted)), [100 * x for x in planted], color=COLORS["bf16"])
    axis.bar(
        range(len(planted) + 1, len(planted) + 1 + len(right)),
        [100 * x["violations"] / x["elements"] for x in right],
        color=COLORS["fp16"],
    )
    axis.set(yscale="log", ylim=(0.1, 100), xticks=[], ylabel="elements above, %")
    axis.set_xlabel(f"{len(planted)} planted faults; {len(right)} right runs: 0 %")
    axis.set_title("Rounding or a bug?\nmamba_ssm's kernels against their bounds")


def states(axis) -> None:
    """Mean KL of a trained model by the format of its state."""
    rows = {
        row["state"]: row["kl_mean"]
        for row in known("state_formats")["rows"]
        if row["weights"] == "fp32"
    }
    for place, state in enumerate(reversed(STATES)):
        axis.barh(place, rows[state], color=COLORS[state[:4].split("_")[0]])
    axis.set_yticks(range(len(STATES)), reversed(STATES))
    axis.set(xscale="log", xlim=(1e-14, 1), xlabel="mean KL, nats a token")
    axis.set_title("Which state dtype?\na trained Mamba, decoding")


def draw(path: Path) -> None:
    """Write the picture."""
    plot = pyplot()
    plot.rcParams.update(
        {"font.size": 9, "svg.hashsalt": "overview", "svg.fonttype": "path"}
    )
    figure, axes = plot.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    for axis, part in zip(axes, (predicted, faults, states), strict=True):
        part(axis)
        axis.spines[["top", "right"]].set_visible(False)
        axis.title.set_fontsize(9)
    figure.savefig(path, metadata={"Date": None})
    plot.close(figure)


if __name__ == "__main__":
    draw(PICTURE)
