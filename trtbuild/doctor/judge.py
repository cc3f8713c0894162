"""Facts -> findings, topic by topic. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from trtbuild.doctor.facts import Facts
from trtbuild.doctor.finding import Finding, Report, Wish
from trtbuild.doctor.topics import artefact, container, gpu, host, hub, mpi, software, tensorrt, triton

TOPICS: tuple[Callable[[Facts, Wish], Iterator[Finding]], ...] = (
    gpu.judge,
    container.judge,
    tensorrt.judge,
    software.judge,
    mpi.judge,
    host.judge,
    triton.judge,
    hub.judge,
    artefact.judge,
)


def judge(facts: Facts, wish: Wish) -> Report:
    """Everything that can be said of a machine for a wish, in the order of the topics."""
    return Report(wish, tuple(finding for topic in TOPICS for finding in topic(facts, wish)))


def wish_for(facts: Facts, target: str, gpus: int | None) -> Wish:
    """What the user did not say comes from the artefact: its target and world size; else cpu and one."""
    wanted = facts.artefact
    chosen = target or (wanted.target if wanted else "") or "cpu"
    return Wish(chosen, gpus or (wanted.world_size if wanted else 0) or 1)
