//! Secrets are sealed: AES-256-GCM under a key of each secret's own, which is sealed under a key that lies in a file outside the
//! database. What is sealed is bound to the namespace and the path that it was sealed for.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use sha2::{Digest, Sha256};

/// Bytes of a key (NIST SP 800-38D, AES-256-GCM), and of the tag that sealing adds.
const KEY: usize = 32;
const TAG: usize = 16;
/// Bytes that tell which key of the file has sealed something.
pub(crate) const KEY_ID: usize = 8;
/// A sealed key: nonce, key and tag.
const SEALED_KEY: usize = NONCE_LEN + KEY + TAG;
/// Something could not be sealed or opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SealError {
    /// It was sealed for another place, was damaged, or under a key that the file does not have.
    #[error("it cannot be opened with the keys of this platform")]
    Foreign,
    /// The operating system gives no random bytes.
    #[error("no random bytes")]
    Random,
}

/// The key that others are sealed under.
#[derive(Clone)]
struct Key {
    id: [u8; KEY_ID],
    bytes: [u8; KEY],
}

impl Key {
    fn new(bytes: [u8; KEY]) -> Self {
        let mut id = [0; KEY_ID];
        id.copy_from_slice(&Sha256::digest(bytes)[..KEY_ID]);
        Self { id, bytes }
    }
}

/// The keys of a platform; clones share them.
#[derive(Clone)]
pub(crate) struct Keyring {
    path: Arc<PathBuf>,
    /// The one in use first.
    keys: Arc<RwLock<Vec<Key>>>,
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the keys in {}", self.path.display())
    }
}

fn random<const N: usize>() -> Result<[u8; N], SealError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| SealError::Random)?;
    Ok(bytes)
}

fn cipher(key: &[u8; KEY]) -> Result<LessSafeKey, SealError> {
    UnboundKey::new(&AES_256_GCM, key).map(LessSafeKey::new).map_err(|_| SealError::Foreign)
}

fn seal(key: &[u8; KEY], place: &[u8], bytes: &[u8]) -> Result<Vec<u8>, SealError> {
    let nonce: [u8; NONCE_LEN] = random()?;
    let mut sealed = bytes.to_vec();
    cipher(key)?
        .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(place), &mut sealed)
        .map_err(|_| SealError::Foreign)?;
    Ok([&nonce[..], &sealed].concat())
}

fn open(key: &[u8; KEY], place: &[u8], sealed: &[u8]) -> Result<Vec<u8>, SealError> {
    let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN).ok_or(SealError::Foreign)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealError::Foreign)?;
    let mut bytes = sealed.to_vec();
    let length = cipher(key)?.open_in_place(nonce, Aad::from(place), &mut bytes).map_err(|_| SealError::Foreign)?.len();
    bytes.truncate(length);
    Ok(bytes)
}

/// What binds a secret to where it is.
fn place(namespace: &str, path: &str) -> Vec<u8> {
    [namespace.as_bytes(), b"\0", path.as_bytes()].concat()
}

impl Keyring {
    /// Reads the keys, or makes the file with a first one.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let keys = match File::open(path) {
            Ok(mut file) => {
                if file.metadata()?.permissions().mode() & 0o077 != 0 {
                    return Err(io::Error::other("others may read it; its mode has to be 0600"));
                }
                let mut text = String::new();
                file.read_to_string(&mut text)?;
                let key = |line: &str| {
                    let mut bytes = [0; KEY];
                    hex::decode_to_slice(line.trim(), &mut bytes).map(|()| Key::new(bytes))
                };
                let keys: Result<Vec<Key>, _> = text.lines().map(key).collect();
                let mut keys = keys.map_err(|_| io::Error::other("it holds something else than keys"))?;
                if keys.is_empty() {
                    keys = first_key(path)?;
                }
                keys
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => first_key(path)?,
            Err(error) => return Err(error),
        };
        Ok(Self { path: Arc::new(path.to_owned()), keys: Arc::new(RwLock::new(keys)) })
    }

    /// Seals a secret for its place.
    pub(crate) fn seal(&self, namespace: &str, path: &str, secret: &[u8]) -> Result<Vec<u8>, SealError> {
        let place = place(namespace, path);
        let own: [u8; KEY] = random()?;
        let (id, sealed_key) = {
            let keys = self.keys.read();
            let key = keys.first().ok_or(SealError::Foreign)?;
            (key.id, seal(&key.bytes, &place, &own)?)
        };
        Ok([&id[..], &sealed_key, &seal(&own, &place, secret)?].concat())
    }

    /// The key of a secret, and what it has sealed.
    fn own_key<'a>(&self, place: &[u8], sealed: &'a [u8]) -> Result<([u8; KEY], &'a [u8]), SealError> {
        let (id, rest) = sealed.split_at_checked(KEY_ID).ok_or(SealError::Foreign)?;
        let (sealed_key, secret) = rest.split_at_checked(SEALED_KEY).ok_or(SealError::Foreign)?;
        let keys = self.keys.read();
        let key = keys.iter().find(|key| key.id == id).ok_or(SealError::Foreign)?;
        let own = open(&key.bytes, place, sealed_key)?.try_into().map_err(|_| SealError::Foreign)?;
        Ok((own, secret))
    }

    /// Opens what was sealed for a place.
    pub(crate) fn open_sealed(&self, namespace: &str, path: &str, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let place = place(namespace, path);
        let (own, secret) = self.own_key(&place, sealed)?;
        open(&own, &place, secret)
    }

    /// The same secret, its key sealed under the key in use.
    pub(crate) fn reseal(&self, namespace: &str, path: &str, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let place = place(namespace, path);
        let (own, secret) = self.own_key(&place, sealed)?;
        let keys = self.keys.read();
        let key = keys.first().ok_or(SealError::Foreign)?;
        Ok([&key.id[..], &seal(&key.bytes, &place, &own)?, secret].concat())
    }

    /// Takes a new key into use. The file has it before anything is sealed with it; the one before stays, for backups that
    /// were made under it, and so does each that has sealed one of these.
    pub(crate) fn rotate(&self, prefixes: &[Vec<u8>]) -> io::Result<()> {
        let new = Key::new(random().map_err(io::Error::other)?);
        let mut keys = self.keys.write();
        let is_needed = |key: &Key| prefixes.iter().any(|prefix| prefix.starts_with(&key.id));
        let kept = keys.iter().enumerate().filter(|(at, key)| *at == 0 || is_needed(key)).map(|(_, key)| key.clone());
        let next: Vec<Key> = std::iter::once(new).chain(kept).collect();
        write(&self.path, &next)?;
        *keys = next;
        Ok(())
    }
}

/// Makes the file with one key.
fn first_key(path: &Path) -> io::Result<Vec<Key>> {
    let keys = vec![Key::new(random().map_err(io::Error::other)?)];
    write(path, &keys)?;
    Ok(keys)
}

/// Writes the file as a whole, for its owner alone.
fn write(path: &Path, keys: &[Key]) -> io::Result<()> {
    let passing = path.with_extension("new");
    let _ = fs::remove_file(&passing);
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&passing)?;
    for key in keys {
        writeln!(file, "{}", hex::encode(key.bytes))?;
    }
    file.sync_all()?;
    fs::rename(&passing, path)?;
    // The name is on the disk when its folder is.
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keyring(folder: &Path) -> Keyring {
        Keyring::open(&folder.join("secret.key")).unwrap()
    }

    #[test]
    fn a_secret_is_opened_where_it_was_sealed_for_and_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        let keys = keyring(folder.path());
        let sealed = keys.seal("red", "db.password", b"canary").unwrap();
        assert!(!sealed.windows(6).any(|window| window == b"canary"));
        assert_eq!(keys.open_sealed("red", "db.password", &sealed).unwrap(), b"canary");
        assert_ne!(sealed, keys.seal("red", "db.password", b"canary").unwrap());
        for (namespace, path) in [("blue", "db.password"), ("red", "db.url")] {
            assert_eq!(keys.open_sealed(namespace, path, &sealed), Err(SealError::Foreign));
        }
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(keys.open_sealed("red", "db.password", &changed), Err(SealError::Foreign), "byte {at}");
            assert_eq!(keys.open_sealed("red", "db.password", &sealed[..at]), Err(SealError::Foreign), "{at} bytes");
        }
    }

    #[test]
    fn keys_outlive_a_restart_and_a_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let keys = keyring(folder.path());
        let sealed = keys.seal("red", "a", b"canary").unwrap();
        assert_eq!(keyring(folder.path()).open_sealed("red", "a", &sealed).unwrap(), b"canary");
        // A rotation that ended before anything was sealed again loses no key, however often it is tried.
        for _ in 0..3 {
            keys.rotate(&[sealed[..KEY_ID].to_vec()]).unwrap();
        }
        let again = keys.reseal("red", "a", &sealed).unwrap();
        assert_ne!(again[..KEY_ID], sealed[..KEY_ID]);
        keys.rotate(&[again[..KEY_ID].to_vec()]).unwrap();
        assert_eq!(keyring(folder.path()).open_sealed("red", "a", &again).unwrap(), b"canary");
        assert_eq!(keys.open_sealed("red", "a", &sealed), Err(SealError::Foreign), "nothing needs its key");
    }

    #[test]
    fn a_file_that_others_may_read_or_that_holds_no_keys_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret.key");
        drop(keyring(folder.path()));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Keyring::open(&path).unwrap_err().to_string().contains("0600"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "nonsense\n").unwrap();
        assert!(Keyring::open(&path).unwrap_err().to_string().contains("something else"));
        fs::write(&path, "").unwrap();
        assert!(Keyring::open(&path).is_ok(), "an empty file begins anew");
    }
}
