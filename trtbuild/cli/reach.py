"""Options of how to reach servers: TLS, headers, patience. The same for every command that asks one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtbuild.cli.filled import filled

if TYPE_CHECKING:
    from trtbuild.client import Reach

_PANEL = "Connection"

Timeout = Annotated[
    float, typer.Option(min=0.1, help="Seconds to wait for the server's first sign of life.", rich_help_panel=_PANEL)
]
Headers = Annotated[
    list[str] | None,
    typer.Option(
        "--header", metavar="NAME:VALUE", help="Sent with each question, repeatable.", show_default=False,
        rich_help_panel=_PANEL,
    ),
]  # fmt: skip
Tls = Annotated[bool, typer.Option("--tls", help="TLS, with the system's root certificates.", rich_help_panel=_PANEL)]
Ca = Annotated[
    Path | None,
    typer.Option("--ca", metavar="FILE", help="TLS, with these root certificates (PEM).", show_default=False,
                 rich_help_panel=_PANEL),
]  # fmt: skip
ClientCert = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Mutual TLS: our certificate (PEM), with --client-key.", show_default=False,
        rich_help_panel=_PANEL,
    ),
]  # fmt: skip
ClientKey = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Its private key (PEM).", show_default=False, rich_help_panel=_PANEL),
]
OPTIONS: dict[str, tuple[Any, Any]] = {
    "timeout": (Timeout, 2.0),
    "header": (Headers, None),
    "tls": (Tls, False),
    "ca": (Ca, None),
    "client_cert": (ClientCert, None),
    "client_key": (ClientKey, None),
}


def make_reach(
    *,
    header: list[str] | None = None,
    tls: bool = False,
    ca: Path | None = None,
    client_cert: Path | None = None,
    client_key: Path | None = None,
    timeout: float = 2.0,
) -> Reach:
    """Raises:
    typer.BadParameter: a header that is none, or half of a client's certificate.
    """
    from trtbuild.client import Reach
    from trtbuild.client import Tls as Files

    if (client_cert is None) != (client_key is None):
        raise typer.BadParameter("--client-cert and --client-key go together", param_hint="--client-cert")
    secure = tls or ca is not None or client_cert is not None
    return Reach(Files(ca, client_key, client_cert) if secure else None, _headers(header or []), timeout)


connected = filled("reach", OPTIONS, make_reach)
"""For commands with a parameter `reach`."""
connected_untimed = filled("reach", {name: OPTIONS[name] for name in OPTIONS if name != "timeout"}, make_reach)
"""For those of them whose own --timeout means something else."""


def _headers(texts: list[str]) -> Mapping[str, str]:
    pairs = [text.partition(":") for text in texts]
    if bad := [name for name, colon, _ in pairs if not colon or not name.strip()]:
        raise typer.BadParameter(f"{bad[0]!r} is not NAME:VALUE", param_hint="--header")
    return {name.strip(): value.strip() for name, _, value in pairs}
