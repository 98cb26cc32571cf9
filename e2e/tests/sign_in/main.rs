//! Signing in with an OpenID Connect provider: npm's oidc-provider, by hand and with Chromium.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use faena_test_support::{Platform, Reply, Role, eventually, raw};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(10);
const CALLBACK: &str = "/login/callback/idp";

/// Where npm's packages for tests are: `make e2e` says so.
fn packages() -> PathBuf {
    let usual = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/services-venv");
    std::env::var_os("SERVICES_VENV").map_or_else(usual, PathBuf::from).join("npm")
}

/// A provider on loopback, which ends with this.
struct Provider {
    child: Child,
    port: u16,
    /// The process would end with an error if its output were closed.
    _output: BufReader<ChildStdout>,
}

impl Provider {
    fn start(platform: &Platform) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
        let mut child = Command::new("node")
            .current_dir(packages())
            .args(["--input-type=module", "-e", include_str!("provider.mjs"), &port.to_string()])
            .arg(format!("http://localhost:{}{CALLBACK}", platform.port))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("node is installed");
        let (mut output, mut line) = (BufReader::new(child.stdout.take().expect("its output")), String::new());
        output.read_line(&mut line).expect("its output");
        assert_eq!(line.trim(), "listening");
        Self { child, port, _output: output }
    }

    /// How the platform knows it: crews may call, chiefs administer red.
    fn record(&self) -> Value {
        json!({"name": "idp", "issuer": format!("http://127.0.0.1:{}", self.port), "clientId": "faena",
            "clientSecret": "the secret of the client", "scopes": ["profile", "groups"],
            "mappings": [
                {"claim": "groups", "value": "crew", "scopes": ["invoke"]},
                {"claim": "groups", "value": "chiefs", "namespace": "red", "scopes": ["admin"]}]})
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A reply with all its cookies.
#[derive(Debug)]
struct Page {
    status: u16,
    location: Option<String>,
    cookies: Vec<String>,
    body: String,
}

impl Page {
    fn code(&self) -> String {
        let document: Value = serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        document["code"].as_str().expect("a code").to_owned()
    }
}

/// A browser without pages: it follows redirects, and keeps cookies by host.
#[derive(Default)]
struct Browser {
    jar: HashMap<String, HashMap<String, String>>,
}

/// The host and the path of an address.
fn split(address: &str) -> (&str, &str) {
    let rest = address.strip_prefix("http://").expect("an address");
    rest.split_at(rest.find('/').unwrap_or(rest.len()))
}

impl Browser {
    fn named(provider: &Provider, name: &str) -> Self {
        let mut browser = Self::default();
        let host = format!("127.0.0.1:{}", provider.port);
        browser.jar.entry(host).or_default().insert("name".to_owned(), name.to_owned());
        browser
    }

    fn send(&mut self, method: &str, address: &str, headers: &[(&str, &str)]) -> Page {
        let (host, path) = split(address);
        let port = host.rsplit_once(':').expect("a port").1.parse().expect("a port");
        let jar = self.jar.entry(host.to_owned()).or_default();
        let cookies: Vec<String> = jar.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let mut head =
            format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: 0\r\n");
        if !cookies.is_empty() {
            head += &format!("Cookie: {}\r\n", cookies.join("; "));
        }
        headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        let reply = String::from_utf8(raw(port, (head + "\r\n").as_bytes())).expect("text");
        let (head, body) = reply.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{method} {address}: {reply}"));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        let all = |wanted: &str| {
            let lines = head.lines().filter_map(|line| line.split_once(": "));
            let found = lines.filter(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.to_owned());
            found.collect::<Vec<_>>()
        };
        let cookies = all("set-cookie");
        for cookie in &cookies {
            let (name, value) = cookie.split(';').next().and_then(|pair| pair.split_once('=')).expect("a cookie");
            if value.is_empty() {
                jar.remove(name);
            } else {
                jar.insert(name.to_owned(), value.to_owned());
            }
        }
        let location =
            all("location").pop().map(|to| if to.starts_with('/') { format!("http://{host}{to}") } else { to });
        Page { status, location, cookies, body: body.to_owned() }
    }

    /// Goes to the platform's sign-in and on, until it is sent back; the address of the callback.
    fn go_to_provider(&mut self, platform: &Platform, query: &str) -> String {
        self.go_from("none", platform, query)
    }

    /// The same, sent by a page of such a site.
    fn go_from(&mut self, site: &str, platform: &Platform, query: &str) -> String {
        let address = format!("http://localhost:{}/login?{query}", platform.port);
        let mut page = self.send("GET", &address, &[("Sec-Fetch-Site", site)]);
        assert_eq!(page.status, 303, "{page:?}");
        loop {
            let Some(next) = page.location else { panic!("{page:?}") };
            if next.contains(CALLBACK) {
                return next;
            }
            page = self.send("GET", &next, &[]);
            if page.status == 200 {
                // The form sends itself.
                let action = page.body.split("action=\"").nth(1).and_then(|rest| rest.split('"').next());
                let host = split(&next).0;
                page = self.send("POST", &format!("http://{host}{}", action.expect("a form")), &[]);
            }
        }
    }

    /// Signs in.
    fn sign_in(&mut self, platform: &Platform, query: &str) -> Page {
        let callback = self.go_to_provider(platform, query);
        self.send("GET", &callback, &[("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate")])
    }

    fn whoami(&mut self, platform: &Platform) -> Page {
        self.send("GET", &format!("http://localhost:{}/whoami", platform.port), &[])
    }
}

