"""Asks this machine everything, all at once: most probes wait for a program."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from trtbuild.doctor.facts import Facts
from trtbuild.doctor.probes.artefact import probe_artefact
from trtbuild.doctor.probes.container import probe_container
from trtbuild.doctor.probes.gpu import probe_driver
from trtbuild.doctor.probes.host import probe_host
from trtbuild.doctor.probes.hub import probe_hub
from trtbuild.doctor.probes.mpi import probe_mpi
from trtbuild.doctor.probes.software import probe_software
from trtbuild.doctor.probes.triton import probe_triton


def examine(ranks: int, artefact: Path | None = None) -> Facts:
    """Facts of this machine, and of `artefact`; starts `ranks` small processes under mpirun. A few seconds."""
    container = probe_container()
    with ThreadPoolExecutor() as pool:
        driver = pool.submit(probe_driver)
        mpi = pool.submit(probe_mpi, ranks)
        software = pool.submit(probe_software)
        triton = pool.submit(probe_triton, container.triton)
        return Facts(
            driver=driver.result(),
            container=container,
            software=software.result(),
            mpi=mpi.result(),
            host=probe_host(),
            hub=probe_hub(),
            triton=triton.result(),
            artefact=probe_artefact(artefact) if artefact else None,
        )


def with_artefact(facts: Facts, artefact: Path) -> Facts:
    """Recorded facts of another machine beside an artefact that lies here."""
    return replace(facts, artefact=probe_artefact(artefact))
