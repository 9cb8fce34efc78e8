"""What the server has done, in the text format of Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Upper bounds of seconds in the histogram; 1 is the label `le="1.0"`, as Prometheus itself writes it."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counts since the start, of one server: they stand in a registry of their own, not in the library's global one."""

    def __init__(self) -> None:
        self._registry = own = CollectorRegistry()
        about = "Requests by path and status; 499: the client left."
        self._requests = Counter("tessera_requests", about, ["path", "status"], registry=own)
        self._waiting = Gauge("tessera_queue_length", "Requests that wait for the model.", registry=own)
        self._running = Gauge("tessera_running", "Requests that the model works on.", registry=own)
        self._tokens = Counter("tessera_tokens", "Tokens read and written.", ["direction"], registry=own)
        about = "Seconds from a chat request's arrival to its last byte."
        self._seconds = Histogram("tessera_request_seconds", about, buckets=BUCKETS, registry=own)
        self.tokens(0, 0)

    def answered(self, path: str, status: int) -> None:
        """A request has got its answer."""
        self._requests.labels(path, str(status)).inc()

    def took(self, seconds: float) -> None:
        """A chat request took that long."""
        self._seconds.observe(seconds)

    def tokens(self, read: int, written: int) -> None:
        """As many tokens more were read and written."""
        self._tokens.labels("in").inc(read)
        self._tokens.labels("out").inc(written)

    def text(self, running: int, waiting: int) -> bytes:
        """Everything, as Prometheus reads it; `running` and `waiting` requests are with the model and in its queue now."""
        self._running.set(running)
        self._waiting.set(waiting)
        return generate_latest(self._registry)
