"""What is measured at every token, kept as plain numbers: a client library's counters take microseconds each."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from server.operations.engine_metrics import ENGINE, LABELS


class TokenMetrics(Collector):
    """Tokens, and the time between them.

    Args:
        bounds: of the histogram's buckets, in seconds, ascending; the last bucket, without a bound, is added.
    """

    def __init__(self, model_name: str, bounds: Sequence[float]) -> None:
        self._values = (model_name, ENGINE)
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._seconds = 0.0
        self._num_tokens = 0

    def first(self, count: int) -> None:
        """A request's first tokens: nothing stands before them."""
        self._num_tokens += count

    def next(self, count: int, seconds: float) -> None:
        """Further tokens of a request, so long after those before them."""
        self._num_tokens += count
        self._seconds += seconds
        self._counts[bisect_left(self._bounds, seconds / count)] += count

    def collect(self) -> Iterator[Metric]:
        """Both families."""
        tokens = CounterMetricFamily("vllm:generation_tokens", "Tokens generated", labels=LABELS)
        tokens.add_metric(self._values, self._num_tokens)
        yield tokens
        between = HistogramMetricFamily("vllm:inter_token_latency_seconds", "Token to token", labels=LABELS)
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        between.add_metric(self._values, list(zip(bounds, accumulate(self._counts), strict=True)), self._seconds)
        yield between
