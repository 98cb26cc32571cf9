//! One suite for every engine: what an instance can do, and what it cannot.
//!
//! Its own `main`, because the sandbox runs the program that asked for it again, as its launcher. Docker's half needs
//! a daemon and the image `bashruntime`; without them it fails rather than being left out, unless
//! `FAENA_TEST_WITHOUT_DOCKER` says that nobody expects it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use faena_domain::units::{ByteSize, MB};
use faena_domain::{BlobKey, DigestKind, Limits};
use faena_engine::{
    Belonging, CodeBy, Docker, DockerConfig, Engine, ImageId, Instance, InstanceSpec, Layer, Pull, Sandbox,
    SandboxConfig, Uids, install_agent, install_shims,
};
use faena_instance_protocol::{Ended, Exit, Output, Run, ToAgent, ToMiniworker};
use libtest_mimic::{Arguments, Failed, Trial};

/// One engine on a folder of its own.
struct Bench {
    engine: Box<dyn Engine>,
    image: ImageId,
    folder: PathBuf,
    names: AtomicU32,
    /// Whether code is copied into its instances, once.
    copies: bool,
}

/// What a process left.
struct Done {
    ended: Ended,
    stdout: String,
    stderr: String,
    output: String,
}

fn belonging() -> Belonging {
    let id = std::process::id();
    Belonging { platform: format!("test-{id}"), worker: format!("test-{id}"), incarnation: "one".into() }
}

fn launcher() -> PathBuf {
    std::env::current_exe().unwrap()
}

impl Bench {
    async fn sandbox(folder: PathBuf) -> Self {
        let config = SandboxConfig {
            belonging: belonging(),
            launcher: launcher(),
            agent: install_agent(&folder).unwrap(),
            shims: install_shims(&folder).unwrap(),
            zygote: None,
            folder: folder.clone(),
            accept_missing: Layer::ALL.to_vec(),
            host_images: vec![("bashruntime".into(), "bash".into())],
            unpack: |archive, into, _| tar::Archive::new(archive).unpack(into),
            reserve: 0,
        };
        let engine = Sandbox::start(config, Uids::default()).await.unwrap();
        Self::new(Box::new(engine), folder, false).await
    }

    async fn docker(folder: PathBuf, code_by: CodeBy) -> Self {
        let config = DockerConfig {
            belonging: belonging(),
            socket: None,
            launcher: launcher(),
            agent: install_agent(&folder).unwrap(),
            shims: install_shims(&folder).unwrap(),
            folder: folder.join("containers"),
            code_by: Some(code_by),
        };
        let engine = Docker::connect(config, Uids::default()).await.unwrap();
        Self::new(Box::new(engine), folder, code_by == CodeBy::Copy).await
    }

    async fn new(engine: Box<dyn Engine>, folder: PathBuf, copies: bool) -> Self {
        let code = folder.join("code");
        std::fs::create_dir_all(code.join("sub")).unwrap();
        std::fs::write(code.join("greeting"), "hola").unwrap();
        std::fs::write(code.join("output.json"), "stale").unwrap();
        for path in [&code, &code.join("sub"), &code.join("greeting"), &code.join("output.json")] {
            // Without root the files are ours, and we are who is mapped.
            let _ = std::os::unix::fs::chown(path, Some(1000), Some(1000));
        }
        let image = engine.resolve("bashruntime", Pull::Never).await.unwrap();
        Self { engine, image, folder, names: AtomicU32::new(0), copies }
    }

    fn spec(&self, limits: Limits, egress: bool) -> InstanceSpec {
        InstanceSpec {
            name: format!("i{}", self.names.fetch_add(1, Ordering::Relaxed)),
            image: self.image.clone(),
            code: Some(self.folder.join("code")),
            path: "/ws".into(),
            limits,
            egress,
            ca_bundle: None,
            resident: None,
        }
    }

    async fn instance(&self) -> Instance {
        self.engine.create(self.spec(Limits::DEFAULT, false)).await.unwrap()
    }

