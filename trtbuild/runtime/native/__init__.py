"""The native kernels: one C file, compiled for this CPU on first use, called through ctypes."""
