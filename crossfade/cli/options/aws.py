"""Options of the commands that call AWS."""

from __future__ import annotations

import argparse


def add_account_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--region`` and ``--profile``."""
    group = parser.add_argument_group("account")
    group.add_argument("--region", metavar="REGION", help="use this AWS region (default: AWS_REGION, or the profile's)")
    group.add_argument("--profile", metavar="NAME", help="use this AWS profile (default: AWS_PROFILE)")
