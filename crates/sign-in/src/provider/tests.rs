//! Sign-ins with a provider on loopback that tells the truth, or one lie.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::UNIX_EPOCH;

use hmac::{Hmac, KeyInit, Mac};
use openidconnect::core::CoreEdDsaPrivateSigningKey;
use openidconnect::{JsonWebKeyId, PrivateSigningKey};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::*;

const CLIENT: &str = "faena";
const SECRET: &str = "the secret of the client";
const REDIRECT: &str = "https://faena.example.org/login/callback/fake";

/// What the provider does otherwise than it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    None,
    Issuer,
    Audience,
    TwoAudiences,
    Unsigned,
    SignedWithTheSecret,
    UnknownKey,
    ForeignKey,
    Nonce,
    Expired,
    HourAhead,
    HourBehind,
    OtherSubject,
    NewKeys,
}

struct Fake {
    lie: Lie,
    issuer: String,
    /// The challenge and the nonce of the sign-in under way.
    begun: Mutex<(String, String)>,
    /// How often its keys were read.
    read: Mutex<u32>,
}

fn key(seed: u8, id: &str) -> CoreEdDsaPrivateSigningKey {
    // An Ed25519 key as PKCS #8 (RFC 8410, 7).
    let mut der = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    der.extend([seed; 32]);
    let pem = base64::engine::general_purpose::STANDARD.encode(der);
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{pem}\n-----END PRIVATE KEY-----\n");
    CoreEdDsaPrivateSigningKey::from_ed25519_pem(&pem, Some(JsonWebKeyId::new(id.to_owned()))).unwrap()
}

fn form(text: &str, name: &str) -> Option<String> {
    let mut pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value.replace("%3A", ":").replace("%2F", "/"))
}

impl Fake {
    /// Serves until the test ends.
    fn start(lie: Lie) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let issuer = format!("http://{}", listener.local_addr().unwrap());
        let fake = Arc::new(Self { lie, issuer, begun: Mutex::default(), read: Mutex::default() });
        let served = Arc::clone(&fake);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let served = Arc::clone(&served);
                std::thread::spawn(move || served.answer(stream.unwrap()));
            }
        });
        fake
    }

    fn answer(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream);
        let (mut first, mut length) = (String::new(), 0);
        reader.read_line(&mut first).unwrap();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            if line.trim().is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').unwrap();
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let (status, answer) = self.route(first.split(' ').nth(1).unwrap(), &String::from_utf8(body).unwrap());
        let text = answer.to_string();
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            text.len()
        );
        reader.into_inner().write_all((head + &text).as_bytes()).unwrap();
    }

    fn route(&self, path: &str, body: &str) -> (u16, Value) {
        let issuer = &self.issuer;
        match path {
            "/.well-known/openid-configuration" => (
                200,
                json!({"issuer": issuer, "authorization_endpoint": format!("{issuer}/auth"), "token_endpoint": format!("{issuer}/token"),
                    "userinfo_endpoint": format!("{issuer}/me"), "jwks_uri": format!("{issuer}/keys"),
                    "response_types_supported": ["code"], "subject_types_supported": ["public"],
                    "id_token_signing_alg_values_supported": ["EdDSA", "HS256", "none"],
                    "authorization_response_iss_parameter_supported": true}),
            ),
            "/keys" => {
                let mut read = self.read.lock();
                *read += 1;
                let id = if self.lie == Lie::NewKeys && *read == 1 { "old" } else { "one" };
                let seed = if id == "old" { 2 } else { 1 };
                (200, json!({"keys": [key(seed, id).as_verification_key()]}))
            }
            "/token" => {
                let (challenge, nonce) = self.begun.lock().clone();
                let verifier = form(body, "code_verifier").unwrap_or_default();
                if BASE64.encode(Sha256::digest(verifier)) != challenge || form(body, "code").as_deref() != Some("c") {
                    return (400, json!({"error": "invalid_grant"}));
                }
                (200, json!({"access_token": "a", "token_type": "Bearer", "id_token": self.token(&nonce)}))
            }
            "/me" => {
                let subject = if self.lie == Lie::OtherSubject { "somebody" } else { "ann" };
                (200, json!({"sub": subject, "groups": ["crew"], "email": "forged@example.org"}))
            }
            other => panic!("{other}"),
        }
    }

    fn token(&self, nonce: &str) -> String {
        let lie = self.lie;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let now = match lie {
            Lie::HourAhead => now + 3600,
            Lie::HourBehind => now - 3600,
            _ => now,
        };
        let expires = if lie == Lie::Expired { now - 60 } else { now + 7200 };
        let issuer = if lie == Lie::Issuer { "http://127.0.0.1:1" } else { self.issuer.as_str() };
        let audience = match lie {
            Lie::Audience => json!("another client"),
            Lie::TwoAudiences => json!([CLIENT, "another client"]),
            _ => json!(CLIENT),
        };
        let nonce = if lie == Lie::Nonce { "another" } else { nonce };
        let claims = json!({"iss": issuer, "sub": "ann", "aud": audience, "exp": expires, "iat": now, "nonce": nonce,
            "email": "ann@example.org"});
        let (algorithm, id) = match lie {
            Lie::Unsigned => ("none", "one"),
            Lie::SignedWithTheSecret => ("HS256", "one"),
            Lie::UnknownKey => ("EdDSA", "unknown"),
            _ => ("EdDSA", "one"),
        };
        let head = json!({"alg": algorithm, "kid": id, "typ": "JWT"});
        let text = format!("{}.{}", BASE64.encode(head.to_string()), BASE64.encode(claims.to_string()));
        let seed = if lie == Lie::ForeignKey { 2 } else { 1 };
        let signature = match lie {
            Lie::Unsigned => Vec::new(),
            Lie::SignedWithTheSecret => {
                let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
                mac.update(text.as_bytes());
                mac.finalize().into_bytes().to_vec()
            }
            _ => key(seed, id).sign(&CoreJwsSigningAlgorithm::EdDsa, text.as_bytes()).unwrap(),
        };
        format!("{text}.{}", BASE64.encode(signature))
    }

    fn provider(&self) -> Provider {
        let config = ProviderConfig {
            issuer: self.issuer.clone(),
            client_id: CLIENT.to_owned(),
            client_secret: Some(SECRET.to_owned()),
            scopes: vec!["profile".to_owned()],
            authorities: None,
        };
        Provider::new(config).unwrap()
    }

    fn callback(&self, pending: &Pending) -> Callback {
        Callback {
            code: Some("c".to_owned()),
            state: Some(pending.state.clone()),
            issuer: Some(self.issuer.clone()),
            ..Callback::default()
        }
    }

    /// Begins a sign-in; the provider learns of it as it would from the browser.
    fn begin(&self, provider: &Provider) -> Pending {
        let (url, pending) = provider.begin(REDIRECT.to_owned()).unwrap();
        let query = url.strip_prefix(&format!("{}/auth?", self.issuer)).unwrap();
        assert_eq!(form(query, "code_challenge_method").as_deref(), Some("S256"), "{query}");
        assert_eq!(form(query, "scope").as_deref(), Some("openid+profile"));
        assert_eq!(form(query, "redirect_uri").as_deref(), Some(REDIRECT));
        *self.begun.lock() = (form(query, "code_challenge").unwrap(), form(query, "nonce").unwrap());
        pending
    }

    fn sign_in(&self) -> Result<Identity, SignInError> {
        let provider = self.provider();
        let pending = self.begin(&provider);
        provider.finish(REDIRECT.to_owned(), self.callback(&pending), pending, &["groups"])
    }
}

