"""How the workers of a training find each other: by the interface of the address that Ray uses.

Left alone, Gloo asks which address the host's own name has. Debian's and Ubuntu's hosts files say
127.0.1.1, which no other host reaches.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from typing import Any

import ray
from ray.train.torch import TorchConfig

_ASK_ADDRESS = 0x8915  # SIOCGIFADDR
_NAME_BYTES = 15
INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


class Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Ray Train's, after every worker has chosen its interface."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Set up the process group."""
        worker_group.execute(choose_interface)
        super().on_start(worker_group, backend_config)


class Setup(TorchConfig):  # type: ignore[misc]
    """Ray Train's settings of the process group, with `Backend`."""

    @property
    def backend_cls(self) -> type[Backend]:
        """What sets up the process group."""
        return Backend


def choose_interface() -> None:
    """In a worker: name the interface of its Ray address to Gloo and NCCL, unless one is named.

    An address that no interface has (behind a translation of addresses) is left to them.
    """
    name = interface_of(ray.util.get_node_ip_address())
    for variable in INTERFACE_VARIABLES if name else ():
        os.environ.setdefault(variable, name)


def interface_of(address: str) -> str:
    """Return the interface that has an IPv4 address; empty: none has, or it is the loopback."""
    if address.startswith("127."):
        return ""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            question = struct.pack("256s", name.encode()[:_NAME_BYTES])
            try:
                answer = fcntl.ioctl(probe.fileno(), _ASK_ADDRESS, question)
            except OSError:  # it has none
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return ""
