"""Plugin loading: every refusal with a real little distribution, and who is left standing."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from infercore.backend import Backend
from infercore.errors import HardwareUnavailable, PluginError
from infercore.executor import API_VERSION, Executor
from infercore.plugins import ALLOW_LIST, HOOK_OF_KIND, PluginManager, PluginStatus, installed
from plugin_packages import family, install, plugin

BACKEND = """
from infercore.backend import Backend
from infercore.executor import Probe

class AcmeBackend(Backend):
    name = "acme"

    @classmethod
    def probe(cls):
        return Probe(True, devices=("one abacus",))

    def device(self, rank):
        raise NotImplementedError

    def memory(self):
        return 2, 1
"""
METHOD = """
from infercore.quantization import QuantizationMethod

class Eightfold(QuantizationMethod):
    name = "eightfold"

    @classmethod
    def detect(cls, config): return False
    def __init__(self, config): pass
    def kind(self, linear): return "dense"
    def tensors(self, spec): return {}
    def read(self, linear, file): raise NotImplementedError
"""


def register(hook: str, result: str) -> str:
    return f"@hookimpl\ndef {hook}():\n    return {result}"


GOOD = BACKEND + plugin(register("register_backend", "AcmeBackend"))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on sys.path; what is imported from it is forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv(ALLOW_LIST, raising=False)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def status(name: str) -> PluginStatus:
    """How `infercore plugins list` shows it."""
    claimants = [candidate for candidate in installed() if candidate.entry.name == name]
    return PluginManager(claimants).list()[0]


# --- backends ------------------------------------------------------------------------------------


def test_a_backend_is_found_by_its_name(site: Path) -> None:
    install(site, "acme-infercore", {"backend.acme": "acme"}, {"acme": GOOD})
    found = PluginManager().backend("acme")
    assert issubclass(found, Backend)
    assert found.probe().devices == ("one abacus",)
    assert status("backend.acme") == PluginStatus(
        "backend.acme", "acme-infercore", "1.2.3", "1.0", available=True
    )


def test_an_executor_is_a_backend_too(site: Path) -> None:
    whole = "from numpy_executor import NumpyExecutor\n"
    source = whole + plugin(register("register_backend", "NumpyExecutor"))
    install(site, "acme", {"backend.whole": "acme"}, {"acme": source})
    assert issubclass(PluginManager().backend("whole"), Executor)
    assert status("backend.whole").available


def test_an_unknown_backend_is_refused_with_those_that_there_are(site: Path) -> None:
    install(site, "acme", {"backend.acme": "acme"}, {"acme": GOOD})
    with pytest.raises(PluginError, match=r"'abacus' is installed; there are: acme, cpu.*core\[ab"):
        PluginManager().backend("abacus")


REFUSED = {
    "broken import": ("import no_such_module", r"cannot be imported \(ModuleNotFoundError: .*no_s"),
    "a syntax error": ("def", r"cannot be imported \(SyntaxError"),
    "exit at import": ("raise SystemExit(3)", r"cannot be imported \(SystemExit: 3\)"),
    "no version": (GOOD.replace("API_VERSION", "VERSION"), r"needs API_VERSION = \(1, 0\).*None"),
    "a text as version": (GOOD.replace("(1, 0)", "'1.0'"), r"a pair of integers, and has '1.0'"),
    "older by two": (GOOD.replace("(1, 0)", "(-1, 7)"), r"contract -1.7.*still accepts 0. Upgrade"),
    "a newer major": (
        GOOD.replace("(1, 0)", "(2, 0)"),
        r"contract 2.0, which is newer.*Upgrade co",
    ),
    "a newer minor": (
        GOOD.replace("(1, 0)", "(1, 9)"),
        r"contract 1.9, which is newer than .* 1.0",
    ),
    "a misspelt hook": (
        GOOD.replace("register_backend", "register_backnd"),
        r"there is no hook register_backnd; did you mean register_backend\?",
    ),
    "a hook unlike any": (
        GOOD + plugin(register("configure_all", "None")),
        r"there is no hook configure_all; there are register_backend, register_quant",
    ),
    "a wrong argument": (
        GOOD.replace("register_backend()", "register_backend(rank)"),
        r"is refused: .*'rank'",
    ),
    "no hook": (GOOD.replace("@hookimpl", ""), r"no register_backend marked with @hookimpl"),
    "another kind's hook": (
        family("AcmeForCausalLM"),
        r"no register_backend marked with @hookimpl, which its kind needs",
    ),
    "a hook that fails": (
        GOOD.replace("return AcmeBackend", "return 1 / 0"),
        r"its register_backend failed \(ZeroDivisionError",
    ),
    "nothing registered": (
        GOOD.replace("return AcmeBackend", "return None"),
        r"registers None, which is no subclass of Backend or Executor",
    ),
    "not a backend": (
        GOOD.replace("return AcmeBackend", "return dict"),
        r"registers <class 'dict'>, which is no subclass",
    ),
    "a name": (
        GOOD.replace("return AcmeBackend", "return 'AcmeBackend'"),
        r"registers 'AcmeBackend', which is no subclass of Backend or Executor",
    ),
    "an abstract class": (
        GOOD.replace("def memory", "def mmory").replace("def device", "def devices"),
        r"AcmeBackend does not implement device, memory of its contract",
    ),
    "no name": (GOOD.replace("name =", "title ="), r"AcmeBackend does not implement name"),
}


@pytest.mark.parametrize(("source", "says"), REFUSED.values(), ids=REFUSED)
def test_a_backend_that_does_not_fit_is_refused_with_its_owner(
    site: Path, source: str, says: str
) -> None:
    install(site, "acme-infercore", {"backend.acme": "acme"}, {"acme": source})
    manager = PluginManager()
    with pytest.raises(PluginError, match=says) as refusal:
        manager.backend("acme")
    message = str(refusal.value)
    assert message.startswith("plugin backend.acme of acme-infercore 1.2.3")
    assert "pip install" in message or "pip uninstall acme-infercore" in message
    listed = status("backend.acme")
    assert (listed.available, listed.reason) == (False, message)


def test_the_contract_before_this_one_is_accepted(site: Path) -> None:
    major = API_VERSION[0] - 1
    source = GOOD.replace("(1, 0)", f"({major}, 5)")
    install(site, "acme", {"backend.acme": "acme"}, {"acme": source})
    assert issubclass(PluginManager().backend("acme"), Backend)
    assert status("backend.acme").contract == f"{major}.5"


def test_hardware_that_is_not_there_says_what_to_install(site: Path) -> None:
    from infercore.config import EngineConfig
    from infercore.hub import DEMO
    from infercore.launch import launch

    source = GOOD.replace("True, devices", "False, 'no abacus; buy one', devices")
    install(site, "acme", {"backend.acme": "acme"}, {"acme": source})
    found = status("backend.acme")
    assert (found.available, found.reason) == (False, "no abacus; buy one")
    with pytest.raises(HardwareUnavailable, match="backend acme cannot run here: no abacus; buy"):
        launch(EngineConfig(DEMO, backend="acme"))


@pytest.mark.parametrize("body", ["raise OSError('bus')", "raise SystemExit", "return True"])
def test_a_probe_that_fails_is_a_reason(site: Path, body: str) -> None:
    source = GOOD.replace("return Probe(True, devices=('one abacus',))", body)
    source = source.replace('return Probe(True, devices=("one abacus",))', body)
    install(site, "acme", {"backend.acme": "acme"}, {"acme": source})
    found = status("backend.acme")
    assert not found.available
    assert "its probe failed" in found.reason


# --- two of a kind -------------------------------------------------------------------------------


def test_a_name_claimed_twice_is_used_by_neither(site: Path) -> None:
    install(site, "acme", {"backend.acme": "acme"}, {"acme": GOOD})
    install(site, "emca", {"backend.acme": "emca"}, {"emca": GOOD})
    with pytest.raises(
        PluginError, match=r"of acme 1.2.3 and .* of emca 1.2.3 claim one name.*uninstall emca"
    ):
        PluginManager().backend("acme")
    assert not status("backend.acme").available


def test_a_distribution_installed_twice_counts_once(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, "Acme_Plugin", {"backend.acme": "acme"}, {"acme": GOOD})
    later = tmp_path / "later"
    install(later, "acme-plugin", {"backend.acme": "acme"}, {"acme": "raise SystemExit"})
    monkeypatch.setattr(sys, "path", [*sys.path, str(later)])
    assert issubclass(PluginManager().backend("acme"), Backend)


@pytest.mark.parametrize("architecture", ["AcmeForCausalLM", "LlamaForCausalLM"])
def test_an_architecture_claimed_twice_is_refused(site: Path, architecture: str) -> None:
    install(site, "acme", {"models.acme": "acme"}, {"acme": family(architecture)})
    install(site, "emca", {"models.emca": "emca"}, {"emca": family("AcmeForCausalLM")})
    with pytest.raises(PluginError, match=rf"register the architecture {architecture}.*uninstall"):
        PluginManager().model_families()


def test_a_format_claimed_twice_is_refused(site: Path) -> None:
    source = METHOD + plugin(register("register_quantization", "[Eightfold]"))
    install(site, "acme", {"quantization.acme": "acme"}, {"acme": source})
    install(site, "emca", {"quantization.emca": "emca"}, {"emca": source})
    with pytest.raises(PluginError, match="register the quantization method eightfold"):
        PluginManager().quantization_methods()


# --- the other kinds -----------------------------------------------------------------------------


def test_families_and_formats_join_the_built_in_ones(site: Path) -> None:
    method = METHOD + plugin(register("register_quantization", "[Eightfold]"))
    install(
        site,
        "acme",
        {"models.acme": "acme_models", "quantization.acme": "acme_formats"},
        {"acme_models": family("AcmeForCausalLM"), "acme_formats": method},
    )
    manager = PluginManager()
    served = {name for each in manager.model_families() for name in each.architectures}
    assert {"AcmeForCausalLM", "LlamaForCausalLM"} <= served
    assert {"eightfold", "none"} <= {each.name for each in manager.quantization_methods()}


BAD_ITEMS = {
    "a name instead of a family": (
        "models",
        plugin(register("register_models", "['AcmeForCausalLM']")),
        "registers 'AcmeForCausalLM', which register_models does not take",
    ),
    "an object instead of a class": (
        "quantization",
        METHOD + plugin(register("register_quantization", "[Eightfold({})]")),
        "which register_quantization does not take",
    ),
    "half a format": (
        "quantization",
        METHOD.replace("def read", "def reads")
        + plugin(register("register_quantization", "[Eightfold]")),
        "Eightfold does not implement read of its contract",
    ),
}


@pytest.mark.parametrize(("kind", "source", "says"), BAD_ITEMS.values(), ids=BAD_ITEMS)
def test_a_bad_item_leaves_its_plugin_out_with_a_word(
    site: Path, caplog: pytest.LogCaptureFixture, kind: str, source: str, says: str
) -> None:
    install(site, "acme", {f"{kind}.acme": "acme"}, {"acme": source})
    assert says in status(f"{kind}.acme").reason
    manager = PluginManager()
    with caplog.at_level(logging.WARNING):
        built_in = manager.model_families() if kind == "models" else manager.quantization_methods()
    assert built_in
    assert says in caplog.text
    assert "acme 1.2.3" in caplog.text


def test_commands_are_added_and_a_broken_one_is_left_out(
    site: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = plugin("@hookimpl\ndef register_commands(cli):\n    cli.command('count')(print)")
    bad = plugin("@hookimpl\ndef register_commands(cli):\n    raise OSError('beads')")
    entries = {"commands.bad": "acme_bad", "commands.good": "acme_good"}
    install(site, "acme", entries, {"acme_bad": bad, "acme_good": good})
    cli = typer.Typer()
    with caplog.at_level(logging.WARNING):
        PluginManager().register_commands(cli)
    assert "count" in {command.name for command in cli.registered_commands}
    assert (
        "commands.bad of acme 1.2.3: its register_commands failed (OSError: beads)" in caplog.text
    )


def test_routes_are_added_to_the_application_with_its_state(site: Path) -> None:
    source = plugin("@hookimpl\ndef register_routes(app, state):\n    app.append(state)")
    install(site, "acme", {"routes.acme": "acme"}, {"acme": source})
    app: list[str] = []
    PluginManager(c for c in installed() if c.distribution == "acme").register_routes(
        app, "the state"
    )
    assert app == ["the state"]


# --- what is looked at, and what is imported -----------------------------------------------------


@pytest.mark.parametrize("name", ["gadget.acme", "acme", "backend", "backend."])
def test_an_entry_point_of_no_known_kind_is_listed_with_the_kinds(site: Path, name: str) -> None:
    install(site, "acme", {name: "acme"}, {"acme": GOOD})
    found = status(name)
    assert not found.available
    assert f"({', '.join(HOOK_OF_KIND)})" in found.reason


def test_the_allow_list_hides_all_others(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site, "acme", {"backend.acme": "acme"}, {"acme": GOOD})
    monkeypatch.setenv(ALLOW_LIST, "backend.acme, models.core")
    assert [each.name for each in PluginManager().list()] == ["backend.acme", "models.core"]
    with pytest.raises(PluginError, match="'cpu' is installed; there are: acme"):
        PluginManager().backend("cpu")
    monkeypatch.setenv(ALLOW_LIST, "backend.abacus")
    with pytest.raises(PluginError, match=r"INFERCORE_PLUGINS names backend.abacus.*backend.acme"):
        PluginManager()
    monkeypatch.setenv(ALLOW_LIST, "")
    assert len(PluginManager().list()) > 2


def test_metadata_that_cannot_be_read_stops_nobody(
    site: Path, caplog: pytest.LogCaptureFixture
) -> None:
    install(site, "acme", {"backend.acme": "acme"}, {"acme": GOOD})
    install(site, "emca", {"backend.emca": "emca"}, {"emca": GOOD})
    install(site, "maec", {"backend.maec": "maec"}, {"maec": GOOD})
    (site / "emca-1.2.3.dist-info" / "METADATA").write_bytes(b"Name: \xff\xfe\n")
    (site / "maec-1.2.3.dist-info" / "METADATA").unlink()
    with caplog.at_level(logging.WARNING):
        names = {each.name for each in PluginManager().list()}
    assert "backend.acme" in names
    assert not {"backend.emca", "backend.maec"} & names
    assert f"a distribution in {site} cannot be read" in caplog.text


def in_a_process(site: Path, code: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(site)!r})\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return ended.stdout.strip()


def test_listing_probes_all_backends_and_imports_no_torch(tmp_path: Path) -> None:
    install(tmp_path, "acme", {"backend.acme": "acme"}, {"acme": GOOD})
    code = (
        "from infercore.plugins import PluginManager\n"
        "names = [each.name for each in PluginManager().list()]\n"
        "print('backend.acme' in names and 'backend.cpu' in names, 'torch' in sys.modules)"
    )
    assert in_a_process(tmp_path, code) == "True False"


def test_only_the_plugin_that_is_wanted_is_imported(tmp_path: Path) -> None:
    entries = {"backend.acme": "acme", "backend.emca": "emca", "commands.acme": "acme_commands"}
    broken = "raise SystemExit('imported')"
    install(tmp_path, "acme", entries, {"acme": GOOD, "emca": broken, "acme_commands": broken})
    code = (
        "from infercore.plugins import PluginManager\n"
        "manager = PluginManager(); alone = 'acme' not in sys.modules\n"
        "manager.backend('acme')\n"
        "others = {'emca', 'acme_commands', 'infercore_cpu', 'infercore_api'} & set(sys.modules)\n"
        "print(alone, sorted(others), 'torch' in sys.modules)"
    )
    assert in_a_process(tmp_path, code) == "True [] False"