fn as_key(platform: &Platform, key: &str, path: &str) -> Reply {
    let bearer = format!("Bearer {key}");
    faena_test_support::request(platform.port, "GET", path, &[("Authorization", &bearer)], b"")
}

/// A locked platform with the namespace red, and a provider that it knows.
fn with_provider() -> (Platform, Provider) {
    let mut platform = Platform::start();
    platform.lock();
    assert_eq!(platform.post("/namespace", &json!({"name": "red"})).status, 201);
    let provider = Provider::start(&platform);
    let made = platform.post("/provider", &provider.record());
    assert_eq!(made.status, 201, "{}", made.text());
    assert!(!made.text().contains("secret"), "{}", made.text());
    assert_eq!(platform.post("/provider", &provider.record()).status, 200);
    (platform, provider)
}

#[test]
fn a_person_signs_in_and_has_what_the_mappings_give() {
    let (platform, provider) = with_provider();
    let mut ada = Browser::named(&provider, "ada");
    let page = ada.sign_in(&platform, "provider=idp&return=/calls?limit=1");
    assert_eq!(page.status, 200, "{page:?}");
    assert!(page.body.contains("url=/calls?limit=1\""), "{page:?}");
    let session = page.cookies.iter().find(|cookie| cookie.starts_with("__Host-faena-session=")).expect("a session");
    assert!(session.ends_with("; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=43200"), "{session}");
    let whoami: Value = serde_json::from_str(&ada.whoami(&platform).body).expect("JSON");
    assert_eq!((&whoami["namespace"], &whoami["scopes"]), (&json!("default"), &json!(["invoke"])));
    let name = whoami["account"].as_str().expect("a name").to_owned();
    assert!(name.starts_with("idp-") && !name.contains("root"), "{name}");
    let account = platform.get(&format!("/account/{name}")).json();
    assert_eq!(account["metadata"]["subject"], "ada");
    assert_eq!(account["metadata"]["preferred_username"], "root", "shown, and worth nothing");
    let audit = platform.get("/audit?action=GET%20/login/callback/%7Bprovider%7D").json();
    assert_eq!((&audit[0]["account"], &audit[0]["target"]), (&json!(name), &json!(name)), "{audit}");

    // The same person in two namespaces is two accounts; the first mapping that applies says which, unless it is asked for.
    let mut chief = Browser::named(&provider, "chief");
    assert_eq!(chief.sign_in(&platform, "provider=idp&namespace=red").status, 200);
    let whoami: Value = serde_json::from_str(&chief.whoami(&platform).body).expect("JSON");
    assert_eq!((&whoami["namespace"], &whoami["scopes"]), (&json!("red"), &json!(["admin"])));
    for (name, query) in [("nobody", "provider=idp"), ("ada", "provider=idp&namespace=red")] {
        let page = Browser::named(&provider, name).sign_in(&platform, query);
        assert_eq!((page.status, page.code()), (403, "unmapped_identity".to_owned()));
    }
    // Its account has no secret that anybody could guess, and is not the last administrator of its namespace.
    let sign_in = platform.post("/token", &json!({"name": name, "secret": ""}));
    assert_eq!(sign_in.problem(401), "bad_credentials");
    let secret = platform.post(&format!("/account/{name}/secret"), &json!({"new": "twelve bytes or more"}));
    assert_eq!(secret.problem(409), "conflict");
}

