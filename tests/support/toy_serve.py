"""`python -m toy_serve PORT`: `infercore serve`, with the toy for an engine."""

import sys
from dataclasses import replace

from infercore.logs import configure_logging
from infercore_api.cli.flags import FLAGS
from infercore_api.cli.main import run
from infercore_api.cli.options import serve_options
from infercore_api.supervisor.serve import serve


def main(port: int) -> None:
    values = {flag.key: flag.default for flag in FLAGS} | {"port": port, "step_timeout": 2.0}
    configure_logging("supervisor", json_output=False)
    options = replace(serve_options(values), engine_module="toy_engine_process")
    run(lambda: sys.exit(serve(options)))


if __name__ == "__main__":
    main(int(sys.argv[1]))
