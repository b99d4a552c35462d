"""Who may call what: keys on every route but health, their file, and pages of other origins."""

import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import typer
from starlette.routing import Route

from infercore.errors import ConfigError
from infercore.hub import demo_path
from infercore.text.chat_template import ChatTemplate
from infercore.text.tokenizer import Tokenizer
from infercore_api.cli.flags import FLAGS
from infercore_api.cli.main import build
from infercore_api.cli.options import serve_options
from infercore_api.router import api_keys
from infercore_api.router.api_keys import ApiKeys
from infercore_api.router.options import RouterOptions
from memory_engine import MemoryEngine
from memory_router import MODELS, Router
from processes import serving

HEALTH = {
    ("GET", path)
    for path in (
        *("/", "/health", "/health/live", "/health/ready", "/ping"),
        *("/v2/health/live", "/v2/health/ready"),
    )
}
BODY = {"inputs": "Once upon", "parameters": {"max_new_tokens": 2}}
WRONG: tuple[dict[str, str], ...] = (
    {},
    {"authorization": "Bearer first"},  # a letter's case counts
    {"authorization": "Bearer First Second"},
    {"authorization": "Bearer "},
    {"authorization": "Basic First"},
    {"x-api-key": "Firs"},
    {"x-api-key": ""},
    {"authorization": "Bearer First", "x-api-key": "wrong"},
    {"authorization": "Bearer wrong", "x-api-key": "First"},
    {"authorization": "Bearer First", "x-api-key": "Second"},
)
RIGHT: tuple[dict[str, str], ...] = (
    {"authorization": "Bearer First"},
    {"authorization": "bearer  Second"},
    {"x-api-key": "Second"},
    {"authorization": "Bearer First", "x-api-key": "First"},
    {"authorization": "Basic abc", "x-api-key": "First"},  # a proxy's own, not for us
)


@pytest.fixture(scope="module")
def texts() -> Iterator[tuple[Tokenizer, ChatTemplate]]:
    with ChatTemplate.open(demo_path()) as template:
        yield Tokenizer(demo_path()), template


@pytest.fixture
def locked(texts: Any) -> Router:
    """A router with two keys."""
    return Router(texts, MemoryEngine([260, 553]), api_keys=("First", "Second"))


def leaves(routes: Iterable[Any]) -> Iterator[Route]:
    """The routes themselves, also of routers that were included."""
    for route in routes:
        if (included := getattr(route, "original_router", None)) is not None:
            yield from leaves(included.routes)
        else:
            assert isinstance(route, Route), f"{route} is of a kind that this test does not try"
            yield route


def _filled(path: str) -> str:
    return path.replace("{name:path}", "infercore/demo").replace("{version}", "1")


def table_of(router: Router) -> set[tuple[str, str]]:
    """(method, path) of every route, with something in the place of parameters."""
    found = {
        (method, _filled(route.path))
        for route in leaves(router.app.routes)
        for method in route.methods or ()
    }
    assert not any("{" in path for _, path in found)
    return found


async def test_every_route_but_health_needs_a_key(locked: Router) -> None:
    table = table_of(locked)
    assert len(table) > 15
    assert table > HEALTH
    for method, path in table - HEALTH:
        for headers in WRONG:
            refused = await locked.http.request(method, path, json=BODY, headers=headers)
            assert refused.status_code == 401, (method, path, headers)
            assert refused.headers["www-authenticate"] == "Bearer"
            assert "First" not in refused.text
            nested = method != "HEAD" and "message" in refused.json()["error"]
            assert nested == path.startswith("/v1/"), "the path decides the dialect"
        for headers in RIGHT:
            answer = await locked.http.request(method, path, json=BODY, headers=headers)
            assert answer.status_code not in (401, 403), (method, path, headers)
    for _, path in HEALTH:
        assert (await locked.http.get(path)).status_code == 200


@pytest.mark.parametrize(
    "path",
    ["//v1/models", "/v1//models", "/v1/models/", "/v1/models.", "/V1/Models", "/%76%31/models",
     "/v1%2fmodels", "/health/../info", "/info?/health", "/health/", "/Health", "/nowhere",
     "/info;/health", "/info%00", "/health%2f..%2finfo"],
)  # fmt: skip
async def test_no_spelling_of_a_path_leads_past_the_key(locked: Router, path: str) -> None:
    assert (await locked.http.get(path)).status_code == 401
    assert (await locked.http.post(path, json=BODY)).status_code == 401


