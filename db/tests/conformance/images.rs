//! Images that the platform keeps: their names, and the versions that keep them.

use std::collections::BTreeMap;

use faena_domain::{BlobKey, BuildFailure, DigestKind, ErrorKind, ImageName, Preload};
use faena_protocol::DbError;
use faena_protocol::db::{
    BlobsUnused, BuildRetry, FunctionDelete, ImageDelete, ImageGet, ImageList, ImagePut, RuntimePut, VersionResolve,
};
use faena_protocol::records::ImageContent;

use super::support::*;

fn image(name: &str) -> ImageName {
    ImageName::try_from(name.to_owned()).unwrap()
}

fn content(byte: u8) -> ImageContent {
    let env = BTreeMap::from([("PATH".to_owned(), "/opt/bin".to_owned())]);
    ImageContent { key: BlobKey::new(DigestKind::Sha256, [byte; 32]), bytes: u64::from(byte), env }
}

async fn resolved(service: &Service, function: &str) -> faena_protocol::records::Code {
    let resolve =
        VersionResolve { namespace: space(), function: name(function), version: Some(faena_domain::Version(1)) };
    service.ask(resolve).await.unwrap().code
}

/// Whether nothing refers to the blob of an image.
async fn is_unused(service: &Service, byte: u8) -> bool {
    let key = content(byte).key;
    service.ask(BlobsUnused { keys: vec![key] }).await.unwrap() == [key]
}

#[tokio::test]
async fn an_image_has_one_name_with_its_tag() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    let put = |name: &str, byte: u8| ImagePut { name: image(name), content: content(byte) };
    assert!(service.ask(put("python", 1)).await.unwrap().created);
    let again = service.ask(put("python:latest", 1)).await.unwrap();
    assert!(!again.created && again.record.name.as_str() == "python:latest");
    let replaced = service.ask(put("python", 2)).await.unwrap();
    assert!(!replaced.created && replaced.record.content == content(2));
    assert!(is_unused(&service, 1).await && !is_unused(&service, 2).await);
    service.ask(put("python:3", 3)).await.unwrap();
    let names: Vec<String> =
        service.ask(ImageList {}).await.unwrap().iter().map(|image| image.name.to_string()).collect();
    assert_eq!(names, ["python:3", "python:latest"]);
    service.ask(ImageDelete { name: image("python") }).await.unwrap();
    assert!(is_unused(&service, 2).await);
    assert!(matches!(service.ask(ImageGet { name: image("python") }).await, Err(DbError::NotFound { .. })));
    assert!(matches!(service.ask(ImageDelete { name: image("python") }).await, Err(DbError::NotFound { .. })));
}

#[tokio::test]
async fn a_version_keeps_the_image_that_it_was_built_with() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    service.ask(ImagePut { name: image("pythonruntime"), content: content(1) }).await.unwrap();
    with_function(&service, "first").await;
    assert_eq!(resolved(&service, "first").await.image_content, None, "it is not built yet");
    let artifact = Ok(BlobKey::new(DigestKind::Sha256, [9; 32]));
    build(&service, artifact.clone()).await;
    assert_eq!(resolved(&service, "first").await.image_content, Some(content(1)));
    service.ask(ImagePut { name: image("pythonruntime:latest"), content: content(2) }).await.unwrap();
    with_function(&service, "second").await;
    build(&service, artifact.clone()).await;
    assert_eq!(resolved(&service, "second").await.image_content, Some(content(2)));
    assert_eq!(resolved(&service, "first").await.image_content, Some(content(1)));
    service.ask(ImageDelete { name: image("pythonruntime") }).await.unwrap();
    assert!(!is_unused(&service, 1).await && !is_unused(&service, 2).await, "versions have them");
    with_function(&service, "third").await;
    build(&service, artifact).await;
    assert_eq!(resolved(&service, "third").await.image_content, None, "each node has its own");
    service.ask(FunctionDelete { namespace: space(), name: name("first") }).await.unwrap();
    assert!(is_unused(&service, 1).await);
}

#[tokio::test]
async fn a_build_that_failed_keeps_no_image() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    service.ask(ImagePut { name: image("pythonruntime"), content: content(1) }).await.unwrap();
    with_function(&service, "first").await;
    let failure = BuildFailure { kind: ErrorKind::Build, message: "no".to_owned() };
    build(&service, Err(failure)).await;
    service.ask(ImagePut { name: image("pythonruntime"), content: content(2) }).await.unwrap();
    assert!(is_unused(&service, 1).await);
    service.ask(BuildRetry { namespace: space(), function: name("first") }).await.unwrap();
    build(&service, Ok(BlobKey::new(DigestKind::Sha256, [9; 32]))).await;
    assert_eq!(resolved(&service, "first").await.image_content, Some(content(2)));
}

#[tokio::test]
async fn a_function_says_what_waits_for_it_or_its_runtime_does() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    let mut spec = runtime("python3 test.py");
    spec.preload = Some(Preload::None);
    service.ask(RuntimePut { namespace: space(), spec }).await.unwrap();
    service.ask(upload("plain", "plain")).await.unwrap();
    let mut own = upload("own", "own");
    own.manifest.serving.preload = Some(Preload::Function);
    service.ask(own).await.unwrap();
    for (function, preload) in [("plain", Preload::None), ("own", Preload::Function)] {
        let resolve =
            VersionResolve { namespace: space(), function: name(function), version: Some(faena_domain::Version(1)) };
        assert_eq!(service.ask(resolve).await.unwrap().code.serving.preload, Some(preload), "{function}");
    }
}
