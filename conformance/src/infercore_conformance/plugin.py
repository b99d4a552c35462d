"""The pytest plugin. Without `--conformance-backend` it does nothing, and imports nothing more."""

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("infercore conformance")
    group.addoption("--conformance-backend", metavar="NAME", help="the backend to check")
    group.addoption(
        "--conformance-profile",
        action="append",
        default=[],
        metavar="NAME",
        help="run this profile's checks only; may be given again",
    )
    group.addoption(
        "--conformance-check",
        action="append",
        default=[],
        metavar="ID",
        help="run this check only; may be given again",
    )
    group.addoption(
        "--conformance-quick", action="store_true", help="leave out the cases marked thorough"
    )
    group.addoption(
        "--conformance-expected",
        type=Path,
        metavar="FILE",
        help="the backend's expected failures, TOML",
    )
    group.addoption(
        "--conformance-journal", type=Path, metavar="FILE", help="append what happens to FILE"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "conformance(check): the declaration of a check")
    config.addinivalue_line("markers", "thorough: left out by --quick")
    if config.getoption("conformance_backend") is None:
        return
    from infercore_conformance import fixtures
    from infercore_conformance.session import Session

    config.pluginmanager.register(fixtures, "infercore_conformance_fixtures")
    config.pluginmanager.register(Session(config), "infercore_conformance_session")
