"""Does a precision change what a model answers? Mamba against GPT-NeoX, untouched.

    python -m experiments.inference

arXiv:2406.00209's table of inference: accuracy in fp16 and bf16 against fp32, weights
cast (`model.to(dtype)`) and under autocast. The models answer episodes of the tasks
they were trained on (`trained/tasks.py`), never seen before; with `--corpus FOLDER`
also GSM8K by choice, as `experiments.finetune` asks it. The published metric is the
absolute difference of accuracy, here averaged over tasks; beside it stand the share of
answers that flip, KL and the distance of the logits at the answers, and with
`--predict` what lyapunov-check predicts for the same checkpoint, on a CPU.

Intervals are of 95 %, from resampling windows of episodes. The same command goes on
with models that are missing. Writes inference.json, .md and .png.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.finetuning.page import NAMES, number, span
from experiments.finetuning.plan import MODELS, short
from experiments.results import FOLDER, Results, environment, figure
from studies.files import write
from studies.picture import pyplot, save
from studies.study import Study


RUNS = tuple((p, way) for p in ("fp16", "bf16") for way in ("cast", "autocast"))
_UNIT = "percentage points"
_SAMPLES = 1000
_TOKENS = 256  # that lyapunov.check reads


STUDY = Study(
    "experiments.inference",
    "6 minutes on an H200",
    FOLDER / "inference.json",
    ("torch", "transformers"),
)


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = STUDY.parser("Answer the same questions in several precisions.")
    add = made.add_argument
    add("--models", nargs="+", default=list(MODELS), help="folders or names")
    add("--corpus", type=Path, help="folder with GSM8K's two files")
    add("--windows", type=int, default=64, help="of episodes, of each task")
    add("--length", type=int, default=512, help="bytes in a window")
    add("--questions", type=int, default=256, help="of GSM8K, after each number shown")
    add("--predict", action="store_true", help="only what lyapunov-check predicts")
    add("--device", default="auto", help="cuda, cpu or auto")
    return made


class Said:
    """What a model answers, in order: right or not, which group, and the logits.

    - `right`, `group`: an entry an answer; the group is what is resampled.
    - `task`: names, an entry an answer.
    - `logits`: tokens x vocabulary, at every token of every answer; `at`: whose.
    """

    def __init__(self) -> None:
        self.right: list[bool] = []
        self.words: list[tuple[int, ...]] = []
        self.group: list[int] = []
        self.task: list[str] = []
        self.at: list[int] = []
        self._logits: list[np.ndarray] = []

    def add(self, task: str, group: int, right: bool, words: Any, logits: Any) -> None:
        """Add an answer."""
        self.at += [len(self.right)] * len(logits)
        self.right.append(right)
        self.words.append(tuple(words))
        self.group.append(group)
        self.task.append(task)
        self._logits.append(logits)

    @property
    def logits(self) -> np.ndarray:
        """All of them."""
        return np.concatenate(self._logits)


def say(network: Any, options: argparse.Namespace, precision: str, device: Any) -> Said:
    """Every answer of a network, under this autocast."""
    import torch

    from experiments.finetuning.items import Data
    from experiments.finetuning.training import answer, ask_all, autocast
    from experiments.trained import tasks

    said = Said()
    for name in tasks.TASKS if network.save is not None else ():
        members = list(tasks.unseen("held_out", name, options.windows, options.length))
        for group, window in enumerate(members):
            ids = torch.tensor([list(window.text)], device=device)
            with torch.no_grad(), autocast(device, precision):
                found = network(ids)[0].float().cpu()
            for one in window.answers:
                of = found[one.start - 1 : one.stop - 1]
                words = of.argmax(-1).tolist()
                right = bytes(words) == window.text[one.start : one.stop]
                said.add(name, group, right, words, of.numpy())
    if options.corpus:
        data = Data.read(options.corpus)
        asked = [q for q in ask_all(data, options.questions) if q.task == "choices"]
        found = answer(network, network, asked, precision, device)
        for i, question in enumerate(asked):
            name = f"choices after {question.shots}"
            chosen = [ord(letter) for letter in found.said[i]]
            group = i % options.questions
            said.add(name, group, found.right[i], chosen, found.logits[i : i + 1])
    return said


def between(one: Said, reference: Said) -> dict[str, Any]:
    """How answers differ from the reference's, with intervals."""
    names = np.array(reference.task)
    mine, theirs = np.array(one.right), np.array(reference.right)
    flips = np.array([a != b for a, b in zip(one.words, reference.words, strict=True)])
    groups, at = np.array(reference.group), np.array(reference.at)
    kl, apart, size = _distances(one.logits, reference.logits)
    tasks = list(dict.fromkeys(reference.task))
    rng = np.random.default_rng(0)
    n = int(groups.max()) + 1

    def metric(weight: np.ndarray) -> tuple[float, float, float, float]:
        differences, share, nats = [], [], []
        for task in tasks:
            of = names == task
            w = weight[of]
            if not w.sum():
                continue
            right = (w * mine[of]).sum() - (w * theirs[of]).sum()
            differences.append(abs(right) / w.sum())
            share.append((w * flips[of]).sum() / w.sum())
            tokens = of[at]
            inner = weight[at][tokens]
            nats.append((inner * kl[tokens]).sum() / inner.sum())
        inner = weight[at]
        distance = np.sqrt((inner * apart).sum() / (inner * size).sum())
        return (
            100 * float(np.mean(differences)),
            100 * float(np.mean(share)),
            float(np.mean(nats)),
            float(distance),
        )

    value = metric(np.ones(len(names)))
    drawn = []
    for _ in range(_SAMPLES):
        counts = np.bincount(rng.integers(n, size=n), minlength=n)
        drawn.append(metric(counts[groups].astype(float)))
    low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
    keys = ("divergence", "flips", "kl", "rel_l2")
    found: dict[str, Any] = {
        key: {"value": value[i], "low": low[i], "high": high[i], "n": n}
        for i, key in enumerate(keys)
    }
    found["accuracy"] = {
        task: 100 * float(mine[names == task].mean()) for task in tasks
    }
    return found | {"answers": len(names)}


