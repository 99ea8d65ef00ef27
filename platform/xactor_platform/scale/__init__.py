"""Estimate what a training needs on machines that are not at hand: memory, time and data."""
