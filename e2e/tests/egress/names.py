"""A name server for tests.

    names.py LISTEN ADDRESS

Names below `far.test` have ADDRESS; `huge.far.test` has it four thousand times. `private.test`, `here.test`, `chain.test` and `moves.test` lead where a function may not
go. Whatever does not end in `.test` is asked of the host's own server.
"""

import itertools
import socket
import socketserver
import struct
import sys
import threading

LISTEN, ADDRESS = sys.argv[1:]
MOVES = itertools.count()
# Records of 16 bytes that fit into 64 KB with the rest of a message.
HUGE = 4090


def forwarded(query):
    lines = [line.split() for line in open("/etc/resolv.conf")]
    for host in [line[1] for line in lines if line[:1] == ["nameserver"]]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.settimeout(5)
            try:
                server.sendto(query, (host, 53))
                return server.recv(4096)
            except OSError:
                continue
    return query[:2] + b"\x81\x82" + query[4:6] + bytes(6) + query[12:]


def answer(query):
    """The reply to a DNS query: a header, the question again, and one record (RFC 1035, 4.1)."""
    at, labels = 12, []
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode())
        at += 1 + query[at]
    name, (kind, _) = ".".join(labels).lower(), struct.unpack(">HH", query[at + 1 : at + 5])
    question = query[12 : at + 5]
    if not name.endswith("test"):
        return forwarded(query)
    address = {"private.test": "10.9.9.9", "here.test": "127.0.0.1", "chain.test": "10.9.9.9"}.get(name)
    if name.endswith(".far.test"):
        address = ADDRESS
    if name == "moves.test":
        address = ADDRESS if next(MOVES) == 0 else "127.0.0.1"
    records = b""
    if address and kind == 1:
        if name == "chain.test":
            target = b"\x07private\x04test\x00"
            records += b"\xc0\x0c" + struct.pack(">HHIH", 5, 1, 0, len(target)) + target
            records += target + struct.pack(">HHIH", 1, 1, 0, 4) + socket.inet_aton(address)
        else:
            records += b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 0, 4) + socket.inet_aton(address)
    if name == "huge.far.test" and kind == 1:
        # As much as an answer by TCP can hold.
        records *= HUGE
    if name == "text.far.test" and kind == 16:
        # More than a datagram holds, so it is asked for again by TCP.
        texts = b"".join(bytes([200]) + b"t" * 200 for _ in range(10))
        records += b"\xc0\x0c" + struct.pack(">HHIH", 16, 1, 0, len(texts)) + texts
    if name == "huge.far.test" and records:
        return query[:2] + struct.pack(">HHHHH", 0x8180, 1, HUGE, 0, 0) + question + records
    count = 2 if name == "chain.test" and records else (1 if records else 0)
    code = 0 if address or records else 3
    return query[:2] + struct.pack(">HHHHH", 0x8180 | code, 1, count, 0, 0) + question + records


def names_by_datagram():
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((LISTEN, 53))
    print("ready", flush=True)

    def reply(query, client):
        message = answer(query)
        if len(message) > 512:
            # Cut to the header and the question.
            message = message[:2] + bytes([message[2] | 2]) + message[3:6] + bytes(6) + query[12:].split(b"\x00\x00\x29")[0]
        server.sendto(message, client)

    while True:
        threading.Thread(target=reply, args=server.recvfrom(4096)).start()


class Names(socketserver.StreamRequestHandler):
    def handle(self):
        while length := self.rfile.read(2):
            reply = answer(self.rfile.read(int.from_bytes(length, "big")))
            self.wfile.write(len(reply).to_bytes(2, "big") + reply)


socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer.daemon_threads = True
by_stream = socketserver.ThreadingTCPServer((LISTEN, 53), Names)
threading.Thread(target=by_stream.serve_forever, daemon=True).start()
names_by_datagram()
