"""A server starts and answers beside plugins that are broken in every way, and says which."""

from pathlib import Path

from plugin_packages import install, plugin
from processes import QUICK, serving

FAILING_ROUTES = plugin("@hookimpl\ndef register_routes(app, state):\n    raise OSError('beads')")
HEALTHY_ROUTES = plugin(
    "@hookimpl\ndef register_routes(app, state):\n"
    "    app.post('/count')(lambda: {'model': state.model_name})"
)


def test_a_broken_plugin_stops_no_server_that_does_not_want_it(tmp_path: Path) -> None:
    site = tmp_path / "site"
    install(
        site,
        "acme",
        {
            "backend.acme": "acme_exits",
            "commands.acme": "acme_old",
            "models.acme": "acme_missing",
            "quantization.acme": "acme_misspelt",
            "routes.acme": "acme_routes",
            "routes.emca": "emca_routes",
            "gadget.acme": "acme_exits",
        },
        {
            "acme_exits": "raise SystemExit('imported')",
            "acme_old": plugin("", api_version="(-3, 0)"),
            "acme_misspelt": plugin("@hookimpl\ndef register_quantisation(): ..."),
            "acme_routes": FAILING_ROUTES,
            "emca_routes": HEALTHY_ROUTES,
        },
    )
    with serving(tmp_path, *QUICK, env={"PYTHONPATH": str(site)}) as server:
        asked = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 4}}
        assert server.post("/generate", asked)["generated_text"]
        assert server.post("/count", {}) == {"model": "infercore/demo"}
        log = server.log.read_text()
    for sign in (
        "models.acme of acme 1.2.3: it cannot be imported",
        "did you mean register_quantization?",
        "routes.acme of acme 1.2.3: its register_routes failed (OSError: beads)",
    ):
        assert sign in log
    assert "backend.acme" not in log
