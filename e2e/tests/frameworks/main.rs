//! Web frameworks as they come from their registries, unchanged, on origins of their own.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use faena_test_support::{Platform, Reply, binary, eventually, raw, zip};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(60);

/// Makes a server of one file a function, with what it needs from a registry.
fn server(platform: &Platform, name: &str, image: &str, dependencies: &str, (file, code): (&str, &str)) {
    let program = if image == "noderuntime" { "node" } else { "python3" };
    built(platform, name, (image, dependencies, &format!("{program} {file}")), &[(file, code.as_bytes())]);
}

/// Makes a server a function, by its image, its build command and its run command.
fn built(platform: &Platform, name: &str, (image, dependencies, run): (&str, &str, &str), files: &[(&str, &[u8])]) {
    let runtime = json!({"name": name, "image": image, "path": "/ws", "dependencies": dependencies, "run": run, "engine": "sandbox"});
    let reply = platform.post("/registerRuntime", &runtime);
    assert_eq!(reply.status, 201, "{}", reply.text());
    let toml: (&str, &[u8]) = ("faena.toml", b"contract = \"http\"\n[limits]\ntimeout = \"2m\"\n");
    let archive = zip(&[files, &[toml]].concat());
    let reply = platform.upload(name, name, &archive);
    assert_eq!(reply.status, 201, "{}", reply.text());
    let built = platform.built(name);
    assert_eq!(built["status"], "READY", "{built}");
}

/// A client of one origin that keeps its cookies and follows redirections, as a browser does.
struct Client<'a> {
    platform: &'a Platform,
    host: String,
    cookies: BTreeMap<String, String>,
}

impl<'a> Client<'a> {
    fn new(platform: &'a Platform, function: &str) -> Self {
        Self { platform, host: format!("{function}.localhost:{}", platform.port), cookies: BTreeMap::new() }
    }

    fn send(&mut self, method: &str, path: &str, kind: &str, body: &str) -> String {
        let (mut method, mut path, mut body) = (method, path.to_owned(), body);
        loop {
            let cookies: Vec<String> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let origin = format!("http://{}", self.host);
            let head = format!(
                "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nOrigin: {origin}\r\nReferer: {origin}/\r\nAccept: */*\r\n\
                 Cookie: {}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}",
                self.host,
                cookies.join("; "),
                body.len()
            );
            let reply = String::from_utf8_lossy(&raw(self.platform.port, head.as_bytes())).into_owned();
            let (head, rest) = reply.split_once("\r\n\r\n").expect("a head");
            let mut location = None;
            for line in head.lines().skip(1) {
                let Some((name, value)) = line.split_once(": ") else { continue };
                if name.eq_ignore_ascii_case("set-cookie") {
                    let (name, value) =
                        value.split(';').next().and_then(|pair| pair.split_once('=')).expect("a cookie");
                    self.cookies.insert(name.to_owned(), value.to_owned());
                } else if name.eq_ignore_ascii_case("location") {
                    location = Some(value.to_owned());
                }
            }
            match location {
                Some(next) => (method, path, body) = ("GET", next, ""),
                None => return format!("{}\n{rest}", head.lines().next().unwrap_or_default()),
            }
        }
    }

    fn get(&mut self, path: &str) -> String {
        self.send("GET", path, "text/plain", "")
    }

    fn form(&mut self, path: &str, body: &str) -> String {
        self.send("POST", path, "application/x-www-form-urlencoded", body)
    }
}

fn at_origin(platform: &Platform, function: &str, method: &str, path: &str, body: &[u8]) -> Reply {
    let host = format!("{function}.localhost:{}", platform.port);
    platform.send(method, path, &[("Host", &host), ("Content-Type", "application/json")], body)
}

/// A browser that is closed when this is dropped.
struct Browser {
    child: Child,
    _profile: tempfile::TempDir,
}

