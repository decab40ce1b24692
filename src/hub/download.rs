//! One file, from the network to its place in the cache: resumed, checked, whole or not at all.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::cache::{Cache, create_parent};
use super::client::{Client, Remote};
use super::{Event, Fault, RepoName};
use crate::fs::{ensure_space, write_error};
use crate::{Error, Result};

/// Times that a server is asked again after an answer without a single byte of the file.
const RETRIES: u32 = 4;
/// Before the first of them; doubles.
const PAUSE: Duration = Duration::from_millis(250);
const BUFFER: usize = 1 << 20;

/// A file to download.
pub(super) struct Job<'a> {
    pub client: &'a Client,
    pub cache: &'a Cache,
    pub repo: &'a RepoName,
    pub commit: &'a str,
    pub file: &'a str,
    pub remote: &'a Remote,
}

impl Job<'_> {
    /// Sees to it that the file's content is in the cache. `progress` is told how many bytes of it are there.
    pub fn run(&self, progress: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        let blob = self.cache.blob(self.repo, &self.remote.etag);
        if blob.exists() {
            return Ok(());
        }
        let _lock = self.lock(progress)?;
        // Whoever held the lock may have been downloading the same.
        if blob.exists() {
            return Ok(());
        }
        let mut partial = Partial::open(self.cache.partial(self.repo, &self.remote.etag), self.remote.size)?;
        ensure_space(&blob, self.remote.size - partial.length)?;
        let mut failures = 0;
        while partial.length < self.remote.size {
            let before = partial.length;
            progress(Event::Bytes(before));
            match self.go_on(&mut partial, progress) {
                Ok(()) => continue,
                Err(Stop::Local(error)) => return Err(error),
                Err(Stop::Remote(fault)) if !fault.is_transient() => return Err(self.error(fault)),
                Err(Stop::Remote(fault)) => {
                    failures = if partial.length > before { 0 } else { failures + 1 };
                    if failures > RETRIES {
                        return Err(self.error(self.broke_off(&partial, fault)));
                    }
                }
            }
            std::thread::sleep(PAUSE * 2_u32.pow(failures));
        }
        partial.finish(self.remote.sha256(), &blob, |fault| self.error(fault))
    }

    fn error(&self, fault: Fault) -> Error {
        Error::remote(format!("{}/{}", self.repo, self.file), fault)
    }

    fn broke_off(&self, partial: &Partial, fault: Fault) -> Fault {
        let cause = match &fault {
            Fault::Unreachable { cause, .. } | Fault::Broken(cause) => cause.clone(),
            other => other.to_string(),
        };
        match partial.length {
            0 => fault,
            done => Fault::BrokeOff { done, of: self.remote.size, cause },
        }
    }

    /// Asks for what is missing and adds what comes.
    fn go_on(&self, partial: &mut Partial, progress: &mut dyn FnMut(Event<'_>)) -> Result<(), Stop> {
        let (start, body) =
            self.client.bytes(self.repo, self.commit, self.file, partial.length).map_err(Stop::Remote)?;
        if start == 0 && partial.length > 0 {
            partial.restart()?;
        }
        let mut body = body.take(self.remote.size - partial.length);
        let mut buffer = vec![0; BUFFER];
        while partial.length < self.remote.size {
            let broken = |cause: String| Stop::Remote(Fault::Broken(cause));
            match body.read(&mut buffer) {
                Ok(0) => return Err(broken("the server ended it too early".into())),
                Ok(count) => partial.add(&buffer[..count])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(broken(error.to_string())),
            }
            progress(Event::Bytes(partial.length));
        }
        Ok(())
    }

    /// Keeps other processes from downloading the same; released when dropped.
    fn lock(&self, progress: &mut dyn FnMut(Event<'_>)) -> Result<File> {
        let path = self.cache.lock(self.repo, &self.remote.etag);
        create_parent(&path)?;
        let failed = |error| Error::io("lock", &path, error);
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                progress(Event::Waiting { file: self.file });
                file.lock().map_err(failed)?;
            }
            // A file system without locks: two processes at once would spoil each other's file, which the check finds.
            Err(TryLockError::Error(_)) | Ok(()) => {}
        }
        Ok(file)
    }
}

/// Why an attempt ended.
enum Stop {
    Remote(Fault),
    Local(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Local(error)
    }
}

/// A file that is not whole yet.
struct Partial {
    path: PathBuf,
    file: File,
    hash: Sha256,
    /// Bytes it has.
    length: u64,
    /// Bytes it is to have.
    size: u64,
}

impl Partial {
    /// Takes up what an earlier attempt has left.
    fn open(path: PathBuf, size: u64) -> Result<Self> {
        create_parent(&path)?;
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
        let mut file = file.map_err(|error| Error::io("create", &path, error))?;
        let mut hash = Sha256::new();
        let mut length = 0;
        let mut buffer = vec![0; BUFFER];
        loop {
            match file.read(&mut buffer).map_err(|error| Error::io("read", &path, error))? {
                0 => break,
                count => {
                    hash.update(&buffer[..count]);
                    length += count as u64;
                }
            }
        }
        let mut partial = Self { path, file, hash, length, size };
        if length > size {
            partial.restart()?;
        }
        Ok(partial)
    }

    fn restart(&mut self) -> Result<()> {
        let emptied = self.file.set_len(0).and_then(|()| io::Seek::rewind(&mut self.file));
        emptied.map_err(|error| Error::io("write", &self.path, error))?;
        self.hash = Sha256::new();
        self.length = 0;
        Ok(())
    }

    fn add(&mut self, bytes: &[u8]) -> Result<()> {
        let failed =
            |error| write_error(&self.path, self.size, self.length, "what has arrived was kept", error);
        self.file.write_all(bytes).map_err(failed)?;
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Compares and gives it its final name; what is wrong is removed.
    fn finish(self, sha256: Option<&str>, blob: &Path, fault: impl Fn(Fault) -> Error) -> Result<()> {
        let failed = |error| Error::io("write", &self.path, error);
        if let Some(expected) = sha256 {
            let found = hex(&self.hash.finalize());
            if !found.eq_ignore_ascii_case(expected) {
                std::fs::remove_file(&self.path).map_err(failed)?;
                return Err(fault(Fault::Checksum { found, expected: expected.to_owned() }));
            }
        }
        self.file.sync_all().map_err(failed)?;
        std::fs::rename(&self.path, blob).map_err(failed)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
