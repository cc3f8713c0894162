"""Server-sent events out of bytes as they come. PURE."""

from __future__ import annotations


class Events:
    """Bytes in, the `data` of whole events out; a block may hold a part of one or many."""

    def __init__(self) -> None:
        self._rest = b""

    def push(self, block: bytes) -> list[str]:
        """The data of every event that this block completes."""
        found = []
        lines = (self._rest + block).replace(b"\r\n", b"\n").split(b"\n\n")
        self._rest = lines.pop()
        for event in lines:
            data = [line[5:].lstrip(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
            if data:
                found.append(b"\n".join(data).decode("utf-8", "replace"))
        return found
