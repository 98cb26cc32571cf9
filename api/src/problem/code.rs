//! Every code that a problem document may have.

use axum::http::StatusCode;
use serde::{Serialize, Serializer};

macro_rules! codes {
    ($($variant:ident, $code:literal, $status:ident, $title:literal;)*) => {
        /// What kind of problem it is: stable, for programs. Each has a page in docs/errors/.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum ErrorCode {
            $(#[doc = $title] $variant,)*
        }

        impl ErrorCode {
            /// All of them.
            #[cfg(test)]
            pub(crate) const ALL: &[Self] = &[$(Self::$variant,)*];

            /// As it is written.
            pub(crate) fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $code,)* }
            }

            /// The status of every reply with it.
            pub(crate) fn status(self) -> StatusCode {
                match self { $(Self::$variant => StatusCode::$status,)* }
            }

            /// The kind of problem in words.
            pub(crate) fn title(self) -> &'static str {
                match self { $(Self::$variant => $title,)* }
            }
        }
    };
}

codes! {
    AlreadyEnded, "already_ended", CONFLICT, "The call has ended already";
    AdministratorNeeded, "administrator_needed", UNPROCESSABLE_ENTITY, "The first account must be an administrator";
    BadCredentials, "bad_credentials", UNAUTHORIZED, "The name or the secret is wrong";
    BrokenBody, "broken_body", BAD_REQUEST, "The body did not arrive whole";
    BrokenUpload, "broken_upload", BAD_REQUEST, "The upload is damaged";
    BuildFailed, "build_failed", BAD_GATEWAY, "The version could not be built";
    Busy, "busy", SERVICE_UNAVAILABLE, "Too much is going on at once";
    CallLoop, "call_loop", LOOP_DETECTED, "Functions call each other";
    CallbackLoop, "callback_loop", UNPROCESSABLE_ENTITY, "Callbacks lead to each other";
    Cancelled, "cancelled", CONFLICT, "The call was cancelled";
    Conflict, "conflict", CONFLICT, "The request contradicts what is there";
    DamagedArchive, "damaged_archive", BAD_REQUEST, "The archive is damaged";
    DatabaseUnavailable, "database_unavailable", SERVICE_UNAVAILABLE, "The database service does not answer";
    DiskLow, "disk_low", INSUFFICIENT_STORAGE, "The disk is nearly full";
    EgressNotAllowed, "egress_not_allowed", UNPROCESSABLE_ENTITY, "The runtime does not allow egress";
    EmptyArchive, "empty_archive", BAD_REQUEST, "The archive is empty";
    Expired, "expired", GATEWAY_TIMEOUT, "The call reached its age";
    Forbidden, "forbidden", FORBIDDEN, "The principal may not do this";
    ForeignHost, "foreign_host", MISDIRECTED_REQUEST, "The host is not ours";
    ForeignOrigin, "foreign_origin", FORBIDDEN, "The request comes from another site";
    FunctionFailed, "function_failed", BAD_GATEWAY, "The function failed";
    HeadersTooLarge, "headers_too_large", REQUEST_HEADER_FIELDS_TOO_LARGE, "The headers are too large";
    ImageFailed, "image_failed", BAD_GATEWAY, "The image cannot be used";
    Infrastructure, "infrastructure", BAD_GATEWAY, "The platform failed the call";
    Internal, "internal", INTERNAL_SERVER_ERROR, "The platform failed";
    InsecureSignIn, "insecure_sign_in", BAD_REQUEST, "Browsers sign in over HTTPS";
    InvalidCallNumber, "invalid_call_number", BAD_REQUEST, "This is no call number";
    InvalidCallback, "invalid_callback", UNPROCESSABLE_ENTITY, "The callback cannot be called";
    InvalidCommand, "invalid_command", BAD_REQUEST, "This is no command";
    InvalidEnv, "invalid_env", BAD_REQUEST, "The variable cannot be set";
    InvalidHandshake, "invalid_handshake", BAD_REQUEST, "This is no WebSocket handshake that can be taken";
    InvalidImage, "invalid_image", BAD_REQUEST, "This is no image reference";
    InvalidInstant, "invalid_instant", BAD_REQUEST, "This is no instant";
    InvalidKey, "invalid_key", BAD_REQUEST, "This is no idempotency key";
    InvalidName, "invalid_name", BAD_REQUEST, "This is no name";
    InvalidPath, "invalid_path", BAD_REQUEST, "The path cannot be used";
    InvalidPreference, "invalid_preference", BAD_REQUEST, "The preference cannot be read";
    InvalidProvider, "invalid_provider", UNPROCESSABLE_ENTITY, "The identity provider cannot be used";
    InvalidQuery, "invalid_query", BAD_REQUEST, "The query is unknown or wrong";
    InvalidRequest, "invalid_request", BAD_REQUEST, "This is no request for a function";
    InvalidRule, "invalid_rule", BAD_REQUEST, "This is no rule";
    InvalidScope, "invalid_scope", BAD_REQUEST, "This is no scope";
    InvalidSecret, "invalid_secret", UNPROCESSABLE_ENTITY, "The secret cannot be used";
    InvalidSelection, "invalid_selection", BAD_REQUEST, "It is not clear what to replay";
    InvalidTimeout, "invalid_timeout", BAD_REQUEST, "The timeout is zero";
    KeyReused, "key_reused", UNPROCESSABLE_ENTITY, "The key stands for another request";
    LockedOut, "locked_out", CONFLICT, "The rule would lock out who makes it";
    LimitExceeded, "limit_exceeded", UNPROCESSABLE_ENTITY, "More than is permitted";
    MalformedJson, "malformed_json", BAD_REQUEST, "The JSON cannot be read";
    MalformedManifest, "malformed_manifest", BAD_REQUEST, "faena.toml cannot be read";
    MalformedPath, "malformed_path", BAD_REQUEST, "The path is no UTF-8";
    MethodNotAllowed, "method_not_allowed", METHOD_NOT_ALLOWED, "The path does not have this method";
    MissingField, "missing_field", BAD_REQUEST, "A field is missing";
    MissingHandler, "missing_handler", BAD_REQUEST, "The handler is missing";
    NameNeeded, "name_needed", BAD_REQUEST, "The runtime needs a name of its own";
    NoArchive, "no_archive", UNSUPPORTED_MEDIA_TYPE, "The file is no archive";
    NoFile, "no_file", BAD_REQUEST, "The field holds a text instead of a file";
    NoSuchNode, "no_such_node", UNPROCESSABLE_ENTITY, "No node can have these labels";
    NotJson, "not_json", UNSUPPORTED_MEDIA_TYPE, "The body does not say that it is JSON";
    NotMultipart, "not_multipart", UNSUPPORTED_MEDIA_TYPE, "The upload is not multipart/form-data";
    NotReplayable, "not_replayable", CONFLICT, "The record does not hold all of the call";
    ProviderUnavailable, "provider_unavailable", BAD_GATEWAY, "The identity provider cannot be asked";
    PublicNotAllowed, "public_not_allowed", UNPROCESSABLE_ENTITY, "The runtime does not allow public functions";
    QueueFull, "queue_full", TOO_MANY_REQUESTS, "The queue is full";
    QuotaExceeded, "quota_exceeded", FORBIDDEN, "The quota of the namespace is exceeded";
    RateLimited, "rate_limited", TOO_MANY_REQUESTS, "The namespace makes too many calls";
    RepeatedField, "repeated_field", BAD_REQUEST, "A field is there twice";
    RepeatedHeader, "repeated_header", BAD_REQUEST, "A header is there more than once";
    Running, "running", ACCEPTED, "The call has not ended yet";
    ScopeNotAllowed, "scope_not_allowed", UNPROCESSABLE_ENTITY, "The runtime does not allow the scope";
    SignInFailed, "sign_in_failed", UNAUTHORIZED, "The sign-in did not succeed";
    Stopping, "stopping", SERVICE_UNAVAILABLE, "The platform is stopping";
    Timeout, "timeout", GATEWAY_TIMEOUT, "The attempt took too long";
    TooManyAttempts, "too_many_attempts", TOO_MANY_REQUESTS, "Too many attempts";
    TooDeep, "too_deep", BAD_REQUEST, "The JSON is nested too deep";
    TooLarge, "too_large", PAYLOAD_TOO_LARGE, "Too large";
    TooSlow, "too_slow", REQUEST_TIMEOUT, "The body came too slowly";
    Unavailable, "unavailable", SERVICE_UNAVAILABLE, "No worker can take the call";
    Unauthenticated, "unauthenticated", UNAUTHORIZED, "A credential is needed";
    UnknownAccount, "unknown_account", NOT_FOUND, "There is no such account";
    UnknownCall, "unknown_call", NOT_FOUND, "There is no such call";
    UnknownConfig, "unknown_config", NOT_FOUND, "There is no such value of the configuration";
    UnknownDeadLetter, "unknown_dead_letter", NOT_FOUND, "There is no such dead letter";
    UnknownEngine, "unknown_engine", BAD_REQUEST, "There is no such engine";
    UnknownField, "unknown_field", BAD_REQUEST, "There is no such field";
    UnknownFunction, "unknown_function", NOT_FOUND, "There is no such function";
    UnknownKey, "unknown_key", BAD_REQUEST, "faena.toml has no such key";
    UnknownApiKey, "unknown_api_key", NOT_FOUND, "There is no such API key";
    UnknownImage, "unknown_image", NOT_FOUND, "The platform keeps no such image";
    UnknownNamespace, "unknown_namespace", NOT_FOUND, "There is no such namespace";
    UnknownNode, "unknown_node", NOT_FOUND, "There is no such node";
    UnknownProvider, "unknown_provider", NOT_FOUND, "There is no such identity provider";
    UnknownRule, "unknown_rule", NOT_FOUND, "There is no such rule";
    UnknownRoute, "unknown_route", NOT_FOUND, "There is nothing at this path";
    UnknownRuntime, "unknown_runtime", NOT_FOUND, "There is no such runtime";
    UnknownVersion, "unknown_version", NOT_FOUND, "There is no such version";
    UnmappedIdentity, "unmapped_identity", FORBIDDEN, "The identity has no access";
    UnsafeArchive, "unsafe_archive", BAD_REQUEST, "An entry of the archive is not permitted";
    UnsupportedArchive, "unsupported_archive", UNSUPPORTED_MEDIA_TYPE, "The archive is packed in a way that is not read";
    UnsupportedEncoding, "unsupported_encoding", UNSUPPORTED_MEDIA_TYPE, "The encoding of the body is not read";
    WaitingNotAllowed, "waiting_not_allowed", UNPROCESSABLE_ENTITY, "The runtime does not allow instances in advance";
}

impl Serialize for ErrorCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_code_has_a_page_that_says_its_status() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/errors");
        for code in ErrorCode::ALL {
            let page = std::fs::read_to_string(folder.join(format!("{}.md", code.as_str()))).unwrap_or_default();
            let beginning = format!("# {}\n\nStatus {}. ", code.as_str(), code.status().as_u16());
            assert!(page.starts_with(&beginning), "{code:?}");
        }
    }

    #[test]
    fn every_page_has_a_code() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/errors");
        let codes: BTreeSet<&str> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
        for page in std::fs::read_dir(folder).expect("the pages").flatten() {
            let name = page.file_name().into_string().expect("a name");
            assert!(name.strip_suffix(".md").is_some_and(|code| code == "README" || codes.contains(code)), "{name}");
        }
    }
}
