"""From weight samples to predictive distributions."""
