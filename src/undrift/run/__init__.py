"""The only place that trains: configuration, backbone, trainer, generation, the loop over tasks."""

from __future__ import annotations
