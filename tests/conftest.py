"""Fixtures that all tests share: golden texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden texts instead of comparing them")
    parser.addoption("--device", default="cpu", help="torch's default device; tests of files and of texts are the CPU's")


class Generator(torch.Generator):
    """A generator on torch's default device, which is where tests want theirs."""

    def __new__(cls, device: torch.device | str | None = None) -> Generator:
        return super().__new__(cls, device or torch.get_default_device())


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--device") != "cpu":  # tests make tensors when they are imported, too
        torch.set_default_device(config.getoption("--device"))
        torch.Generator = Generator  # type: ignore[misc]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden(name, text)` compares the text with tests/golden/name.txt, or with --update-golden writes it."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / f"{name}.txt"
        if request.config.getoption("--update-golden"):
            path.write_text(text + "\n")
        assert text + "\n" == path.read_text(), f"{path.name} differs; pytest --update-golden if the change is meant"

    return compare
