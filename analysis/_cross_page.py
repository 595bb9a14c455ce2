"""The results of `analysis.cross_check` as Markdown and as a figure."""

from pathlib import Path

from studies.picture import pyplot, save


KERNELS = ("mamba_ssm", "transformers_cuda")


def measured(rows: list[dict]) -> list[dict]:
    """The rows of kernels."""
    return [row for row in rows if row["measured_by"] in KERNELS]


def beside(rows: list[dict], one: dict) -> dict | None:
    """The emulation of a measured row."""
    same = ("case", "precision")
    return next(
        (
            row
            for row in rows
            if row["measured_by"] not in KERNELS
            and all(row[key] == one[key] for key in same)
        ),
        None,
    )


def changed(row: dict) -> int:
    """Top tokens that changed: choices, by lowest index, that differ.

    Rows without `reference_ties` are of the rule before: a change where the execution's
    leader is shared was counted as a tie. The references of these are of trained or
    random weights in fp64, where two leading logits are not equal.
    """
    return row["flips"] + (0 if "reference_ties" in row else row.get("ties", 0))


def promised(rows: list[dict]) -> str:
    """Tokens that were predicted stable at 4 sigma, and how many changed."""
    told = [row for row in rows if row.get("predicted_stable") is not None]
    if not told:
        return ""
    stable = sum(row["predicted_stable"] for row in told)
    flipped = sum(row["predicted_flipped"] for row in told)
    text = f"Predicted stable at 4 sigma: {stable:,} tokens, {flipped:,} changed"
    earlier = [row for row in told if "reference_ties" not in row]
    unseen = sum(
        min(row["ties"], row["predicted_stable"] - row["predicted_flipped"])
        for row in earlier
    )
    if unseen:
        text += (
            ", counted under the earlier rule: one that changed into a token that "
            f"shares its largest logit is not among them (at most {unseen:,} more)"
        )
    return f"{text}."


def _elements(rows: list[dict]) -> str:
    """What the column of elements counts."""
    if all("unbounded" in row for row in rows):
        unbounded = sum(row["unbounded"] for row in rows)
        return f"Elements have a finite bound; {unbounded:,} more have none."
    return "Elements: all, and the L2 bound of every tensor is finite."


def _number(value) -> str:
    return "-" if value is None else f"{value:.2g}"


def _span(rows: list[dict], key: str) -> str:
    """The smallest and largest of what rows have under a key, ranges or numbers."""
    values: list[float] = []
    for row in rows:
        found = row[key]
        found = found if isinstance(found, list) else [found]
        values += [value for value in found if value is not None]
    if not values:
        return "-"
    low, high = min(values), max(values)
    return f"{low:.3g} to {high:.3g}"


