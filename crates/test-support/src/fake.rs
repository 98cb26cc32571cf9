//! An engine of threads: no process, no isolation, any misbehaviour on demand.
//!
//! The first word of a command says what its "process" does, see [`FakeEngine`].

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use faena_domain::{BlobKey, EngineKind};
use faena_engine::{
    AgentSocket, Engine, EngineError, ImageId, Instance, InstanceHandle, InstanceSpec, LocalImage, Pull,
};
use faena_instance_protocol::{Decoder, Ended, Exit, Outgoing, Output, Run, ToAgent, ToMiniworker};

/// What goes wrong before there is an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing.
    #[default]
    None,
    /// The engine has no image.
    Image,
    /// The engine does not answer.
    Unavailable,
    /// The instance cannot be made.
    Create,
}

/// An engine for tests, in the place of the sandbox. Commands are `echo` (standard input to standard output), `exit CODE`, `signal NUMBER`, `oom`,
/// `output TEXT` (as `output.json`), `flood`, `hang`, `refuse`, `vanish` (the instance is gone) and `babble` (it sends
/// what no agent sends).
#[derive(Clone, Debug, Default)]
pub struct FakeEngine {
    /// What goes wrong before there is an instance.
    pub trouble: Trouble,
    live: Arc<AtomicUsize>,
}

impl FakeEngine {
    /// An engine that has this trouble.
    pub fn with(trouble: Trouble) -> Self {
        Self { trouble, live: Arc::default() }
    }

    /// Instances that were made and not destroyed.
    pub fn live(&self) -> usize {
        self.live.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Engine for FakeEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Sandbox
    }

    fn version(&self) -> String {
        "fake".to_owned()
    }

    fn missing_layers(&self) -> Vec<String> {
        Vec::new()
    }

    async fn resolve(&self, image: &str, _pull: Pull) -> Result<ImageId, EngineError> {
        match self.trouble {
            Trouble::Image => Err(EngineError::Image(format!("the fake has no image {image}"))),
            _ => Ok(ImageId(image.to_owned())),
        }
    }

    fn id_of(&self, image: &BlobKey) -> ImageId {
        ImageId(image.to_string())
    }

    async fn has_image(&self, _image: &BlobKey) -> Result<bool, EngineError> {
        Ok(true)
    }

    async fn import_image(&self, _image: &BlobKey, _archive: File) -> Result<(), EngineError> {
        Ok(())
    }

    async fn images(&self) -> Result<Vec<LocalImage>, EngineError> {
        Ok(Vec::new())
    }

    async fn remove_image(&self, _image: &BlobKey) {}

    async fn create(&self, spec: InstanceSpec) -> Result<Instance, EngineError> {
        match self.trouble {
            Trouble::Unavailable => {
                return Err(EngineError::Unavailable { engine: EngineKind::Sandbox, message: "it is away".to_owned() });
            }
            Trouble::Create => {
                return Err(EngineError::Create { step: "making it".to_owned(), message: "it broke".to_owned() });
            }
            Trouble::Image | Trouble::None => {}
        }
        assert!(spec.code.is_none_or(|code| code.is_dir()), "the code is unpacked before an instance is made");
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        let agent = AgentSocket::new(ours).expect("a runtime");
        std::thread::spawn(move || Agent { stream: theirs, decoder: Decoder::default() }.serve());
        self.live.fetch_add(1, Ordering::SeqCst);
        Ok(Instance {
            agent,
            listener: None,
            device: None,
            is_inhabited: false,
            guard: Box::new(FakeGuard(Arc::clone(&self.live))),
        })
    }

    fn no_device(&self) -> Option<&str> {
        Some("its instances are threads")
    }

    async fn remove_orphans(&self) {}
}

#[derive(Debug)]
struct FakeGuard(Arc<AtomicUsize>);

#[async_trait]
impl InstanceHandle for FakeGuard {
    async fn destroy(self: Box<Self>) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }

    async fn mount_code(&mut self, _code: &Path) -> Result<(), EngineError> {
        Ok(())
    }

    fn freeze(&self) -> io::Result<()> {
        Ok(())
    }

    fn thaw(&self) -> io::Result<()> {
        Ok(())
    }

    fn usage(&self) -> faena_engine::Usage {
        faena_engine::Usage::default()
    }

    fn memory(&self) -> Option<u64> {
        Some(1 << 20)
    }
}

struct Agent {
    stream: UnixStream,
    decoder: Decoder,
}

impl Agent {
    fn next(&mut self) -> Option<(ToAgent, Vec<OwnedFd>)> {
        loop {
            if let Some(frame) = self.decoder.decode().ok()? {
                return Some(frame);
            }
            if self.decoder.read(&self.stream).ok()? == 0 {
                return None;
            }
        }
    }

    fn say(&self, message: &ToMiniworker) {
        let mut outgoing = Outgoing::new(message, &[]).expect("a small frame");
        // The listener may have gone.
        while outgoing.write(&self.stream).is_ok_and(|whole| !whole) {}
    }

    fn serve(mut self) {
        while let Some((frame, fds)) = self.next() {
            match frame {
                ToAgent::Run(run) if !self.run(&run, fds) => return,
                ToAgent::Clean => self.say(&ToMiniworker::Cleaned { error: None, oom_kills: 0 }),
                _ => {}
            }
        }
    }

    /// Plays a process; false where the instance ends with it.
    fn run(&mut self, run: &Run, fds: Vec<OwnedFd>) -> bool {
        let mut files = fds.into_iter().map(File::from);
        let (mut stdin, mut stdout) = (files.next().expect("stdin"), files.next().expect("stdout"));
        let mut output = files.nth(1).filter(|_| run.wants_output);
        drop(files);
        let argument = run.words.get(1).map(String::as_str).unwrap_or_default();
        let (mut exit, mut oom_kills, mut left) = (Exit::Code(0), 0, Output::None);
        match run.words[0].as_str() {
            "refuse" => {
                self.say(&ToMiniworker::Refused { id: run.id, message: "refuse: No such file".to_owned() });
                return true;
            }
            "vanish" => return false,
            "babble" => {
                // A length over the limit.
                let _ = (&self.stream).write_all(&[255; 64]);
                return false;
            }
            _ => self.say(&ToMiniworker::Started { id: run.id }),
        }
        match run.words[0].as_str() {
            "echo" => drop(std::io::copy(&mut stdin, &mut stdout)),
            "exit" => exit = Exit::Code(argument.parse().expect("a code")),
            "signal" => exit = Exit::Signal(argument.parse().expect("a signal")),
            "oom" => (exit, oom_kills) = (Exit::Signal(9), 1),
            "output" => {
                let _ = output.take().map(|mut file| file.write_all(argument.as_bytes()));
                left = Output::File;
            }
            "flood" => {
                while stdout.write_all(&[b'x'; 65_536]).is_ok() {}
                exit = self.until_killed();
            }
            _ => exit = self.until_killed(),
        }
        drop((stdout, output));
        let ended = Ended { id: run.id, exit, oom_kills, peak_memory: Some(1), cpu_us: 1000, output: left };
        self.say(&ToMiniworker::Ended(ended));
        true
    }

    fn until_killed(&mut self) -> Exit {
        while self.next().is_some_and(|(frame, _)| frame != ToAgent::Kill) {}
        Exit::Signal(9)
    }
}
