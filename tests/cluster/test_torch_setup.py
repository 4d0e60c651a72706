import os
import socket
import subprocess

import pytest
import ray

from raysys.cluster.torch_setup import INTERFACE_VARIABLES, choose_interface, interface_of


def addresses():
    """Return {interface: first IPv4 address} of this machine, as `ip` says it."""
    try:
        done = subprocess.run(
            ["ip", "-4", "-o", "addr"], capture_output=True, text=True, check=True
        )
    except OSError:
        pytest.skip("needs ip (iproute2)")
    found = {}
    for line in done.stdout.splitlines():
        _, name, _, address, *_ = line.split()
        found.setdefault(name, address.partition("/")[0])
    return found


def test_an_interface_is_found_by_its_address():
    for name, address in addresses().items():
        assert interface_of(address) == ("" if address.startswith("127.") else name.split("@")[0])
    assert interface_of("192.0.2.1") == ""
    assert {name for _, name in socket.if_nameindex()} >= {n.split("@")[0] for n in addresses()}


@pytest.mark.parametrize("given", ["", "own0"])
def test_workers_name_the_interface_of_their_ray_address_unless_one_is_named(monkeypatch, given):
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.1")
    monkeypatch.setattr("raysys.cluster.torch_setup.interface_of", lambda address: "eth7")
    for variable in INTERFACE_VARIABLES:
        monkeypatch.setenv(variable, given)  # first, so that it is as before afterwards
        if not given:
            monkeypatch.delenv(variable)
    choose_interface()
    assert [os.environ[name] for name in INTERFACE_VARIABLES] == [given or "eth7"] * 2
