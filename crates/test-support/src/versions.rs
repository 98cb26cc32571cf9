//! Versions of functions.

use std::collections::BTreeMap;

use faena_domain::{BlobKey, DigestKind, EngineKind, Limits, Namespace, NamespaceShare, Network, Serving, Version};
use faena_protocol::records::Code;

/// The first version of a function, for the sandbox's place; its archive is nowhere.
///
/// # Panics
/// A name that is none.
pub fn code(function: &str, serving: Serving) -> Code {
    Code {
        namespace: Namespace::default(),
        function: function.parse().expect("a name"),
        version: Version(1),
        engine: Some(EngineKind::Sandbox),
        image: "fake".to_owned(),
        image_id: None,
        image_content: None,
        path: "/ws".to_owned(),
        run: String::new(),
        archive: BlobKey::new(DigestKind::Sha256, [1; 32]),
        root: String::new(),
        env: BTreeMap::new(),
        config: None,
        limits: Limits::DEFAULT,
        network: Network::None,
        networks: Vec::new(),
        calls: Vec::new(),
        scopes: Vec::new(),
        concurrency: None,
        serving,
        nodes: Vec::new(),
        share: NamespaceShare::default(),
        since: 1,
    }
}
