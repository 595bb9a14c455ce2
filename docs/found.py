"""Figures that written pages say, each read from the committed result that it is of."""

import functools
import json
from collections.abc import Callable, Iterable
from typing import Any

from docs import served, studies
from docs.tables import ROOT, plain, table


CORRELATION_TIMES = {"few": (4, 10), "some": (10, 30), "many": (30, float("inf"))}
"""How many of a drift's correlation times a sample holds, as `analysis.coverage` has
them: from, and to below."""


@functools.cache
def _result(path: str) -> dict[str, Any]:
    return json.loads((ROOT / path).read_text("utf-8"))


def _study(name: str) -> dict[str, Any]:
    return _result(f"analysis/results/{name}.json")


def number(x: float) -> str:
    """Two digits that count."""
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.2g}".replace("e-0", "e-")


def ends(values: Iterable[float], shown=number) -> str:
    """The least and the largest of them."""
    values = list(values)
    return " to ".join(dict.fromkeys((shown(min(values)), shown(max(values)))))


def _share(x: float) -> str:
    return f"{100 * x:.1f}"


ASKED = r"\{\{ ([^{}]+?) \}\}"
"""How a page asks for a figure."""
FIGURES: dict[str, Callable[..., str]] = {
    "state_formats": studies.state_formats,
    "by_network": studies.decode_by_family,
    **served.FIGURES,
}


def shown(one: Callable[..., str]) -> Callable[..., str]:
    """Let a page say it by name."""
    FIGURES[one.__name__] = one
    return one


# --- One function a figure, by the name that stands between the braces ------------


@shown
def families() -> str:
    """Count the families that were tried."""
    return str(len({row["family"].split()[0] for row in _study("families")["rows"]}))


@shown
def families_above() -> str:
    """Count elements above their bounds, of all."""
    rows = _study("families")["rows"]
    above = sum(
        one["violations"]
        for row in rows
        for kind in row["kinds"].values()
        for one in kind.values()
    )
    return f"{above} of {sum(row['elements'] for row in rows):,}"


@shown
def by_kind() -> str:
    """T1 over what was measured, a row a kind of sublayer."""
    kinds: dict[str, dict[str, list[float]]] = {}
    whose: dict[str, dict[str, None]] = {}
    for row in _study("families")["rows"]:
        for kind, forms in row["kinds"].items():
            whose.setdefault(kind, {})[row["family"].split()[0]] = None
            for form, one in forms.items():
                kinds.setdefault(kind, {}).setdefault(form, []).extend(one["t1"])
    forms = list(dict.fromkeys(form for found in kinds.values() for form in found))
    rows = [
        (
            f"`{kind}`",
            ", ".join(map(plain, whose[kind])),
            *(ends(found[form]) if form in found else "-" for form in forms),
        )
        for kind, found in kinds.items()
    ]
    return table(("kind", "in", *(f"T1 / measured, {f}" for f in forms)), rows)


def _drifts(name: str) -> list[dict[str, Any]]:
    rows = _study("coverage")["rows"]
    if name == "none":
        return [row for row in rows if not row["share"]]
    least, most = CORRELATION_TIMES[name]
    return [r for r in rows if r["share"] and least <= r["correlation_times"] < most]


@shown
def bars(name: str) -> str:
    """Coverage, in percent, under drifts of which a sample holds so many times."""
    return ends((row["covers"] for row in _drifts(name)), _share)


@shown
def seconds(system: str) -> str:
    """Ours and the fastest other library's that is right, compiled."""
    rows = [row for row in _study("peers")["systems"][system] if row["right"]]
    # neither every tenth step alone, nor channels that a user splits by hand
    rows = [
        r for r in rows if ", every" not in r["library"] and "hand" not in r["library"]
    ]
    ours = [row["warm"] for row in rows if row["library"] == "ours"]
    others = [row["warm"] for row in rows if row["library"] != "ours"]
    return f"{number(min(ours))} s, the fastest other library {number(min(others))} s"


@shown
def statements() -> str:
    """Count what `python -m proofs` derives."""
    from proofs._catalogue import STATEMENTS

    return str(len(STATEMENTS))


def _on_kernels() -> list[dict[str, Any]]:
    rows = _study("cross_check")["rows"]
    return [row for row in rows if row["measured_by"] != "emulated"]


@shown
def kernels() -> str:
    """The longest prefill of each network in bf16, on one sequence."""
    longest: dict[str, dict[str, Any]] = {}
    for row in _on_kernels():
        asked = row["mode"], row["precision"], row["batch"]
        length = longest.get(row["model"], {"length": 0})["length"]
        if asked == ("prefill", "bf16", 1) and row["length"] >= length:
            longest[row["model"]] = row
    rows = [
        (
            plain(name),
            plain(row["measured_by"]),
            f"{row['length']:,}",
            number(row["rel_l2"]),
            f"{number(row['sigma_t3'])} ({row['calibration_z']:.2f})"
            if row["sigma_t3"] is not None
            else "withheld",
            number(row["kl_mean"]),
            f"{row['flips'] + row['ties']:,}",
            ends(row["t1_ratio"]),
        )
        for name, row in longest.items()
    ]
    head = ("network", "run by", "tokens", "logits, rel. L2", "predicted (z)")
    return table((*head, "mean KL, nats", "top tokens changed", "T1 / measured"), rows)