def _distances(mine: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, ...]:
    """KL(theirs || mine), squared distance and squared length, of each token."""
    import torch

    p, q = (torch.from_numpy(x).double().log_softmax(-1) for x in (theirs, mine))
    kl = (p.exp() * (p - q)).sum(-1).numpy()
    apart = np.square(mine.astype(float) - theirs).sum(-1)
    return kl, apart, np.square(theirs.astype(float)).sum(-1)


def settings(options: argparse.Namespace, model: str, precision: str, way: str) -> dict:
    """A row's settings."""
    found: dict[str, Any] = {"stage": "answered", "model": short(model)}
    found |= {"precision": precision, "way": way}
    if not options.corpus:
        return found | {"windows": options.windows, "length": options.length}
    return found | {
        "windows": options.windows,
        "length": options.length,
        "questions": options.questions,
    }


def answered(options: argparse.Namespace, model: str, results: Results) -> None:
    """The rows of a model that are missing."""
    from experiments.bundled.model import choose_device
    from experiments.finetuning.networks import deterministic, load
    from experiments.finetuning.training import DTYPES

    rows = [(run, settings(options, model, *run)) for run in RUNS]
    if all(results.has(row) for _, row in rows):
        return
    device = choose_device(options.device)
    if device.type == "cuda":
        deterministic()
    where = environment(device.type)
    reference = say(load(model, device), options, "fp32", device)
    for (precision, way), row in rows:
        if results.has(row):
            continue
        began = time.perf_counter()
        network = load(model, device)
        if way == "cast":
            network = network.to(DTYPES[precision])
        under = precision if way == "autocast" else "fp32"
        values = between(say(network, options, under, device), reference)
        spent = time.perf_counter() - began
        results.add(row, values, spent, where)
        shown = span(values["divergence"])
        print(f"{row['model']} {precision} {way}: {shown}, {spent:.1f} s", flush=True)


def predicted(options: argparse.Namespace, model: str, results: Results) -> None:
    """What lyapunov-check says of a checkpoint, for the precisions that it has here."""
    import jax

    jax.config.update("jax_enable_x64", True)
    import lyapunov
    from experiments.trained import tasks

    where = environment("cpu")
    loaded = None
    text = next(tasks.unseen("held_out", "recall", 1, _TOKENS)).text
    for precision in ("fp16-amp", "bf16-amp", "fp16", "bf16"):
        row: dict[str, Any] = {"stage": "predicted", "model": short(model)}
        row |= {"precision": precision, "tokens": _TOKENS}
        if results.has(row):
            continue
        began = time.perf_counter()
        loaded = loaded or lyapunov.load(model)
        try:
            report = lyapunov.check(
                loaded,
                np.frombuffer(text, np.uint8).astype(int),
                precisions=[precision],
                effort="quick",
            )
        except lyapunov.LyapunovError as error:
            # the library has no autocast of some networks
            print(f"{row['model']} {precision}: {error}", flush=True)
            continue
        output = report.precisions[0].output
        values = {
            "sigma_t3": output.sigma_t3,
            "rel_l2": output.measured_rel_l2,
            "kl_mean": output.kl_mean,
            "flips": output.argmax_flips,
            "reference_ties": output.reference_ties,
        }
        spent = time.perf_counter() - began
        results.add(row, values, spent, where)
        shown = f"predicted {output.sigma_t3}, emulated {output.measured_rel_l2}"
        print(f"{row['model']} {precision}: {shown}, {spent:.1f} s", flush=True)


