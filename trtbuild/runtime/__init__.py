"""The cpu runtime: executes the rank engines with torch, native kernels and MPI."""
