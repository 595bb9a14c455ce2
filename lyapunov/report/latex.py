"""A result as LaTeX, for the appendix of a paper: a part to be `\\input`."""

from collections.abc import Iterable, Iterator, Sequence
from textwrap import wrap
from typing import Any

from lyapunov.report._sections import Column, Document, Table
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

PAGE, GAP = 78, 2
"""Characters that a small line of `article` has room for, and those between columns."""
SMALL = r"\begingroup\small\setlength{\tabcolsep}{4pt}"
BREAKS, BREAK = 16, r"\allowbreak{}"
"""After so many characters a word that is typed may go on in the next line."""
PACKAGES = "% needs \\usepackage[T1]{fontenc}, {booktabs} and {longtable}"
SECTIONS = ("", r"\section*", r"\subsection*", r"\subsubsection*")


def to_latex(results: Any) -> str:
    r"""Write LaTeX of one result, or of several one after the other.

    Every group of columns is a table of its own or several, since a page is narrow.

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
        # hashes and paths are longer than a line
        words = (map(self.plain, wrap(word, BREAKS)) for word in text.split())
        return rf"\texttt{{{' '.join(map(BREAK.join, words))}}}"

    def items(self, texts: Iterable[str]) -> str:
        # braces: a text that begins with a bracket is no label
        told = "\n".join(rf"  \item {{}}{text}" for text in texts)
        return f"\\begin{{itemize}}\\sloppy\n{told}\n\\end{{itemize}}"

    def table(self, table: Table) -> str:
        def width(column: Column) -> int:
            texts = [column.head, *(column.text(row) for row in table.rows)]
            return GAP + max(map(len, texts))

        parts = []
        for group in table.groups:
            if group.title:
                parts.append(rf"\paragraph{{{self.plain(group.title)}}}")
            for columns in table.pieces(group, width, PAGE):
                parts.append(self.piece(table, columns))
        return "\n\n".join(parts)

    def piece(self, table: Table, columns: Sequence[Column]) -> str:
        """A table of some columns."""
        heads = [self.cell(column.head) for column in columns]
        rows = [[self.value(c, row) for c in columns] for row in table.rows]
        head, *lines = (" & ".join(cells) + r" \\" for cells in [heads, *rows])
        marks = "".join("l" if column.word else "r" for column in columns)
        begin = [SMALL, rf"\begin{{longtable}}{{{marks}}}", r"\toprule", head]
        end = [r"\bottomrule", r"\end{longtable}", r"\endgroup"]
        return "\n".join([*begin, r"\midrule", r"\endhead", *lines, *end])

    def cell(self, text: str) -> str:
        # a bracket or a star behind \\ would be part of it
        start = "{}" if text.startswith(("[", "*")) else ""
        return start + self.plain(text)

    def plain(self, text: str) -> str:
        return "".join(SIGNS.get(sign, sign) for sign in " ".join(text.split()))
