//! The raw limits of what passes between machines over TLS 1.3, between two threads.
//!
//! `tls_raw echo` prints the median of a round trip of 256 bytes in microseconds. `tls_raw cat FILE` sends a file to another one
//! beside it, and prints megabytes a second.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig, version};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// The bytes of a message.
const MESSAGE: usize = 256;
/// Round trips; the first tenth warms up.
const ROUNDS: usize = 20_000;
/// What is read of a file at once.
const PART: usize = 256 * 1024;
/// Bytes of a megabyte, as throughput is told.
const MEGABYTE: f64 = 1e6;

/// What is measured.
#[derive(Clone)]
enum Task {
    Echo,
    Cat(PathBuf),
}

async fn serve(listener: std::net::TcpListener, config: Arc<ServerConfig>, task: Task) -> anyhow::Result<()> {
    let (socket, _) = TcpListener::from_std(listener)?.accept().await?;
    socket.set_nodelay(true)?;
    let mut stream = TlsAcceptor::from(config).accept(socket).await?;
    match task {
        Task::Echo => {
            let mut message = [0; MESSAGE];
            while stream.read_exact(&mut message).await.is_ok() {
                stream.write_all(&message).await?;
                stream.flush().await?;
            }
        }
        Task::Cat(file) => {
            let mut file = tokio::io::BufReader::with_capacity(PART, tokio::fs::File::open(file).await?);
            tokio::io::copy_buf(&mut file, &mut stream).await?;
            stream.shutdown().await?;
        }
    }
    Ok(())
}

/// The median of the round trips, in microseconds.
async fn echo(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> anyhow::Result<f64> {
    let (mut message, mut times) = ([7; MESSAGE], Vec::with_capacity(ROUNDS));
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        stream.write_all(&message).await?;
        stream.flush().await?;
        stream.read_exact(&mut message).await?;
        times.push(begun.elapsed());
    }
    let measured = &mut times[ROUNDS / 10..];
    measured.sort_unstable();
    Ok(measured[measured.len() / 2].as_secs_f64() * 1e6)
}

/// Megabytes a second, until the copy has its last byte.
async fn cat(stream: &mut (impl AsyncRead + Unpin), file: &Path) -> anyhow::Result<f64> {
    let copy = file.with_extension("copy");
    let (begun, mut to) = (Instant::now(), tokio::fs::File::create(&copy).await?);
    let bytes = tokio::io::copy(&mut tokio::io::BufReader::with_capacity(PART, stream), &mut to).await?;
    to.flush().await?;
    let rate = bytes as f64 / MEGABYTE / begun.elapsed().as_secs_f64();
    tokio::fs::remove_file(copy).await?;
    Ok(rate)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let task = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["echo"] => Task::Echo,
        ["cat", file] => Task::Cat(file.into()),
        _ => bail!("usage: tls_raw echo | tls_raw cat FILE"),
    };
    let key = rcgen::KeyPair::generate()?;
    let certificate = rcgen::CertificateParams::new(vec!["bench".to_owned()])?.self_signed(&key)?;
    let (mut roots, provider) = (RootCertStore::empty(), Arc::new(ring::default_provider()));
    roots.add(certificate.der().clone())?;
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))?;
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    listener.set_nonblocking(true)?;
    let served = task.clone();
    let thread = std::thread::spawn(move || -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(serve(listener, Arc::new(server), served))
    });
    let socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    let mut stream = TlsConnector::from(Arc::new(client)).connect(ServerName::try_from("bench")?, socket).await?;
    let measured = match &task {
        Task::Echo => echo(&mut stream).await?,
        Task::Cat(file) => cat(&mut stream, file).await.with_context(|| format!("cannot send {}", file.display()))?,
    };
    drop(stream);
    drop(thread.join());
    println!("{measured:.1}");
    Ok(())
}
