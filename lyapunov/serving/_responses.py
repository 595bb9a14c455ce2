"""Dumps of logits alone, from what a server returns: no hook, CUDA graphs as ever."""

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._arguments import shown
from .._errors import DumpError, UsageError
from ..implementations._registry import flow_names, followed
from ..implementations.dump._keys import FORMAT, put


def of_vllm(output: Any) -> tuple[list[int], dict[int, dict[int, float]]]:
    """Tokens and log-probabilities of a `RequestOutput` of vLLM.

    The request is sent with `SamplingParams(logprobs=n, prompt_logprobs=n)`.

    **Returns:** prompt and generated tokens; by position: token -> log-probability (in
    nats) of being the next one.

    **Raises:** `DumpError` where there are none.
    """
    first = output.outputs[0]
    prompt = [int(token) for token in output.prompt_token_ids]
    tokens = prompt + [int(token) for token in first.token_ids]
    of_prompt = output.prompt_logprobs or [None] * len(prompt)
    listed = [*of_prompt, *(first.logprobs or [])]
    found = {
        place - 1: {int(token): float(one.logprob) for token, one in entry.items()}
        for place, entry in enumerate(listed)
        if entry and place
    }
    return tokens, _some(found)


def of_sglang(
    response: Mapping[str, Any], prompt: Sequence[int]
) -> tuple[list[int], dict[int, dict[int, float]]]:
    """Tokens and log-probabilities of what SGLang's `/generate` returns.

    The request is sent with `return_logprob`, `logprob_start_len` 0 and
    `top_logprobs_num` n.

    **Arguments:**

    - `prompt`: its tokens, `input_ids`.

    **Returns:** as `of_vllm`.

    **Raises:** `DumpError` where there are none.
    """
    meta = response["meta_info"]
    tokens = [*map(int, prompt), *map(int, response["output_ids"])]
    inputs = list(meta.get("input_top_logprobs") or [])
    listed = inputs + [None] * (len(prompt) - len(inputs))
    listed += meta.get("output_top_logprobs") or []
    found = {
        place - 1: {int(token): float(value) for value, token, *_ in entry}
        for place, entry in enumerate(listed)
        if entry and place
    }
    return tokens, _some(found)


def write_logprobs(
    path: str | os.PathLike,
    tokens: Sequence[int] | np.ndarray,
    logprobs: Mapping[int, Mapping[int, float]],
    *,
    implementation: str,
    precision: str,
    state_precision: str | None = None,
    kind: str = "whole",
) -> None:
    """Write log-probabilities as a dump; they are held to what roundings do to them.

    **Arguments:**

    - `path`: the .npz.
    - `tokens`: the text, the last token included.
    - `logprobs`: by position: token -> log-probability (nats) of being the next one.
    - `implementation`, `precision`, `state_precision`, `kind`: as in a dump.

    **Raises:** `UsageError` for an unknown flow; `DumpError` for a position that the
    text does not have.
    """
    if not followed(implementation):
        raise UsageError(
            f"no flow is known by the name {shown(implementation)}",
            hint=f"`implementation` is one of {', '.join(flow_names())}",
        )
    places = sorted(_some(logprobs))
    if places[0] < 0 or places[-1] >= len(tokens):
        raise DumpError(
            f"there are log-probabilities behind token "
            f"{places[0] if places[0] < 0 else places[-1]} of {len(tokens)}",
            hint="row i is of the token behind token i",
        )
    width = max(len(logprobs[place]) for place in places)
    values = np.full((len(places), width), -np.inf, np.float32)
    ids = np.full((len(places), width), -1, np.int64)
    for i, place in enumerate(places):
        row = logprobs[place]
        ids[i, : len(row)] = list(row)
        values[i, : len(row)] = list(row.values())
    arrays: dict[str, Any] = {
        "format": FORMAT,
        "implementation": implementation,
        "precision": precision,
        "tokens": np.asarray(tokens, np.int64),
        "kind": kind,
        "top_logprobs": values,
        "top_ids": ids,
    }
    if len(places) < len(tokens):
        arrays["positions"] = np.array(places)
    if state_precision is not None:
        arrays["state_precision"] = state_precision
    with zipfile.ZipFile(Path(path), "w", zipfile.ZIP_DEFLATED) as file:
        for key, value in arrays.items():
            put(file, key, value)


def _some(found: Mapping[int, Mapping[int, float]]) -> Any:
    if not found:
        raise DumpError(
            "the response has no log-probabilities",
            hint="vLLM: SamplingParams(logprobs=5, prompt_logprobs=5); SGLang: "
            "return_logprob, logprob_start_len 0, top_logprobs_num 5",
        )
    return found
