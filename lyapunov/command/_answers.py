"""What the command answers at once: families, and what a code or a word means."""

import textwrap

from lyapunov._errors import UsageError
from lyapunov.findings._catalogue import CATALOGUE
from lyapunov.report._glossary import GLOSSARY, Word, explained


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


def explain(asked: str) -> str:
    """What a finding's code, or a word of a report, stands for, as text; `all` for
    every one.

    **Raises:** `UsageError` for what is neither.
    """
    wanted = asked.strip()
    if wanted.upper() == "ALL":
        found = [*CATALOGUE.values(), *GLOSSARY]
    else:
        found = [CATALOGUE.get(wanted.upper()) or explained(wanted)]
    texts = []
    for one in found:
        if one is None:
            raise UsageError(
                f"no finding has the code {asked!r}, and no report says so",
                hint=f"a code from {min(CATALOGUE)} to {max(CATALOGUE)}, or a word, as "
                "T1; `lyapunov-check --explain all` shows them",
            )
        if isinstance(one, Word):
            title, text = ", ".join(one.names), one.text
        else:
            title, text = f"{one.code}  {one.title}  ({one.severity})", one.explanation
        texts.append(f"{title}\n\n{textwrap.fill(text, 80)}")
    return "\n\n\n".join(texts)
