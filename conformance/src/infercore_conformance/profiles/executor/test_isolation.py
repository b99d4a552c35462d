"""What a plugin leaves alone: core's own functions."""

from infercore_conformance import check
from infercore_conformance.profiles.executor.test_probe import in_new_process
from infercore_conformance.subject import Subject

# Identities of all that core's modules hold, and its classes' attributes, before and after. What
# needs a library that is not installed here cannot be patched here either.
PATCHES = """
import importlib, json, pkgutil, sys, types
import infercore
from infercore.plugins import PluginManager

def modules():
    for info in pkgutil.walk_packages(infercore.__path__, "infercore.", onerror=lambda name: None):
        if not info.name.endswith(("__main__", "_pb2")):
            try:
                yield importlib.import_module(info.name)
            except ImportError:
                pass

def held(home, name):
    for key, value in list(vars(home).items()):
        yield f"{name}.{key}", value
        if isinstance(value, type) and value.__module__.partition(".")[0] == "infercore":
            for part, inner in list(vars(value).items()):
                yield f"{name}.{key}.{part}", inner

def snapshot(found):
    return {name: value for module in found for name, value in held(module, module.__name__)
            if callable(value) or isinstance(value, (property, classmethod, staticmethod))}

def use(name):
    built = PluginManager().backend(name)()
    executor = built.executor() if hasattr(built, "executor") else built
    executor.capabilities()
    executor.shutdown()

found = list(modules())
before = snapshot(found)
use(sys.argv[1])
after = snapshot(found)
print(json.dumps(sorted(name for name in before if after.get(name) is not before[name])))
"""


@check("executor.import.no_patches", "Importing the plugin and making an executor change no core.")
def test_nothing_in_core_is_patched(subject: Subject) -> None:
    """A patched core works until core's next release, and breaks every other backend beside it.

    What a vendor needs changed belongs into the contract.
    """
    changed = in_new_process(PATCHES, subject.name)
    assert not changed, f"the plugin replaced {', '.join(changed)}"
