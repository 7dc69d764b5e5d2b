"""TLS in front of a server that has none of its own, as a balancer does it."""

import socket
import ssl
import threading


class TlsProxy:
    """Takes TLS on loopback, at `port`, and hands the plain bytes on."""

    def __init__(self, target, certificate, key):
        host, port = target.rsplit(":", 1)
        self.target = host, int(port)
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.load_cert_chain(certificate, key)
        self.taken = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        try:
            outer = self.context.wrap_socket(connection, server_side=True)
            inner = socket.create_connection(self.target)
        except OSError:
            connection.close()
            return
        self.taken += 1
        back = threading.Thread(target=self._copy, args=(inner, outer), daemon=True)
        back.start()
        self._copy(outer, inner)
        back.join()
        outer.close()
        inner.close()

    @staticmethod
    def _copy(source, target):
        try:
            while data := source.recv(65536):
                target.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, target):
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def close(self):
        """Takes no more connections."""
        self.listener.close()
