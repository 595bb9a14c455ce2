"""A result as LaTeX, for the appendix of a paper: a part to be `\\input`."""

from collections.abc import Iterable, Iterator
from typing import Any

from lyapunov.report._sections import Document, Table
from lyapunov.report.markdown import Markdown


SIGNS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{sign: f"\\{sign}" for sign in "{}$&#_%"},
    "`": r"\textasciigrave{}",
    '"': r"\textquotedbl{}",
    "-": "{-}",
    "×": r"$\times$",
    "±": r"$\pm$",
    "–": "--",
    "…": r"\ldots{}",
    "λ": r"$\lambda$",
    "²": r"\textsuperscript{2}",
    "−": "$-$",
    "·": r"$\cdot$",
    "≤": r"$\le$",
}
"""What LaTeX would take for marks, and signs that not every font has. A hyphen by
itself, so that `--dtype` keeps both of its own."""

PACKAGES = "% needs \\usepackage[T1]{fontenc}, {booktabs} and {longtable}"
SECTIONS = ("", r"\section*", r"\subsection*", r"\subsubsection*")


def to_latex(results: Any) -> str:
    r"""Write LaTeX of one result, or of several one after the other.

    Every group of columns is a table of its own, since a page is narrow.

    **Arguments:**

    - `results`: as `to_markdown` takes them.

    **Returns:**

    Text to be `\input`, which ends in a newline.
    """
    return _Latex().write(results)


class _Latex(Markdown):
    """The same blocks with LaTeX's marks."""

    def blocks(self, document: Document) -> Iterator[str]:
        yield PACKAGES
        yield from super().blocks(document)

    def heading(self, level: int, text: str) -> str:
        return f"{SECTIONS[level]}{{{self.plain(text)}}}"

    def strong(self, text: str) -> str:
        return rf"\textbf{{{text}}}"

    def code(self, text: str) -> str:
        return rf"\texttt{{{self.plain(text)}}}"

    def items(self, texts: Iterable[str]) -> str:
        # braces: a text that begins with a bracket is no label
        told = "\n".join(rf"  \item {{}}{text}" for text in texts)
        return f"\\begin{{itemize}}\n{told}\n\\end{{itemize}}"

    def table(self, table: Table) -> str:
        parts = []
        for group in table.groups:
            columns = [*table.keys, *group.columns]
            if group.title:
                parts.append(rf"\paragraph{{{self.plain(group.title)}}}")
            heads = [self.cell(column.head) for column in columns]
            rows = [[self.value(c, row) for c in columns] for row in table.rows]
            lines = [" & ".join(cells) + r" \\" for cells in [heads, *rows]]
            marks = "".join("l" if column.word else "r" for column in columns)
            parts.append(
                "\n".join(
                    [
                        rf"\begin{{longtable}}{{{marks}}}",
                        r"\toprule",
                        lines[0],
                        r"\midrule",
                        r"\endhead",
                        *lines[1:],
                        r"\bottomrule",
                        r"\end{longtable}",
                    ]
                )
            )
        return "\n\n".join(parts)

    def cell(self, text: str) -> str:
        # a bracket or a star behind \\ would be part of it
        start = "{}" if text.startswith(("[", "*")) else ""
        return start + self.plain(text)

    def plain(self, text: str) -> str:
        return "".join(SIGNS.get(sign, sign) for sign in " ".join(text.split()))
