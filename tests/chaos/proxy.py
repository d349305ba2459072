"""A TCP proxy on the loopback, whose connections can be cut or held up."""

from __future__ import annotations

import contextlib
import socket
import threading


class Proxy:
    """Forwards connections to a port of this machine.

    Parameters
    ----------
    target : int
        The port that connections are forwarded to.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._flowing, self._refusing = threading.Event(), False
        self._flowing.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break all connections, and any new one, until `mend`."""
        self._refusing = True
        with self._lock:
            for end in self._open:
                _hang_up(end)
            self._open.clear()

    def hold(self) -> None:
        """Forward nothing until `mend`; connections stay open."""
        self._flowing.clear()

    def mend(self) -> None:
        """Forward again."""
        self._refusing = False
        self._flowing.set()

    def close(self) -> None:
        """End all connections, and listen no more."""
        _hang_up(self._listener)
        self.cut()
        self._flowing.set()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                if self._refusing:
                    raise ConnectionError
                far = socket.create_connection(("127.0.0.1", self._target), timeout=10)
            except OSError:
                _hang_up(near)
                continue
            far.settimeout(None)
            with self._lock:
                self._open |= {near, far}
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self._flowing.wait()
                sink.sendall(data)
        with self._lock:
            self._open -= {source, sink}
        for end in (source, sink):
            _hang_up(end)


def _hang_up(end: socket.socket) -> None:
    # `close` alone does not wake a thread that waits for it.
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
