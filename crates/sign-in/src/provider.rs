//! One provider: what is known of it, and both steps of a sign-in.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use openidconnect::core::{
    CoreAuthDisplay, CoreAuthenticationFlow, CoreClaimName, CoreClaimType, CoreClient, CoreClientAuthMethod,
    CoreGrantType, CoreIdToken, CoreJsonWebKey, CoreJweContentEncryptionAlgorithm, CoreJweKeyManagementAlgorithm,
    CoreJwsSigningAlgorithm, CoreResponseMode, CoreResponseType, CoreSubjectIdentifierType,
};
use openidconnect::{
    AdditionalProviderMetadata, AuthorizationCode, ClaimsVerificationError, ClientId, ClientSecret, CsrfToken,
    DiscoveryError, IssuerUrl, Nonce, OAuth2TokenResponse, PkceCodeChallenge, PkceCodeVerifier, ProviderMetadata,
    RedirectUrl, RequestTokenError, Scope, TokenResponse,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use subtle::ConstantTimeEq;

use crate::SignInError;
use crate::http::{Http, HttpError, is_permitted};

/// How long what a provider publishes about itself is used before it is read again.
const METADATA_AGE: Duration = Duration::from_secs(300);
/// How far the instant at which a token was issued may lie from our clock: it was asked for a moment ago.
const CLOCK_SKEW: Duration = Duration::from_secs(300);
/// The longest text of a provider that is passed on, in characters.
const MAX_EXCERPT: usize = 300;
/// Signatures that are taken: those by a key that the provider publishes. One by the client's secret proves less, and `none`
/// nothing.
const ALGORITHMS: [CoreJwsSigningAlgorithm; 9] = [
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha384,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha512,
    CoreJwsSigningAlgorithm::RsaSsaPssSha256,
    CoreJwsSigningAlgorithm::RsaSsaPssSha384,
    CoreJwsSigningAlgorithm::RsaSsaPssSha512,
    CoreJwsSigningAlgorithm::EcdsaP256Sha256,
    CoreJwsSigningAlgorithm::EcdsaP384Sha384,
    CoreJwsSigningAlgorithm::EdDsa,
];

/// What a provider says of itself beyond OpenID Connect Discovery (RFC 9207, 3).
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Rfc9207 {
    #[serde(default)]
    authorization_response_iss_parameter_supported: bool,
}

impl AdditionalProviderMetadata for Rfc9207 {}

type Metadata = ProviderMetadata<
    Rfc9207,
    CoreAuthDisplay,
    CoreClientAuthMethod,
    CoreClaimName,
    CoreClaimType,
    CoreGrantType,
    CoreJweContentEncryptionAlgorithm,
    CoreJweKeyManagementAlgorithm,
    CoreJsonWebKey,
    CoreResponseMode,
    CoreResponseType,
    CoreSubjectIdentifierType,
>;

/// A provider, and us as a client of it.
#[derive(Clone)]
pub struct ProviderConfig {
    /// Its issuer identifier: an https address, or an http address of this machine.
    pub issuer: String,
    /// The name that it knows us by.
    pub client_id: String,
    /// What proves that it is us; none for a public client.
    pub client_secret: Option<String>,
    /// What is asked for besides `openid`.
    pub scopes: Vec<String>,
    /// The authorities that its certificate comes from, as PEM, where they are not the usual ones.
    pub authorities: Option<String>,
}

impl fmt::Debug for ProviderConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} as a client of {}", self.client_id, self.issuer)
    }
}

/// What has to be kept with the browser between both steps. It is worth nothing to others without the browser's code.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// Comes back with the browser.
    pub state: String,
    /// Comes back in the token.
    pub nonce: String,
    /// Proves to the provider that both steps are the same client's.
    pub verifier: String,
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pending")
    }
}

/// What the browser comes back with.
#[derive(Clone, Debug, Default)]
pub struct Callback {
    /// The code that is exchanged for the token.
    pub code: Option<String>,
    /// The state that it was sent with.
    pub state: Option<String>,
    /// The issuer that has sent it back.
    pub issuer: Option<String>,
    /// Why there is no code: OAuth's word for it, and the provider's.
    pub error: Option<String>,
    /// See `error`.
    pub error_description: Option<String>,
}

/// Who has signed in.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    /// Who vouches for the subject.
    pub issuer: String,
    /// Names the person at the issuer for ever. Names and mail addresses do not.
    pub subject: String,
    /// Everything that the issuer says of the subject.
    pub claims: Map<String, Value>,
}

/// A provider.
#[derive(Debug)]
pub struct Provider {
    config: ProviderConfig,
    issuer: IssuerUrl,
    http: Http,
    metadata: Mutex<Option<(Instant, Arc<Metadata>)>>,
}

