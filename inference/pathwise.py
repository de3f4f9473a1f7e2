"""Pathwise gradients."""

from decisionppl.inference._race import First, race

__all__ = ["First", "race"]