#[test]
fn a_session_ends_by_signing_out_by_a_new_mapping_and_with_its_provider() {
    let (platform, provider) = with_provider();
    let own = format!("http://localhost:{}", platform.port);
    let mut ada = Browser::named(&provider, "ada");
    assert_eq!(ada.sign_in(&platform, "provider=idp").status, 200);
    let mut stale = Browser { jar: ada.jar.clone() };
    let out = ada.send("DELETE", &format!("{own}/token"), &[("Origin", &own)]);
    assert_eq!(out.status, 204, "{out:?}");
    assert!(out.cookies[0].starts_with("__Host-faena-session=;") && out.cookies[0].ends_with("Max-Age=0"), "{out:?}");
    assert_eq!((ada.whoami(&platform).status, stale.whoami(&platform).status), (401, 401));

    // Scopes are those of the last sign-in.
    let mut chief = Browser::named(&provider, "chief");
    assert_eq!(chief.sign_in(&platform, "provider=idp&namespace=red").status, 200);
    let made = chief.send("POST", &format!("{own}/key"), &[("Origin", &own)]);
    assert_eq!(made.status, 415, "a body of JSON is needed: {made:?}");
    let mut record = provider.record();
    record["mappings"][1]["scopes"] = json!(["read"]);
    assert_eq!(platform.post("/provider", &record).status, 200);
    assert_eq!(chief.whoami(&platform).status, 401, "other mappings end what those before have given");
    let mut again = Browser::named(&provider, "chief");
    for browser in [&mut chief, &mut again] {
        assert_eq!(browser.sign_in(&platform, "provider=idp&namespace=red").status, 200);
        let whoami: Value = serde_json::from_str(&browser.whoami(&platform).body).expect("JSON");
        assert_eq!(whoami["scopes"], json!(["read"]));
    }
    // The same provider once more changes nothing for who has signed in.
    assert_eq!(platform.post("/provider", &record).status, 200);
    assert_eq!(again.whoami(&platform).status, 200);
    let deleted = platform.send("DELETE", "/provider/idp", &[], b"");
    assert_eq!(deleted.status, 204);
    for browser in [&mut chief, &mut again] {
        assert_eq!(browser.whoami(&platform).status, 401);
    }
    let begun = Browser::default().send("GET", &format!("{own}/login?provider=idp"), &[]);
    assert_eq!((begun.status, begun.code()), (404, "unknown_provider".to_owned()));
}

/// Sets the groups that the provider tells of ada from now on.
fn groups_of_ada(provider: &Provider, groups: &str) {
    let address = format!("http://127.0.0.1:{}/groups?of=ada&are={groups}", provider.port);
    assert_eq!(Browser::default().send("GET", &address, &[]).status, 200);
}

#[test]
fn what_the_provider_takes_away_ends_with_the_next_sign_in() {
    let (platform, provider) = with_provider();
    let mut ada = Browser::named(&provider, "ada");
    assert_eq!(ada.sign_in(&platform, "provider=idp").status, 200);
    groups_of_ada(&provider, "");
    assert_eq!(ada.whoami(&platform).status, 200);
    let refused = Browser::named(&provider, "ada").sign_in(&platform, "provider=idp");
    assert_eq!((refused.status, refused.code()), (403, "unmapped_identity".to_owned()));
    assert_eq!(ada.whoami(&platform).status, 401, "no mapping gives her anything");
}

#[test]
fn another_site_chooses_neither_the_next_page_nor_the_namespace() {
    let (platform, provider) = with_provider();
    for (site, page, namespace) in [("cross-site", "/whoami", "default"), ("none", "/f/dice", "red")] {
        let mut chief = Browser::named(&provider, "chief");
        let callback = chief.go_from(site, &platform, "provider=idp&namespace=red&return=/f/dice");
        let signed_in = chief.send("GET", &callback, &[("Sec-Fetch-Site", "cross-site")]);
        assert!(signed_in.body.contains(&format!("url={page}\"")), "{signed_in:?}");
        assert!(chief.whoami(&platform).body.contains(&format!("\"namespace\":\"{namespace}\"")));
    }
    // The first step does not tell which namespaces there are.
    let nowhere = format!("http://localhost:{}/login?provider=idp&namespace=nowhere", platform.port);
    assert_eq!(Browser::default().send("GET", &nowhere, &[("Sec-Fetch-Site", "none")]).status, 303);
    // A person whose name is taken signs in under another one.
    let name = {
        let mut ada = Browser::named(&provider, "ada");
        assert_eq!(ada.sign_in(&platform, "provider=idp").status, 200);
        let whoami: Value = serde_json::from_str(&ada.whoami(&platform).body).expect("JSON");
        whoami["account"].as_str().expect("a name").to_owned()
    };
    assert_eq!(platform.send("DELETE", &format!("/account/{name}"), &[], b"").status, 204);
    assert_eq!(platform.post("/account", &json!({"name": name, "type": "user"})).status, 201);
    assert_eq!(Browser::named(&provider, "ada").sign_in(&platform, "provider=idp").status, 200);
    // Cookies of others may hold any bytes.
    let mut ada = Browser::named(&provider, "ada");
    assert_eq!(ada.sign_in(&platform, "provider=idp").status, 200);
    let session = ada.jar[&format!("localhost:{}", platform.port)]["__Host-faena-session"].clone();
    let head = "GET /whoami HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nCookie: other=";
    let rest = format!("; __Host-faena-session={session}\r\n\r\n");
    let reply = raw(platform.port, &[head.as_bytes(), &[0xe9], rest.as_bytes()].concat());
    assert!(reply.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&reply));
}

