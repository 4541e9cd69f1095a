"""Somebody else's text inside of a sentence of ours."""


def shown(text: object, most: int = 200) -> str:
    """On one line, control characters escaped, cut where it is longer than `most`. Nothing is ''; an exception without a message its type's name."""
    line = " ".join(str(text).split()) or (type(text).__name__ if isinstance(text, Exception) else "''")
    line = line if len(line) <= most else f"{line[: most - 3]}..."
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
