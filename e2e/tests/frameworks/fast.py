import asyncio
import os

import uvicorn
from fastapi import FastAPI, Form, Request, WebSocket
from fastapi.responses import HTMLResponse, RedirectResponse, StreamingResponse
from starlette.middleware.sessions import SessionMiddleware

app = FastAPI(title="shop")
app.add_middleware(SessionMiddleware, secret_key="a secret of this test")
seen = {"socket": None, "form": None}


@app.get("/items/{number}")
def item(number: int, q: str | None = None):
    return {"number": number, "q": q}


@app.get("/count/{most}")
def count(most: int):
    return StreamingResponse((f"{number}\n" for number in range(most)), media_type="text/plain")


@app.post("/upload")
async def upload(request: Request):
    total = 0
    async for chunk in request.stream():
        total += len(chunk)
    return {"bytes": total}


@app.websocket("/chat")
async def chat(socket: WebSocket):
    await socket.accept()
    user = socket.session.get("user")
    seen["socket"] = f"open for {user}"
    async for text in socket.iter_text():
        await socket.send_text(f"{user}: {text}")
    seen["socket"] = "closed"


# What a browser does: it signs in by a form, comes to a page by a redirection, posts another form and keeps a WebSocket open.


@app.get("/", response_class=HTMLResponse)
def sign_in_page():
    return """<form method="post" action="/login"><input name="user" value="Ada"></form>
              <script>document.forms[0].submit()</script>"""


@app.post("/login")
def login(request: Request, user: str = Form()):
    request.session["user"] = user
    return RedirectResponse("/home", status_code=303)


@app.get("/home", response_class=HTMLResponse)
def home(request: Request):
    return f"""<p id="user">{request.session.get("user")}</p><script>
      const socket = new WebSocket(`ws://${{location.host}}/chat`);
      socket.onopen = () => socket.send("hello");
      socket.onmessage = (event) => fetch("/form", {{method: "POST", body: new URLSearchParams({{text: event.data}})}});
    </script>"""


@app.post("/form")
def form(request: Request, text: str = Form()):
    seen["form"] = f"{request.session.get('user')} posted {text}"
    return seen


@app.post("/logout")
def logout(request: Request):
    request.session.clear()
    return {}


@app.get("/seen")
def what_was_seen():
    return seen


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), log_level="warning")