    /// Runs a line of the shell in an instance of its own.
    async fn shell(&self, line: &str) -> Done {
        let mut instance = self.instance().await;
        let done = run(&mut instance, &["bash", "-c", line], "{\"n\":1}").await.unwrap();
        instance.guard.destroy().await;
        done
    }
}

fn memory_file(text: &str) -> OwnedFd {
    let fd = rustix::fs::memfd_create("params", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut file = std::fs::File::from(fd);
    file.write_all(text.as_bytes()).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    file.into()
}

fn reader(fd: OwnedFd) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        std::fs::File::from(fd).read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

async fn run(instance: &mut Instance, words: &[&str], params: &str) -> Result<Done, String> {
    let input = memory_file(params);
    let pipes: Vec<(OwnedFd, OwnedFd)> = (0..3).map(|_| rustix::pipe::pipe().unwrap()).collect();
    let run = Run {
        id: 7,
        words: words.iter().map(|&word| word.into()).collect(),
        env: vec![("A".into(), "b".into())],
        path_prefix: "/ws/.local/bin:".into(),
        path: "/ws".into(),
        has_answers: false,
        wants_output: true,
        files: vec![faena_instance_protocol::INPUT.to_owned()],
    };
    let fds = [input.as_fd(), pipes[0].1.as_fd(), pipes[1].1.as_fd(), pipes[2].1.as_fd(), input.as_fd()];
    instance.agent.send(&ToAgent::Run(run), &fds).await.unwrap();
    let readers: Vec<_> = pipes.into_iter().map(|(read, _written)| reader(read)).collect();
    loop {
        match instance.agent.receive().await.unwrap().0 {
            ToMiniworker::Started { id: 7 } => {}
            ToMiniworker::Refused { id: 7, message } => return Err(message),
            ToMiniworker::Ended(ended) => {
                let mut texts = readers.into_iter().map(|reader| reader.join().unwrap());
                let mut next = || texts.next().unwrap();
                return Ok(Done { ended, stdout: next(), stderr: next(), output: next() });
            }
            other => panic!("{other:?}"),
        }
    }
}

macro_rules! expect {
    ($condition:expr, $done:expr) => {
        if !$condition {
            let done = $done;
            return Err(format!(
                "{} does not hold: {:?}\nstdout: {}\nstderr: {}\noutput: {}",
                stringify!($condition),
                done.ended,
                done.stdout,
                done.stderr,
                done.output
            )
            .into());
        }
    };
}

type Outcome = Result<(), Failed>;

async fn runs_and_answers(bench: &Bench) -> Outcome {
    let done = bench.shell("cat greeting; cat input.json; cat; echo oops >&2; echo -n $A").await;
    expect!(done.stdout == "hola{\"n\":1}{\"n\":1}b", done);
    expect!(done.stderr == "oops\n" && done.ended.exit == Exit::Code(0), done);
    expect!(done.ended.output == Output::None, done);
    Ok(())
}

async fn tells_codes_signals_and_missing_programs(bench: &Bench) -> Outcome {
    let done = bench.shell("exit 3").await;
    expect!(done.ended.exit == Exit::Code(3), done);
    let done = bench.shell("kill -11 $$").await;
    expect!(done.ended.exit == Exit::Signal(11), done);
    let mut instance = bench.instance().await;
    let refused = run(&mut instance, &["no-such-program"], "").await.err().unwrap_or_default();
    instance.guard.destroy().await;
    if refused.contains("no-such-program") { Ok(()) } else { Err(format!("refused with {refused:?}").into()) }
}

async fn takes_only_a_fresh_regular_file_as_output(bench: &Bench) -> Outcome {
    let done = bench.shell("echo -n '{\"output\":1}' > output.json").await;
    expect!(done.ended.output == Output::File && done.output == "{\"output\":1}", done);
    for trick in ["ln -s /etc/passwd output.json", "mkfifo output.json", "mkdir output.json"] {
        let done = bench.shell(trick).await;
        expect!(matches!(done.ended.output, Output::Invalid(_)) && done.output.is_empty(), done);
    }
    Ok(())
}

async fn leaves_no_process_behind(bench: &Bench) -> Outcome {
    let mut instance = bench.instance().await;
    let line = "for i in 1 2 3; do setsid sleep 600 </dev/null >/dev/null 2>&1 & done; echo $(ls /tmp /dev/shm . | grep -c left); touch /tmp/left";
    let done = run(&mut instance, &["bash", "-c", line], "{}").await.map_err(Failed::from)?;
    expect!(done.ended.exit == Exit::Code(0), done);
    let done = run(&mut instance, &["bash", "-c", "grep -l sleep /proc/[0-9]*/comm | wc -l"], "{}")
        .await
        .map_err(Failed::from)?;
    expect!(done.stdout.trim() == "0", done);
    instance.guard.destroy().await;
    Ok(())
}

async fn counts_what_memory_did(bench: &Bench) -> Outcome {
    let limits = Limits { memory: ByteSize(48 * MB), ..Limits::DEFAULT };
    let mut instance = bench.engine.create(bench.spec(limits, false)).await.unwrap();
    let done =
        run(&mut instance, &["bash", "-c", "x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo ${#x}"], "{}").await;
    instance.guard.destroy().await;
    let done = done.map_err(Failed::from)?;
    expect!(done.ended.oom_kills > 0, done);
    expect!(done.ended.peak_memory.is_some_and(|peak| peak > 10 * MB), done);
    Ok(())
}

async fn bounds_processes(bench: &Bench) -> Outcome {
    let done = bench.shell("for i in $(seq 300); do sleep 60 & done 2>&1 | head -1; true").await;
    expect!(done.stdout.contains("fork") || done.stderr.contains("fork"), done);
    Ok(())
}

async fn bounds_what_is_written(bench: &Bench) -> Outcome {
    for folder in ["/tmp", "/dev/shm", "/ws"] {
        let done = bench.shell(&format!("head -c 200000000 /dev/zero > {folder}/fill; stat -c %s {folder}/fill")).await;
        let written: u64 = done.stdout.trim().parse().unwrap_or(u64::MAX);
        expect!(written <= 64 * MB && done.stderr.contains("No space left"), done);
    }
    Ok(())
}

async fn has_no_privilege_and_no_network(bench: &Bench) -> Outcome {
    let done = bench
        .shell(
            "grep -E '^(CapEff|CapPrm|CapBnd|CapAmb|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\n\\t '; id -u",
        )
        .await;
    let none = "0000000000000000";
    expect!(done.stdout.contains(&format!("CapEff:{none}")) && done.stdout.contains(&format!("CapBnd:{none}")), done);
    expect!(done.stdout.contains("NoNewPrivs:1") && done.stdout.contains("Seccomp:2"), done);
    expect!(!done.stdout.ends_with("\n0\n"), done);
    let done = bench.shell("tail -n +3 /proc/net/dev | cut -d: -f1 | grep -vE ' *(lo|tunl0|sit0|ip6tnl0)$'; exec 3<>/dev/tcp/192.0.2.1/80").await;
    expect!(done.stdout.is_empty() && done.ended.exit != Exit::Code(0), done);
    Ok(())
}

async fn cannot_write_to_the_system(bench: &Bench) -> Outcome {
    let line = "for d in / /usr /usr/bin /etc /var /proc/sys/kernel /sys /.faena /run; do (echo x > $d/canary) 2>/dev/null && echo $d; done; true";
    let done = bench.shell(line).await;
    expect!(done.stdout.is_empty(), done);
    let done = bench
        .shell("cat /proc/1/environ /proc/1/maps /proc/kcore 2>&1 >/dev/null | grep -c denied; ls /var/run/docker.sock")
        .await;
    expect!(!done.stdout.contains("docker.sock"), done);
    Ok(())
}

async fn changes_nothing_for_the_next(bench: &Bench) -> Outcome {
    let done =
        bench.shell("echo changed > greeting && echo new > sub/file && rm output.json; cat greeting sub/file").await;
    expect!(done.stdout == "changed\nnew\n", done);
    let done = bench.shell("cat greeting; ls sub").await;
    expect!(done.stdout == "hola", done);
    Ok(())
}

async fn inherits_three_descriptors(bench: &Bench) -> Outcome {
    let done = bench.shell("ls /proc/self/fd | wc -l").await;
    // 0, 1, 2, and the folder that ls itself reads.
    expect!(done.stdout.trim() == "4", done);
    Ok(())
}

async fn ends_when_its_socket_does(bench: &Bench) -> Outcome {
    let mut instance = bench.instance().await;
    let mark = format!("6{:07}", std::process::id());
    let (read, written) = rustix::pipe::pipe().unwrap();
    let input = memory_file("");
    let run = Run {
        id: 1,
        words: vec!["sleep".into(), mark.clone()],
        env: vec![],
        path_prefix: String::new(),
        path: "/ws".into(),
        has_answers: false,
        wants_output: false,
        files: Vec::new(),
    };
    instance.agent.send(&ToAgent::Run(run), &[input.as_fd(), written.as_fd(), written.as_fd()]).await.unwrap();
    drop(written);
    instance.agent.receive().await.unwrap();
    let Instance { agent, guard, .. } = instance;
    drop(agent);
    // The pipe ends when the last process that holds it does.
    let ended = tokio::task::spawn_blocking(move || reader(read).join()).await;
    guard.destroy().await;
    if ended.is_ok() { Ok(()) } else { Err("the process outlived the socket".into()) }
}

async fn is_killed_when_told(bench: &Bench) -> Outcome {
    let mut instance = bench.instance().await;
    let (read, written) = rustix::pipe::pipe().unwrap();
    let input = memory_file("");
    let words = ["bash", "-c", "trap '' TERM INT; while :; do :; done"].map(String::from).to_vec();
    let run = Run {
        id: 1,
        words,
        env: vec![],
        path_prefix: String::new(),
        path: "/ws".into(),
        has_answers: false,
        wants_output: false,
        files: Vec::new(),
    };
    instance.agent.send(&ToAgent::Run(run), &[input.as_fd(), written.as_fd(), written.as_fd()]).await.unwrap();
    instance.agent.receive().await.unwrap();
    instance.agent.send(&ToAgent::Kill, &[]).await.unwrap();
    let (frame, _) = instance.agent.receive().await.unwrap();
    drop((read, written));
    instance.guard.destroy().await;
    match frame {
        ToMiniworker::Ended(Ended { exit: Exit::Signal(9), .. }) => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

async fn packs_its_tree(bench: &Bench) -> Outcome {
    let mut instance = bench.instance().await;
    let line = "mkdir -p a/b; echo x > a/b/f; chmod 755 a/b/f; ln -s /nowhere a/link; mkfifo a/pipe; rm greeting";
    run(&mut instance, &["bash", "-c", line], "{}").await.map_err(Failed::from)?;
    let (read, written) = rustix::pipe::pipe().unwrap();
    instance.agent.send(&ToAgent::Pack { path: "/ws".into() }, &[written.as_fd()]).await.unwrap();
    drop(written);
    let whole = std::thread::spawn(move || {
        let mut archive = tar::Archive::new(std::fs::File::from(read));
        let names: Vec<String> =
            archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect();
        names
    });
    let packed = instance.agent.receive().await.unwrap().0;
    instance.guard.destroy().await;
    let mut names = whole.join().unwrap();
    names.sort();
    let wanted = ["a", "a/b", "a/b/f", "a/link", "input.json", "sub"];
    if packed == (ToMiniworker::Packed { error: None }) && names == wanted {
        Ok(())
    } else {
        Err(format!("{packed:?} {names:?}").into())
    }
}

async fn hands_over_the_listener_for_egress(bench: &Bench) -> Outcome {
    let mut instance = bench.engine.create(bench.spec(Limits::DEFAULT, true)).await.unwrap();
    let listener = instance.listener.take().ok_or("no listener came")?;
    listener.set_nonblocking(false).unwrap();
    let served = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"from outside").unwrap();
    });
    let done =
        run(&mut instance, &["bash", "-c", "cat < /dev/tcp/127.0.0.1/3128"], "{}").await.map_err(Failed::from)?;
    served.join().unwrap();
    instance.guard.destroy().await;
    expect!(done.stdout == "from outside", done);
    Ok(())
}

