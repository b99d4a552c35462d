"""BenchOptions: what the operator asked to be measured."""

from dataclasses import dataclass

from infercore.errors import ConfigError


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """Options of `infercore bench`; lengths in tokens. Raises ConfigError for what cannot be.

    mode: "all", "offline", "latency" or "serve"; "all" with a url is "serve".
    num_requests: per round; None = as many as run at once, at least 4.
    rounds: repetitions that medians are taken over.
    url: a server that runs already, "http://host:port"; None = start one.
    """

    mode: str = "all"
    model_id: str = "infercore/demo"
    backend: str = "cpu"
    dtype: str = "auto"
    threads: int | None = None
    prompt_len: int = 32
    output_len: int = 32
    batch_sizes: tuple[int, ...] = (1, 4, 16, 64)
    concurrency: tuple[int, ...] = (1, 16, 64)
    num_requests: int | None = None
    rounds: int = 3
    seed: int = 0
    url: str | None = None

    def __post_init__(self) -> None:
        for name in ("prompt_len", "num_requests", "rounds", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be positive. Given: {value}")
        if self.output_len < 2:
            raise ConfigError(
                f"--output-len must be at least 2, so that there is time between tokens. "
                f"Given: {self.output_len}"
            )
        if self.url is not None and self.mode in ("offline", "latency"):
            raise ConfigError(f"--url measures a server, and {self.mode} has none; drop one")
        if self.url is not None and (self.threads is not None or self.dtype != "auto"):
            raise ConfigError("--threads and --dtype are the server's own where --url names one")

    @property
    def offline(self) -> bool:
        return self.mode == "offline" or (self.mode == "all" and self.url is None)

    @property
    def serve(self) -> bool:
        return self.mode in ("all", "serve")

    def requests_for(self, streams: int) -> int:
        """Requests in one round of so many streams."""
        return max(streams, 4) if self.num_requests is None else self.num_requests


def counts(option: str, text: str) -> tuple[int, ...]:
    """The numbers of "1,4,16". Raises ConfigError."""
    try:
        numbers = tuple(int(word) for word in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise ConfigError(f"{option} takes positive numbers with commas between. Given: {text!r}")
    return numbers
