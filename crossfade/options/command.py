"""Add a command to the command line in the form that all commands share.

parser = add_command(commands, "validate", "check a prepared dataset", "Check a dataset.", examples=(...), notes="...")
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    description: str,
    *,
    examples: Sequence[tuple[str, str]],
    notes: str = "",
) -> argparse.ArgumentParser:
    """Add the command ``name`` and return its parser.

    Args:
        commands: what ``add_subparsers`` returned.
        name: the word after ``crossfade``.
        summary: verb first, for the list of commands.
        description: what ``--help`` opens with: one sentence, then details.
        examples: command lines without ``crossfade``, each with what it does.
        notes: paragraphs that follow the examples.
    """
    lines = [line for command, effect in examples for line in (f"  {command}", f"      {effect}")]
    return commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog="\n".join(["Examples:", *lines, *(["", notes.strip("\n")] if notes else [])]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        # Abbreviated options would turn into other options, or errors, as new ones are added.
        allow_abbrev=False,
    )
