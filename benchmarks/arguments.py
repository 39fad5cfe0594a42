"""The command line of benchmarks that have one option."""

import argparse


def quick(doc: str | None) -> bool:
    """Whether --quick is given to the script of this docstring."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="in minutes: does everything run?")
    return parser.parse_args().quick
