"""Stage 5: checkpoint -> engine, one process a rank."""
