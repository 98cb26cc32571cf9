//! What a process of the user finds in its environment.

use std::collections::BTreeMap;

/// The most bytes of names and values that a runtime or a function may set.
pub const MAX_ENV: usize = 4096;

/// Why variables were refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEnv {
    /// The name of a variable.
    #[error("{0:?} is no name of a variable: letters, digits and _, no digit first")]
    Name(String),
    /// A name of the platform or of the dynamic linker.
    #[error("the variable {0} belongs to the platform or the dynamic linker and cannot be set")]
    Reserved(String),
    /// A value with a NUL in it.
    #[error("the value of {0} holds a NUL character")]
    Value(String),
    /// More than [`MAX_ENV`].
    #[error("the variables have more than {MAX_ENV} bytes in all")]
    TooLarge,
}

/// Judges the variables that a runtime or a function sets.
///
/// # Errors
/// The first variable that cannot be set.
pub fn check_env(env: &BTreeMap<String, String>) -> Result<(), InvalidEnv> {
    for (name, value) in env {
        let shown = || name.chars().take(80).collect::<String>();
        if !is_variable(name) {
            return Err(InvalidEnv::Name(shown()));
        }
        if is_reserved(name) {
            return Err(InvalidEnv::Reserved(shown()));
        }
        if value.contains('\0') {
            return Err(InvalidEnv::Value(shown()));
        }
    }
    let bytes: usize = env.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
    if bytes > MAX_ENV { Err(InvalidEnv::TooLarge) } else { Ok(()) }
}

/// Whether this can be the name of a variable: letters, digits and `_`, no digit first.
pub fn is_variable(name: &str) -> bool {
    let plain = name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_');
    plain && name.bytes().next().is_some_and(|c| !c.is_ascii_digit())
}

/// Whether nobody but the platform sets this variable; an image's own is dropped too.
pub fn is_reserved(name: &str) -> bool {
    name.starts_with("LD_") || name.starts_with("FAENA_") || matches!(name, "TRACEPARENT" | "PORT")
}

/// Folders of programs that a build put below `path`, each with a colon behind it; they go before the image's `PATH`.
pub fn path_prefix(path: &str) -> String {
    [".venv/bin", ".local/bin", "node_modules/.bin", ".gem/bin", ".cargo/bin", ".go/bin"]
        .iter()
        .fold(String::new(), |prefix, folder| format!("{prefix}{path}/{folder}:"))
}

