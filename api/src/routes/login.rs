//! Signing in with an identity provider, in a browser.
//!
//! What has to be kept between both steps lies in a cookie of the browser, so that any api can do the second step, and one that
//! another browser has begun cannot be finished.

use axum::Extension;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use faena_domain::{Namespace, ProviderName};
use faena_protocol::db::ProviderGet;
use faena_sign_in::{Callback, Pending};
use serde::{Deserialize, Serialize};

use crate::access::{Audited, Network, Origin, SESSION_COOKIE, cookie};
use crate::actions::identities::{self, ProviderAnswer, SignedIn};
use crate::app::App;
use crate::entrance::host_name;
use crate::path::Path;
use crate::problem::{ErrorCode, Problem, Reply};

/// The cookie that is kept between both steps.
const LOGIN_COOKIE: &str = "__Host-faena-login";
/// How long a person may take at the provider, in seconds.
const LOGIN_SECONDS: i64 = 600;
/// Where a browser goes after a sign-in that does not say where.
const HOME: &str = "/whoami";
/// The longest path to go to after a sign-in.
const MAX_RETURN: usize = 1000;
/// What the browser keeps between both steps.
#[derive(Serialize, Deserialize)]
struct Kept {
    provider: ProviderName,
    namespace: Option<Namespace>,
    back: String,
    pending: Pending,
}

fn set_cookie(name: &str, value: &str, seconds: i64) -> Reply<HeaderValue> {
    let text = format!("{name}={value}; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age={seconds}");
    HeaderValue::from_str(&text).map_err(|error| Problem::internal("making a cookie", &error))
}

/// Ends the session of a browser.
pub(super) fn clear_session() -> Reply<HeaderValue> {
    set_cookie(SESSION_COOKIE, "", 0)
}

/// Where the provider sends the browser back to.
fn redirect(headers: &HeaderMap, origin: &Origin, provider: &ProviderName) -> Reply<String> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let is_loopback = matches!(host_name(host), "localhost" | "127.0.0.1" | "[::1]");
    let scheme = match (origin.is_secure, is_loopback) {
        (true, _) => "https",
        (false, true) => "http",
        (false, false) => {
            let detail =
                format!("a browser takes the cookie of a session over HTTPS alone, and {host} is asked over HTTP");
            return Err(Problem::new(ErrorCode::InsecureSignIn, detail));
        }
    };
    Ok(format!("{scheme}://{host}/login/callback/{provider}"))
}

fn invalid_query(detail: &str) -> Problem {
    Problem::new(ErrorCode::InvalidQuery, detail.to_owned())
}

/// Whether the browser says that a page of this platform, or the person, has sent it here.
fn is_own_choice(headers: &HeaderMap) -> bool {
    headers.get("sec-fetch-site").is_some_and(|site| site == "same-origin" || site == "none")
}

/// A path of this origin.
fn is_path(path: &str) -> bool {
    let is_absolute = path.starts_with('/') && !path.starts_with("//") && !path.starts_with("/\\");
    is_absolute && path.len() <= MAX_RETURN && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"')
}

/// Sends a browser to an identity provider.
#[utoipa::path(get, path = "/login", tag = "accounts", params(("provider" = String, Query, description = "the identity provider"), ("namespace" = Option<String>, Query, description = "the namespace to sign in to, where there are several"), ("return" = Option<String>, Query, description = "the path to go to after that")),
    responses((status = 303, description = "The address of the provider"), (status = 404, description = "There is no such provider", body = Problem), (status = 502, description = "The provider cannot be asked", body = Problem)))]
pub(crate) async fn begin(
    State(app): State<App>,
    Extension(origin): Extension<Origin>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Reply<Response> {
    let (mut provider, mut namespace, mut back) = (None, None, HOME.to_owned());
    for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        match &*name {
            "provider" => provider = Some(value.parse::<ProviderName>()?),
            "namespace" => namespace = Some(super::accounts::namespace(&value)?),
            "return" if is_path(&value) => back = value.into_owned(),
            "return" => return Err(invalid_query("return is a path of this platform, as /whoami")),
            _ => return Err(invalid_query("the parameters are provider, namespace and return")),
        }
    }
    let provider = provider.ok_or_else(|| invalid_query("the parameter provider is missing: /login?provider=NAME"))?;
    // A page of another site may send a browser here, and must choose neither what it does next nor for which namespace.
    if !is_own_choice(&headers) {
        (namespace, back) = (None, HOME.to_owned());
    }
    let redirect = redirect(&headers, &origin, &provider)?;
    let attempt = app.access().attempt_from(Network::from(origin.address))?;
    let login = app.db().ask(&ProviderGet { name: provider.clone() }).await?;
    let (address, pending) = app.providers().ask(login, move |provider| provider.begin(redirect)).await?;
    // Nothing was tried yet.
    attempt.withdraw();
    let kept = serde_json::to_vec(&Kept { provider, namespace, back, pending });
    let kept = BASE64.encode(kept.map_err(|error| Problem::internal("making a cookie", &error))?);
    let address = HeaderValue::from_str(&address).map_err(|error| Problem::internal("making an address", &error))?;
    let cookie = set_cookie(LOGIN_COOKIE, &kept, LOGIN_SECONDS)?;
    let headers = [(header::LOCATION, address), (header::SET_COOKIE, cookie), (header::CACHE_CONTROL, NO_STORE)];
    Ok((StatusCode::SEE_OTHER, headers).into_response())
}

