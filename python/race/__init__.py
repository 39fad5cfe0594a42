"""RACE: E(3)-equivariant interatomic potentials that know their own error."""

from typing import Any

from race.errors import RaceError

__version__ = "0.1.0"

__all__ = ["Calculator", "RaceError", "__version__"]


def __getattr__(name: str) -> Any:
    # The calculator pulls in torch and the compiled runtime; `import race` must stay
    # cheap for the CLI.
    if name == "Calculator":
        from race.deploy.calculator import Calculator

        return Calculator
    raise AttributeError(f"module 'race' has no attribute {name!r}")