fn refused(result: Result<Identity, SignInError>) -> String {
    match result {
        Err(SignInError::Refused(cause)) => cause,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_person_signs_in_and_what_was_signed_counts_more() {
    for lie in [Lie::None, Lie::NewKeys] {
        let fake = Fake::start(lie);
        let identity = fake.sign_in().unwrap();
        assert_eq!((&*identity.issuer, &*identity.subject), (&*fake.issuer, "ann"));
        assert_eq!(
            (&identity.claims["groups"], &identity.claims["email"]),
            (&json!(["crew"]), &json!("ann@example.org"))
        );
    }
}

#[test]
fn a_provider_that_lies_signs_nobody_in() {
    for (lie, cause) in [
        (Lie::Issuer, "issuer"),
        (Lie::Audience, "audience"),
        (Lie::TwoAudiences, "audience"),
        (Lie::Unsigned, "ignature"),
        (Lie::SignedWithTheSecret, "ignature"),
        (Lie::UnknownKey, "No matching key"),
        (Lie::ForeignKey, "ignature"),
        (Lie::Nonce, "nonce"),
        (Lie::Expired, "Expired"),
        (Lie::HourAhead, "clocks"),
        (Lie::HourBehind, "clocks"),
        (Lie::OtherSubject, "another person"),
    ] {
        let told = refused(Fake::start(lie).sign_in());
        assert!(told.contains(cause), "{lie:?}: {told}");
    }
}

#[test]
fn an_answer_that_does_not_belong_to_this_sign_in_is_refused() {
    let fake = Fake::start(Lie::None);
    let provider = fake.provider();
    let pending = fake.begin(&provider);
    let finish = |callback: Callback, pending: Pending| provider.finish(REDIRECT.to_owned(), callback, pending, &[]);
    let right = fake.callback(&pending);
    for state in [None, Some(String::new()), Some("another".to_owned())] {
        assert!(refused(finish(Callback { state, ..right.clone() }, pending.clone())).contains("this browser"));
    }
    for issuer in [None, Some("http://127.0.0.1:1".to_owned())] {
        assert!(refused(finish(Callback { issuer, ..right.clone() }, pending.clone())).contains("issuer"));
    }
    assert!(refused(finish(Callback { code: None, ..right.clone() }, pending.clone())).contains("no code"));
    let other = Pending { verifier: "v".repeat(43), ..pending.clone() };
    assert!(refused(finish(right.clone(), other)).contains("refuses the code"));
    let denied = Callback { error: Some("access_denied".to_owned()), code: None, ..right.clone() };
    assert!(matches!(finish(denied, pending.clone()), Err(SignInError::Denied(_))));
    assert!(finish(right, pending).is_ok());
}

#[test]
fn a_provider_that_is_not_there_or_not_https_is_not_asked() {
    let config = |issuer: &str| ProviderConfig {
        issuer: issuer.to_owned(),
        client_id: CLIENT.to_owned(),
        client_secret: None,
        scopes: Vec::new(),
        authorities: None,
    };
    for issuer in ["http://idp.example.org", "ftp://127.0.0.1", "nonsense", ""] {
        assert!(matches!(Provider::new(config(issuer)), Err(SignInError::Configuration(_))), "{issuer}");
    }
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let begun = Provider::new(config(&format!("http://{nobody}"))).unwrap().begin(REDIRECT.to_owned());
    assert!(matches!(begun, Err(SignInError::Unreachable(_))), "{begun:?}");
    let no_authority = ProviderConfig { authorities: Some("none".to_owned()), ..config("https://idp.example.org") };
    assert!(matches!(Provider::new(no_authority), Err(SignInError::Configuration(_))));
}
