#!/usr/bin/env python3
"""Holds the running API against its own OpenAPI document: the document is valid, generated requests find nothing, and a client
that is generated from it deploys a function and calls it. FAENA_BIN names the binary; it runs in a virtual environment that
`scripts/install.sh api` has made.
"""
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

from openapi_spec_validator import OpenAPIV31SpecValidator

HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent
SEED = "1"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def ready(base, platform):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        assert platform.poll() is None, "the platform ended"
        try:
            return urllib.request.urlopen(f"{base}/readyz").status
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise AssertionError("the platform is not ready after a minute")


def key(base):
    """Locks the platform by its first account, and makes a key of it."""

    def post(path, body, **headers):
        headers = {"Content-Type": "application/json", **headers}
        return json.load(urllib.request.urlopen(urllib.request.Request(base + path, json.dumps(body).encode(), headers)))

    account = post("/account", {"name": "generated", "type": "service", "scopes": ["admin"]})
    token = post("/token", {"id": account["id"], "secret": account["secret"]})["accessToken"]
    return post("/key", {"name": "generated"}, Authorization=f"Bearer {token}")["key"]


def check(title, *command, **more):
    done = subprocess.run(command, capture_output=True, text=True, **more)
    if done.returncode:
        print(done.stdout[-20000:], done.stderr[-3000:], sep="\n")
        sys.exit(f"{title}: failed")
    print(f"{title}: fine")


CLIENT = """
import io, sys, time
from faena_client import Client, types
from faena_client.api.calls import post_invoke_function
from faena_client.api.functions import get_function, post_register_function
from faena_client.api.runtimes import post_register_runtime
from faena_client.models import PostInvokeFunctionBody, PostRegisterRuntimeBody, UploadForm

client = Client(base_url=sys.argv[1])
runtime = {"name": "api", "image": "bashruntime", "path": "/ws", "dependencies": "", "run": "bash run.sh", "engine": "sandbox"}
made = post_register_runtime.sync_detailed(client=client, body=PostRegisterRuntimeBody.from_dict(runtime))
assert made.status_code in (200, 201), made
archive = types.File(payload=open(sys.argv[2], "rb"), file_name="code.zip", mime_type="application/zip")
made = post_register_function.sync_detailed("api", "echo", client=client, body=UploadForm(module=archive))
assert made.status_code in (200, 201), made
while b'"READY"' not in get_function.sync_detailed("echo", client=client).content:
    time.sleep(0.1)
call = PostInvokeFunctionBody.from_dict({"funcName": "echo", "params": {"a": 1}})
called = post_invoke_function.sync_detailed(client=client, body=call, prefer="wait=60")
assert b'"DONE"' in called.content, called
"""


def main():
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        log = open(folder / "log", "w")
        platform = subprocess.Popen([os.environ["FAENA_BIN"], "up", "--listen", f"127.0.0.1:{port}", "--data", folder / "data"], stdout=log, stderr=log)
        try:
            ready(base, platform)
            document = json.load(urllib.request.urlopen(f"{base}/openapi.json"))
            errors = [str(error)[:300] for error in OpenAPIV31SpecValidator(document).iter_errors()]
            assert not errors, errors
            print("the document: valid")
            (folder / "openapi.json").write_text(json.dumps(document))
            with zipfile.ZipFile(folder / "code.zip", "w") as archive:
                archive.writestr("run.sh", "cat input.json")
            check("a client is generated", BIN / "openapi-python-client", "generate", "--path", folder / "openapi.json", "--output-path", folder / "client", "--meta", "none", "--overwrite")
            (folder / "client").rename(folder / "faena_client")
            (folder / "use.py").write_text(CLIENT)
            check("it deploys and calls", sys.executable, folder / "use.py", base, folder / "code.zip", cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)})
            # One worker: ast.parse of Python 3.11 fails when two threads parse at once (python/cpython issue 106905).
            bearer = f"Bearer {key(base)}"
            generate = [BIN / "schemathesis", "--config-file", HERE / "schemathesis.toml", "run", folder / "openapi.json", "--url", base, "--header", f"Authorization: {bearer}", "--seed", SEED, "-n", "25"]
            # One worker: ast.parse of Python 3.11 fails when two threads parse at once (python/cpython issue 106905).
            generate += ["--workers", "1"]
            # What can end the key itself comes last: after that every request is refused.
            ending = "^/(account/|key/|token)"
            check("generated requests", *generate, "--exclude-path-regex", ending, cwd=folder)
            whoami = urllib.request.Request(f"{base}/whoami", headers={"Authorization": bearer})
            assert urllib.request.urlopen(whoami).status == 200, "the key has ended before the last requests"
            check("generated requests that end credentials", *generate, "--include-path-regex", ending, cwd=folder)
        finally:
            platform.terminate()
            platform.wait(60)


if __name__ == "__main__":
    main()
