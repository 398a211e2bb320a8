"""What the coordinator says over HTTP and WebSocket. Thin: use cases live in ``services``."""