/// An error with what has caused it.
fn with_causes(error: &dyn Error) -> String {
    let (mut text, mut error) = (error.to_string(), error);
    while let Some(cause) = error.source() {
        text = format!("{text}: {cause}");
        error = cause;
    }
    text
}

/// The beginning of a text of the provider, without control characters.
fn excerpt(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_EXCERPT).collect()
}

fn unreachable(error: &DiscoveryError<HttpError>) -> SignInError {
    SignInError::Unreachable(excerpt(&with_causes(error)))
}

impl Provider {
    /// A provider; nothing is asked yet.
    ///
    /// # Errors
    /// [`SignInError::Configuration`] for an issuer that is no permitted address, or authorities without a certificate.
    pub fn new(config: ProviderConfig) -> Result<Self, SignInError> {
        let wrong = |cause: String| SignInError::Configuration(cause);
        let issuer = IssuerUrl::new(config.issuer.clone()).map_err(|error| wrong(format!("`issuer`: {error}")))?;
        if !config.issuer.parse().is_ok_and(|uri| is_permitted(&uri)) {
            return Err(wrong(format!("`issuer` {:?} is no https address", excerpt(&config.issuer))));
        }
        let http = Http::new(config.authorities.as_deref(), config.issuer.starts_with("http://"))?;
        Ok(Self { config, issuer, http, metadata: Mutex::default() })
    }

    /// What the provider publishes about itself, its keys among it.
    fn metadata(&self, most: Duration) -> Result<Arc<Metadata>, SignInError> {
        let known = self.metadata.lock().clone();
        if let Some((_, metadata)) = known.filter(|(read, _)| read.elapsed() < most) {
            return Ok(metadata);
        }
        let metadata = Metadata::discover(&self.issuer, &|request| self.http.call(request));
        let metadata = Arc::new(metadata.map_err(|error| unreachable(&error))?);
        *self.metadata.lock() = Some((Instant::now(), Arc::clone(&metadata)));
        Ok(metadata)
    }

    /// The first step: returns the address of the provider for the browser, and what has to be kept with the browser.
    /// `redirect` is the address that the provider sends the browser back to.
    ///
    /// # Errors
    /// The provider cannot be asked about itself.
    pub fn begin(&self, redirect: String) -> Result<(String, Pending), SignInError> {
        let metadata = self.metadata(METADATA_AGE)?;
        let redirect = RedirectUrl::new(redirect).map_err(|error| SignInError::Configuration(error.to_string()))?;
        let client = self.client(&metadata).set_redirect_uri(redirect);
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let request = client
            .authorize_url(CoreAuthenticationFlow::AuthorizationCode, CsrfToken::new_random, Nonce::new_random)
            .add_scopes(self.config.scopes.iter().cloned().map(Scope::new))
            .set_pkce_challenge(challenge);
        let (url, state, nonce) = request.url();
        let pending =
            Pending { state: state.into_secret(), nonce: nonce.secret().clone(), verifier: verifier.into_secret() };
        Ok((url.into(), pending))
    }

    fn client(
        &self,
        metadata: &Metadata,
    ) -> CoreClient<
        openidconnect::EndpointSet,
        openidconnect::EndpointNotSet,
        openidconnect::EndpointNotSet,
        openidconnect::EndpointNotSet,
        openidconnect::EndpointMaybeSet,
        openidconnect::EndpointMaybeSet,
    > {
        let secret = self.config.client_secret.clone().map(ClientSecret::new);
        CoreClient::from_provider_metadata(metadata.clone(), ClientId::new(self.config.client_id.clone()), secret)
    }