@shown
def executions() -> str:
    """Count executions of the real kernels that were compared."""
    return str(len(_on_kernels()))


@shown
def kernels_above() -> str:
    """Count elements of the kernels above their bounds, of all."""
    rows = _on_kernels()
    above = sum(row["violations"] for row in rows)
    return f"{above} of {number(sum(row['elements'] for row in rows) / 1e9)} billion"


@shown
def stable() -> str:
    """Count tokens that changed, of those that were predicted stable."""
    rows = _study("decisions")["rows"]
    of = [row for row in rows if row["measured_by"] != "emulated"]
    changed = sum(row["predicted_changed"] or 0 for row in of)
    return f"{changed} of {sum(row['predicted_stable'] or 0 for row in of):,}"


@shown
def faults() -> str:
    """Count faults in kernels that were caught, of those planted."""
    planted = [row for row in _study("faults")["faults"] if not row["right"]]
    return f"{sum(row['violations'] > 0 for row in planted)} of {len(planted)}"


@shown
def limits_of_dt() -> str:
    """Tell the mean KL of a decode that ignores limits of dt."""
    (row,) = (
        row
        for row in _study("known_defects")["rows"]
        if row["case"] == "limits of dt, decode"
    )
    return number(row["kl_mean"])


@shown
def forwards() -> str:
    """T0 and T1 in forwards of mamba_ssm."""
    known = _study("speed")
    of = known["mamba_ssm"]["whole, s"]
    return ends(one["T0 and T1 s"] / of for one in known["bounds"].values())


@shown
def t1_of_kernels(form: str) -> str:
    """Tell T1 over what was measured, in one format on the kernels."""
    rows = [row for row in _on_kernels() if row["precision"] == form]
    return ends(x for row in rows for x in row["t1_ratio"])


@shown
def mamba3_own_constants() -> str:
    """Tell T1 over what was measured with the card's own constants."""
    return ends(
        x
        for row in _study("measured_constants")["rows"]
        if row["constants"] == "measured" and row["what"] == "mamba3, 8192 tokens"
        if row["precision"] == "bf16"
        for x in row["t1_ratios"]
    )


def _delta(faulty: bool) -> list[dict[str, Any]]:
    rows = [r for r in _study("delta_rule")["rows"] if r["violations"] is not None]
    return [
        r for r in rows if r["measured_by"] != "emulated" and bool(r["fault"]) is faulty
    ]


@shown
def delta_above() -> str:
    """Count elements of fla's kernels above their bounds, of all that have one."""
    rows = _delta(False)
    above = sum(row["violations"] for row in rows)
    return f"{above} of {sum(row['elements'] for row in rows):,}"


@shown
def delta_faults() -> str:
    """Count broken kernels of a delta rule that were caught, of all."""
    rows = _delta(True)
    return f"{sum(row['violations'] > 0 for row in rows)} of {len(rows)}"


@shown
def delta_states() -> str:
    """What each format of a delta rule's cached state does by steps."""
    rows = [row for row in _study("delta_rule")["rows"] if row["state"]]
    names = {"gated_delta": "Gated DeltaNet", "kimi_delta": "Kimi Delta Attention"}
    cells = [
        (
            names[row["model"]],
            row["state"],
            number(row["rel_l2"]),
            number(row["kl_mean"]),
            f"{row['flips'] + row['ties']:,} of {row['tokens']:,}",
            str(row["violations"]),
        )
        for row in sorted(rows, key=lambda row: (row["model"], row["kl_mean"]))
    ]
    head = ("model", "state", "logits, rel. L2", "mean KL, nats", "top tokens changed")
    return table((*head, "above a bound"), cells)


# --- The papers' -------------------------------------------------------------------


@shown
def verdicts(said: str) -> str:
    """Count the published figures of which the comparison says so."""
    return str(sum(row["verdict"] == said for row in _compared()))


def _compared() -> list[dict[str, Any]]:
    return _result("experiments/results/compare.json")["rows"]


@shown
def compared() -> str:
    """Count the published figures."""
    return str(len(_compared()))


@shown
def ours(key: str) -> str:
    """A figure with its 95 % interval, by its key in paper.toml or beside it."""
    known = _result("experiments/results/compare.json")
    (one,) = [
        *([known["beside"][key]] if key in known["beside"] else []),
        *(row["ours"] for row in known["rows"] if row["key"] == key),
    ]
    low, high = one["low"], one["high"]
    return f"{number(one['value'])} ({number(low)} to {number(high)})"


@shown
def published(key: str) -> str:
    """Tell a published figure, as published."""
    (row,) = (row for row in _compared() if row["key"] == key)
    return f"{row['value']:g}"


@shown
def rank(predictor: str) -> str:
    """Spearman's over all checkpoints, with the logits' distance in bf16."""
    (one,) = (
        row["all"]
        for row in _result("experiments/results/exponents.json")["relations"]
        if (row["precision"], row["measure"]) == ("bf16", "rel_l2")
        and row["predictor"] == predictor
    )
    return f"{one['rho']:.2f} ({one['low']:.2f} to {one['high']:.2f})"


def figure(name: str) -> str:
    """What stands for `{{ name }}`, or for `{{ name: argument }}`.

    **Raises:** `KeyError` for a name that there is not, or that no result has.
    """
    function, colon, argument = (part.strip() for part in name.partition(":"))
    return FIGURES[function](*[argument] * bool(colon))
