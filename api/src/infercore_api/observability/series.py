"""Series that are counted on the event loop alone, and so need no locks.

`prometheus_client` has the like; these may have several names, and names without `_total`.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

Labels = Mapping[str, str]


class Histogram(Collector):
    """A histogram under one name or more.

    bounds: upper bounds of its buckets, rising; what lies above goes into one without a bound.
    aliases: {further name: its labels}
    """

    def __init__(
        self,
        name: str,
        help_text: str,
        bounds: Sequence[float],
        aliases: Mapping[str, Labels] | None = None,
    ) -> None:
        self._names = {name: {}, **(aliases or {})}
        self._help = help_text
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def collect(self) -> Iterable[Metric]:
        for name, labels in self._names.items():
            family = HistogramMetricFamily(name, self._help, labels=tuple(labels))
            add_histogram(family, tuple(labels.values()), self._bounds, self._counts, self._sum)
            yield family


class TokensHistogram(Histogram):
    """A hundred buckets of one width, up to a limit that is known once the engine was ready.

    most: the limit, None before; until then there is nothing to observe, and no series.
    """

    def __init__(self, name: str, help_text: str, most: Callable[[], int | None]) -> None:
        super().__init__(name, help_text, ())
        self._most = most

    def observe(self, value: float) -> None:
        self._scale()
        super().observe(value)

    def collect(self) -> Iterable[Metric]:
        self._scale()
        return super().collect() if self._bounds else ()

    def _scale(self) -> None:
        most = None if self._bounds else self._most()
        if most is not None:
            self._bounds = tuple(most * n / 100 for n in range(1, 101))
            self._counts = [0] * (len(self._bounds) + 1)


class PlainCounter(Collector):
    """A counter whose name has no `_total`, as TGI's have none.

    values: of the label, each from the start at 0.
    """

    def __init__(
        self, name: str, help_text: str, label: str = "", values: Iterable[str] = ()
    ) -> None:
        self._name = name
        self._help = help_text
        self._label = label
        self._values = dict.fromkeys(values, 0) if label else {"": 0}

    def inc(self, value: str = "") -> None:
        self._values[value] = self._values.get(value, 0) + 1

    def collect(self) -> Iterable[Metric]:
        yield plain_counter(self._name, self._help, self._label, self._values)


def plain_counter(name: str, help_text: str, label: str, values: Mapping[str, float]) -> Metric:
    """A counter without `_total`; of one value without a label, if `label` is ""."""
    # of a "counter" the library would write the name with `_total`
    family = Metric(name, help_text, "unknown")
    for value, count in list(values.items()):  # one may be added meanwhile
        family.add_sample(name, {label: value} if label else {}, count)
    return family


def add_histogram(
    family: HistogramMetricFamily,
    labels: Sequence[str],
    bounds: Sequence[float],
    counts: Sequence[int],
    total: float,
) -> None:
    """Add one histogram to its family. counts: per bucket; the last has no bound."""
    names = (*(f"{bound:g}" for bound in bounds), "+Inf")
    family.add_metric(labels, list(zip(names, accumulate(counts), strict=True)), total)
