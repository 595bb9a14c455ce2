"""What the command answers at once: families and layouts, and what a code means."""

import textwrap

from lyapunov._errors import UsageError
from lyapunov.findings._catalogue import CATALOGUE


def architectures() -> str:
    """The families and layouts that can be read, and those that cannot, as text."""
    from lyapunov.checkpoints import list_architectures
    from lyapunov.checkpoints.families._not_covered import not_covered_lines

    lines = []
    for family in list_architectures():
        lines.append(f"{family['name']}: {family['title']}")
        for key in ("layouts", "covered", "not_covered"):
            lines.append(f"  {key.replace('_', ' ')}:")
            lines += map(_item, family[key])
    lines += ["", "Recurrent, and not covered as checkpoints:"]
    return "\n".join([*lines, *map(_item, not_covered_lines())])


def _item(text: str) -> str:
    return textwrap.fill(text, 80, initial_indent="    - ", subsequent_indent="      ")


def explain(code: str) -> str:
    """What a finding's code stands for, as text; `all` for every one.

    **Raises:** `UsageError` for an unknown code.
    """
    wanted = code.strip().upper()
    kinds = CATALOGUE.values() if wanted == "ALL" else [CATALOGUE.get(wanted)]
    texts = []
    for kind in kinds:
        if kind is None:
            raise UsageError(
                f"no finding has the code {code!r}",
                hint=f"codes run from {min(CATALOGUE)} to {max(CATALOGUE)}; "
                "`lyapunov-check --explain all` shows them",
            )
        body = textwrap.fill(kind.explanation, 80)
        texts.append(f"{kind.code}  {kind.title}  ({kind.severity})\n\n{body}")
    return "\n\n\n".join(texts)
