"""What a repository's model.py files run inside tritonserver; testable without it (`pb` is its Python module)."""