/// An instance with egress has a device with a route to everywhere, and who has its descriptor reads what is sent. Without
/// egress there is none, and what is tried is counted.
async fn has_a_network_device_for_egress(bench: &Bench) -> Outcome {
    if let Some(why) = bench.engine.no_device() {
        return Err(format!("no device can be made: {why}").into());
    }
    let mut instance = bench.engine.create(bench.spec(Limits::DEFAULT, true)).await.unwrap();
    let device = instance.device.take().ok_or("no device came")?;
    let sends = "grep -c tun0 /proc/net/dev; echo hello > /dev/udp/203.0.113.7/9; ls /dev/net 2>&1 | grep -c tun";
    let done = run(&mut instance, &["bash", "-c", sends], "{}").await.map_err(Failed::from)?;
    let mut packet = [0; 2048];
    let length = rustix::io::read(&device, &mut packet).map_err(|error| format!("no packet came: {error}"))?;
    instance.guard.destroy().await;
    expect!(done.stdout == "1\n0\n", done);
    // From the instance's own address to the one that was named (RFC 791, 3.1).
    let is_sent = packet[12..20] == [198, 18, 0, 2, 203, 0, 113, 7] && packet[..length].ends_with(b"hello\n");
    if !is_sent {
        return Err(format!("it is another packet: {:?}", &packet[..length]).into());
    }
    let mut closed = bench.instance().await;
    if closed.device.is_some() {
        return Err("a device where none was asked for".into());
    }
    let unroutable = |instance: &Instance| instance.guard.network()?.unroutable();
    let before = unroutable(&closed).ok_or("nothing is counted")?;
    let done = run(&mut closed, &["bash", "-c", sends], "{}").await.map_err(Failed::from)?;
    let after = unroutable(&closed);
    closed.guard.destroy().await;
    expect!(done.stdout == "0\n0\n" && after > Some(before), done);
    Ok(())
}

