"""What the benchmarks of the planner share: settings by name, and the verdict on their predictions."""

import argparse
import sys


def chosen(description: str, settings: dict[str, tuple[int, int, str]]) -> list[str]:
    """Names given on the command line, or all; --list prints them and ends.

    `settings` are (ranks, sequence length, flags) by name.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("settings", nargs="*", help="names; none: all")
    parser.add_argument("--list", action="store_true", help="print the names and what they are")
    options = parser.parse_args()
    unknown = set(options.settings) - set(settings)
    if unknown:
        parser.error(f"unknown setting {min(unknown)}: --list shows the names")
    if options.list:
        for name, (ranks, length, flags) in settings.items():
            print(f"{name}: {ranks} rank{'s' if ranks > 1 else ''}, sequence {length}, {flags}")
        sys.exit()
    return options.settings or list(settings)


def row(*cells: object) -> None:
    """Print a row of a Markdown table."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def header(*names: str) -> None:
    """Print the head of a Markdown table."""
    row(*names)
    print("|" + "---|" * len(names), flush=True)


def verdict(ratios: list[float], tolerance: float) -> None:
    """Say how far predicted / measured is from 1 and end: exit status 1 beyond `tolerance`."""
    worst = max(abs(ratio - 1) for ratio in ratios)
    print(f"largest deviation: {100 * worst:.1f} %")
    sys.exit(worst > tolerance)
