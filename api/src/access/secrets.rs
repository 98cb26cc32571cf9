//! Secrets that people choose are kept as slow hashes. Hashing takes memory and time, so few are hashed at once.

use std::collections::HashMap;
use std::sync::Arc;

use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, PasswordHash, Version};
use faena_auth::{CredentialKind, NewCredential, SECRET_BYTES};
use faena_protocol::records::SecretHash;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::Network;
use crate::problem::{ErrorCode, Problem, Reply};

/// Memory, in KiB, passes and lanes (OWASP, "Password Storage Cheat Sheet": Argon2id with 19 MiB, two passes, one lane).
const COST: (u32, u32, u32) = (19 * 1024, 2, 1);
/// Hashes at once.
const AT_ONCE: usize = 2;
/// Hashes that are made or wait.
const PLACES: usize = 34;
/// The most of these of one network.
const PLACES_OF_NETWORK: u32 = 2;
/// The shortest secret that may be chosen, and the longest, in bytes.
const LENGTHS: std::ops::RangeInclusive<usize> = 12..=1024;
/// A hash that no secret has: it is compared where there is no account, so that the time tells nothing.
const OF_NOBODY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5bm9ib2R5bm9ib2R5$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// Hashes secrets, a few at once.
#[derive(Debug)]
pub(crate) struct Secrets {
    running: Arc<Semaphore>,
    places: Arc<Semaphore>,
    by_network: Arc<Mutex<HashMap<Network, u32>>>,
}

impl Default for Secrets {
    fn default() -> Self {
        let semaphore = |count| Arc::new(Semaphore::new(count));
        Self { running: semaphore(AT_ONCE), places: semaphore(PLACES), by_network: Arc::default() }
    }
}

/// A place among those whose secrets are hashed.
struct Place {
    network: Network,
    by_network: Arc<Mutex<HashMap<Network, u32>>>,
    _place: tokio::sync::OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut by_network = self.by_network.lock();
        if let Some(held) = by_network.get_mut(&self.network) {
            *held -= 1;
            if *held == 0 {
                by_network.remove(&self.network);
            }
        }
    }
}

fn busy() -> Problem {
    Problem::new(ErrorCode::TooManyAttempts, "too many secrets are being checked at once").retry_after(1)
}

fn argon2() -> Argon2<'static> {
    let (memory, passes, lanes) = COST;
    let params = Params::new(memory, passes, lanes, None).unwrap_or_default();
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

/// Random bytes of the operating system.
///
/// # Errors
/// An operating system that has none.
pub(crate) fn random<const N: usize>() -> Reply<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| Problem::internal("asking for random bytes", &error))?;
    Ok(bytes)
}

/// A new credential.
pub(crate) fn new_credential(kind: CredentialKind) -> Reply<NewCredential> {
    Ok(NewCredential::new(kind, random()?, random::<SECRET_BYTES>()?))
}

/// A random secret.
pub(crate) fn new_secret() -> Reply<String> {
    Ok(hex::encode(random::<24>()?))
}

/// # Errors
/// A secret that may not be chosen.
pub(crate) fn check(secret: &str) -> Reply<()> {
    if LENGTHS.contains(&secret.len()) {
        return Ok(());
    }
    let detail =
        format!("a secret has {} to {} bytes, and this one has {}", LENGTHS.start(), LENGTHS.end(), secret.len());
    Err(Problem::new(ErrorCode::InvalidSecret, detail))
}

impl Secrets {
    fn place(&self, network: Network) -> Reply<Place> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| busy())?;
        let mut by_network = self.by_network.lock();
        let held = by_network.entry(network).or_default();
        if *held >= PLACES_OF_NETWORK {
            return Err(busy());
        }
        *held += 1;
        drop(by_network);
        Ok(Place { network, by_network: Arc::clone(&self.by_network), _place: place })
    }

    /// Runs a slow hash once a place is free. It keeps the place until it has ended, even if its request was dropped.
    async fn run<T: Send + 'static>(&self, network: Network, hash: impl FnOnce() -> T + Send + 'static) -> Reply<T> {
        let place = self.place(network)?;
        let running = Arc::clone(&self.running).acquire_owned().await.map_err(|_| busy())?;
        let hashed = tokio::task::spawn_blocking(move || {
            let hashed = hash();
            drop((running, place));
            hashed
        });
        hashed.await.map_err(|error| Problem::internal("hashing a secret", &error))
    }

    /// The hash of a secret.
    pub(crate) async fn hash(&self, secret: String, network: Network) -> Reply<SecretHash> {
        let salt = random::<16>()?;
        let hashed = self.run(network, move || argon2().hash_password_with_salt(secret.as_bytes(), &salt)).await?;
        let hash = hashed.map_err(|error| Problem::internal("hashing a secret", &error))?;
        Ok(SecretHash(hash.to_string()))
    }

    /// Whether a secret is the one; it takes as long where there is none to compare with.
    pub(crate) async fn is_right(&self, secret: String, hash: Option<SecretHash>, network: Network) -> Reply<bool> {
        if secret.len() > *LENGTHS.end() {
            return Ok(false);
        }
        let (text, is_somebodys) = hash.map_or_else(|| (OF_NOBODY.to_owned(), false), |SecretHash(text)| (text, true));
        let is_right = self.run(network, move || {
            PasswordHash::new(&text).is_ok_and(|hash| argon2().verify_password(secret.as_bytes(), &hash).is_ok())
        });
        Ok(is_right.await? && is_somebodys)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn network(text: &str) -> Network {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[tokio::test]
    async fn a_secret_is_known_by_its_hash() {
        let (secrets, here) = (Secrets::default(), network("127.0.0.1"));
        let hash = secrets.hash("correct horse".to_owned(), here).await.unwrap();
        assert!(hash.0.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{}", hash.0);
        assert!(secrets.is_right("correct horse".to_owned(), Some(hash.clone()), here).await.unwrap());
        assert!(!secrets.is_right("correct house".to_owned(), Some(hash), here).await.unwrap());
        assert!(!secrets.is_right("correct horse".to_owned(), None, here).await.unwrap());
    }

    #[test]
    fn the_hash_of_nobody_takes_as_long_as_any() {
        let hash = PasswordHash::new(OF_NOBODY).unwrap();
        let (memory, passes, lanes) = COST;
        let expected = Params::new(memory, passes, lanes, None).unwrap();
        let params = Params::try_from(&hash).unwrap();
        assert_eq!(
            (params.m_cost(), params.t_cost(), params.p_cost()),
            (expected.m_cost(), expected.t_cost(), expected.p_cost())
        );
    }

    #[tokio::test]
    async fn a_network_has_two_places() {
        let (secrets, here) = (Secrets::default(), network("127.0.0.1"));
        let (first, second) = (secrets.place(here).unwrap(), secrets.place(here).unwrap());
        assert!(secrets.place(here).is_err() && secrets.place(network("192.0.2.1")).is_ok());
        drop((first, second));
        assert!(secrets.place(here).is_ok() && secrets.by_network.lock().is_empty());
    }

    #[test]
    fn a_secret_that_is_chosen_is_not_short() {
        assert!(check("eleven char").is_err() && check("twelve chars").is_ok() && check(&"x".repeat(1025)).is_err());
    }
}
