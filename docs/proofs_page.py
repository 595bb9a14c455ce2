"""The proofs, typeset: every statement with its checked steps."""

import sympy

from docs.tables import items, plain, table


def proofs() -> dict[str, str]:
    """A page a statement and one that lists them; steps are checked on the way.

    **Raises:** `SystemExit` where a step does not hold.
    """
    from proofs._catalogue import STATEMENTS
    from proofs._statement import KINDS

    pages, rows = {}, []
    for one in STATEMENTS:
        row = one.run(numbers=False)
        if not row.proved:
            raise SystemExit(f"error: {one.name} is not proved")
        told = ", ".join(f"{n} {kind}" for kind, n in row.kinds.items())
        rows.append((f"[{plain(one.title)}]({one.name}.md)", told, plain(one.whose)))
        parts = [
            f"# {plain(one.title)}",
            f"Whose: {plain(one.whose)}",
            f"Used in: {plain(one.used)}",
            "## Hypotheses",
            items(h.text for h in one.hypotheses),
            "## Derivation",
        ]
        for number, step in enumerate(row.steps, 1):
            parts.append(f"**{number}. {step.kind}.** {plain(step.text)}")
            parts += [f"$$\n{sympy.latex(formula)}\n$$" for formula in step.formulas]
            if step.evidence:
                parts.append(f"*{plain(step.evidence)}*")
        parts.append(
            f"`python -m proofs {one.name}` derives it again and tries it on numbers."
        )
        pages[f"proofs/{one.name}.md"] = "\n\n".join(parts)
    kinds = table(
        ("a step is", "checked by"), ((k, plain(v)) for k, v in KINDS.items())
    )
    pages["proofs/index.md"] = (
        "# Proofs\n\nEvery step was checked when this page was built.\n\n"
        + table(("statement", "steps", "whose"), rows)
        + f"\n\n## Kinds of steps\n\n{kinds}"
    )
    return pages