/// Between two calls: nothing of the first is found by the second, wherever it was left.
async fn is_as_new_after_a_call(bench: &Bench) -> Outcome {
    let mut instance = bench.instance().await;
    let leave =
        "echo x > new; rm greeting; mkdir -p /tmp/a/b; touch /tmp/a/b/c /tmp/.d; chmod 0 /tmp/a; echo y > /dev/shm/z";
    run(&mut instance, &["bash", "-c", leave], "{}").await.map_err(Failed::from)?;
    instance.agent.send(&ToAgent::Clean, &[]).await.unwrap();
    let cleaned = instance.agent.receive().await.unwrap().0;
    let mounted = instance.guard.mount_code(&bench.folder.join("code")).await;
    if mounted.is_err() && bench.copies {
        // Code that was copied can only be had anew with a new instance.
        instance.guard.destroy().await;
        return Ok(());
    }
    mounted.unwrap();
    let look = "ls -A . /tmp /dev/shm; cat greeting; echo w > new && cat new";
    let done = run(&mut instance, &["bash", "-c", look], "{}").await.map_err(Failed::from)?;
    instance.guard.destroy().await;
    expect!(cleaned == (ToMiniworker::Cleaned { error: None, oom_kills: 0 }), done);
    let wanted = ".:\ngreeting\ninput.json\noutput.json\nsub\n\n/dev/shm:\n\n/tmp:\nholaw\n";
    expect!(done.stdout.replace("output.json\n", "") == wanted.replace("output.json\n", ""), done);
    Ok(())
}