def page(result: dict) -> str:
    """All executions, then each one."""
    rows = result["rows"]
    lines = ["# Predicted against measured on CUDA", ""]
    lines += [
        ", ".join(f"{k}: {v}" for k, v in one.items()) for one in result["environments"]
    ]
    lines += [f"not finished: {name}: {why}" for name, why in result["failed"].items()]
    lines += [
        "",
        "| network | mode | format | executions | elements | violations "
        "| T0 / measured | T1 / measured | z | KL, nats | top tokens changed |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    kernels = measured(rows)
    keys = dict.fromkeys((r["model"], r["mode"], r["precision"]) for r in kernels)
    for model, mode, precision in keys:
        own = [
            row
            for row in kernels
            if (row["model"], row["mode"], row["precision"]) == (model, mode, precision)
        ]
        flips, of = sum(map(changed, own)), sum(row["tokens"] for row in own)
        lines.append(
            f"| {model} | {mode} | {precision} | {len(own)} "
            f"| {sum(row['elements'] for row in own):,} "
            f"| {sum(row['violations'] for row in own)} | {_span(own, 't0_ratio')} "
            f"| {_span(own, 't1_ratio')} | {_span(own, 'calibration_z')} "
            f"| {_span(own, 'kl_mean')} | {flips} of {of} |"
        )
    lines += [
        "",
        f"{_elements(kernels)} Of equal logits the lowest index is the top token, on "
        "both sides.",
        promised(kernels),
        "",
        "| case | format | measured | predicted (T3) | emulated | z | KL | emulated "
        "| T1 / measured | emulated | violations |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in kernels or rows:
        other = beside(rows, row) or {}
        ratio = lambda one: "-" if not one.get("t1_ratio") else _span([one], "t1_ratio")
        lines.append(
            f"| {row['case']} | {row['precision']} | {_number(row['rel_l2'])} "
            f"| {_number(row['sigma_t3'])} | {_number(other.get('rel_l2'))} "
            f"| {_number(row['calibration_z'])} | {_number(row['kl_mean'])} "
            f"| {_number(other.get('kl_mean'))} | {ratio(row)} | {ratio(other)} "
            f"| {row['violations']} |"
        )
    return "\n".join(lines) + "\n"


def draw(rows: list[dict], path: Path) -> None:
    """Prediction against measurement, T1 by format, growth along a sequence."""
    shown = measured(rows) or rows
    figure, axes = pyplot().subplots(1, 3, figsize=(15, 5.4), layout="constrained")
    _predicted(axes[0], shown)
    _ratios(axes[1], shown)
    _growth(axes[2], shown)
    save(figure, path)


def _predicted(axis, rows: list[dict]) -> None:
    for mode, mark in (("prefill", "o"), ("decode", "^")):
        for i, model in enumerate(dict.fromkeys(row["model"] for row in rows)):
            own = [
                (row["sigma_t3"], row["rel_l2"])
                for row in rows
                if row["model"] == model and row["mode"] == mode and row["sigma_t3"]
            ]
            if own:
                label = model if mode == "prefill" else None
                axis.plot(*zip(*own, strict=True), mark, color=f"C{i}", label=label)
    said = [row for row in rows if row["sigma_t3"]]
    known = [x for row in said for x in (row["sigma_t3"], row["rel_l2"])]
    if known:
        ends = [min(known) / 2, max(known) * 2]
        axis.plot(ends, ends, color="black", linewidth=0.8)
    axis.set(xscale="log", yscale="log")
    axis.set(xlabel="predicted, rel. L2 of the logits", ylabel="measured")
    axis.set_title("T3 against the kernels (triangles: decode)", fontsize=10)
    _legend(axis)


def _legend(axis) -> None:
    """Under the axis, where it covers nothing."""
    axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3)


def _ratios(axis, rows: list[dict]) -> None:
    kinds = list(dict.fromkeys((row["model"], row["mode"]) for row in rows))
    formats = list(dict.fromkeys(row["precision"] for row in rows))
    for i, one in enumerate(formats):
        for at, kind in enumerate(kinds):
            spans = [
                row["t1_ratio"]
                for row in rows
                if (row["model"], row["mode"], row["precision"]) == (*kind, one)
                and row["t1_ratio"]
            ]
            if spans:
                low, high = min(s[0] for s in spans), max(s[1] for s in spans)
                y = at + 0.12 * (i - (len(formats) - 1) / 2)
                label = (
                    one if not axis.get_legend_handles_labels()[1].count(one) else None
                )
                axis.plot([low, high], [y, y], color=f"C{i}", linewidth=3, label=label)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_yticks(range(len(kinds)), [", ".join(kind) for kind in kinds], fontsize=7)
    axis.set(xscale="log", xlabel="T1 / measured, all sublayers")
    axis.set_title("The certified bound of a sublayer", fontsize=10)
    _legend(axis)


def _growth(axis, rows: list[dict]) -> None:
    chosen = {}
    for row in rows:
        if row["precision"] == "bf16" and row["mode"] == "prefill":
            best = chosen.get(row["model"])
            if best is None or row["length"] > best["length"]:
                chosen[row["model"]] = row
    for i, (model, row) in enumerate(chosen.items()):
        places = row["by_position"]
        blocks = len(places["accumulated"])
        at = [(k + 0.5) * row["length"] / blocks for k in range(blocks)]
        axis.plot(at, places["accumulated"], color=f"C{i}", label=model)
        axis.plot(at, places["local"], ":", color=f"C{i}")
    axis.set(
        xscale="log", yscale="log", xlabel="token", ylabel="L2 of a block of tokens"
    )
    axis.set_title(
        "bf16: error behind the last sublayer (dotted: its own)", fontsize=10
    )
    _legend(axis)
