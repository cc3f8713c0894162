"""The linter of finished artefacts: rules are values in, findings out; `read.py` and `data.py` alone touch files."""
