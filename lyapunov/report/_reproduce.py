"""A script of a few lines that shows a bug of transformers without this library.

It runs one text whole and in the way that was found wrong, in fp32, and prints how far
the logits are apart.
"""

import textwrap
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from ..implementations._ways import Variant, parse_variant
from ..results._audit import BUG, AuditReport


ROUNDING = 14
"""2^-14 of the largest logit is beyond what fp32 explains: a thousand roundings of
2^-24 that all push one way."""

SCRIPT = '''\
"""{title}

{about}{known}
"""

import inspect

import torch
import transformers
from transformers import AutoModelForCausalLM

MODEL = {model!r}
TOKENS = [
{tokens}
]

model = AutoModelForCausalLM.from_pretrained(MODEL{revision}, dtype=torch.float32)
model.eval()
names = inspect.signature(model.forward).parameters
CACHE = next(n for n in ("cache", "past_key_values", "cache_params") if n in names)
text = torch.tensor([TOKENS])


def run(calls):
    """Logits of row {row}, call by call through one cache: (ids, mask, columns)."""
    cache, kept, masks = None, [], []
    for ids, mask, columns in calls:
        more = {{}} if cache is None else {{CACHE: cache}}
        padded = mask is not None or any((m == 0).any() for m in masks)
        masks.append(torch.ones_like(ids) if mask is None else mask)
        shown = torch.cat(masks, 1)
        if "position_ids" in names:  # some count from 0 again at every call
            at = (shown.cumsum(1) - 1).clamp(min=0)
            more["position_ids"] = at[:, -ids.shape[1] :]
        if padded and (cache is None or "position_ids" in names):
            more["attention_mask"] = shown
        out = model(ids, use_cache={cached}, **more)
        cache = out.get(CACHE)
        kept.append(out.logits[{row}, columns])
    return torch.cat(kept)


with torch.no_grad():
    whole = model(text, use_cache=False).logits[0]
{calls}
    other = run(calls)

apart = (whole - other).abs().amax(-1) / whole.abs().max()
beyond = (apart > 2.0**-{rounding}).nonzero().flatten().tolist()
changed = (whole.argmax(-1) != other.argmax(-1)).sum().item()
print("transformers", transformers.__version__, type(model).__name__, "in fp32")
print("{way}: logits differ by up to", apart.max().item(), "of the largest")
print(changed, "of", len(TOKENS), "top tokens change")
print(f"DIFFERS from token {{beyond[0]}} on" if beyond else "agrees within rounding")
'''

_HOW = {
    "steps": "token by token through the cache",
    "chunks": "in several calls through one cache",
    "padded_left": "behind masked tokens, beside another text",
    "padded_right": "before masked tokens, beside another text, then token by token",
    "batched": "as one row of a batch of other texts",
    "initial_state": "its beginning in one call, then token by token",
}


def bugs(report: AuditReport) -> list[str]:
    """The ways that were found wrong, each once; those that are not known first, since
    somebody has to hear of them."""
    found = [v for v in report.variants if v.verdict == BUG]
    found = [v for v in found if parse_variant(v.variant).kind in _HOW]
    found.sort(key=lambda v: v.known is not None)
    return list(dict.fromkeys(v.variant for v in found))


def script(
    report: AuditReport,
    tokens: Sequence[int] | Int[np.ndarray, " seq"],
    way: str,
    *,
    model: str,
    revision: str | None = None,
) -> str:
    """The text of a Python file that needs torch and transformers alone.

    **Arguments:**

    - `report`: of an audit of transformers.
    - `tokens`: (seq) of the text that was audited, its first sequence.
    - `way`: as `bugs` gives it.
    - `model`, `revision`: what `from_pretrained` is to be given.
    """
    variant = parse_variant(way)
    known = next((v.known for v in report.variants if v.variant == way), None)
    row = variant.row if variant.kind == "batched" else 0
    source = "" if known is None else f"\n\nKnown: {known.source}"
    return SCRIPT.format(
        title=f"transformers gives other logits for a text that it runs as {way}.",
        way=way,
        about=textwrap.fill(
            f"Runs one text whole and as {way}: {_HOW[variant.kind]}. In exact"
            " arithmetic the logits are the same; in fp32 they differ by rounding,"
            " some 1e-6 of the largest one.",
            88,
        ),
        known="\n".join(textwrap.fill(line, 88) for line in source.split("\n")),
        model=model,
        revision="" if revision is None else f", revision={revision!r}",
        tokens=textwrap.fill(
            ", ".join(str(int(token)) for token in tokens),
            88,
            initial_indent="    ",
            subsequent_indent="    ",
        ),
        row=row,
        cached=variant.kind != "batched",
        calls="\n".join(f"    {line}" for line in _calls(variant, len(tokens))),
        rounding=ROUNDING,
    )


def _calls(variant: Variant, seq: int) -> list[str]:
    """Lines that make the list `calls`, as the audit runs the text."""
    if variant.kind == "batched":
        row = variant.row
        return [
            f"rows = [text.roll(i + 1, 1) for i in range({max(row, 2)})]",
            f"rows.insert({row}, text)",
            "calls = [(torch.cat(rows), None, slice(0, None))]",
        ]
    if variant.kind.startswith("padded"):
        return _padded(variant, seq)
    calls = variant.calls(seq)
    at_once = [call for call in calls if not call.decode or call.stop == call.start + 1]
    cuts = [*(call.start for call in at_once), at_once[-1].stop]
    listed = f"{cuts}"
    if calls[-1] not in at_once:  # the rest by steps
        listed = f"[*{cuts[:-1]}, *range({cuts[-1]}, len(TOKENS) + 1)]"
    return [
        *textwrap.wrap(f"cuts = {listed}", 84, subsequent_indent="    "),
        "spans = zip(cuts, cuts[1:])",
        "calls = [(text[:, a:b], None, slice(0, b - a)) for a, b in spans]",
    ]


def _padded(variant: Variant, seq: int) -> list[str]:
    """Row 0 is the text with padding, row 1 another text without."""
    pads, prompt = variant.numbers[0], variant.prompt or seq
    left = variant.kind == "padded_left"
    order = "[padding, {0}]" if left else "[{0}, padding]"
    columns = f"slice({pads}, None)" if left else f"slice(0, {prompt})"
    lines = [
        f"padding = torch.zeros((1, {pads}), dtype=torch.long)",
        f"prompt = text[:, :{prompt}]",
        f"other = text.roll(1, 1).repeat(1, 2)[:, : {prompt + pads}]",
        f"ids = torch.cat([torch.cat({order.format('prompt')}, 1), other])",
        f"shown = torch.cat({order.format('torch.ones_like(prompt)')}, 1)",
        "mask = torch.cat([shown, torch.ones_like(other)])",
        f"calls = [(ids, mask, {columns})]",
    ]
    if prompt < seq:
        lines += [
            "both = text.repeat(2, 1)",
            f"steps = range({prompt}, len(TOKENS))",
            "calls += [(both[:, t : t + 1], None, slice(0, 1)) for t in steps]",
        ]
    return lines
