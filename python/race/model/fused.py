"""Whether librace's compiled operators, torch.ops.race.*, are at hand; without them everything runs on stock torch operations, slower."""

import warnings

try:
    import race._race  # noqa: F401  registers them

    HAS_FUSED = True
except ImportError as error:
    HAS_FUSED = False
    warnings.warn(f"race._race cannot be loaded ({error}): falling back to stock torch operations, which are slow", stacklevel=2)
