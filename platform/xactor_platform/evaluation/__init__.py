"""Evaluate as the paper does (4.1, 4.2): choose the videos, score them and fill Table 1. Report on trained models."""
