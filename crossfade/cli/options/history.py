"""The option that does without base datasets, the same for all commands that read a trained model."""

from __future__ import annotations

import argparse


def add_history_option(parser: argparse._ActionsContainer) -> None:
    """Add the option to ``parser``."""
    parser.add_argument(
        "--history-from-this-dataset-only",
        action="store_true",
        help="read no base datasets of the dataset, such as where they cannot be reached: what is known from them "
        "counts as new",
    )