impl Browser {
    fn open(url: &str) -> Self {
        let profile = tempfile::tempdir().expect("a folder");
        let child = Command::new("chromium")
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg(url)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromium is installed");
        Self { child, _profile: profile }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn fastapi_with_its_docs_streams_uploads_and_a_browser() {
    let platform = Platform::start();
    let packages =
        "pip3 install fastapi==0.115.* uvicorn==0.34.* websockets==15.* itsdangerous==2.* python-multipart==0.0.20";
    server(&platform, "fast", "pythonruntime", packages, ("fast.py", include_str!("fast.py")));
    let get = |path: &str| at_origin(&platform, "fast", "GET", path, b"");
    assert_eq!(get("/items/7?q=a").json(), json!({"number": 7, "q": "a"}));
    assert_eq!(get("/items/x").status, 422);
    assert!(get("/docs").text().contains("swagger-ui"), "its docs");
    assert_eq!(get("/openapi.json").json()["info"]["title"], "shop");
    assert_eq!(get("/count/3").text(), "0\n1\n2\n");
    let large = vec![7; 100 * 1024 * 1024];
    assert_eq!(at_origin(&platform, "fast", "POST", "/upload", &large).json(), json!({"bytes": large.len()}));

    let browser = Browser::open(&format!("http://fast.localhost:{}/", platform.port));
    let seen = eventually(LONG, "the browser has signed in, posted a form and opened a WebSocket", || {
        let seen = get("/seen").json();
        if seen["form"].is_null() { Err(seen) } else { Ok(seen) }
    });
    assert_eq!(seen, json!({"socket": "open for Ada", "form": "Ada posted Ada: hello"}));
    drop(browser);
    eventually(LONG, "the WebSocket ends with its browser", || {
        let seen = get("/seen").json();
        if seen["socket"] == "closed" { Ok(()) } else { Err(seen) }
    });
}

#[test]
fn flask_signs_in_and_out_by_cookie() {
    let platform = Platform::start();
    server(&platform, "flasks", "pythonruntime", "pip3 install flask==3.1.*", ("flasks.py", include_str!("flasks.py")));
    let mut client = Client::new(&platform, "flasks");
    assert!(client.get("/").contains("nobody is signed in"));
    assert!(client.form("/login", "user=Ada").contains("signed in as Ada"));
    assert!(client.get("/").contains("signed in as Ada"));
    assert!(Client::new(&platform, "flasks").get("/").contains("nobody"), "another client");
    assert!(client.form("/logout", "").contains("nobody is signed in"));
}

#[test]
fn djangos_admin_takes_a_sign_in() {
    let platform = Platform::start();
    let code = ("djangos.py", include_str!("djangos.py"));
    server(&platform, "djangos", "pythonruntime", "pip3 install django==5.1.*", code);
    let mut client = Client::new(&platform, "djangos");
    let page = client.get("/admin/");
    let token = page.split("name=\"csrfmiddlewaretoken\" value=\"").nth(1).and_then(|rest| rest.split('"').next());
    let token = token.unwrap_or_else(|| panic!("a form with a token: {page}"));
    let wrong = client.form("/admin/login/?next=/admin/", "username=ada&password=secret");
    assert!(wrong.contains("403"), "without its token: {wrong}");
    let form = format!("csrfmiddlewaretoken={token}&username=ada&password=secret&next=/admin/");
    let index = client.form("/admin/login/?next=/admin/", &form);
    assert!(index.contains("Site administration"), "{index}");
    assert!(client.get("/admin/auth/user/").contains("ada@example.org"));
}

/// What every server here does alike.
fn greets_and_echoes(platform: &Platform, name: &str) {
    let hello = at_origin(platform, name, "GET", "/hello/Ada?x=1", b"").json();
    assert_eq!(hello, json!({"name": "Ada", "query": {"x": "1"}}), "{name}");
    let echo = at_origin(platform, name, "POST", "/echo", b"{\"a\":[1]}");
    assert_eq!((echo.status, echo.json()), (201, json!({"a": [1]})), "{name}");
}

#[test]
fn express_and_fastify_serve() {
    let platform = Platform::start();
    for (name, package, code) in [
        ("express", "npm install express@4", include_str!("express.mjs")),
        ("fastify", "npm install fastify@5", include_str!("fastify.mjs")),
    ] {
        server(&platform, name, "noderuntime", package, ("server.mjs", code));
        greets_and_echoes(&platform, name);
    }
    let mut client = Client::new(&platform, "express");
    assert!(client.get("/login").contains("user=Ada"));
    assert_eq!(at_origin(&platform, "fastify", "GET", "/stream", b"").text(), "one,two,three");
    assert_eq!(platform.get("/f/express/hello/Ada").json()["query"], Value::Object(serde_json::Map::new()));
}

#[test]
fn compiled_servers_of_go_and_axum_serve() {
    let platform = Platform::start();
    let files: [(&str, &[u8]); 2] =
        [("go.mod", b"module server\n\ngo 1.19\n"), ("server.go", include_bytes!("server.go"))];
    built(&platform, "go", ("bashruntime", "go build -o server .", "./server"), &files);
    let program = binary().with_file_name("examples").join("axum_server");
    let program = std::fs::read(&program).unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    built(&platform, "axum", ("bashruntime", "chmod +x server", "./server"), &[("server", &program)]);
    for name in ["go", "axum"] {
        greets_and_echoes(&platform, name);
        assert_eq!(
            at_origin(&platform, name, "GET", "/events", b"").text(),
            "data: 0\n\ndata: 1\n\ndata: 2\n\n",
            "{name}"
        );
    }
}

#[test]
fn the_server_that_astro_builds_serves() {
    let platform = Platform::start();
    let package: &[u8] =
        br#"{"name": "site", "type": "module", "dependencies": {"astro": "5.*", "@astrojs/node": "9.*"}}"#;
    let files: [(&str, &[u8]); 4] = [
        ("package.json", package),
        ("astro.config.mjs", include_bytes!("astro/astro.config.mjs")),
        ("src/pages/index.astro", include_bytes!("astro/index.astro")),
        ("src/pages/api.json.ts", include_bytes!("astro/api.json.ts")),
    ];
    let build = "npm install --no-audit --no-fund && ASTRO_TELEMETRY_DISABLED=1 npx astro build";
    built(&platform, "site", ("noderuntime", build, "/bin/sh -c 'HOST=127.0.0.1 node dist/server/entry.mjs'"), &files);
    let page = at_origin(&platform, "site", "GET", "/?name=Ada", b"");
    assert!(page.text().contains("<h1>Hello, Ada</h1>"), "{}", page.text());
    let host = format!("site.localhost:{}", platform.port);
    let origin = format!("http://{host}");
    let headers = [("Host", host.as_str()), ("Origin", &origin), ("Content-Type", "application/json")];
    let echo = platform.send("POST", "/api.json", &headers, b"{\"a\":1}");
    assert_eq!((echo.status, echo.text().as_str()), (201, "{\"a\":1}"));
}