/// Where the package managers find what a build put below `path`; the same for builds and calls. Nothing here stands in
/// the way of an explicit destination: pip installs for the user by itself where the system's folders cannot be written.
///
/// pip's variables: pip.pypa.io, "Configuration", "Environment Variables"; Python's: docs.python.org, `PYTHONUSERBASE`.
pub fn package_variables(path: &str) -> BTreeMap<String, String> {
    let below = |name: &str| format!("{path}/{name}");
    let one = || "1".to_owned();
    [
        ("HOME", "/tmp".to_owned()),
        ("TMPDIR", "/tmp".to_owned()),
        ("PYTHONUSERBASE", below(".local")),
        ("PIP_BREAK_SYSTEM_PACKAGES", one()),
        ("PIP_IGNORE_INSTALLED", one()),
        ("PIP_DISABLE_PIP_VERSION_CHECK", one()),
        ("PIP_NO_INPUT", one()),
        ("POETRY_VIRTUALENVS_IN_PROJECT", "true".to_owned()),
        ("GEM_HOME", below(".gem")),
        ("GOBIN", below(".go/bin")),
        ("CARGO_INSTALL_ROOT", below(".cargo")),
        ("npm_config_update_notifier", "false".to_owned()),
        ("npm_config_fund", "false".to_owned()),
        ("npm_config_audit", "false".to_owned()),
        ("LANG", "C.UTF-8".to_owned()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

/// A request as CGI programs find it (RFC 3875, 4.1). A header with `_` in its name could pass for another; `Proxy` would
/// become `HTTP_PROXY`, which many programs believe (CVE-2016-5385). Values with a NUL, which no variable can hold, are left
/// out.
pub fn cgi_variables(
    method: &str,
    path: &str,
    query: &str,
    headers: BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut env: BTreeMap<String, String> = [("REQUEST_METHOD", method), ("PATH_INFO", path), ("QUERY_STRING", query)]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    for (name, value) in headers {
        let variable = match name.as_str() {
            "content-type" => "CONTENT_TYPE".to_owned(),
            "proxy" => continue,
            name if name.contains('_') => continue,
            name => format!("HTTP_{}", name.to_ascii_uppercase().replace('-', "_")),
        };
        env.insert(variable, value);
    }
    env.retain(|_, value| !value.contains('\0'));
    env
}

/// Where the usual tools of a build look for certificate authorities.
pub fn ca_variables(bundle: &str) -> BTreeMap<String, String> {
    [
        "SSL_CERT_FILE",
        "CURL_CA_BUNDLE",
        "REQUESTS_CA_BUNDLE",
        "PIP_CERT",
        "NODE_EXTRA_CA_CERTS",
        "npm_config_cafile",
        "GIT_SSL_CAINFO",
        "CARGO_HTTP_CAINFO",
        "BUNDLE_SSL_CA_CERT",
    ]
    .into_iter()
    .map(|name| (name.to_owned(), bundle.to_owned()))
    .collect()
}

/// Where tools find the proxy that listens on this port of the instance's own loopback.
pub fn proxy_variables(port: u16) -> BTreeMap<String, String> {
    let proxy = format!("http://127.0.0.1:{port}");
    let mut env: BTreeMap<String, String> =
        ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "npm_config_proxy", "npm_config_https_proxy"]
            .into_iter()
            .map(|name| (name.to_owned(), proxy.clone()))
            .collect();
    env.insert("NO_PROXY".to_owned(), "localhost,127.0.0.1".to_owned());
    env.insert("no_proxy".to_owned(), "localhost,127.0.0.1".to_owned());
    env.insert(
        "JAVA_TOOL_OPTIONS".to_owned(),
        format!(
            "-Dhttp.proxyHost=127.0.0.1 -Dhttp.proxyPort={port} -Dhttps.proxyHost=127.0.0.1 -Dhttps.proxyPort={port}"
        ),
    );
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_sets_no_variable_that_programs_believe() {
        let headers = ["content-type", "x-event", "proxy", "x_event", "content-length"];
        let headers = headers.iter().map(|name| ((*name).to_owned(), "v".to_owned())).collect();
        let env = cgi_variables("GET", "/a", "b=c", headers);
        let names: Vec<&str> = env.keys().map(String::as_str).collect();
        let expected =
            ["CONTENT_TYPE", "HTTP_CONTENT_LENGTH", "HTTP_X_EVENT", "PATH_INFO", "QUERY_STRING", "REQUEST_METHOD"];
        assert_eq!(names, expected);
    }

    fn one(name: &str, value: &str) -> Result<(), InvalidEnv> {
        check_env(&BTreeMap::from([(name.to_owned(), value.to_owned())]))
    }

    #[test]
    fn ordinary_variables_are_taken_and_the_platforms_are_not() {
        assert_eq!(one("GREETING", "hola"), Ok(()));
        for name in ["LD_PRELOAD", "FAENA_CALL", "TRACEPARENT", "PORT"] {
            assert_eq!(one(name, "x"), Err(InvalidEnv::Reserved(name.to_owned())));
        }
        for name in ["", "1A", "A-B", "A=B", "Ä"] {
            assert!(matches!(one(name, "x"), Err(InvalidEnv::Name(_))), "{name}");
        }
        assert!(matches!(one("A", "a\0b"), Err(InvalidEnv::Value(_))));
        assert_eq!(one("A", &"x".repeat(5000)), Err(InvalidEnv::TooLarge));
    }
}
