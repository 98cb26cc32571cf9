import express from "express";

const app = express();
app.use(express.json());
app.get("/hello/:name", (request, response) => response.json({ name: request.params.name, query: request.query }));
app.post("/echo", (request, response) => response.status(201).json(request.body));
app.get("/login", (request, response) => response.cookie("user", "Ada", { httpOnly: true }).redirect("/home"));
app.get("/home", (request, response) => response.send(request.headers.cookie ?? "nobody"));
app.listen(process.env.PORT, "127.0.0.1");