async fn takes_its_code_later(bench: &Bench) -> Outcome {
    if bench.copies {
        return Ok(());
    }
    let spec = InstanceSpec { code: None, ..bench.spec(Limits::DEFAULT, false) };
    let mut instance = bench.engine.create(spec).await.unwrap();
    instance.guard.mount_code(&bench.folder.join("code")).await.unwrap();
    let line = "cat greeting; cat input.json; echo more > greeting && cat greeting";
    let done = run(&mut instance, &["bash", "-c", line], "{\"n\":1}").await.map_err(Failed::from)?;
    instance.guard.destroy().await;
    expect!(done.stdout == "hola{\"n\":1}more\n", done);
    Ok(())
}

async fn hands_over_connections_to_its_loopback(bench: &Bench) -> Outcome {
    let mut instance = bench.instance().await;
    instance.agent.send(&ToAgent::Connect { port: 3128 }, &[]).await.unwrap();
    let (refused, none) = instance.agent.receive().await.unwrap();
    let is_refused = matches!(refused, ToMiniworker::Connected { error: Some(_) }) && none.is_empty();
    instance.guard.destroy().await;
    let mut instance = bench.engine.create(bench.spec(Limits::DEFAULT, true)).await.unwrap();
    let listener = instance.listener.take().ok_or("no listener came")?;
    instance.agent.send(&ToAgent::Connect { port: 3128 }, &[]).await.unwrap();
    let (connected, mut fds) = instance.agent.receive().await.unwrap();
    let mut ours = std::net::TcpStream::from(fds.pop().ok_or("no connection came")?);
    ours.set_nonblocking(false).unwrap();
    let (mut theirs, _) = listener.accept().unwrap();
    theirs.write_all(b"hola").unwrap();
    drop(theirs);
    let mut said = String::new();
    ours.read_to_string(&mut said).unwrap();
    instance.guard.destroy().await;
    if is_refused && connected == (ToMiniworker::Connected { error: None }) && said == "hola" {
        Ok(())
    } else {
        Err(format!("{refused:?} {connected:?} {said}").into())
    }
}

