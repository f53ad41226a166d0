"""uvicorn's quick HTTP protocol, with a bound on the headers of a request, which httptools does not have."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# As much as uvicorn's other protocol reads.
MOST_BYTES = 64 << 10


class BoundedHeads(HttpToolsProtocol):
    """A connection that is closed if the address and headers of a request are longer than `MOST_BYTES`."""

    _in_head, _head_bytes = True, 0

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        # What comes next is the head of another request.
        self._in_head, self._head_bytes = True, 0

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        # The head of a request may have ended in this data, and a body begun.
        if self._in_head and self._head_bytes > MOST_BYTES and not self.transport.is_closing():
            self.send_400_response(f"the headers are longer than {MOST_BYTES >> 10} KB; send fewer")
