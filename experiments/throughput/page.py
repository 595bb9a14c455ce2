"""Figures, tables and picture of speed and memory, from the rows that are there."""

import math
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from experiments.finetuning.page import number
from experiments.results import Results, figure, machines
from studies.files import write
from studies.picture import pyplot, save

from .shapes import HALF, SHAPES, TINY, Case, contrast, published


_NAMES = {"mamba1": "Mamba-1", "gpt_neox": "Pythia"}
_MEASURES = {
    "tokens_per_second": ("times", lambda ratio: ratio),
    "bytes_per_token": ("%", lambda ratio: 100 * (ratio - 1)),
}
_KEYS = {
    "tokens_per_second": "tokens_per_second",
    "bytes_per_token": "memory_per_token",
}
_LOAD = ("card", "batch", "length", "rank")


class Group:
    """The rows of one card, batch, length and rank of LoRA."""

    def __init__(self, load: dict[str, Any], rows: list[dict]) -> None:
        self.load = load
        self._rows = {_case(row): row["values"] for row in rows}

    def of(self, case: Case) -> dict[str, Any] | None:
        """What was found of a case; None if it was not measured."""
        return self._rows.get(case)

    def value(self, case: Case, measure: str) -> float | None:
        """One number; None if there is none."""
        return (self.of(case) or {}).get(measure)

    def shapes(self, family: str) -> list[str]:
        """Those with any row, small to large."""
        there = {(case.family, case.shape) for case in self._rows}
        return [shape for shape in SHAPES[family] if (family, shape) in there]

    @property
    def title(self) -> str:
        """In words."""
        return "{card}, batch {batch}, {length} tokens, LoRA of rank {rank}".format(
            **self.load
        )


def _case(row: dict) -> Case:
    own = row["settings"]
    return Case(*(own[k] for k in ("family", "shape", "method", "precision", "path")))


def groups(rows: list[dict]) -> list[Group]:
    """The rows by card and load, in the order in which they were found."""
    found: dict[tuple, list[dict]] = {}
    for row in rows:
        found.setdefault(tuple(row["settings"][k] for k in _LOAD), []).append(row)
    return [Group(dict(zip(_LOAD, k, strict=True)), v) for k, v in found.items()]


def ratios(
    group: Group, family: str, measure: str, against: Case | None = None
) -> tuple[dict[str, float], list[str]]:
    """LoRA in half precision over the fp32 full fine-tune, by shape.

    A shape's ratio is the mean of four: LoRA on all projections or some, fp16 or bf16.
    `against` says another method, precision and path to divide by.

    **Returns:**

    The ratios, and the shapes of which one of the five is missing or did not fit.
    """
    found, without = {}, []
    for shape in group.shapes(family):
        if shape == TINY:
            continue
        base, *half = published(family, shape)
        if against is not None:
            base = Case(family, shape, against.method, against.precision, against.path)
        below = group.value(base, measure)
        above = [group.value(case, measure) for case in half]
        known = [one for one in above if one is not None]
        if below is None or len(known) < len(HALF):
            without.append(shape)
        else:
            found[shape] = fmean(one / below for one in known)
    return found, without


def mean_of(values: list[float]) -> tuple[float | None, float | None, float | None]:
    """The mean and its 95 % interval by Student's t; none of fewer than two."""
    if len(values) < 2:
        return (values[0] if values else None), None, None
    from scipy import special

    mean, n = fmean(values), len(values)
    half = float(special.stdtrit(n - 1, 0.975)) * stdev(values) / math.sqrt(n)
    return mean, mean - half, mean + half


def figures(found: list[Group]) -> dict[str, Any]:
    """What paper.toml's rows are compared with, and the same of others beside it.

    `found` as `chosen` gives them: the first group's are the figures, those of the
    other batches stand beside them.
    """
    told: dict[str, Any] = {}
    for i, group in enumerate(found):
        batch = f".batch_{group.load['batch']}" if i else ""
        open_path = Case("mamba1", "", "full", "fp32", "open")
        for name, family, against in (
            ("", "mamba1", None),
            (".over_open_path", "mamba1", open_path),
            (".transformer", "gpt_neox", None),
        ):
            for measure, (unit, shown) in _MEASURES.items():
                of, without = ratios(group, family, measure, against)
                value, low, high = mean_of([shown(one) for one in of.values()])
                if value is not None:
                    key = f"speed.{_KEYS[measure]}{name}{batch}"
                    note = _note(group, list(of), without)
                    told[key] = figure(value, unit, len(of), low, high, note)
    return told


def chosen(found: list[Group], batch: int, length: int, rank: int) -> list[Group]:
    """One GPU's groups of this length and rank, that of this batch first.

    Of several GPUs, that with most groups; none of a CPU, nor without this batch.
    """
    wanted = {"length": length, "rank": rank}.items()
    of = [g for g in found if wanted <= g.load.items() and g.load["card"] != "CPU"]
    cards = [group.load["card"] for group in of]
    card = max(dict.fromkeys(cards), key=cards.count, default="")
    of = [group for group in of if group.load["card"] == card]
    of.sort(key=lambda group: group.load["batch"] != batch)
    return of if of and of[0].load["batch"] == batch else []


def _note(group: Group, shapes: list[str], without: list[str]) -> str:
    left = f"; without {', '.join(without)}" if without else ""
    return (
        f"{group.title}; peak memory of a training step, random weights, AdamW; mean "
        f"of {', '.join(shapes)}{left}; interval over shapes; memory per token depends "
        "on the batch, and the paper's card had 24 GB"
    )


