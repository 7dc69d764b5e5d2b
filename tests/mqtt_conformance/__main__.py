"""Writes `docs/mqtt-conformance.md`."""

from pathlib import Path

from .document import render

(Path(__file__).resolve().parents[2] / "docs" / "mqtt-conformance.md").write_text(render())
