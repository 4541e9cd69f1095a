"""Foreign text and numbers inside messages."""


def shown(text: object, most: int = 200) -> str:
    """Text on one line, control characters escaped, cut to `most` characters.

    An empty text becomes ''; an exception without message, its type name.
    """
    line = " ".join(str(text).split()) or (type(text).__name__ if isinstance(text, Exception) else "''")
    line = line if len(line) <= most else f"{line[: most - 3]}..."
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def plural(number: int | str, noun: str) -> str:
    """`1 sample`, `1,000 samples`; a number that is a text, such as `2–4`, stands as it is."""
    told = number if isinstance(number, str) else f"{number:,}"
    return f"{told} {noun}{'' if told == '1' else 's'}"


def first_line(e: BaseException) -> str:
    """The first line of an exception's message; its type name if it has no message."""
    return (str(e).strip().splitlines() or [type(e).__name__])[0]