@pytest.mark.parametrize("host", ["a/?x=", "health", "router/health#", "router/health?", "@/ping"])
async def test_the_host_header_has_no_say(locked: Router, host: str) -> None:
    for path in ("/info", "/v1/models"):
        refused = await locked.http.get(path, headers={"host": host})
        assert refused.status_code == 401


async def test_other_methods_and_web_sockets_are_refused_too(locked: Router) -> None:
    for method in ("PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "get"):
        assert (await locked.http.request(method, "/info")).status_code == 401
    said: list[Any] = []

    async def send(message: Any) -> None:
        said.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    await locked.app({"type": "websocket", "path": "/health", "headers": []}, receive, send)
    assert said == [{"type": "websocket.close", "code": 1008}]


async def test_a_header_that_comes_twice_must_say_the_same(locked: Router) -> None:
    for second, status in (("First", 200), ("Second", 401), ("x", 401)):
        headers = [("x-api-key", "First"), ("x-api-key", second)]
        assert (await locked.http.get("/info", headers=headers)).status_code == status


async def test_without_keys_everybody_may(texts: Any) -> None:
    """lm-eval sends an empty bearer token, and clients that were given none send a filler."""
    router = Router(texts, MemoryEngine([260, 553]))
    for headers in WRONG:
        assert (await router.http.post("/generate", json=BODY, headers=headers)).is_success


def test_keys_come_from_a_file_and_change_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(api_keys, "LOOK_SECONDS", 0.0)
    file = tmp_path / "keys"
    file.write_text("# of the team\n\nold-key\n  shared \n")
    keys = ApiKeys(["own"], file)
    assert [keys.allows(k) for k in (b"own", b"old-key", b"shared", b"new")] == [True] * 3 + [False]
    assert not keys.allows(b"# of the team")
    file.write_text("new\n")
    assert [keys.allows(k) for k in (b"own", b"old-key", b"new")] == [True, False, True]
    for damage in ("", "two words\n", "\N{SNOWMAN}\n"):
        file.write_text(damage)
        assert [keys.allows(k) for k in (b"own", b"new", b"two words")] == [True, True, False]
    file.unlink()
    assert keys.allows(b"new")
    file.write_text("last\n")
    assert [keys.allows(k) for k in (b"new", b"last")] == [False, True]
    assert "last" not in caplog.text


def test_the_file_is_not_looked_at_for_every_request(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("old\n")
    keys = ApiKeys([], file)
    file.write_text("newer\n")
    assert keys.allows(b"old")


def given(**values: Any) -> Any:
    return serve_options({flag.key: flag.default for flag in FLAGS} | values)


def test_keys_that_no_client_could_send_are_refused_at_the_start(tmp_path: Path) -> None:
    for key in ("", "two words", "line\nbreak", "sch\N{LATIN SMALL LETTER U WITH DIAERESIS}ssel"):
        with pytest.raises(ConfigError, match="visible ASCII") as refused:
            given(api_key=["good", key])
        assert not key or key not in str(refused.value)
    file = tmp_path / "keys"
    with pytest.raises(ConfigError, match="No such file"):
        given(api_key_file=str(file))
    file.write_text("# nothing\n")
    with pytest.raises(ConfigError, match="holds no key"):
        given(api_key_file=str(file))
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="no UTF-8"):
        given(api_key_file=str(file))


def test_a_relative_file_is_found_by_the_router_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("keys").write_text("k\n")
    assert given(api_key_file="keys").router["api_key_file"] == str(tmp_path / "keys")


def test_keys_are_not_shown_with_the_options() -> None:
    assert "secret" not in repr(RouterOptions(MODELS, api_keys=("secret",)))


def test_a_server_with_keys_of_all_three_sources(folder: Path) -> None:
    """Through the command line and two processes; no key shows in the log or in `/info`."""
    file = folder / "keys"
    file.write_text("from-file\n")
    flags = ("--api-key", "first-flag", "--api-key", "second-flag", "--api-key-file", str(file))
    with serving(folder, *flags, toy=True) as server:
        with httpx2.Client(base_url=server.url) as http:
            assert http.get("/info").status_code == 401
            for key in ("first-flag", "second-flag", "from-file"):
                info = http.get("/info", headers={"authorization": f"Bearer {key}"})
                assert info.status_code == 200
                assert key not in info.text
            absolute = raw(server.port, f"GET {server.url}/info HTTP/1.1")
            assert absolute.startswith(b"HTTP/1.1 401")
        assert server.end() == 0
        for key in ("first-flag", "second-flag", "from-file"):
            assert key not in server.log.read_text()
        assert "needs an API key" in server.log.read_text()


@pytest.mark.parametrize(
    ("line", "keys"), [([], ["one", "two"]), (["--api-key", "three"], ["three"])]
)
def test_tgis_variable_holds_keys_with_spaces_between(
    monkeypatch: pytest.MonkeyPatch, line: list[str], keys: list[str]
) -> None:
    monkeypatch.setenv("API_KEY", "one two")
    commands: Any = typer.main.get_command(build())
    context = commands.get_command(None, "serve").make_context("serve", line)
    assert list(context.params["api_key"]) == keys


def raw(port: int, start: str) -> bytes:
    """The first bytes of the answer to a request that no client library would send."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(f"{start}\r\nhost: health\r\n\r\n".encode())
        return connection.recv(4096)


PREFLIGHT = {"access-control-request-method": "POST",
             "access-control-request-headers": "content-type,x-stainless-lang"}  # fmt: skip


async def test_pages_of_other_origins_may_call_nothing_by_default(texts: Any) -> None:
    router = Router(texts, MemoryEngine([260, 553]))
    origin = {"origin": "https://page.example"}
    answer = await router.http.post("/generate", json=BODY, headers=origin)
    assert "access-control-allow-origin" not in answer.headers
    preflight = await router.http.options("/generate", headers={**origin, **PREFLIGHT})
    assert "access-control-allow-origin" not in preflight.headers
    assert not preflight.is_success


@pytest.mark.parametrize("allowed", ["https://page.example", "*"])
async def test_pages_of_an_allowed_origin_may_call(texts: Any, allowed: str) -> None:
    router = Router(
        texts, MemoryEngine([260, 553]), cors_allow_origin=(allowed,), api_keys=("First",)
    )
    origin = {"origin": "https://page.example"}
    preflight = await router.http.options("/generate", headers={**origin, **PREFLIGHT})
    assert preflight.is_success, "a preflight carries no key"
    assert preflight.headers["access-control-allow-origin"] == allowed
    assert "x-stainless-lang" in preflight.headers["access-control-allow-headers"]
    keyed = {**origin, "authorization": "Bearer First"}
    for headers in (origin, keyed):
        answer = await router.http.post("/generate", json=BODY, headers=headers)
        assert answer.status_code == (200 if headers is keyed else 401)
        assert answer.headers["access-control-allow-origin"] == allowed
    other = {"origin": "https://evil.example", "authorization": "Bearer First"}
    answer = await router.http.post("/generate", json=BODY, headers=other)
    assert answer.headers.get("access-control-allow-origin") == (None if allowed != "*" else "*")


async def test_names_that_clients_may_call_the_server_by(texts: Any) -> None:
    allowed = ("localhost", "Model.example:8443", "[::1]")
    router = Router(texts, MemoryEngine([260, 553]), allowed_hosts=allowed)
    for host, status in (
        ("localhost", 200),
        ("LOCALHOST:3000", 200),
        ("[::1]:3000", 200),
        ("model.example:8443", 200),
        ("model.example", 403),
        ("model.example:80", 403),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("localhost:3000:80", 403),
        ("localhost/", 403),
        ("", 403),
    ):
        answer = await router.http.post("/generate", json=BODY, headers={"host": host})
        assert answer.status_code == status, host
        health = await router.http.get("/health", headers={"host": host})
        assert health.status_code == 200, "probes call by address"
    refused = await router.http.get("/v1/models")
    assert refused.json()["error"]["code"] == "forbidden"
    twice = [("host", "localhost"), ("host", "evil.example")]
    assert (await router.http.get("/info", headers=twice)).status_code == 403
