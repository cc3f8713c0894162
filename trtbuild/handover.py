"""What `trtbuild serve` and the models inside its server agree on: where a failed engine leaves its reason."""

RUN_DIR_ENV = "TRTBUILD_RUN_DIR"
"""Names the directory of logs and of FAILURE_FILE to the models."""

FAILURE_FILE = "failure.json"
"""{"message", "hint"} of the error that ended the engine; its appearance ends the server."""
