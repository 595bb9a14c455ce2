"""`adapter_config.json` of PEFT: which adapters are covered, ranks and scalings."""

import math
import re
from collections.abc import Iterable
from typing import Any

from .._errors import CorruptCheckpointError, UnsupportedCheckpointError
from .files._files import quote


ADAPTER_CONFIG = "adapter_config.json"
MERGE = "merge it first: PeftModel.from_pretrained(...).merge_and_unload()"


def not_merged(what: str) -> UnsupportedCheckpointError:
    """The error for an adapter that PEFT must merge."""
    return UnsupportedCheckpointError(what, hint=MERGE)


_NOT_COVERED = {  # setting: what it makes of the adapter
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "layer_replication": "replicated layers",
    "target_parameters": "LoRA on bare parameters",
    "trainable_token_indices": "trained tokens",
    "ensure_weight_tying": "tied adapters",
}
# These initialisers change the base's own weights before training.
_CHANGES_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
_MAX_PATTERN = 200


def refuse_other_kinds(settings: dict[str, Any]) -> None:
    """Refuse what is not plain LoRA, and so not merged as W + s B A."""
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise not_merged(f"an adapter of type {quote(kind, 40)}; only LORA is covered")
    for setting, what in _NOT_COVERED.items():
        if settings.get(setting):
            raise not_merged(
                f"an adapter with {setting} ({what}), which is not covered"
            )
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise UnsupportedCheckpointError(
            f"init_lora_weights = {quote(start, 40)} changed the base's own weights,"
            " so this adapter does not fit the base as it is stored",
            hint="save it converted: path_initial_model_for_weight_conversion",
        )


def scaling(settings: dict[str, Any], module: str) -> tuple[int, float]:
    """Rank and s of one module, from the settings."""
    rank = _pattern(settings, "rank_pattern", module, settings.get("r"))
    alpha = _pattern(settings, "alpha_pattern", module, settings.get("lora_alpha"))
    plausible = (
        type(rank) is int
        and 1 <= rank < 2**31
        and type(alpha) in (int, float)
        and abs(alpha) < 1e30
    )
    if not plausible:
        raise CorruptCheckpointError(
            f"{ADAPTER_CONFIG} says r = {quote(rank, 40)}, lora_alpha ="
            f" {quote(alpha, 40)}",
            hint="download it again",
        )
    root = settings.get("use_rslora") is True
    return rank, alpha / (math.sqrt(rank) if root else rank)


def _pattern(settings: dict[str, Any], name: str, module: str, default: Any) -> Any:
    """The entry whose key matches the end of a module's name, as PEFT matches them."""
    patterns = settings.get(name) or {}
    if not isinstance(patterns, dict):
        raise CorruptCheckpointError(
            f"{ADAPTER_CONFIG}: {name} is not an object", hint="download it again"
        )
    for key in _safe(patterns, name):
        if re.match(rf"(.*\.)?({key})$", module):
            return patterns[key]
    return default


def _safe(patterns: Iterable[str], name: str) -> Iterable[str]:
    """Expressions that cannot take long to match, whoever wrote them."""
    for key in patterns:
        greedy = sum(key.count(c) for c in "*+{?")
        nested = re.search(r"\)[*+{?]", key)
        try:
            re.compile(key)
        except (re.error, RecursionError, OverflowError):
            greedy = _MAX_PATTERN
        if greedy > 3 or nested or len(key) > _MAX_PATTERN:
            raise not_merged(
                f"{ADAPTER_CONFIG}: {name} has the expression {quote(key)}, which is"
                " not covered"
            )
        yield key
