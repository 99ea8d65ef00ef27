"""Estimate the memory, the time and the data rate of a training on machines that are not available."""
