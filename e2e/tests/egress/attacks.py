"""What a function tries against the network that it was given. Tells for each try how it ended."""

import errno
import socket
import struct
import time

FAR = None


def outcome(f):
    began = time.monotonic()
    try:
        got = f()
    except OSError as error:
        got = errno.errorcode.get(error.errno, type(error).__name__) if error.errno else type(error).__name__
    return [got, time.monotonic() - began < 5]


def connect(host, port):
    def f():
        socket.create_connection((host, port), timeout=20).close()
        return "connected"

    return f


def kind(family, kind, protocol=0):
    def f():
        socket.socket(family, kind, protocol).close()
        return "made"

    return f


def datagram(host, port):
    def f():
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.settimeout(20)
        s.connect((host, port))
        s.send(b"x")
        return s.recv(1)

    return f


def forged():
    s = socket.socket()
    s.setsockopt(socket.SOL_IP, 15, 1)  # IP_FREEBIND
    s.bind(("198.18.0.9", 0))
    s.settimeout(20)
    s.connect((FAR, 80))
    return "connected"


def options():
    s = socket.socket()
    s.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b"\x44\x04\x05\x00")  # a timestamp
    s.settimeout(3)
    s.connect((FAR, 80))
    return "connected"


def fragments():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(1)
    s.sendto(b"\x00" * 60000, ("198.18.0.1", 53))
    return s.recv(1)


def unread():
    """A peer that never reads: it blocks, and memory does not grow with what is sent."""
    s = socket.create_connection((FAR, 9), timeout=20)
    s.settimeout(2)
    sent = 0
    try:
        while sent < 1 << 30:
            sent += s.send(b"x" * 65536)
    except TimeoutError:
        pass
    return "bounded" if sent < 64 << 20 else f"{sent} bytes"


def many():
    """More connections than an instance may have."""
    held, refused = [], 0
    for _ in range(80):
        try:
            held.append(socket.create_connection((FAR, 7), timeout=20))
        except ConnectionRefusedError:
            refused += 1
    return [len(held), refused]


def served_again(f):
    """What is held to a rate after a flood is served when that has passed."""
    for _ in range(60):
        got = outcome(f)[0]
        if got == "connected":
            break
        time.sleep(0.25)
    return got


def churn():
    opened = 0
    for _ in range(3000):
        s = socket.socket()
        s.setblocking(False)
        s.connect_ex((FAR, 7))
        s.close()
        opened += 1
    return served_again(connect(FAR, 7))


def queries():
    """A flood of queries, pointers that lead in circles, and a query that is none."""
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for n in range(3000):
        try:
            s.sendto(struct.pack(">HHHHHH", n, 0x100, 1, 0, 0, 0) + b"\xc0\x0c\x00\x01\x00\x01", ("198.18.0.1", 53))
        except OSError:
            pass
    # By its name, which has to be looked up.
    return served_again(connect("web.far.test", 7))


def go(params):
    global FAR
    FAR = params["far"]
    tries = {
        "metadata": connect("169.254.169.254", 80),
        "decimal metadata": connect("2852039166", 80),
        "private": connect("10.9.9.9", 5432),
        "host": connect(params["host"], params["port"]),
        "docker": connect("172.17.0.1", 80),
        "mail": connect(FAR, 25),
        "closed": connect(FAR, 1),
        "forgotten name": connect("198.19.200.1", 80),
        "private name": connect("private.test", 80),
        "own name": connect("here.test", 80),
        "chain": connect("chain.test", 80),
        "moves": connect("moves.test", 80),
        "no name": connect("absent.test", 80),
        "six": connect("2001:db8::1", 80),
        "mapped": connect("::ffff:10.9.9.9", 80),
        "udp": datagram(FAR, 7),
        "raw": kind(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP),
        "packet": kind(socket.AF_PACKET, socket.SOCK_RAW),
        "device": lambda: open("/dev/net/tun", "rb").close() or "opened",
        "forged": forged,
        "options": options,
        "fragments": fragments,
        "unread": unread,
        "many": many,
        "churn": churn,
        "queries": queries,
        "after": lambda: served_again(connect(FAR, 7)),
    }
    return {name: outcome(f) for name, f in tries.items()}
