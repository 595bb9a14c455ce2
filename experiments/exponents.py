"""How do exponents, dt and decays move in training, and what does their sign predict?

    python -m experiments.exponents --tuned FOLDER

For every Mamba of `experiments/models`: as it was before training (the same recipe and
five seeds), trained, fine-tuned (`--tuned`, the --scratch of `experiments.finetune`),
and trained with A divided or multiplied by up to 16, which moves the exponents nearer
to zero or away from it and leaves their sign. `lyapunov.check` finds each layer's
exponents, dt and decays on instructions as fine-tuning has them, predicts how far bf16
and fp16 move the logits, and emulates it.

arXiv:2406.00209 proves that no exponent is positive. That holds of every row here,
trained or not: the sign is the parametrisation's. What tells one checkpoint's
divergence from another's is set beside it: rank correlations with the exponents, the
memory that follows from them, and lyapunov-check's own prediction.

Initial weights are mamba_ssm's on a GPU. On a CPU they are transformers', whose recipe
for Mamba-2 differs, and there is no Mamba-3: rows name the library. `--models` takes
names on the Hub, too (`--models state-spaces/mamba-130m-hf`): initial weights are then
transformers', and A is left as it is. The same command goes on with what is missing.
Writes exponents.json, .md and .png.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.finetuning.plan import not_loaded, settings_of, short
from experiments.results import FOLDER, Results, environment
from studies.problems import Problem
from studies.study import Study


MODELS = tuple(f"experiments/models/{name}" for name in ("mamba1", "mamba2", "mamba3"))
FACTORS = (1 / 16, 1 / 4, 4.0, 16.0)  # of A, and so of every exponent


STUDY = Study(
    "experiments.exponents",
    "10 minutes",
    FOLDER / "exponents.json",
    ("torch", "transformers"),
)


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = STUDY.parser("Exponents of models before training, trained and fine-tuned.")
    add = made.add_argument
    add("--models", nargs="+", default=list(MODELS), help="folders or names")
    add("--tuned", type=Path, help="folder with MODEL-tuned-SEED, of finetune")
    add("--seeds", type=int, default=5, help="of initial weights")
    add("--tokens", type=int, default=512, help="bytes that are read")
    add("--budget", type=float, default=0, help="seconds; 0: no end")
    add("--device", default="auto", help="makes initial weights: cuda, cpu or auto")
    return made


def read_tokens(n: int) -> np.ndarray:
    """`n` bytes of instructions with their responses."""
    from experiments.finetuning.items import instruction

    rng, text = np.random.default_rng([10, 0]), ""
    while len(text) < n:
        text += instruction(rng, int(rng.integers(5))).text
    return np.frombuffer(text.encode()[:n], np.uint8).astype(np.int64)


def tokens_of(model: str, n: int) -> np.ndarray:
    """`n` tokens of instructions: bytes for our own models, else the tokenizer's."""
    if _config(model) is not None:
        return read_tokens(n)
    from transformers import AutoTokenizer

    text = read_tokens(16 * n).astype(np.uint8).tobytes().decode()
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise not_loaded(model, error) from error
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return np.array(ids[:n], np.int64)


def _config(model: str) -> dict[str, Any] | None:
    """config.json of a Mamba that experiments.train wrote; None of any other model."""
    settings = settings_of(model)
    if settings is not None and "ssm_cfg" not in settings:
        wrong = f"{model} has no recurrence of a Mamba"
        raise Problem(wrong, "leave it out of --models")
    return settings


