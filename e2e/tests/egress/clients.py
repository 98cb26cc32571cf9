"""Reaches servers of many kinds by the clients that people use, unchanged. Tells for each what it got."""

import asyncio
import os
import smtplib
import socket
import ssl
import urllib.request

import aiohttp
import grpc
import httpx
import psycopg
import redis
import requests

CA = os.path.join(os.path.dirname(__file__), "ca.pem")
URL = "https://web.far.test/hello.txt"


def urllib_get():
    # Without the proxy that the environment names.
    context = ssl.create_default_context(cafile=CA)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    return opener.open(URL, timeout=10).read().decode()


def requests_get():
    session = requests.Session()
    session.trust_env = False
    return session.get(URL, verify=CA, timeout=10).text


def httpx_get():
    with httpx.Client(verify=ssl.create_default_context(cafile=CA), trust_env=False) as client:
        return client.get(URL).text


def aiohttp_get():
    async def get():
        async with aiohttp.ClientSession() as session:
            async with session.get(URL, ssl=ssl.create_default_context(cafile=CA)) as reply:
                return await reply.text()

    return asyncio.run(get())


def postgres():
    with psycopg.connect("host=db.far.test user=postgres dbname=postgres connect_timeout=10") as connection:
        return str(connection.execute("select sum(n) from generate_series(1, 100) n").fetchone()[0])


def redis_get():
    client = redis.Redis("cache.far.test", socket_timeout=10)
    client.set("key", "value")
    return client.get("key").decode()


def mail():
    with smtplib.SMTP("mail.far.test", 587, timeout=10) as server:
        server.sendmail("a@far.test", ["b@far.test"], "Subject: x\r\n\r\nhello\r\n")
    return "sent"


def words():
    with grpc.insecure_channel("words.far.test:50051", options=[("grpc.enable_http_proxy", 0)]) as channel:
        return channel.unary_unary("/far.Words/Reverse")(b"hello", timeout=10).decode()


def big():
    """Bytes both ways, half closed at the end."""
    connection = socket.create_connection(("echo.far.test", 7), timeout=20)
    body, got = os.urandom(4 << 20), bytearray()
    import threading

    def send():
        connection.sendall(body)
        connection.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    while data := connection.recv(1 << 20):
        got += data
    sender.join()
    return "equal" if got == body else f"{len(got)} bytes"


def huge():
    """A name whose answer has 64 KB."""
    with socket.create_connection(("huge.far.test", 7), timeout=20) as connection:
        connection.sendall(b"x")
        return connection.recv(1).decode()


def go(params):
    found = {}
    for client in (urllib_get, requests_get, httpx_get, aiohttp_get, postgres, redis_get, mail, words, big, huge):
        try:
            found[client.__name__] = client()
        except Exception as error:
            found[client.__name__] = repr(error)
    return found