def page(content: dict) -> str:
    """speed.md."""
    lines = [
        "# Speed and memory of fine-tuning",
        "",
        f"`{content['command']}`",
        "",
        "Training steps of random weights on random tokens: fp32 weights and AdamW, "
        "gradients clipped; half precision is torch's autocast. LoRA is peft's. Mamba's"
        " `full` rows take mamba_ssm's fused forward, `open` and LoRA one in which "
        "each projection is a module that is called: adapters need that. `times` and "
        "`change` are against the fp32 full fine-tune of the same shape, on the "
        "fused path. Memory: the peak allocated, 10^6 bytes, over the tokens of a "
        "step; `fixed` is its part of weights, gradients and AdamW, which does not "
        "grow with the batch: with a batch that fills the card memory per token, and "
        "the change, would differ. `no gradient`: trained tensors whose gradient is "
        "missing or zero after the last step.",
        "",
    ]
    lines += machines(content, content["rows"])
    for key, one in content["figures"].items():
        ends = [number(one[k]) for k in ("value", "low", "high")]
        lines.append(
            f"- {key}: {ends[0]} {one['unit']} ({ends[1]} to {ends[2]}, n = {one['n']})"
        )
    for group in groups(content["rows"]):
        for family in SHAPES:
            if group.shapes(family):
                lines += ["", f"## {_NAMES[family]}: {group.title}", ""]
                lines += _table(group, family)
    return "\n".join(lines) + "\n"


def _table(group: Group, family: str) -> list[str]:
    lines = [
        "| shape | variant | tokens/s | times | MB per token | change, % | fixed | "
        "trained parameters | no gradient | steps skipped |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for shape in group.shapes(family):
        base = published(family, shape)[0]
        for case in published(family, shape) + contrast(family, shape):
            values = group.of(case)
            if values is None:
                continue
            shown = [shape, case.variant]
            if values["out_of_memory"]:
                shown += ["out of memory", *["-"] * 7]
            else:
                shown += _cells(group, case, base, values)
            lines.append("| " + " | ".join(shown) + " |")
    return lines


def _cells(group: Group, case: Case, base: Case, values: dict) -> list[str]:
    told = []
    for measure, scale in (("tokens_per_second", 1.0), ("bytes_per_token", 1e-6)):
        one, below = group.value(case, measure), group.value(base, measure)
        ratio = None if one is None or not below else _MEASURES[measure][1](one / below)
        told += [_plain(None if one is None else one * scale), _plain(ratio)]
    parts = values["parts"]
    tokens = group.load["batch"] * group.load["length"]
    fixed = sum(parts[k] for k in ("weights", "gradients", "optimizer")) / tokens
    lost = values["without_gradient"] + values["zero_gradient"]
    return [
        *told,
        _plain(fixed * 1e-6),
        f"{values['trained_parameters']:,}",
        str(lost),
        str(values["skipped"]),
    ]


def _plain(value: float | None) -> str:
    """Three digits, without an exponent."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else number(value)


def draw(group: Group, path: Path) -> None:
    """Tokens per second and memory per token by shape, a mark for each variant."""
    from matplotlib.ticker import LogLocator, NullLocator

    places = [(family, shape) for family in SHAPES for shape in group.shapes(family)]
    colours = {"full": "C3", "lora-all": "C0", "lora-some": "C2"}
    marks = {"fp32": "s", "fp16": "^", "bf16": "o"}
    made, axes = pyplot().subplots(1, 2, figsize=(12, 4.4), layout="constrained")
    panels = (
        ("tokens_per_second", 1.0, "tokens per second"),
        ("bytes_per_token", 1e-6, "peak MB per token of a step"),
    )
    named: dict[str, Any] = {}
    for axis, (measure, scale, label) in zip(axes, panels, strict=True):
        for x, (family, shape) in enumerate(places):
            of = published(family, shape) + contrast(family, shape)
            for i, case in enumerate(of):
                value = group.value(case, measure)
                if value is None:
                    continue
                full_open = case.variant.endswith("open")
                (mark,) = axis.plot(
                    x + 0.11 * (i - (len(of) - 1) / 2),
                    value * scale,
                    marks[case.precision],
                    color=colours[case.method],
                    fillstyle="none" if full_open else "full",
                    markersize=5,
                )
                named.setdefault(case.variant, mark)
        axis.set_xticks(range(len(places)), [shape for _, shape in places], fontsize=8)
        for family in dict.fromkeys(family for family, _ in places):
            at = [x for x, place in enumerate(places) if place[0] == family]
            axis.axvline(max(at) + 0.5, color="black", linewidth=0.5)
            axis.text(fmean(at), 1.01, _NAMES[family], fontsize=9, ha="center",
                      transform=axis.get_xaxis_transform())  # fmt: skip
        axis.set_xlim(-0.5, len(places) - 0.5)
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(lambda value, _: _plain(value))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.tick_params(axis="y", labelsize=7)
        axis.grid(axis="y", linewidth=0.3)
        axis.set_ylabel(label, fontsize=9)
    made.legend(list(named.values()), list(named), fontsize=8, ncols=7,
                loc="outside lower center")  # fmt: skip
    made.suptitle(group.title, fontsize=9)
    save(made, path)


def publish(path: Path, batch: int, length: int, rank: int) -> None:
    """Put the figures beside the rows; write the tables and the picture.

    `batch`, `length`, `rank`: of the rows that the figures and the picture are of.
    """
    results = Results(path)
    found = groups(results.rows())
    if not found:
        return
    first = chosen(found, batch, length, rank)
    results.put(figures=figures(first))
    write(path.with_suffix(".md"), page(results.read()))
    draw((first or found)[0], path.with_suffix(".png"))