/// A frozen instance does nothing, and goes on where it was.
async fn stands_still_while_it_is_frozen(bench: &Bench) -> Outcome {
    let mut instance = bench.instance().await;
    let line = "while read -r word; do echo \"$word\"; done";
    let (input, feed) = rustix::pipe::pipe().unwrap();
    let (said, output) = rustix::pipe::pipe().unwrap();
    let run = Run {
        id: 7,
        words: ["bash", "-c", line].map(String::from).to_vec(),
        env: Vec::new(),
        path_prefix: String::new(),
        path: "/ws".into(),
        has_answers: false,
        wants_output: false,
        files: Vec::new(),
    };
    instance.agent.send(&ToAgent::Run(run), &[input.as_fd(), output.as_fd(), output.as_fd()]).await.unwrap();
    instance.agent.receive().await.unwrap();
    instance.guard.freeze().unwrap();
    let mut feed = std::fs::File::from(feed);
    feed.write_all(b"hola\n").unwrap();
    let mut watched = [rustix::event::PollFd::new(&said, rustix::event::PollFlags::IN)];
    // What does not come is waited for in vain; a slow machine only makes this easier to hold.
    let early =
        rustix::event::poll(&mut watched, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 200_000_000 })).unwrap();
    instance.guard.thaw().unwrap();
    let mut word = [0; 5];
    std::fs::File::from(said).read_exact(&mut word).unwrap();
    let holds_memory = instance.guard.memory().is_some_and(|bytes| bytes > 0);
    instance.guard.freeze().unwrap();
    // One that is frozen can be destroyed.
    instance.guard.destroy().await;
    if early == 0 && &word == b"hola\n" && holds_memory {
        Ok(())
    } else {
        Err(format!("{early} {word:?} {holds_memory}").into())
    }
}

