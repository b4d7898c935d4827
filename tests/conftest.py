"""For every test: no network, no store of the user, torch as the last test found it."""

import socket
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import settings

# Generated cases are the same in each run: what fails for a reader failed for the writer. To look further:
# `pytest --hypothesis-profile=default` draws other cases each time.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")
torch.manual_seed(0)  # for what modules of tests draw when they are imported


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """forethought calls nobody, and neither do its tests; this machine itself may be called."""
    connect = socket.socket.connect

    def refuse(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in (
            "127.0.0.1",
            "::1",
            "localhost",
        ):
            pytest.fail(f"a test called {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(autouse=True)
def _no_store_of_the_user(monkeypatch):
    """A store named in the environment would answer for the one under test."""
    monkeypatch.delenv("FORETHOUGHT_STORE", raising=False)


@pytest.fixture(autouse=True)
def _no_meter_of_the_user(monkeypatch, tmp_path_factory):
    """Neither a wall meter named in the environment, nor another test run that counts on this machine."""
    monkeypatch.delenv("FORETHOUGHT_METER", raising=False)
    monkeypatch.setattr("forethought.energy.ownership.FOLDER", tmp_path_factory.getbasetemp())


@pytest.fixture(autouse=True)
def _nothing_probed(monkeypatch):
    """Each test finds every trunk as a new process would."""
    monkeypatch.setattr("forethought.extracting.frozen._PROBED", {})


@pytest.fixture(autouse=True)
def _torch_as_it_was():
    """A test that changes torch's global state must not change the next one."""
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(grad)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture
def run_here(monkeypatch, capfd, tmp_path):
    """Run the command line in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        from forethought import cli

        monkeypatch.setattr(sys, "argv", ["forethought", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capfd.readouterr()
        return SimpleNamespace(code=left.value.code or 0, out=out, err=err)

    return call
