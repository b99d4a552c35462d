"""Access: keys, spellings of paths, what no client may do, where the server listens."""

import inspect
import socket
from pathlib import Path
from typing import Any

import grpc
import pytest

from grpc_calls import asked, first_of, refusal, serving_grpc
from infercore_api.cli.flags import FLAGS
from infercore_api.cli.options import serve_options
from infercore_api.router import api_keys
from infercore_api.supervisor import serve
from memory_router import Router
from processes import Server, serving
from raw_http import exchange, serving_http, statuses

KEY = "x-api-key: Key"
ADMIN = (
    *("/load", "/unload", "/models/load", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"),
    *("/sleep", "/wake_up", "/reset_prefix_cache", "/flush_cache", "/collective_rpc"),
    *("/update_weights", "/start_profile", "/stop_profile", "/config", "/shutdown", "/pause"),
    *("/server_info", "/debug/pprof", "/actuator/env", "/v2/repository/index", "/_debug/stacks"),
    *("/v2/repository/models/infercore/demo/load", "/v2/models/infercore/demo/unload"),
)


def paths_of(router: Router, method: str) -> set[str]:
    return {
        path.replace("{name}", "infercore/demo").replace("{version}", "1")
        for path, methods in router.app.openapi()["paths"].items()
        if method in methods
    }


@pytest.mark.parametrize(
    "start",
    [
        "GET /info HTTP/1.1\r\nhost: a/?x=",
        "GET /info HTTP/1.1\r\nhost: health/#",
        "GET http://health/info HTTP/1.1\r\nhost: health",
        "GET http://x/info?/health HTTP/1.1\r\nhost: x",
        "GET http:///health/../info HTTP/1.1\r\nhost: x",
        "GET //info HTTP/1.1\r\nhost: x",
        "GET //health/info HTTP/1.1\r\nhost: x",
        "GET //v1/models HTTP/1.1\r\nhost: x",
        "GET /v1%2fmodels HTTP/1.1\r\nhost: x",
        "GET /v1/models%3f/health HTTP/1.1\r\nhost: x",
        "GET /%69nfo HTTP/1.1\r\nhost: x",
        "GET /info. HTTP/1.1\r\nhost: x",
        "GET /info/ HTTP/1.1\r\nhost: x",
        "GET /INFO HTTP/1.1\r\nhost: x",
        "GET /./info HTTP/1.1\r\nhost: x",
        "GET /health/..%2finfo HTTP/1.1\r\nhost: x",
        "GET /info#/health HTTP/1.1\r\nhost: x",
        "GET /info HTTP/1.1\r\nhost: x\r\nx-original-url: /health\r\nx-rewrite-url: /health",
        "GET /info HTTP/1.1\r\nhost: x\r\nx-forwarded-for: 127.0.0.1\r\nforwarded: for=127.0.0.1",
        "GET /info HTTP/1.1\r\nhost: x\r\nx-http-method-override: OPTIONS",
        "GET /info HTTP/1.0\r\nhost: x",
        "CONNECT health:80 HTTP/1.1\r\nhost: health:80",
        "GET /info HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nsec-websocket-key: a",
        "GET /info HTTP/1.1\r\nhost: x\r\nupgrade: h2c\r\nhttp2-settings: a",
    ],
)
async def test_no_form_of_a_request_leads_past_the_key(locked: Router, start: str) -> None:
    """S02: on the wire, where paths, targets and hosts may have any form."""
    async with serving_http(locked) as port:
        answer = await exchange(port, f"{start}\r\nconnection: close\r\n\r\n".encode("latin-1"))
    assert statuses(answer)[0] in (400, 401), answer
    assert b"model_id" not in answer


async def test_absolute_targets_are_served_with_a_key(locked: Router) -> None:
    """S02: a form that proxies use is no reason for a refusal."""
    async with serving_http(locked) as port:
        head = f"GET http://x/info HTTP/1.1\r\nhost: x\r\n{KEY}\r\nconnection: close\r\n\r\n"
        assert b"model_id" in await exchange(port, head.encode())


@pytest.mark.parametrize(
    "method",
    [
        "infercore.v1.Generation/Generate",
        "infercore.v1.generation/Generate",
        "/infercore.v1.Generation/Generate",
        "infercore.v1.Generation/Generate/",
        "infercore.v1.Generation%2fGenerate",
        "grpc.health.v1.Health/../infercore.v1.Generation/Generate",
        "infercore.v1.Generation/Generate?/grpc.health.v1.Health/Check",
    ],
)
async def test_no_form_of_a_method_leads_past_the_key(locked: Router, method: str) -> None:
    """S02: over gRPC, with another host for good measure."""
    async with serving_grpc(locked.state) as channel:
        call = first_of(channel.stream_stream(f"/{method}"))
        message = asked("a", max_new_tokens=1).SerializeToString()
        code, _, _ = await refusal(call(iter([message])))
    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert not locked.engine.requests


async def test_a_trailer_is_no_header(locked: Router) -> None:
    """S02: what comes after the body was not there when a proxy looked."""
    head = (
        b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"connection: close\r\ntransfer-encoding: chunked\r\ntrailer: x-api-key\r\n\r\n"
    )
    body = b'f\r\n{"inputs": "a"}\r\n0\r\nx-api-key: Key\r\n\r\n'
    async with serving_http(locked) as port:
        assert statuses(await exchange(port, head + body)) == [401]


def test_digests_are_compared_in_constant_time() -> None:
    """S03: by the standard library's function, and all of them each time."""
    source = inspect.getsource(api_keys.ApiKeys.allows)
    assert "[hmac.compare_digest(" in source
    assert "==" not in source


def test_no_key_is_on_a_command_line(folder: Path) -> None:
    """S03: those of other accounts' processes are there for everybody to read."""
    with serving(folder, toy=True, env={"API_KEY": "PlughKey"}) as server:
        assert len(server.family()) >= 3
        for process in server.family():
            assert "PlughKey" not in " ".join([process.name(), *process.cmdline()])


async def test_no_client_administers(locked: Router) -> None:
    """S05: loading, sleeping, caches, profiles: nothing of it is on the public port."""
    for path in ADMIN:
        for method in ("GET", "POST", "PUT", "DELETE"):
            answer = await locked.http.request(method, path, json={}, headers={"x-api-key": "Key"})
            assert answer.status_code in (404, 405), (method, path)


def test_the_server_listens_on_this_machine_alone() -> None:
    """S06: unless told otherwise; and then the banner says who may call."""
    options = serve_options({flag.key: flag.default for flag in FLAGS})
    assert options.hostname == "127.0.0.1"


@pytest.mark.parametrize(("host", "warns"), [("127.0.0.1", False), ("0.0.0.0", True), ("::", True)])
@pytest.mark.parametrize("keys", [(), ("Key",)])
def test_the_banner_warns_of_an_open_server(host: str, keys: Any, warns: bool) -> None:
    """S06: beyond loopback without a key."""
    values = {flag.key: flag.default for flag in FLAGS}
    options = serve_options(values | {"hostname": host, "api_key": list(keys)})
    assert ("ANYONE" in serve._auth(options)) == (warns and not keys)


def test_nothing_else_listens(toy: Server) -> None:
    """S06: of all processes, the router alone, at the two ports that were asked for."""
    sockets = {
        (process.pid, found.laddr)
        for process in toy.family()
        for found in process.net_connections(kind="inet")
        if found.status == "LISTEN"
    }
    assert all(address.ip in {"127.0.0.1", "::ffff:127.0.0.1"} for _, address in sockets)
    assert toy.port in {address.port for _, address in sockets}
    assert len({address.port for _, address in sockets}) == 2


async def test_no_get_changes_anything(router: Router) -> None:
    """S07: links and images of other pages can make a browser send a GET."""
    paths = paths_of(router, "get")
    assert len(paths) > 15
    before = router.metrics()["infercore_requests_started_total", ""]
    for path in paths:
        query = "?inputs=a&prompt=a&max_new_tokens=2&stream=true"
        await router.http.get(path + query)
    assert not router.engine.requests
    assert router.metrics()["infercore_requests_started_total", ""] == before


async def test_only_json_is_read(router: Router) -> None:
    """S07: a form of another page can send these types without asking the server first."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        for path in paths_of(router, "post"):
            if path.endswith("/infer"):
                continue  # its clients name no type
            answer = await router.http.post(
                path, content=b'{"inputs": "a"}', headers={"content-type": kind}
            )
            assert answer.status_code == 415, path


def test_a_port_is_not_shared(toy: Server) -> None:
    """S06: nobody of another account can take some of the server's connections."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", toy.port))
