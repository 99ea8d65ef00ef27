"""A proxy in front of a server of objects that fails as networks and stores do: by a seed."""

import contextlib
import random
import socket
import threading
from collections import Counter
from collections.abc import Iterator

VERBS = (b"GET ", b"PUT ", b"HEAD ", b"POST ", b"DELETE ")
ERROR_500 = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
ERROR_503 = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
HEADERS_END = b"\r\n\r\n"
SLOW_S = 0.2


class FaultyProxy:
    """Passes connections on to a port of this machine; of `rate` of the requests it makes something go wrong.

    Attributes:
        rate: may be changed. gone: every request is cut.
        faults: how often it did what.
    """

    def __init__(self, port: int, *, rate: float, seed: int = 0):
        self.rate, self.gone, self.faults = rate, False, Counter[str]()
        self._target, self._random = port, random.Random(seed)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]

    @contextlib.contextmanager
    def running(self) -> Iterator["FaultyProxy"]:
        threading.Thread(target=self._accept, daemon=True).start()
        try:
            yield self
        finally:
            self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self._target)) as server,
            client,
        ):
            cut = threading.Event()
            threading.Thread(target=self._answer, args=(server, client, cut), daemon=True).start()
            while data := client.recv(1 << 16):
                if self.gone:
                    return
                if data.startswith(VERBS) and self._random.random() < self.rate:
                    fault = self._random.choice(("500", "503", "slow", "cut", "cut answer"))
                    self.faults[fault] += 1
                    if fault in ("500", "503"):
                        client.sendall(ERROR_500 if fault == "500" else ERROR_503)
                        return
                    if fault == "cut":
                        return
                    if fault == "slow":
                        threading.Event().wait(SLOW_S)
                    else:
                        cut.set()
                server.sendall(data)

    def _answer(self, server: socket.socket, client: socket.socket, cut: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                if cut.is_set():
                    client.sendall(_half_of(data, server))
                    break
                client.sendall(data)
        for side in (server, client):
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)


def _half_of(answer: bytes, server: socket.socket) -> bytes:
    """The headers and half of what has come of the body; nothing where there is none.

    Never a part of the headers: without TLS, which tells, libcurl takes that for a whole answer of no bytes.
    """
    while HEADERS_END not in answer or answer.endswith(HEADERS_END):
        data = server.recv(1 << 16)
        if not data:
            return b""
        answer += data
    headers, end, body = answer.partition(HEADERS_END)
    return headers + end + body[: len(body) // 2]
