"""Stage 7: a Triton repository -> a running, supervised server."""
