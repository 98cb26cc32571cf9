//! Nodes at a front: who may join, what each may ask for, and what becomes of bytes that are none of a node's.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod platform;

use std::time::Duration;

use bytes::Bytes;
use faena_domain::{BlobKey, DigestKind, Labels, Namespace, Owner};
use faena_protocol::db::{CallsStarted, NodeDelete, NodeList, REPLY_ERROR, REPLY_OK, VersionsMinimum, WorkerJoin};
use faena_protocol::front::{Channel, LaneFrame, Opened, Refusal};
use faena_protocol::internal::InternalCall;
use faena_protocol::node::{NodeInfo, ToApi};
use faena_protocol::{DbRequest, Envelope};
use faena_transport::front::{DialError, FrontDialer, JoinKey};
use faena_transport::{Link, LinkEvent, Target};
use platform::{Platform, hello, join, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn reason<T>(opened: Result<T, DialError>) -> Option<Refusal> {
    match opened {
        Err(DialError::Refused { reason, .. }) => Some(reason),
        Err(error) => panic!("{error}"),
        Ok(_) => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_for_one_node_and_for_its_time() {
    let platform = Platform::start().await;
    let token = platform.token(3600).await;
    let identity = join(&platform, &token, "a").await.unwrap();
    assert_eq!(identity.name.as_str(), "a");
    let refused = |opened: Result<_, DialError>| opened.map(drop).unwrap_err().to_string();
    let again = refused(join(&platform, &token, "b").await);
    assert!(again.contains("token was used already"), "{again}");
    let other = platform.token(3600).await;
    let taken = refused(join(&platform, &other, "A").await);
    assert!(taken.contains("there is a node a already"), "{taken}");
    let late = refused(join(&platform, &platform.token(-1).await, "c").await);
    assert!(late.contains("expired"), "{late}");
    let mut forged = platform.token(3600).await;
    forged.secret = "0".repeat(64);
    let unknown = refused(join(&platform, &forged, "d").await);
    assert!(unknown.contains("does not know this token"), "{unknown}");
    // The token of the name that was taken is not spent.
    assert!(join(&platform, &other, "e").await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_reply_was_lost_asks_again() {
    let (platform, key) = (Platform::start().await, JoinKey::new().unwrap());
    let token = platform.token(3600).await;
    let again = async || faena_transport::front::join(&platform.address, &token, "a".parse().unwrap(), &key).await;
    again().await.unwrap();
    let identity = again().await.unwrap();
    assert!(FrontDialer::new(&platform.address, &identity).unwrap().open(Channel::Db).await.is_ok());
    assert!(join(&platform, &token, "a").await.is_err(), "another machine");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_does_not_join_a_stranger() {
    let (platform, other) = (Platform::start().await, Platform::start().await);
    let token = platform.token(3600).await;
    let error = join(&other, &token, "a").await.unwrap_err();
    assert!(matches!(error, DialError::Stranger(_)), "{error}");
    let identity = platform.node("a").await;
    let dialer = FrontDialer::new(&other.address, &identity).unwrap();
    assert!(matches!(dialer.open(Channel::Db).await, Err(DialError::Stranger(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_removed_is_cut_off_and_stays_out() {
    let platform = Platform::start().await;
    let dialer = platform.dialer("a").await;
    let mut link = Link::connect(Target::Front(dialer.clone(), Channel::Db));
    assert_eq!(link.next().await, Some(LinkEvent::Up));
    platform.db.ask(&NodeDelete { name: "a".parse().unwrap() }).await.unwrap();
    assert_eq!(within(2, link.next()).await, Some(LinkEvent::Down));
    let message = within(5, dialer.ended()).await;
    assert!(message.contains("removed from the platform"), "{message}");
    // The name is free again, and the old certificate is not the new node's.
    platform.node("a").await;
    assert_eq!(reason(dialer.open(Channel::Db).await), Some(Refusal::NotAdmitted));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_and_the_one_before_is_taken_until_the_next() {
    let platform = Platform::start().await;
    let first = platform.node("a").await;
    let dialer = FrontDialer::new(&platform.address, &first).unwrap();
    let second = dialer.renewed(&first.name).await.unwrap();
    assert!(dialer.open(Channel::Db).await.is_ok(), "the first is taken");
    let newer = FrontDialer::new(&platform.address, &second).unwrap();
    newer.renewed(&first.name).await.unwrap();
    assert!(newer.open(Channel::Db).await.is_ok());
    assert_eq!(reason(dialer.open(Channel::Db).await), Some(Refusal::NotAdmitted));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_to_db_are_those_of_the_node_itself() {
    let platform = Platform::start().await;
    let mut link = Link::connect(Target::Front(platform.dialer("a").await, Channel::Db));
    assert_eq!(link.next().await, Some(LinkEvent::Up));
    let owner = |worker: &str| Owner { worker: worker.to_owned(), incarnation: "1".to_owned() };
    async fn asked<R: DbRequest>(link: &mut Link, request: &R) -> String {
        let envelope = Envelope::new("1", R::TYPE, request).unwrap().encode().unwrap();
        link.handle().send(envelope).await;
        match within(5, link.next()).await {
            Some(LinkEvent::Message(reply)) => Envelope::decode(&reply).unwrap().msg_type,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(asked(&mut link, &WorkerJoin { owner: owner("a"), is_member: false }).await, REPLY_OK);
    assert_eq!(asked(&mut link, &VersionsMinimum { owner: owner("a") }).await, REPLY_OK);
    assert_eq!(asked(&mut link, &WorkerJoin { owner: owner("b"), is_member: false }).await, REPLY_ERROR);
    assert_eq!(asked(&mut link, &CallsStarted { owner: owner("b"), calls: Vec::new() }).await, REPLY_ERROR);
    assert_eq!(asked(&mut link, &NodeList { since: 0 }).await, REPLY_ERROR, "it is for the api");
    link.handle().send("no envelope").await;
    assert_eq!(within(5, link.next()).await, Some(LinkEvent::Down));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_hears_a_node_under_its_own_name_alone() {
    let mut platform = Platform::start().await;
    let dialer = platform.dialer("a").await;
    let mut link = Link::connect(Target::Front(dialer.clone(), Channel::Api));
    assert_eq!(link.next().await, Some(LinkEvent::Up));
    link.handle().send(hello("a", &["0", "1"])).await;
    let (ToApi::Hello { node: NodeInfo { owner, direct, .. }, .. }, _) = platform.heard().await else { panic!() };
    assert_eq!(owner.worker, "a");
    assert!(direct.len() == 2 && direct.iter().all(|socket| socket.starts_with(platform.folder())), "{direct:?}");
    for lie in [hello("b", &[]), hello("a", &["/etc/passwd"]), Bytes::from_static(b"{}")] {
        let mut liar = Link::connect(Target::Front(dialer.clone(), Channel::Api));
        assert_eq!(liar.next().await, Some(LinkEvent::Up));
        liar.handle().send(lie).await;
        assert_eq!(within(5, liar.next()).await, Some(LinkEvent::Down));
    }
    link.handle().send(hello("a", &[])).await;
    assert!(matches!(platform.heard().await.0, ToApi::Hello { .. }), "the honest connection is not disturbed");
    link.handle().send(platform::hello_of("a", "another", &[])).await;
    assert_eq!(within(5, link.next()).await, Some(LinkEvent::Down), "a connection is of one run");
    let mut boaster = Link::connect(Target::Front(dialer, Channel::Api));
    assert_eq!(boaster.next().await, Some(LinkEvent::Up));
    boaster.handle().send(platform::hello_with_slots("a", u32::MAX)).await;
    assert_eq!(within(5, boaster.next()).await, Some(LinkEvent::Down));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_with_one_certificate_cordon_their_node() {
    let platform = Platform::start().await;
    let dialer = platform.dialer("a").await;
    let mut links = Vec::new();
    for incarnation in ["1", "2"] {
        let mut link = Link::connect(Target::Front(dialer.clone(), Channel::Api));
        assert_eq!(link.next().await, Some(LinkEvent::Up));
        link.handle().send(platform::hello_of("a", incarnation, &[])).await;
        links.push(link);
    }
    let is_cordoned = async {
        loop {
            let nodes = platform.db.ask(&NodeList { since: 0 }).await.unwrap().nodes.unwrap();
            if nodes[0].is_cordoned {
                return nodes[0].cordon_reason.clone();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    assert!(within(20, is_cordoned).await.is_some_and(|reason| reason.contains("two workers")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_reads_and_stores_what_its_work_needs() {
    let mut platform = Platform::start().await;
    let (blobs, namespace) = (platform.blobs.of(&Namespace::default()), Namespace::default());
    let content = Bytes::from(vec![7; 900_000]);
    let granted = blobs.put_bytes(DigestKind::Sha256, content.clone()).await.unwrap();
    let secret = blobs.put_bytes(DigestKind::Sha256, Bytes::from_static(b"another team's")).await.unwrap();
    let dialer = platform.dialer("a").await;
    let get = |key: BlobKey, offset| Channel::BlobGet { namespace: Namespace::default(), key, offset };
    assert_eq!(reason(dialer.open(get(granted, 0)).await), Some(Refusal::NotPermitted), "it has no work yet");
    let mut link = Link::connect(Target::Front(dialer.clone(), Channel::Api));
    assert_eq!(link.next().await, Some(LinkEvent::Up));
    link.handle().send(hello("a", &[])).await;
    let (_, peer) = platform.heard().await;
    platform.tell(&peer, &platform::call_of(granted)).await;
    assert!(matches!(within(5, link.next()).await, Some(LinkEvent::Message(_))));

    let read = async |offset: u64| {
        let (mut frames, opened) = dialer.open(get(granted, offset)).await.unwrap();
        assert_eq!(opened, Opened::Blob { bytes: 900_000 });
        let mut bytes = Vec::new();
        while let Ok(part) = frames.receive().await {
            bytes.extend_from_slice(&part);
        }
        bytes
    };
    assert_eq!(read(0).await, content[..]);
    assert_eq!(read(899_990).await, content[899_990..], "a transfer is resumed");
    assert_eq!(reason(dialer.open(get(secret, 0)).await), Some(Refusal::NotPermitted));

    let put = async |key: BlobKey, bytes: &'static [u8]| {
        let channel = Channel::BlobPut { namespace: namespace.clone(), key, bytes: bytes.len() as u64 };
        let (mut frames, _) = dialer.open(channel).await.unwrap();
        frames.send(bytes).await.unwrap();
        frames.send(Bytes::new()).await.unwrap();
        frames.receive_json::<Opened>().await.unwrap()
    };
    let made = platform.key(DigestKind::Blake3, b"result").await;
    assert_eq!(put(made, b"result").await, Opened::Stored);
    assert!(matches!(put(made, b"forged").await, Opened::Refused { reason: Refusal::NotPermitted, .. }));
    let of_other = Channel::BlobPut { namespace: "other".parse().unwrap(), key: made, bytes: 6 };
    assert_eq!(reason(dialer.open(of_other).await), Some(Refusal::NotPermitted));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_speaks_for_functions_that_it_has_work_of() {
    let platform = Platform::start().await;
    let (frames, _) = platform.dialer("a").await.open(Channel::Internal).await.unwrap();
    let mut stream = frames.into_bytes().unwrap();
    let call = InternalCall {
        namespace: Namespace::default(),
        caller: "victim".parse().unwrap(),
        scopes: Vec::new(),
        target: "payroll".parse().unwrap(),
        depth: 1,
        remaining_ms: 1000,
    };
    let preface = serde_json::to_vec(&call).unwrap();
    stream.write_u16(u16::try_from(preface.len()).unwrap()).await.unwrap();
    stream.write_all(&preface).await.unwrap();
    // It is closed without a word.
    assert!(within(5, stream.read_u8()).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn direct_calls_pass_to_the_thread_that_a_node_names_and_back() {
    let platform = Platform::start().await;
    let (mut frames, _) = platform.dialer("a").await.open(Channel::Direct { lane: 3 }).await.unwrap();
    let mut api = Link::connect(platform.socket("n0-3.sock"));
    assert_eq!(within(5, api.next()).await, Some(LinkEvent::Up));
    api.handle().send("to the node").await;
    let frame = loop {
        let frame = within(5, frames.receive()).await.unwrap();
        if !frame.is_empty() {
            break frame;
        }
    };
    let begin = LaneFrame::decode(&frame).unwrap();
    assert_eq!(&frame[LaneFrame::LENGTH..], b"to the node");
    frames.send([&begin.encode()[..], b"to the api"].concat()).await.unwrap();
    assert_eq!(within(5, api.next()).await, Some(LinkEvent::Message(Bytes::from_static(b"to the api"))));
    let dialer = platform.dialer("b").await;
    assert_eq!(reason(dialer.open(Channel::Direct { lane: 9999 }).await), Some(Refusal::NotPermitted));
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_bytes_disturb_nobody() {
    let platform = Platform::start().await;
    let dialer = platform.dialer("a").await;
    let mut link = Link::connect(Target::Front(dialer.clone(), Channel::Db));
    assert_eq!(link.next().await, Some(LinkEvent::Up));
    let mut held = Vec::new();
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], b"\x16\x03\x01\xff\xff", b""] {
        let mut socket = TcpStream::connect(&platform.address).await.unwrap();
        let _ = socket.write_all(bytes).await;
        held.push(socket);
    }
    // Over TLS: a frame without end, one that is no message, and one that asks for what needs a certificate.
    for bytes in [&[0xff, 0xff, 0xff, 0xff, 1][..], b"\0\0\0\x02{}", b"\0\0\0\x02"] {
        let mut stream = platform.stranger().await;
        stream.write_all(bytes).await.unwrap();
        let mut rest = Vec::new();
        // It is closed, at the latest when its time is over.
        let _ = within(8, stream.read_to_end(&mut rest)).await;
        assert!(rest.is_empty(), "{rest:?}");
    }
    for socket in &mut held {
        let mut rest = Vec::new();
        let _ = within(8, socket.read_to_end(&mut rest)).await;
    }
    link.handle()
        .send(
            Envelope::new(
                "1",
                VersionsMinimum::TYPE,
                &VersionsMinimum { owner: Owner { worker: "a".to_owned(), incarnation: "1".to_owned() } },
            )
            .unwrap()
            .encode()
            .unwrap(),
        )
        .await;
    assert!(matches!(within(5, link.next()).await, Some(LinkEvent::Message(_))), "the node is not disturbed");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_others_are_not_taken() {
    let (platform, other) = (Platform::start().await, Platform::start().await);
    let stranger = other.node("a").await;
    let error = platform.dial_as(&stranger).await.unwrap_err();
    assert!(error.contains("UnknownCA") || error.contains("DecryptError"), "{error}");
    let expired = platform.dial_with(platform.certificate(-1, true)).await.unwrap_err();
    assert!(expired.contains("CertificateExpired"), "{expired}");
    let of_no_client = platform.dial_with(platform.certificate(1, false)).await.unwrap_err();
    assert!(of_no_client.contains("alert"), "{of_no_client}");
    // Issued by the authority, and of no node.
    let unknown = platform.dial_with(platform.certificate(1, true)).await.unwrap();
    assert!(unknown.contains("removed from the platform"), "{unknown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_are_the_tokens() {
    let platform = Platform::start().await;
    let mut token = platform.token(3600).await;
    let labels = |text: &str| serde_json::from_str::<Labels>(text).unwrap();
    token.labels = labels(r#"{"gpu":"true"}"#);
    join(&platform, &token, "a").await.unwrap();
    let nodes = platform.db.ask(&NodeList { since: 0 }).await.unwrap().nodes.unwrap();
    assert_eq!(nodes[0].labels, labels(r#"{"zone":"a"}"#), "what the platform keeps counts, not what the token says");
}
