"""What the server says about itself."""

import json

from infercore_conformance import Level, check
from infercore_conformance.http_bodies import TEXTS, native
from infercore_conformance.http_server import LENGTH, NAME, SERVER, Host, ServerProcess
from infercore_conformance.subject import Subject

OUTCOMES = ("success", "failure", "cancelled")


@check(
    "http.facts.health",
    "A server that serves says that it is healthy, ready and alive.",
    level=Level.EXTENDED,
    needs=SERVER,
)
def test_health(server: ServerProcess) -> None:
    """Load balancers go by it: each of the paths that they ask."""
    for path in ("/health", "/health/ready", "/health/live", "/ping"):
        status = server.get(path).status
        assert status == 200, f"{path} answers {status}, and requests are served"


@check(
    "http.facts.info",
    "/info and /v1/models name the model and the limits that are in force.",
    level=Level.EXTENDED,
    needs=SERVER,
)
def test_info(server: ServerProcess, host: Host, subject: Subject) -> None:
    """Clients cut their prompts by these limits."""
    info = server.get("/info").body
    expected = {
        "model_id": str(host.model),
        "model_dtype": server.dtype,
        "model_device_type": subject.name,
        "max_total_tokens": LENGTH,
        "max_input_tokens": LENGTH - 1,
    }
    found = {name: info[name] for name in expected}
    assert found == expected, f"/info says {found}, not {expected}"
    [model] = server.get("/v1/models").body["data"]
    assert (model["id"], model["max_model_len"]) == (NAME, LENGTH), f"/v1/models says {model}"


@check(
    "http.facts.capabilities",
    "/v1/capabilities is what the backend declares to everybody.",
    level=Level.EXTENDED,
    needs=SERVER,
)
def test_capabilities(server: ServerProcess, subject: Subject) -> None:
    """The server asked in a process of its own; the report that this run writes says the same."""
    found = server.get("/v1/capabilities").body
    declared = json.loads(json.dumps(subject.capabilities.facts()))
    for part in ("limits", "features"):
        differ = [n for n, value in declared[part].items() if found[part].get(n) != value]
        assert not differ, (
            f"{differ[0]} is {found[part].get(differ[0])} to clients and "
            f"{declared[part][differ[0]]} to conformance"
        )
    assert found["backend"] == subject.name, f"it calls itself {found['backend']}"


@check(
    "http.facts.metrics",
    "/metrics can be parsed, and its counts of requests add up.",
    level=Level.EXTENDED,
    needs=SERVER,
)
def test_metrics(server: ServerProcess) -> None:
    """Prometheus' text format, each series once; what started has ended or is in work."""
    before = server.metrics()
    server.sound("/generate", native(TEXTS[1]))
    server.post("/generate", native(TEXTS[1], max_new_tokens=0))
    values = server.metrics()
    ended = [values[f'infercore_requests_total{{outcome="{each}"}}'] for each in OUTCOMES]
    in_work = values["infercore_requests_in_flight"]
    started = values["infercore_requests_started_total"]
    assert started == sum(ended) + in_work, (
        f"{started:g} requests started, {ended} ended by {OUTCOMES}, and {in_work:g} are in work"
    )
    more = started - before["infercore_requests_started_total"]
    assert more >= 1, "a request was served, and none is counted"