const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

fn callback(query: Option<&str>) -> Callback {
    let mut callback = Callback::default();
    for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        let field = match &*name {
            "code" => &mut callback.code,
            "state" => &mut callback.state,
            "iss" => &mut callback.issuer,
            "error" => &mut callback.error,
            "error_description" => &mut callback.error_description,
            // A provider may add parameters of its own (RFC 6749, 4.1.2).
            _ => continue,
        };
        *field = Some(value.into_owned());
    }
    callback
}

/// Signs in who comes back from an identity provider.
#[utoipa::path(get, path = "/login/callback/{provider}", tag = "accounts", params(("provider" = String, Path,), ("code" = Option<String>, Query, description = "the provider's code"), ("state" = Option<String>, Query, description = "what the browser was sent with"), ("iss" = Option<String>, Query, description = "the provider's issuer identifier"), ("error" = Option<String>, Query, description = "why there is no code"), ("error_description" = Option<String>, Query, description = "the same in words")),
    responses((status = 200, description = "A page that goes on, and the cookie of the session"), (status = 401, description = "Nobody has signed in", body = Problem), (status = 403, description = "No mapping applies to the identity", body = Problem)))]
pub(crate) async fn finish(
    State(app): State<App>,
    Extension(origin): Extension<Origin>,
    Path(provider): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let signed_in = sign_in(&app, &origin, provider, query.as_deref(), &headers).await;
    let mut response = signed_in.unwrap_or_else(IntoResponse::into_response);
    // A sign-in is finished once, however it ends.
    if let Ok(cookie) = set_cookie(LOGIN_COOKIE, "", 0) {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    response
}

async fn sign_in(
    app: &App,
    origin: &Origin,
    provider: String,
    query: Option<&str>,
    headers: &HeaderMap,
) -> Reply<Response> {
    let provider: ProviderName = provider.parse()?;
    let not_begun = || {
        let detail = "the sign-in was not begun by this browser, or was finished already";
        Problem::new(ErrorCode::SignInFailed, detail).hint("begin again at /login?provider=NAME")
    };
    let kept = cookie(headers, LOGIN_COOKIE).and_then(|text| BASE64.decode(text).ok());
    let kept: Kept = kept.and_then(|bytes| serde_json::from_slice(&bytes).ok()).ok_or_else(not_begun)?;
    if kept.provider != provider || !is_path(&kept.back) {
        return Err(not_begun());
    }
    let redirect = redirect(headers, origin, &provider)?;
    let attempt = app.access().attempt_from(Network::from(origin.address))?;
    let answer = ProviderAnswer { redirect, callback: callback(query), pending: kept.pending };
    let SignedIn { account, cookie, seconds } =
        identities::sign_in(app, provider, answer, kept.namespace.as_ref()).await?;
    attempt.succeeded();
    let cookie = set_cookie(SESSION_COOKIE, &cookie, seconds)?;
    let audited = Audited {
        account: Some(account.name.to_string()),
        target: Some(account.name.to_string()),
        namespace: Some(account.namespace),
    };
    Ok((Extension(audited), page(&kept.back, cookie)?).into_response())
}

/// A page that goes on by itself. A redirect would still count as sent by the provider's site, and be refused.
fn page(back: &str, cookie: HeaderValue) -> Reply<Response> {
    let back = back.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&#39;");
    let html = format!(
        "<!doctype html><meta charset=utf-8><meta http-equiv=refresh content=\"0;url={back}\"><title>Signed in</title>\
         <p>You are signed in. <a href=\"{back}\">Go on</a>"
    );
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (header::CACHE_CONTROL, NO_STORE),
        (header::SET_COOKIE, cookie),
    ];
    Ok((StatusCode::OK, headers, html).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_goes_on_within_this_origin() {
        for path in ["/whoami", "/", "/calls?limit=1", "/a'b<c"] {
            assert!(is_path(path), "{path}");
        }
        let long = format!("/{}", "a".repeat(MAX_RETURN));
        for path in
            ["", "whoami", "//evil.example", "/\\evil.example", "https://evil.example", "/a b", "/a\"", "/\n", &long]
        {
            assert!(!is_path(path), "{path}");
        }
    }
}
