"""Serve the model over HTTP and WebSocket with Ray Serve."""