    /// The second step: who has signed in. `claims` are those that the caller needs; where the token lacks one, the provider
    /// is asked for all that it knows of the subject.
    ///
    /// # Errors
    /// [`SignInError`]; the sign-in has failed.
    pub fn finish(
        &self,
        redirect: String,
        callback: Callback,
        pending: Pending,
        claims: &[&str],
    ) -> Result<Identity, SignInError> {
        let refused = |cause: &str| SignInError::Refused(cause.to_owned());
        // First of all: whether this browser began the sign-in. Without that, anybody may have made the rest up.
        let is_ours = callback.state.is_some_and(|state| state.as_bytes().ct_eq(pending.state.as_bytes()).into());
        if !is_ours {
            return Err(refused("the sign-in was not begun by this browser, or was finished already"));
        }
        let metadata = self.metadata(METADATA_AGE)?;
        self.check_issuer(&metadata, callback.issuer.as_deref())?;
        if let Some(error) = callback.error {
            let description = callback.error_description.map(|text| format!(": {text}")).unwrap_or_default();
            return Err(SignInError::Denied(excerpt(&format!("{error}{description}"))));
        }
        let code = callback.code.ok_or_else(|| refused("the address has no code of the provider"))?;
        let redirect = RedirectUrl::new(redirect).map_err(|error| SignInError::Configuration(error.to_string()))?;
        let client = self.client(&metadata).set_redirect_uri(redirect);
        let exchange = client
            .exchange_code(AuthorizationCode::new(code))
            .map_err(|_| SignInError::Unreachable("it has no token endpoint".to_owned()))?
            .set_pkce_verifier(PkceCodeVerifier::new(pending.verifier));
        let tokens = exchange.request(&|request| self.http.call(request)).map_err(|error| match error {
            RequestTokenError::ServerResponse(answer) => {
                SignInError::Refused(format!("the provider refuses the code: {}", excerpt(&answer.to_string())))
            }
            error => SignInError::Unreachable(excerpt(&with_causes(&error))),
        })?;
        let token = tokens.id_token().ok_or_else(|| refused("the provider has issued no ID token"))?;
        let nonce = Nonce::new(pending.nonce);
        let metadata = match self.verify(&metadata, token, &nonce) {
            Ok(()) => metadata,
            // It may have changed its keys since they were read.
            Err(ClaimsVerificationError::SignatureVerification(_)) => {
                let metadata = self.metadata(Duration::ZERO)?;
                self.verify(&metadata, token, &nonce).map_err(|error| invalid_token(&error))?;
                metadata
            }
            Err(error) => return Err(invalid_token(&error)),
        };
        let mut identity = identity(token)?;
        if claims.iter().any(|claim| !identity.claims.contains_key(*claim)) {
            self.complete(&metadata, tokens.access_token().secret(), &mut identity)?;
        }
        Ok(identity)
    }

    /// Refuses an answer that another issuer has sent (RFC 9207, 2.4).
    fn check_issuer(&self, metadata: &Metadata, issuer: Option<&str>) -> Result<(), SignInError> {
        let is_named = metadata.additional_metadata().authorization_response_iss_parameter_supported;
        match issuer {
            Some(issuer) if issuer != self.issuer.as_str() => {
                Err(SignInError::Refused(format!("{:?} has sent the answer, which is another issuer", excerpt(issuer))))
            }
            None if is_named => Err(SignInError::Refused("the answer does not name its issuer".to_owned())),
            _ => Ok(()),
        }
    }

    /// Whether a token was issued by this provider, for us, for this sign-in, and now.
    fn verify(&self, metadata: &Metadata, token: &CoreIdToken, nonce: &Nonce) -> Result<(), ClaimsVerificationError> {
        let client = self.client(metadata);
        let verifier = client.id_token_verifier().set_allowed_algs(ALGORITHMS).set_issue_time_verifier_fn(|issued| {
            let issued = SystemTime::from(issued);
            let now = SystemTime::now();
            let apart = now.duration_since(issued).or_else(|_| issued.duration_since(now)).unwrap_or(Duration::MAX);
            if apart <= CLOCK_SKEW {
                return Ok(());
            }
            Err(format!("the clocks of the provider and of this machine are {} s apart", apart.as_secs()))
        });
        token.claims(&verifier, nonce).map(drop)
    }

    /// Adds what the provider tells about the subject elsewhere than in the token (OpenID Connect Core 1.0, 5.3).
    fn complete(&self, metadata: &Metadata, token: &str, identity: &mut Identity) -> Result<(), SignInError> {
        let Some(endpoint) = metadata.userinfo_endpoint() else { return Ok(()) };
        let Some(Value::Object(info)) = self.http.document(endpoint.as_str(), token)? else { return Ok(()) };
        if info.get("sub").and_then(Value::as_str) != Some(&identity.subject) {
            return Err(SignInError::Refused(
                "the provider tells about another person than it has signed in".to_owned(),
            ));
        }
        for (name, value) in info {
            // What was signed counts more.
            identity.claims.entry(name).or_insert(value);
        }
        Ok(())
    }
}

/// Why a token is refused.
fn invalid_token(error: &ClaimsVerificationError) -> SignInError {
    SignInError::Refused(format!("the provider's token is not valid: {}", excerpt(&with_causes(error))))
}

/// What a token says that was verified.
fn identity(token: &CoreIdToken) -> Result<Identity, SignInError> {
    let unreadable = || SignInError::Unreachable("its token cannot be read".to_owned());
    let text = token.to_string();
    let payload = text.split('.').nth(1).ok_or_else(unreadable)?;
    let bytes = BASE64.decode(payload).map_err(|_| unreadable())?;
    let claims: Map<String, Value> = serde_json::from_slice(&bytes).map_err(|_| unreadable())?;
    let claim = |name: &str| claims.get(name).and_then(Value::as_str).map(str::to_owned).ok_or_else(unreadable);
    Ok(Identity { issuer: claim("iss")?, subject: claim("sub")?, claims })
}

#[cfg(test)]
mod tests;
