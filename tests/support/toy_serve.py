"""`python -m toy_serve serve …`: the whole command line, with the toy for an engine."""

from dataclasses import replace

from infercore_api.cli.main import main
from infercore_api.supervisor import serve as supervision

_serve = supervision.serve


def serve_toy(options: supervision.ServeOptions) -> int:
    return _serve(replace(options, engine_module="toy_engine_process"))


if __name__ == "__main__":
    supervision.serve = serve_toy
    main()
