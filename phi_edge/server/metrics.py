"""What `/metrics` tells, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from phi_edge.api.response import Usage

# Seconds; an answer about an image takes minutes on a slow CPU.
_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counters of one server.

    Attributes:
        requests: Counts answers, by path (that of a route) and status.
        first_token_seconds: Times the first chunk of streams.
        request_seconds: Times whole answers.
    """

    def __init__(self, num_waiting: Callable[[], int]) -> None:
        """Start counting; `num_waiting` tells how many requests are in the queue."""
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "phi_edge_requests", "Requests answered.", ["path", "status"], registry=registry
        )
        self._prompt_tokens = Counter(
            "phi_edge_prompt_tokens", "Tokens of prompts.", registry=registry
        )
        self._completion_tokens = Counter(
            "phi_edge_completion_tokens", "Tokens generated.", registry=registry
        )
        self.first_token_seconds = Histogram(
            "phi_edge_time_to_first_token_seconds",
            "From the request to the first chunk of a stream.",
            buckets=_BUCKETS,
            registry=registry,
        )
        self.request_seconds = Histogram(
            "phi_edge_request_seconds",
            "From the request to the end of its answer.",
            buckets=_BUCKETS,
            registry=registry,
        )
        waiting = Gauge("phi_edge_requests_waiting", "Requests in the queue.", registry=registry)
        waiting.set_function(num_waiting)

    def count_usage(self, usage: Usage) -> None:
        """Count the tokens of an answer."""
        self._prompt_tokens.inc(usage["prompt_tokens"])
        self._completion_tokens.inc(usage["completion_tokens"])

    def text(self) -> bytes:
        """Everything, in Prometheus' format."""
        return generate_latest(self._registry)