async fn names_an_image_it_does_not_have(bench: &Bench) -> Outcome {
    match bench.engine.resolve("no-such-image-anywhere", Pull::Never).await {
        Err(error) if error.to_string().contains("no-such-image-anywhere") => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

/// A root file system with nothing but this host's bash and its libraries.
fn bash_alone() -> std::fs::File {
    let listed = std::process::Command::new("ldd").arg("/bin/bash").output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let libraries = listed.split_whitespace().filter(|word| word.starts_with('/'));
    let mut tar = tar::Builder::new(tempfile::tempfile().unwrap());
    for path in libraries.chain(["/bin/bash"]) {
        let mut file = std::fs::File::open(path).unwrap();
        tar.append_file(path.trim_start_matches('/'), &mut file).unwrap();
    }
    let mut file = tar.into_inner().unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    file
}

/// An image cannot be removed while an instance uses it. After its removal it can be imported again.
async fn runs_an_image_of_the_platform(bench: &Bench) -> Outcome {
    let digest: Vec<u8> =
        [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()].iter().flat_map(|half| *half.as_bytes()).collect();
    let (engine, key) = (&bench.engine, BlobKey::new(DigestKind::Sha256, digest.try_into().unwrap()));
    if engine.has_image(&key).await.unwrap() {
        return Err("the image is there before it was imported".into());
    }
    engine.import_image(&key, bash_alone()).await.unwrap();
    let is_listed = engine.images().await.unwrap().iter().any(|image| image.key == key && image.bytes > MB);
    let spec = InstanceSpec { image: engine.id_of(&key), ..bench.spec(Limits::DEFAULT, false) };
    let mut instance = engine.create(spec).await.unwrap();
    let done = run(&mut instance, &["bash", "-c", "echo /bin/*; [ -e /usr/bin/id ] || echo bare"], "").await;
    engine.remove_image(&key).await;
    let stays = engine.has_image(&key).await.unwrap();
    instance.guard.destroy().await;
    engine.remove_image(&key).await;
    let is_gone = !engine.has_image(&key).await.unwrap();
    // The launcher must not use the root that it prepared of the removed files.
    engine.import_image(&key, bash_alone()).await.unwrap();
    let spec = InstanceSpec { image: engine.id_of(&key), ..bench.spec(Limits::DEFAULT, false) };
    let mut instance = engine.create(spec).await.unwrap();
    let again = run(&mut instance, &["bash", "-c", "echo /bin/*"], "").await;
    instance.guard.destroy().await;
    engine.remove_image(&key).await;
    let (done, again) = (done.map_err(Failed::from)?, again.map_err(Failed::from)?);
    expect!(done.stdout == "/bin/bash\nbare\n", done);
    expect!(again.stdout == "/bin/bash\n", again);
    if is_listed && stays && is_gone { Ok(()) } else { Err(format!("{is_listed} {stays} {is_gone}").into()) }
}

macro_rules! suite {
    ($($case:ident)*) => {
        fn suite(engine: &'static str, bench: &Arc<Bench>, runtime: &Arc<tokio::runtime::Runtime>) -> Vec<Trial> {
            vec![$({
                let (bench, runtime) = (Arc::clone(bench), Arc::clone(runtime));
                let name = format!("{engine}::{}", stringify!($case));
                Trial::test(name, move || runtime.block_on($case(&bench)))
            }),*]
        }
    };
}
suite! {
    runs_and_answers
    tells_codes_signals_and_missing_programs
    takes_only_a_fresh_regular_file_as_output
    leaves_no_process_behind
    counts_what_memory_did
    bounds_processes
    bounds_what_is_written
    has_no_privilege_and_no_network
    cannot_write_to_the_system
    changes_nothing_for_the_next
    inherits_three_descriptors
    ends_when_its_socket_does
    is_killed_when_told
    packs_its_tree
    hands_over_the_listener_for_egress
    has_a_network_device_for_egress
    is_as_new_after_a_call
    takes_its_code_later
    hands_over_connections_to_its_loopback
    stands_still_while_it_is_frozen
    names_an_image_it_does_not_have
    runs_an_image_of_the_platform
}

fn main() -> ExitCode {
    if let Some(code) = faena_launcher::run_if_asked() {
        return code;
    }
    let arguments = Arguments::from_args();
    let runtime = Arc::new(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap());
    let [one, two, three] = std::array::from_fn(|_| tempfile::tempdir().unwrap());
    let sandbox = Arc::new(runtime.block_on(Bench::sandbox(one.path().to_owned())));
    let mut trials = suite("sandbox", &sandbox, &runtime);
    if std::env::var_os("FAENA_TEST_WITHOUT_DOCKER").is_none() {
        for (name, folder, code_by) in [("docker", &two, CodeBy::Overlay), ("docker-copying", &three, CodeBy::Copy)] {
            let docker = Arc::new(runtime.block_on(Bench::docker(folder.path().to_owned(), code_by)));
            trials.extend(suite(name, &docker, &runtime));
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}
