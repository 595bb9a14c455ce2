"""lm-evaluation-harness on our networks: local tasks, or the benchmarks by name.

lm-eval (the extra `experiments`) finds tasks, forms questions and counts; the network's
log probabilities are `scoring.log_likelihoods`. The benchmarks' data are on the Hub.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.finetuning.networks import Tuned
from studies.problems import Problem

from .scoring import log_likelihoods


def language_model(network: Tuned, device: torch.device) -> Any:
    """The network as lm-eval wants it; it scores and does not write."""
    from lm_eval.api.model import TemplateLM

    settings: Any = network.inner.config
    longest = getattr(settings, "max_position_embeddings", None)
    end = getattr(settings, "eos_token_id", None)

    class Scored(TemplateLM):  # here, since lm-eval is not there for everyone
        @property
        def eot_token_id(self) -> int:
            return end if isinstance(end, int) else 0

        def tok_encode(
            self, string: str, add_special_tokens: bool | None = None, **_: Any
        ) -> list[int]:
            return list(network.encode(string))

        def _loglikelihood_tokens(
            self, requests: Any, **_: Any
        ) -> list[tuple[float, bool]]:
            pairs = [
                (_last(read, longest - len(told)) if longest else read, told)
                for _, read, told in requests
            ]
            return log_likelihoods(network, pairs, device)

        def loglikelihood_rolling(
            self, requests: Any, disable_tqdm: bool = False
        ) -> list[float]:
            raise Problem("perplexity of whole documents is not scored here",
                          "use lm_eval's own command")  # fmt: skip

        def generate_until(
            self, requests: Any, disable_tqdm: bool = False
        ) -> list[str]:
            raise Problem("nothing is written here, only choices are scored",
                          "use tasks of multiple choice")  # fmt: skip

    return Scored()


def _last(ids: list[int], most: int) -> list[int]:
    return ids[-max(1, most) :]


def accuracies(
    network: Tuned,
    device: torch.device,
    tasks: Sequence[str],
    shots: int = 0,
    folder: Path | None = None,
    limit: int | None = None,
) -> dict[str, dict[str, float | None]]:
    """lm-eval's accuracy of each task, and its standard error.

    **Arguments:**

    - `tasks`: names; `folder` holds the local ones (`documents.write_tasks`).
    - `shots`: examples before each question, chosen by lm-eval.
    - `limit`: questions of each task; None is all.

    **Raises:**

    Problem if lm-eval is not installed, or a task or its data cannot be had.
    """
    try:
        from lm_eval import evaluator
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise Problem(
            f"lm-eval cannot be imported ({error})",
            "pip install 'lyapunov-check[experiments]'",
        ) from error
    # to index the thousands of its own takes lm-eval longer than to ask the local ones
    manager = TaskManager(
        include_path=str(folder) if folder else None, include_defaults=folder is None
    )
    unknown = [name for name in tasks if name not in manager.all_tasks]
    if unknown:
        raise Problem(
            f"lm-eval has no task {', '.join(unknown)}",
            "lm_eval ls tasks lists those it has",
        )
    try:
        found = evaluator.simple_evaluate(
            language_model(network, device), tasks=list(tasks), num_fewshot=shots,
            limit=limit, task_manager=manager, bootstrap_iters=0, log_samples=False,
        )  # fmt: skip
    except (ConnectionError, OSError) as error:
        raise Problem(
            f"a task's data cannot be had ({type(error).__name__}: {error})",
            "the benchmarks need a network, or HF_HOME with their data",
        ) from error
    results: Any = found
    return {
        name: {
            "accuracy": own["acc,none"],
            "stderr": _binomial(own["acc,none"], results["n-samples"], name),
        }
        for name, own in results["results"].items()
        if "acc,none" in own
    }


def _binomial(share: float, samples: dict[str, Any], name: str) -> float | None:
    asked = samples.get(name, {}).get("effective")
    return (share * (1 - share) / asked) ** 0.5 if asked else None