def figures(rows: list[dict]) -> dict[str, Any]:
    """What paper.toml's rows are compared with: weights cast, as published."""
    note = "five-layer byte models on their own tasks; not MMLU"
    found = {}
    for row in rows:
        own, value = row["settings"], divergence(row["values"])
        if own["way"] == "cast":
            name = NAMES.get(own["model"], own["model"])
            found[f"inference.{own['precision']}.{name}"] = figure(
                value["value"], _UNIT, value["n"], value["low"], value["high"], note
            )
    return found


def divergence(values: dict[str, Any]) -> dict[str, Any]:
    """The published metric with an interval that no answer's absence makes empty.

    Where no window changed its accuracy, no resampled one does, and the interval has
    no width. Accuracy cannot change by more than the share of answers that flip: the
    upper end of that share's interval is the metric's, too.
    """
    found = values["divergence"]
    if found["high"] > found["low"]:
        return found
    return found | {"low": 0.0, "high": max(found["high"], values["flips"]["high"])}


def page(content: dict) -> str:
    """inference.md."""
    lines = [
        "# Inference in half precision",
        "",
        f"`{content['command']}`",
        "",
        "Divergence: absolute difference of accuracy from fp32, percentage points, mean"
        " of the tasks. Flips: answers that differ, %. KL (nats) and distance (relative"
        " L2) of the logits at the answers. In brackets 95 % intervals over windows;"
        " of a divergence that no window shows, up to the most that flips allow.",
        "",
        "| model | precision | answers | divergence | flips | KL | distance |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in content["rows"]:
        own, values = row["settings"], row["values"]
        if own["stage"] == "answered":
            shown = [span(divergence(values))]
            shown += [span(values[k]) for k in ("flips", "kl", "rel_l2")]
            lines.append(
                f"| {own['model']} | {own['precision']} {own['way']} | "
                f"{values['answers']} | " + " | ".join(shown) + " |"
            )
    lines += ["", "Predicted by `lyapunov.check`, and emulated, relative L2:", ""]
    lines += ["| model | precision | predicted | emulated |", "|---|---|---|---|"]
    for row in content["rows"]:
        own, values = row["settings"], row["values"]
        if own["stage"] == "predicted":
            both = [number(values[k]) for k in ("sigma_t3", "rel_l2")]
            lines.append(
                f"| {own['model']} | {own['precision']} | " + " | ".join(both) + " |"
            )
    return "\n".join(lines) + "\n"


def draw(rows: list[dict], path: Path) -> None:
    """The published metric, flips and KL, a mark for each model and precision."""
    runs = list(dict.fromkeys((r["settings"]["precision"], r["settings"]["way"])
                              for r in rows))  # fmt: skip
    models = list(dict.fromkeys(row["settings"]["model"] for row in rows))
    made, axes = pyplot().subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    labels = {"divergence": _UNIT, "flips": "answers that differ, %", "kl": "KL, nats"}
    for axis, (what, label) in zip(axes, labels.items(), strict=True):
        for row in rows:
            own, values = row["settings"], row["values"]
            value = divergence(values) if what == "divergence" else values[what]
            i = models.index(own["model"])
            x = runs.index((own["precision"], own["way"]))
            x += 0.2 * (i - (len(models) - 1) / 2)
            axis.plot([x, x], [value["low"], value["high"]], color=f"C{i}")
            axis.plot(x, value["value"], "o", color=f"C{i}", markersize=4)
        for i, model in enumerate(models):
            axis.plot([], [], "o", color=f"C{i}", label=model)
        axis.set_xticks(range(len(runs)), [" ".join(run) for run in runs], fontsize=8)
        axis.set_ylabel(label, fontsize=9)
    axes[2].set_yscale("log")
    axes[0].legend(fontsize=7)
    save(made, path)


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    options = parser().parse_args(arguments)
    STUDY.begin(options.out)
    results = Results(options.out, "python -m experiments.inference")
    for model in options.models:
        (predicted if options.predict else answered)(options, model, results)
    rows = results.rows(stage="answered")
    results.put(figures=figures(rows))
    write(options.out.with_suffix(".md"), page(results.read()))
    if rows:
        draw(rows, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
