"""The results of `analysis.speed` as Markdown."""

from ._speed_inputs import Shape


GOALS = (5.0, 3.0)


def matrix_work(shape: Shape) -> float:
    """Operations of one pass' matrix products, all layers."""
    weights = shape.d_inner * (3 * shape.d_model + 2 * shape.dt_rank)
    weights += 2 * shape.d_inner * shape.d_state
    return 2.0 * shape.batch * shape.seq * weights * shape.layers


def shares(result: dict, precision: str) -> dict:
    """How near a pass comes to what the card's fp64 rate allows.

    T0 has one pass' products in fp64, T1 one more and the reference's; where weights
    are rounded, those of the rounded ones in exact arithmetic as well.
    """
    row = result["bounds"][precision]
    rate = result["limits"]["matmul float64 TFLOP/s"] * 1e12
    work = matrix_work(Shape(**result["shape"]))
    found = {}
    for tier, passes in (("T0", 1), ("T1", 2 + (precision != "fp32")), ("exact", 1)):
        profile = row.get(f"{tier} ms by kernel", {}).get("kinds", {})
        took = row["exact pass s" if tier == "exact" else f"{tier} s"]
        found[f"{tier}, of the fp64 rate, whole"] = passes * work / rate / took
        products = profile.get("matrix products fp64")
        if products:
            share = passes * work / rate / (products / 1e3)
            found[f"{tier}, of the fp64 rate, products alone"] = share
    return found


def page(result: dict) -> str:
    """The results as Markdown."""
    lines = [
        "# T0 and T1 on a GPU",
        "",
        _told(result.get("environment", {})),
        "",
        "| what | value |",
        "| --- | --- |",
    ]
    for name, value in result.get("limits", {}).items():
        lines.append(f"| {name} | {value:.4g} |")
    copy = result.get("limits", {}).get("copy GB/s")
    for name, row in result.get("scan", {}).items():
        if row["ms"] is None:
            continue
        lines.append(f"| scan, {name}, ms | {row['ms']:.3g} |")
        share = row["GB moved"] / (row["ms"] / 1e3) / copy
        lines.append(f"| scan, {name}, share of the copy rate | {share:.2g} |")
    for name, value in result.get("agreement", {}).items():
        lines.append(f"| kernel against loop, {name} | {value:.2g} |")
    one = result.get("mamba_ssm", {})
    if "whole, s" in one:
        lines.append(f"| mamba_ssm forward fp32, s | {one['whole, s']:.4g} |")
        lines.append(f"| of it the layers, s | {one['layers alone, s']:.4g} |")
    for precision, row in result.get("bounds", {}).items():
        for name, value in row.items():
            if isinstance(value, int | float):
                lines.append(f"| {precision}: {name} | {value:.4g} |")
        if "whole, s" in one:
            ratio = row["T0 and T1 s"] / one["whole, s"]
            goal = " and ".join(f"{g:g}" for g in GOALS)
            lines.append(
                f"| {precision}: T0 and T1 in forwards, goal {goal} | {ratio:.3g} |"
            )
        if "limits" in result:
            for name, value in shares(result, precision).items():
                lines.append(f"| {precision}: {name} | {value:.2g} |")
        for tier in ("T0", "T1", "exact"):
            for kind, took in (
                row.get(f"{tier} ms by kernel", {}).get("kinds", {}).items()
            ):
                lines.append(f"| {precision}: {tier}: {kind}, ms | {took:.4g} |")
    return "\n".join([*lines, *_on_cpu(result.get("on a CPU")), ""])


def _told(environment: dict) -> str:
    return ", ".join(f"{k}: {v}" for k, v in environment.items())


def _on_cpu(found: dict | None) -> list[str]:
    if not found:
        return []
    shape, environment = Shape(**found["shape"]), found.get("environment", {})
    lines = [
        "",
        f"On a CPU, {shape.layers} layers over {shape.batch} x {shape.seq} tokens, "
        f"in CPU seconds: {_told(environment)}",
        "",
        "| precision | T0, s | T1, s | both, s | exact pass, s | both in these |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    names = ("T0 s", "T1 s", "T0 and T1 s", "exact pass s")
    for precision in ("fp32", "bf16"):
        row = found.get(precision)
        if row:
            times = [row[name] for name in names]
            cells = [f"{x:.3g}" for x in (*times, times[2] / times[3])]
            lines.append(f"| {precision} | {' | '.join(cells)} |")
    return lines
