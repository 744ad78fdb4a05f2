"""What the front end is told to show on the nodes while a graph runs: a host's socket, listened to as a page does."""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
from typing import Any

from lavi_bridge.tests.nodes.host import Outcome, Server

SECONDS = 60
TEXT_FRAME, BINARY_FRAME = 1, 2  # opcodes of RFC 6455
TEXT_EVENT = 3  # the host's BinaryEventTypes.TEXT: length of the node's id, id, text


class _Socket:
    """The reading half of RFC 6455."""

    def __init__(self, port: int):
        self.socket = socket.create_connection(("127.0.0.1", port), SECONDS)
        self.file = self.socket.makefile("rb")
        key = base64.b64encode(os.urandom(16)).decode()
        asked = ("GET /ws HTTP/1.1", "Host: 127.0.0.1", "Upgrade: websocket", "Connection: Upgrade")
        asked += (f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "", "")
        self.socket.sendall("\r\n".join(asked).encode())
        answer = list(iter(self.file.readline, b"\r\n"))
        assert b" 101 " in answer[0], answer

    def __enter__(self) -> _Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.socket.close()

    def frame(self) -> tuple[int, bytes]:
        """Opcode and content of the next one; the host sends none in parts, and masks none."""
        first, size = self.file.read(2)
        if size > 125:
            kind = ">H" if size == 126 else ">Q"
            (size,) = struct.unpack(kind, self.file.read(struct.calcsize(kind)))
        return first & 15, self.file.read(size)


def run_and_watch(server: Server, graph: dict[str, Any]) -> tuple[Outcome, dict[str, str]]:
    """The graph's outcome, and of each node that was given a text the last one: what it shows when the run is over."""
    shown: dict[str, str] = {}
    with _Socket(server.port) as page:
        outcome, began = server.run(graph), False
        while True:
            opcode, content = page.frame()
            if opcode == BINARY_FRAME and struct.unpack(">I", content[:4])[0] == TEXT_EVENT:
                (length,) = struct.unpack(">I", content[4:8])
                shown[content[8 : 8 + length].decode()] = content[8 + length :].decode()
            told = json.loads(content) if opcode == TEXT_FRAME else {}
            if told.get("type") == "status":
                left = told["data"]["status"]["exec_info"]["queue_remaining"]
                if began and not left:
                    return outcome, shown
                began = began or left > 0
