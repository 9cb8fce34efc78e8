"""What the sockets of one `plug` share."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

from tessera.hosts.architecture import Architecture
from tessera.hosts.contract import Host
from tessera.hosts.forward import ForwardPass, ThreadStates
from tessera.hosts.part import HostPart
from tessera.hosts.sequence import PlugSession


@dataclass(slots=True, eq=False)
class PlugContext:
    """The parts of one `plug`, and what their sockets need.

    host     what parts are shown
    states   of the threads that use it
    session  open while the parts are plugged in
    caches   those that a sequence was attached to
    """

    host: Host
    architecture: Architecture
    parts: tuple[HostPart, ...]
    states: ThreadStates
    session: PlugSession = field(default_factory=PlugSession)
    caches: weakref.WeakSet[Any] = field(default_factory=weakref.WeakSet)

    @property
    def current(self) -> ForwardPass | None:
        """The forward that this thread runs, or ran last."""
        return self.states.here().current