class Checkpoints:
    """The checkpoints of a model: row's settings, and how to have its folder."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        from experiments.bundled.model import choose_device

        self.options = options
        self.scratch = scratch
        self.device = choose_device(options.device)

    def rows(self, model: str) -> Iterator[tuple[dict[str, Any], str | None]]:
        """Settings, and what `lyapunov.load` takes where it is there already.

        A is scaled in our own models, where it is a parameter.
        """
        options, settings = self.options, _config(model)
        name = short(model)
        own = {"model": name, "tokens": options.tokens, "seed": 0, "factor": 1.0}
        yield own | {"stage": "trained"}, model
        for seed in range(options.seeds):
            yield own | {"stage": "initial", "seed": seed}, None
        # Mamba-3's decays come from its input: there is no A to multiply
        own_a = settings is not None and settings["ssm_cfg"].get("layer") != "Mamba3"
        for factor in FACTORS if own_a else ():
            yield own | {"stage": "scaled", "factor": factor}, None
        if options.tuned is not None:
            for tuned in sorted(options.tuned.glob(f"{name}-tuned-*")):
                seed = tuned.name.removeprefix(f"{name}-tuned-")
                if seed.isdigit() and (tuned / "config.json").exists():
                    yield own | {"stage": "tuned", "seed": int(seed)}, str(tuned)

    def made(self, model: str, row: dict[str, Any]) -> tuple[Path, str]:
        """The folder of an initial or scaled checkpoint, and which library made it."""
        if row["stage"] == "initial":
            settings = _config(model)
            if settings is None:
                return self._initial_of_transformers(model, row["seed"])
            return self._initial(Path(model), settings, row["seed"])
        return self._scaled(Path(model), row["factor"]), "scaled"

    def _initial_of_transformers(self, model: str, seed: int) -> tuple[Path, str]:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.manual_seed(seed)
        try:
            config = AutoConfig.from_pretrained(model)
        except (OSError, ValueError) as error:
            raise not_loaded(model, error) from error
        folder = self.scratch / f"{Path(model).name}-initial-{seed}"
        made = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        made.save_pretrained(folder)
        return folder, "transformers"

    def _initial(
        self, model: Path, settings: dict[str, Any], seed: int
    ) -> tuple[Path, str]:
        import torch

        from experiments.finetuning.networks import shape
        from experiments.trained.export import write_checkpoint
        from experiments.trained.networks import fresh

        torch.manual_seed(seed)
        network = fresh(shape(settings), 0.0, self.device)
        folder = self.scratch / f"{model.name}-initial-{seed}"
        folder.mkdir()
        write_checkpoint(folder, network.shape, network.stored())
        return folder, network.library

    def _scaled(self, model: Path, factor: float) -> Path:
        """The trained model with A times `factor`, where it is a parameter."""
        from safetensors.numpy import load_file, save_file

        weights = load_file(model / "model.safetensors")
        named = [name for name in weights if name.endswith("mixer.A_log")]
        if not named:
            raise Problem(f"{model} has no A_log", "its decays come from its input")
        for name in named:
            weights[name] = weights[name] + np.float32(np.log(factor))
        folder = self.scratch / f"{model.name}-scaled-{factor:g}"
        folder.mkdir()
        save_file(weights, folder / "model.safetensors")
        (folder / "config.json").write_text((model / "config.json").read_text())
        return folder


def examined(place: Path | str, tokens: np.ndarray) -> dict[str, Any]:
    """Exponents of a checkpoint by layer; how far rounding moves it, and should."""
    import lyapunov

    report = lyapunov.check(
        str(place), tokens, precisions=["bf16", "fp16"], growth=False
    )
    layers = []
    for layer in report.exponents.layers:
        if layer.max is None:
            continue
        memory = layer.memory_tokens
        layers.append(
            {
                "layer": layer.layer, "max": layer.max, "min": layer.min,
                "stderr": layer.stderr,
                "memory_p50": memory.p50 if memory else None,
                "memory_p90": memory.p90 if memory else None,
                "memory_max": memory.max if memory else None,
                "dt_min": layer.dt_min, "dt_mean": layer.dt_mean,
                "dt_max": layer.dt_max, "decay_min": layer.decay_min,
                "decay_max": layer.decay_max,
            }
        )  # fmt: skip
    outputs = {}
    for one in report.precisions:
        told = one.output
        outputs[one.precision] = {
            "rel_l2": told.measured_rel_l2, "sigma_t3": told.sigma_t3,
            "kl_mean": told.kl_mean, "flips": told.argmax_flips,
            "reference_ties": told.reference_ties,
            "violations": one.count("violations"),
        }  # fmt: skip
    return {"layers": layers, "precisions": outputs}


def find(options: argparse.Namespace, results: Results) -> None:
    """The rows that are missing."""
    until = time.time() + options.budget if options.budget else 0.0
    where = environment("cpu")
    with tempfile.TemporaryDirectory() as name:
        checkpoints = Checkpoints(options, Path(name))
        waiting = [
            (model, row, folder)
            for model in options.models
            for row, folder in checkpoints.rows(model)
            if not results.has(row)
        ]
        tokens = {
            model: tokens_of(model, options.tokens)
            for model in dict.fromkeys(model for model, _, _ in waiting)
        }
        began = time.perf_counter()
        for done, (model, row, folder) in enumerate(waiting):
            if until and time.time() > until:
                print(f"{len(waiting) - done} checkpoints left", file=sys.stderr)
                return
            start = time.perf_counter()
            try:
                place, library = (
                    (folder, "") if folder else checkpoints.made(model, row)
                )
            except Problem as problem:  # Mamba-3 where there is no GPU
                print(f"{row['model']} {row['stage']}: {problem}", file=sys.stderr)
                continue
            values: dict[str, Any] = examined(place, tokens[model])
            values["library"] = library
            spent = time.perf_counter() - start
            results.add(row, values, spent, where)
            total = time.perf_counter() - began
            left = total / (done + 1) * (len(waiting) - done - 1)
            top = max(layer["max"] for layer in values["layers"])
            print(
                f"{row['model']} {row['stage']} {row['seed']} x {row['factor']:g}: "
                f"largest exponent {top:.2e}, {spent:.1f} s, {left:.0f} s left",
                file=sys.stderr,
            )


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    options = parser().parse_args(arguments)
    STUDY.begin(options.out)
    if options.tokens < 64:
        parser().error("--tokens must be 64 or more: exponents are means over tokens")
    if options.seeds < 0:
        parser().error("--seeds must be 0 or more")
    if options.tuned is not None and not options.tuned.is_dir():
        parser().error(f"--tuned: {options.tuned} is no folder")
    command = "python -m experiments.exponents --tuned FOLDER"
    results = Results(options.out, command)
    find(options, results)
    from experiments.spectra.page import publish

    publish(options.out)


if __name__ == "__main__":
    main()
