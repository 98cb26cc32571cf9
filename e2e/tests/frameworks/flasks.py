import os

from flask import Flask, redirect, request, session, url_for

app = Flask(__name__)
app.secret_key = "a secret of this test"


@app.get("/")
def home():
    return f"signed in as {session['user']}" if "user" in session else "nobody is signed in"


@app.post("/login")
def login():
    session["user"] = request.form["user"]
    return redirect(url_for("home"))


@app.post("/logout")
def logout():
    session.pop("user", None)
    return redirect(url_for("home"))


app.run("127.0.0.1", int(os.environ["PORT"]), threaded=True)
