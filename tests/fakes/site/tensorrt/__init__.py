"""Stand-in: only its version is asked for."""

__version__ = "10.14.1.48"
