"""Bulk dubbing: thousands of portraits and voices to videos, by pools of actors that grow and shrink with the work."""
