"""Whether librace's compiled operators, torch.ops.race.*, are at hand; without them
everything runs on stock torch operations, slower.
"""

import warnings

try:
    import race._race  # registers them

    HAS_FUSED = True
except ImportError as error:
    HAS_FUSED = False
    warnings.warn(
        f"race._race cannot be loaded ({error}): falling back to stock torch operations, which are "
        "slow",
        stacklevel=2,
    )


def keep_memory() -> None:
    """Lets malloc keep the memory of large tensors from one step to the next, for the whole
    process (RACE_KEEP_MEMORY=0: does nothing).
    """
    if HAS_FUSED:
        race._race.keep_memory()  # type: ignore[attr-defined]
