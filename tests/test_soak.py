"""The soak run in small: scripts/soak.py for 6 seconds with 16 streams of a tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.serve_fixture import Running
from tests.tiny import ROOT


def test_many_streams_leave_nothing_behind(tiny_server: Running, tmp_path: Path) -> None:
    """It starts a server of its own; of the one here it takes the repository."""
    script = [sys.executable, str(ROOT / "scripts" / "soak.py"), "--repository", str(tiny_server.repository)]
    command = [*script, "--minutes", "0.1", "--streams", "16", "--every", "1", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    report = json.loads((tmp_path / "soak.json").read_text())
    assert report["wrong"] == {}
    assert report["requests"].keys() == {"finished", "cancelled", "dropped grpc", "dropped http", "refused"}
    assert 0 < report["kv_used_at_most"] <= report["samples"][0]["kv_max"]
    assert {"tritonserver", "stub postprocessing"} <= set(report["samples"][-1]["processes"])
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")
