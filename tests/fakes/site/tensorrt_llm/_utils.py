"""MPI and GPU, as far as a build asks."""

from typing import Any


def mpi_comm() -> Any:
    from mpi4py import MPI

    return MPI.COMM_WORLD


def mpi_world_size() -> int:
    return mpi_comm().Get_size()


def mpi_rank() -> int:
    return mpi_comm().Get_rank()


def _local() -> Any:
    from mpi4py import MPI

    return mpi_comm().Split_type(MPI.COMM_TYPE_SHARED)


def local_mpi_rank() -> int:
    return _local().Get_rank()


def local_mpi_size() -> int:
    return _local().Get_size()


def mpi_barrier() -> None:
    mpi_comm().Barrier()


def get_sm_version() -> int:
    import torch

    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor
