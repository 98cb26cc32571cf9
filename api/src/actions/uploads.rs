//! Uploads: an archive that has arrived becomes a version of a function.

use faena_auth::{Principal, RuleSet};
use faena_blob::Spooled;
use faena_blob::archive::{self, ArchiveError, Bounds, Checked, Listing};
use faena_domain::manifest::InvalidManifest;
use faena_domain::program::{InvalidProgram, Place, Program};
use faena_domain::serving::InvalidServing;
use faena_domain::{FunctionId, FunctionName, Manifest, RuntimeName, RuntimeSpec};
use faena_protocol::db::{Put, VersionPut};
use faena_protocol::records::FunctionRecord;
use tokio::sync::OwnedSemaphorePermit;

use crate::admission::UploadRoom;
use crate::app::App;
use crate::authorize::permit_binding;
use crate::callbacks;
use crate::problem::{ErrorCode, Problem, Reply, disk_low};

impl From<ArchiveError> for Problem {
    fn from(error: ArchiveError) -> Self {
        match &error {
            ArchiveError::Empty => Self::new(ErrorCode::EmptyArchive, error),
            ArchiveError::Unsupported { .. } | ArchiveError::NotRead(_) => {
                Self::new(ErrorCode::UnsupportedArchive, error.to_string())
            }
            ArchiveError::Unknown => Self::new(ErrorCode::NoArchive, error.to_string()),
            ArchiveError::Damaged(_) => Self::new(ErrorCode::DamagedArchive, error),
            ArchiveError::NoFiles => Self::new(ErrorCode::EmptyArchive, error),
            ArchiveError::Entry { .. } => Self::new(ErrorCode::UnsafeArchive, error),
            ArchiveError::TooLarge(_) => Self::too_large(error.to_string()),
            ArchiveError::Write(cause) if cause.kind() == std::io::ErrorKind::StorageFull => disk_low(),
            ArchiveError::Write(cause) => Self::internal("reading an archive", cause),
        }
    }
}

impl From<InvalidManifest> for Problem {
    fn from(error: InvalidManifest) -> Self {
        match &error {
            InvalidManifest::Malformed(_) => Self::new(ErrorCode::MalformedManifest, error),
            InvalidManifest::UnknownKey { .. } => Self::new(ErrorCode::UnknownKey, error),
            InvalidManifest::Serving(InvalidServing::Range { .. }) => Self::new(ErrorCode::LimitExceeded, error),
            InvalidManifest::Serving(_) => Self::new(ErrorCode::MalformedManifest, error),
            InvalidManifest::Waiting { .. } => Self::new(ErrorCode::WaitingNotAllowed, error),
            InvalidManifest::Env(_) => Self::new(ErrorCode::InvalidEnv, error),
            InvalidManifest::FileName(_) => Self::new(ErrorCode::InvalidName, error),
            InvalidManifest::Retries(_)
            | InvalidManifest::Calls(_)
            | InvalidManifest::Files(_)
            | InvalidManifest::Scopes(_)
            | InvalidManifest::Limit(_) => Self::new(ErrorCode::LimitExceeded, error),
            InvalidManifest::Egress(_) => Self::new(ErrorCode::EgressNotAllowed, error),
            InvalidManifest::ScopeNotAllowed { .. } => Self::new(ErrorCode::ScopeNotAllowed, error),
            InvalidManifest::Public(_) => Self::new(ErrorCode::PublicNotAllowed, error),
            InvalidManifest::Nodes { .. } => Self::new(ErrorCode::NoSuchNode, error),
        }
    }
}

impl From<InvalidProgram> for Problem {
    fn from(error: InvalidProgram) -> Self {
        Self::new(ErrorCode::MissingHandler, error)
    }
}

/// The place and the disk space that an upload holds until this is dropped.
pub(crate) type Held = (OwnedSemaphorePermit, UploadRoom);

/// What an upload is to become.
pub(crate) struct Target<'a> {
    pub(crate) principal: &'a Principal,
    pub(crate) runtime: RuntimeName,
    pub(crate) function: FunctionName,
}

/// A new version of a function.
pub(crate) struct Deployed {
    pub(crate) put: Put<FunctionRecord>,
    /// The secret that signs the callbacks of a new function; shown only now.
    pub(crate) secret: Option<String>,
}

/// Checks an archive before anything is kept, and makes it the function's newest version.
pub(crate) async fn deploy(
    app: &App,
    Target { principal, runtime, function }: Target<'_>,
    spec: &RuntimeSpec,
    (spooled, held): (Spooled, Held),
) -> Reply<Deployed> {
    let namespace = &principal.namespace;
    let (spooled, checked, held) = check(spooled, held).await?;
    app.admission().unpacked(checked.disk())?;
    let manifest = checked.manifest.as_deref().map(Manifest::parse).transpose()?.unwrap_or_default();
    let (limits, nodes) = (manifest.grant(spec, app.maximum())?, manifest.nodes(spec)?);
    may_bind(principal, &manifest, &app.access().rules(namespace).await?.rules)?;
    let root = root(&checked.listing, spec, &manifest);
    let handler = Program::at_upload(&manifest.serving, spec, &checked.listing.below(&root))?;
    let (spooled, _held) = match handler {
        Some(handler) => check_handler(handler, &root, spooled, held).await?,
        None => (spooled, held),
    };
    app.blobs_of(namespace).put(&spooled).await?;
    let secret = callbacks::new_secret();
    let id = FunctionId::new(namespace, &function);
    let version = VersionPut {
        request: uuid::Uuid::new_v4().simple().to_string(),
        namespace: namespace.clone(),
        runtime,
        function,
        source: spooled.key,
        source_bytes: spooled.bytes,
        root,
        manifest,
        limits,
        nodes,
        secret: secret.clone(),
    };
    let put = app.db().ask(&version).await?;
    app.scheduler().poke(id);
    Ok(Deployed { secret: put.created.then_some(secret), put })
}

/// Refuses a version that asks for values which its uploader may not use.
fn may_bind(principal: &Principal, manifest: &Manifest, rules: &RuleSet) -> Reply<()> {
    let (bindings, of_build) = (manifest.bindings(), manifest.build_bindings());
    for path in bindings.paths().chain(of_build.paths()) {
        permit_binding(principal, path, rules).map_err(|error| {
            let detail = format!("faena.toml asks for the value {path} of the configuration: {error}");
            Problem::new(ErrorCode::Forbidden, detail)
        })?;
    }
    Ok(())
}

/// The folder of an archive that is used: its only one, unless a command or the handler names that folder itself.
fn root(listing: &Listing, runtime: &RuntimeSpec, manifest: &Manifest) -> String {
    let Some(folder) = listing.only_folder() else { return String::new() };
    let handler = manifest.serving.handler.as_deref().unwrap_or_default();
    let is_word = |c: char| c.is_alphanumeric() || "._-/".contains(c) || !c.is_ascii();
    let mut words = [runtime.run.as_str(), &runtime.dependencies, handler]
        .into_iter()
        .flat_map(|text| text.split(|c| !is_word(c)))
        .map(|word| word.strip_prefix(&runtime.path).map_or(word, |rest| rest.trim_start_matches('/')))
        .map(|word| word.trim_start_matches("./"));
    let names_it =
        words.any(|word| word.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')));
    if names_it { String::new() } else { format!("{folder}/") }
}

/// The longest source in which a function is looked for.
const MAX_SOURCE: usize = 1024 * 1024;

/// Refuses a handler whose file certainly does not define it.
async fn check_handler(handler: Place, root: &str, spooled: Spooled, held: Held) -> Reply<(Spooled, Held)> {
    let path = format!("{root}{}", handler.file.trim_start_matches("./"));
    let read = tokio::task::spawn_blocking(move || {
        let mut spooled = spooled;
        archive::content(&mut spooled.file, &Bounds::SOURCE, &path, MAX_SOURCE).map(|source| (spooled, source, held))
    });
    let (spooled, source, held) = read.await.map_err(|error| Problem::internal("reading an archive", &error))??;
    // A link's target, or a source that is cut, may define anything.
    if let Some(source) = source.filter(|source| source.len() < MAX_SOURCE) {
        handler.check_source(&String::from_utf8_lossy(&source))?;
    }
    Ok((spooled, held))
}

/// Checks an archive; its place is taken until that is done, even if the client goes away meanwhile.
async fn check(spooled: Spooled, held: Held) -> Reply<(Spooled, Checked, Held)> {
    let checked = tokio::task::spawn_blocking(move || {
        let mut spooled = spooled;
        archive::check(&mut spooled.file, &Bounds::SOURCE).map(|checked| (spooled, checked, held))
    });
    Ok(checked.await.map_err(|error| Problem::internal("checking an archive", &error))??)
}
