"""A Markdown table that can be read in a terminal, too."""

from collections.abc import Iterable, Sequence


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """A Markdown table with flush columns: the first `left` to the left, figures to the right."""
    cells = [[cell.replace("|", "\\|") for cell in line] for line in (head, *lines)]
    columns = []
    for number, texts in enumerate(zip(*cells, strict=True)):
        width = max(3, *map(len, texts))
        flush = str.ljust if number < left else str.rjust
        rule = (":" if number < left else "").ljust(width, "-")
        rule = rule if number < left else rule[:-1] + ":"
        columns.append([flush(texts[0], width), rule, *(flush(text, width) for text in texts[1:])])
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*columns, strict=True))
