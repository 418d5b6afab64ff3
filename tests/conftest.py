"""Options of the whole suite."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--card", help="a text of the model card; its OpenAI-client programs are run as they stand")
