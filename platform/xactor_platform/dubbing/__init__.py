"""Dub in bulk: turn thousands of portraits and voices into videos, with pools of actors that grow with the work."""
