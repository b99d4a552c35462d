"""`python run_calls.py MODULE URL`: make the calls of a module beside this one, and tell.

A program of its own, because it runs in the environment of a client. A call is a public function
of the module that takes the server's URL. Each gets a line of JSON, `[name, error or ""]`.
"""

import asyncio
import inspect
import json
import sys
import traceback
from importlib import import_module
from types import FunctionType


def run(name: str, url: str) -> None:
    """Print the outcome of each call, in the order in which they stand in the file."""
    for member in list(vars(import_module(name)).values()):
        if not isinstance(member, FunctionType) or member.__module__ != name:
            continue
        if not member.__name__.startswith("_"):
            print(json.dumps([member.__name__, _outcome(member, url)]), flush=True)


def _outcome(call: FunctionType, url: str) -> str:
    try:
        returned = call(url)
        if inspect.iscoroutine(returned):
            asyncio.run(returned)
    except Exception:  # noqa: BLE001  # the test that reads this line fails with it
        return traceback.format_exc()
    return ""


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2])
