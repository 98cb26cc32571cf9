"""Servers of ordinary kinds at one address, for functions to reach: web, mail, calls, and some that misbehave.

    servers.py ADDRESS FOLDER

FOLDER has `server.pem` (certificate and key), and what the web server serves.
"""

import http.server
import os
import socket
import socketserver
import ssl
import sys
import threading
import time
from concurrent import futures

import grpc

ADDRESS, FOLDER = sys.argv[1:]

class Mail(socketserver.StreamRequestHandler):
    """Takes one mail, and answers with what it was (RFC 5321)."""

    def handle(self):
        self.wfile.write(b"220 far.test\r\n")
        for line in self.rfile:
            word = line.split(b" ")[0].strip().upper()
            if word == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                lines = list(iter(self.rfile.readline, b".\r\n"))
                self.wfile.write(b"250 took %d lines\r\n" % len(lines))
            elif word == b"QUIT":
                return self.wfile.write(b"221 bye\r\n")
            else:
                self.wfile.write(b"250 ok\r\n")


class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(65536):
            self.request.sendall(data)


class Deaf(socketserver.BaseRequestHandler):
    """Never reads."""

    def handle(self):
        time.sleep(600)


class Web(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *args):
        super().__init__(*args, directory=FOLDER)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def serve(kind, port, handler):
    kind.allow_reuse_address = kind.daemon_threads = True
    kind.request_queue_size = 1024
    server = kind((ADDRESS, port), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


serve(socketserver.ThreadingTCPServer, 587, Mail)
serve(socketserver.ThreadingTCPServer, 7, Echo)
serve(socketserver.ThreadingTCPServer, 9, Deaf)
serve(http.server.ThreadingHTTPServer, 80, Web)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(os.path.join(FOLDER, "server.pem"))
secure = http.server.ThreadingHTTPServer((ADDRESS, 443), Web)
secure.socket = context.wrap_socket(secure.socket, server_side=True)
threading.Thread(target=secure.serve_forever, daemon=True).start()

calls = grpc.server(futures.ThreadPoolExecutor(4))
reverse = grpc.unary_unary_rpc_method_handler(lambda body, _: body[::-1])
calls.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("far.Words", {"Reverse": reverse}),))
calls.add_insecure_port(f"{ADDRESS}:50051")
calls.start()
print("ready", flush=True)
threading.Event().wait()
