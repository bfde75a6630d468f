"""Counts in messages: "1 server", "2 servers".

f"{counted(servers, 'server')} of {counted(entries, 'entry', 'entries')}"
"""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return ``number`` with its ``noun``, in the plural, by default with an s, unless it is 1."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
