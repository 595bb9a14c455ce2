"""Figures of the study of served states, as pages say them."""

import functools
import json
from typing import Any

from docs.tables import ROOT, table


DRAFTS = 3
MODELS = ("mamba2", "hybrid", "mamba1")
SHOWN = ("bf16", "fp16", "fp16-stochastic")
PERIODS = {1: "every token", 4: "every 4 (a window of 3 drafts)"}
PERIODS |= {16: "every 16 (ReplaySSM)"}


@functools.cache
def _study() -> dict[str, Any]:
    path = ROOT / "analysis/results/served_states.json"
    return json.loads(path.read_text("utf-8"))


def _row(said: str) -> dict[str, Any]:
    """The row of a network, a stack, a state and a period: `mamba2 vLLM bf16 1`."""
    model, stack, state, period = said.split()
    key = model, stack, state, int(period), ""
    (one,) = (
        row
        for row in _study()["rows"]
        if key
        == tuple(row[name] for name in ("model", "stack", "state", "period", "more"))
    )
    return one


def _number(x: float) -> str:
    return f"{x:.2g}".replace("e-0", "e-")


def served_kl(said: str) -> str:
    """Mean KL of everything together."""
    return _number(_row(said)["kl_mean"])


def state_kl(said: str) -> str:
    """Mean KL that the state makes by itself."""
    return _number(_row(said)["alone"]["kl_mean"])


def state_share(said: str) -> str:
    """Share of the logits' squared distance that the state makes."""
    return _percent(_row(said)["share"])


def state_above(said: str) -> str:
    """KL above that of the same server with an fp32 state, with its standard error."""
    own = _row(said)
    wide = _row(f"{own['model']} {own['stack']} fp32 {own['period']}")
    pairs = zip(own["kl_by_text"], wide["kl_by_text"], strict=True)
    apart = [x - y for x, y in pairs]
    mean, count = sum(apart) / len(apart), len(apart)
    error = (sum((x - mean) ** 2 for x in apart) / (count - 1) / count) ** 0.5
    return f"{1e5 * mean:.1f}e-5 ± {1e5 * error:.1f}e-5"


def served_texts() -> str:
    """Count texts and tokens."""
    return f"{_study()['texts']} held-out texts of {_study()['tokens']} tokens"


def _percent(share: float) -> str:
    shown = 100.0 * share
    if shown < 0.1:
        return "< 0.1 %"
    return f"{shown:.0f} %" if shown >= 10 else f"{shown:.1f} %"


def served_states() -> str:
    """What each state makes by itself, a row a format and period."""
    found: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    wide = dict.fromkeys(MODELS, "-")
    for row in _study()["rows"]:
        if row["more"]:
            continue
        if row["state"] == "fp32":
            if row["period"] == 1:
                wide[row["model"]] = f"{_number(row['kl_mean'])}"
            continue
        reached = "" if row["reached"] else "; no flag"
        if "stochastic" in row["kept"] and row["period"] == 1 + DRAFTS:
            reached = "; SGLang"  # vLLM stores such a window to nearest
        key = f"{row['kept']}{reached}", row["period"]
        found.setdefault(key, {}).setdefault(row["model"], row)

    def told(row: dict[str, Any] | None) -> str:
        if row is None:
            return "-"
        return f"{_number(row['alone']['kl_mean'])}; {_percent(row['share'])}"

    lines = [("fp32", "any", *(f"all else: {wide[model]}" for model in MODELS))]
    lines += [
        (state, PERIODS[period], *(told(rows.get(model)) for model in MODELS))
        for (state, period), rows in sorted(found.items(), key=lambda one: one[0][1])
    ]
    head = ("state", "stored", "Mamba-2", "Mamba-2 with attention", "Mamba-1")
    return table(head, lines)


def served_shapes() -> str:
    """Errors of published shapes' states that servers keep, with what they cost."""
    small, large = _study()["shapes"]
    costs = {(r["state"], r["period"]): r for r in large["costs"]}
    rows = [
        (
            one["state"],
            str(one["period"]),
            *(
                f"{_number(r['output_rel_l2'])}; {_number(max(r['by_head']))}"
                for r in (one, other)
            ),
            *(
                f"{costs[one['state'], one['period']][name] / 1e6:.0f}"
                for name in ("kept_bytes", "moved_bytes")
            ),
        )
        for one, other in zip(small["rows"], large["rows"], strict=True)
        if one["state"] in SHOWN
    ]
    wide = costs["fp32", 1]
    kept, moved = (f"{wide[n] / 1e6:.0f}" for n in ("kept_bytes", "moved_bytes"))
    rows.insert(0, ("fp32", "1", "-", "-", kept, moved))
    head = ("state", "stored every", "130M: layer; worst head", "2.8B", "2.8B, MB")
    return table((*head, "MB moved a token"), rows)


def slowest_head() -> str:
    """Tokens that the slowest head of the larger shape remembers."""
    return f"{max(_study()['shapes'][-1]['memories']):.0f}"


def worst_head(said: str) -> str:
    """Largest error of a head of the larger shape: `bf16 1`."""
    state, period = said.split()
    (row,) = (
        r
        for r in _study()["shapes"][-1]["rows"]
        if (r["state"], r["period"]) == (state, int(period))
    )
    return _number(max(row["by_head"]))


def served_kernels() -> str:
    """How far the emulation and vLLM's kernels are apart at most."""
    rows = _study()["kernels"]
    most = max(abs(row["z"]) for row in rows)
    apart = max(abs(r["emulated_rel_l2"] / r["kernels_rel_l2"] - 1.0) for r in rows)
    return (
        f"{most:.1f} standard errors of their KLs and {_percent(apart)} of their "
        f"distances, in {len(rows)} rows"
    )


FIGURES = {
    one.__name__: one
    for one in (
        served_kl,
        state_kl,
        state_share,
        state_above,
        served_texts,
        served_states,
        served_shapes,
        slowest_head,
        worst_head,
        served_kernels,
    )
}
