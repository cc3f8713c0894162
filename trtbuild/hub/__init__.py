"""Stage 1: a model name -> a local folder, pinned to a commit."""
