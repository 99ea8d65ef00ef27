"""Forward requests to an object store, and make some of them fail as networks and stores do. A seed decides which."""

import contextlib
import random
import socket
import threading
from collections import Counter
from collections.abc import Iterator

VERBS = (b"GET ", b"PUT ", b"HEAD ", b"POST ", b"DELETE ")
ERROR_500 = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
ERROR_503 = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
SLOW_S = 0.2


class FaultyProxy:
    """Forward connections to a port of this machine, and make a fraction of the requests fail.

    Attributes:
        rate: fraction of requests that fail. It may be changed.
        gone: if true, every connection is cut.
        cut_at: number of requests from now on before the one whose response is cut. None cuts no particular response.
        faults: number of faults by kind.
    """

    def __init__(self, port: int, *, rate: float, seed: int = 0):
        self.rate, self.gone, self.faults = rate, False, Counter[str]()
        self.cut_at: int | None = None
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
                if data.startswith(VERBS) and self.cut_at is not None:
                    if self.cut_at == 0:
                        cut.set()
                    self.cut_at = self.cut_at - 1 if self.cut_at else None
                elif data.startswith(VERBS) and self._random.random() < self.rate:
                    fault = self._random.choice(("500", "503", "slow", "cut", "cut answer"))
                    self.faults[fault] += 1
                    if fault in ("500", "503"):
                        client.sendall(ERROR_500 if fault == "500" else ERROR_503)
                        return
                    if fault == "cut":
                        return
                    if fault == "slow":
                        threading.Event().wait(SLOW_S)
                    else:  # the answer is cut
                        cut.set()
                server.sendall(data)

    def _answer(self, server: socket.socket, client: socket.socket, cut: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                if cut.is_set():
                    client.sendall(data[: len(data) // 2])
                    break
                client.sendall(data)
        for side in (server, client):
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
