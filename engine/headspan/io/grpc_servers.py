"""Find out whether a gRPC server answers at an address, within a time limit."""

from __future__ import annotations

import socket

# How a client begins to speak HTTP/2: the preface, then a frame of settings (type 4) without any.
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_SETTINGS_FRAME = 4
_FRAME_HEADER_BYTES = 9


def is_grpc_server(address: str, seconds: float) -> bool:
    """Whether a server at HOST:PORT answers in HTTP/2, as those of gRPC do and other servers do not."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=seconds) as connection:
            connection.sendall(_GREETING)
            header = connection.recv(_FRAME_HEADER_BYTES, socket.MSG_WAITALL)
    except (OSError, ValueError):
        return False
    return len(header) == _FRAME_HEADER_BYTES and header[3] == _SETTINGS_FRAME
