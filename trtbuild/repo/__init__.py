"""Stage 6: an engine directory -> a Triton model repository."""