#[test]
fn strangers_who_fail_to_sign_in_with_a_provider_keep_nobody_from_a_secret() {
    let (platform, _provider) = with_provider();
    let address = format!("http://localhost:{}{CALLBACK}?code=c&state=s", platform.port);
    for _ in 0..105 {
        assert_eq!(Browser::default().send("GET", &address, &[]).status, 401);
    }
    platform.signed_in("root", faena_test_support::SECRET, "default");
}

#[test]
fn keys_of_an_identity_end_some_time_after_its_last_sign_in() {
    let mut platform = Platform::stopped();
    std::fs::write(platform.settings_file(), "sign_in_keys_last = \"3s\"\n").expect("settings");
    platform.start_role(Role::Up);
    platform.ready();
    platform.lock();
    let provider = Provider::start(&platform);
    let mut record = provider.record();
    record["mappings"] = json!([{"claim": "sub", "value": "ada", "scopes": ["read"]}]);
    assert_eq!(platform.post("/provider", &record).status, 201);
    let mut ada = Browser::named(&provider, "ada");
    assert_eq!(ada.sign_in(&platform, "provider=idp").status, 200);
    let own = format!("http://localhost:{}", platform.port);
    let cookie = &ada.jar[&format!("localhost:{}", platform.port)]["__Host-faena-session"];
    let cookie = format!("__Host-faena-session={cookie}");
    let headers = [("Cookie", &*cookie), ("Origin", &own), ("Content-Type", "application/json")];
    let host = format!("localhost:{}", platform.port);
    let headers = [headers.as_slice(), &[("Host", &host)]].concat();
    let made = faena_test_support::request(platform.port, "POST", "/key", &headers, br#"{"name":"laptop"}"#);
    assert_eq!(made.status, 201, "{}", made.text());
    let key = made.json()["key"].as_str().expect("a key").to_owned();
    assert_eq!(as_key(&platform, &key, "/whoami").status, 200);
    eventually(SOON, "the key has ended", || match as_key(&platform, &key, "/whoami").status {
        401 => Ok(()),
        status => Err(status),
    });
    assert_eq!(ada.whoami(&platform).status, 200, "the session goes on");
    assert_eq!(ada.sign_in(&platform, "provider=idp").status, 200);
    assert_eq!(as_key(&platform, &key, "/whoami").status, 200, "and so does the key after a sign-in");
}

#[test]
fn what_another_site_or_another_browser_sends_is_refused() {
    let (platform, provider) = with_provider();
    let own = format!("http://localhost:{}", platform.port);
    let mut ada = Browser::named(&provider, "ada");
    let callback = ada.go_to_provider(&platform, "provider=idp");
    let refused = |page: Page| assert_eq!((page.status, page.code()), (401, "sign_in_failed".to_owned()));
    // Another browser has begun no sign-in, or another one.
    refused(Browser::default().send("GET", &callback, &[]));
    let mut other = Browser::named(&provider, "ada");
    other.go_to_provider(&platform, "provider=idp");
    refused(other.send("GET", &callback, &[]));
    // A state that is missing or was changed; each ends the sign-in.
    let (address, query) = callback.split_once('?').expect("a query");
    let without: Vec<&str> = query.split('&').filter(|pair| !pair.starts_with("state=")).collect();
    for query in [without.join("&"), format!("{}&state=x", without.join("&")), String::new(), "error=x".to_owned()] {
        let mut copy = Browser { jar: ada.jar.clone() };
        refused(copy.send("GET", &format!("{address}?{query}"), &[]));
        refused(copy.send("GET", &callback, &[]));
    }
    let before = Browser { jar: ada.jar.clone() };
    assert_eq!(ada.send("GET", &callback, &[]).status, 200);
    // Once more: this browser has forgotten it, and the provider does not take its code again.
    refused(ada.send("GET", &callback, &[]));
    refused(Browser { jar: before.jar }.send("GET", &callback, &[]));

    // The cookie alone changes nothing: the request has to come from a page of this origin.
    for origin in [None, Some("null"), Some("http://evil.example"), Some("http://localhost:1")] {
        let headers: Vec<(&str, &str)> = origin.iter().map(|origin| ("Origin", *origin)).collect();
        for (method, path) in [("DELETE", "/token"), ("POST", "/key"), ("POST", "/invokeFunction"), ("POST", "/f/echo")]
        {
            let page = ada.send(method, &format!("{own}{path}"), &headers);
            assert_eq!(
                (page.status, page.code()),
                (403, "foreign_origin".to_owned()),
                "{method} {path} from {origin:?}"
            );
        }
    }
    assert_eq!(ada.send("GET", &format!("{own}/f/echo"), &[]).code(), "foreign_origin", "a call is no look");
    assert_eq!(ada.whoami(&platform).status, 200, "nothing has happened");
    // A credential stays in its place.
    let host = format!("localhost:{}", platform.port);
    let cookie = ada.jar[&host]["__Host-faena-session"].clone();
    assert_eq!(as_key(&platform, &cookie, "/whoami").problem(401), "unauthenticated");
    let root = platform.credential.clone().expect("a token");
    ada.jar.entry(host).or_default().insert("__Host-faena-session".to_owned(), root);
    assert_eq!(ada.whoami(&platform).code(), "unauthenticated");
}

#[test]
fn bad_providers_and_bad_sign_ins_are_told() {
    let (platform, provider) = with_provider();
    let put = |change: &dyn Fn(&mut Value)| {
        let mut record = provider.record();
        record["name"] = json!("other");
        change(&mut record);
        platform.post("/provider", &record)
    };
    for (issuer, code) in [("http://idp.example.org", "invalid_provider"), ("nonsense", "invalid_provider")] {
        assert_eq!(put(&|record| record["issuer"] = json!(issuer)).problem(422), code);
    }
    assert_eq!(put(&|record| record["ca"] = json!("none")).problem(422), "invalid_provider");
    assert_eq!(put(&|record| record["scopes"] = json!(["a b"])).problem(422), "invalid_provider");
    assert_eq!(put(&|record| record["mappings"][0]["namespace"] = json!("gone")).problem(422), "invalid_provider");
    assert_eq!(put(&|record| record["mappings"][0]["scope"] = json!("x")).problem(400), "malformed_json");
    assert_eq!(put(&|record| record["name"] = json!("..")).problem(400), "invalid_name");
    assert_eq!(put(&|record| record["issuer"] = json!("http://127.0.0.1:1")).status, 201);
    let login = |query: &str, host: &str| {
        faena_test_support::request(platform.port, "GET", &format!("/login?{query}"), &[("Host", host)], b"")
    };
    assert_eq!(login("provider=other", "localhost").problem(502), "provider_unavailable");
    assert_eq!(login("provider=gone", "localhost").problem(404), "unknown_provider");
    for query in ["", "provider=idp&return=//evil.example", "provider=idp&return=https://evil.example", "who=idp"] {
        assert_eq!(login(query, "localhost").problem(400), "invalid_query", "{query}");
    }
    assert_eq!(login("provider=idp", "evil.example").problem(421), "foreign_host");
    assert_eq!(platform.get("/provider/idp").json()["clientId"], "faena");
    assert_eq!(platform.get("/providers").json().as_array().map(Vec::len), Some(2));
}

#[test]
fn chromium_signs_in_through_the_provider() {
    let (platform, provider) = with_provider();
    let profile = tempfile::tempdir().expect("a folder");
    let output = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--virtual-time-budget=20000"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg("--dump-dom")
        .arg(format!("http://localhost:{}/login?provider=idp", platform.port))
        .stdin(Stdio::null())
        .output()
        .expect("chromium is installed");
    let page = String::from_utf8_lossy(&output.stdout);
    assert!(page.contains("\"account\":\"idp-") && page.contains("\"invoke\""), "{page}");
    drop(provider);
}
