"""What the server has done, in the text format of Prometheus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Upper bounds of seconds in the histogram."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(slots=True)
class Metrics:
    """Counts since the start; only the event loop writes them.

    requests  answers by (path, status); 499: the client left before its answer was whole
    seconds   of all requests to the chat path: their sum, their number per bucket (not cumulative), their number
    """

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    tokens_in: int = 0
    tokens_out: int = 0
    total_seconds: float = 0.0
    timed: Counter[float] = field(default_factory=Counter)
    waiting: int = 0
    running: int = 0

    def answered(self, path: str, status: int) -> None:
        """A request has got its answer."""
        self.requests[path, status] += 1

    def took(self, seconds: float) -> None:
        """A chat request took that long."""
        self.total_seconds += seconds
        self.timed[next((bound for bound in BUCKETS if seconds <= bound), float("inf"))] += 1

    def text(self) -> str:
        """Everything, as Prometheus reads it."""
        return "".join(f"{line}\n" for line in self._lines())

    def _lines(self) -> Iterator[str]:
        yield from _head("tessera_requests_total", "counter", "Requests by path and status; 499: the client left.")
        for (path, status), count in sorted(self.requests.items()):
            yield f'tessera_requests_total{{path="{path}",status="{status}"}} {count}'
        yield from _head("tessera_queue_length", "gauge", "Requests that wait for the model.")
        yield f"tessera_queue_length {self.waiting}"
        yield from _head("tessera_running", "gauge", "Requests that the model works on.")
        yield f"tessera_running {self.running}"
        yield from _head("tessera_tokens_total", "counter", "Tokens read and written.")
        yield f'tessera_tokens_total{{direction="in"}} {self.tokens_in}'
        yield f'tessera_tokens_total{{direction="out"}} {self.tokens_out}'
        yield from _head("tessera_request_seconds", "histogram", "Seconds from a chat request's arrival to its last byte.")
        reached = 0
        for bound in BUCKETS:
            reached += self.timed[bound]
            yield f'tessera_request_seconds_bucket{{le="{bound:g}"}} {reached}'
        count = self.timed.total()
        yield f'tessera_request_seconds_bucket{{le="+Inf"}} {count}'
        yield f"tessera_request_seconds_sum {self.total_seconds:.6f}"
        yield f"tessera_request_seconds_count {count}"


def _head(name: str, kind: str, help: str) -> Iterator[str]:
    yield f"# HELP {name} {help}"
    yield f"# TYPE {name} {kind}"
