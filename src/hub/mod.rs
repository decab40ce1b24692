//! Models from the Hugging Face hub: found, downloaded, checked, kept.
//!
//! A leaf. The cache has the layout of the huggingface_hub package ([`cache`]), so what Python has downloaded is found
//! here and the other way round. Nothing that comes from the network is trusted: names of files must stay in their
//! folder, contents must have the size and, in large-file storage, the SHA-256 that the hub states, before they get the
//! name under which anything reads them.

mod cache;
mod choose;
mod client;
mod download;
mod fault;
mod outline;

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub use choose::{CheckpointFiles, Choice, checkpoint, model};
pub use fault::Fault;

use crate::{Error, Result, checkpoint as folders};
use cache::{Cache, checked_name};
use client::{Client, Remote};

/// A model's name on the hub: USER/MODEL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepoName {
    user: String,
    model: String,
}

impl RepoName {
    pub fn user(&self) -> &str {
        &self.user
    }

    pub fn model(&self) -> &str {
        &self.model
    }
}

impl fmt::Display for RepoName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.user, self.model)
    }
}

impl FromStr for RepoName {
    type Err = Fault;

    /// Each half is of letters, digits, '-', '_' and '.', and does not begin with a '.': it becomes part of a path.
    fn from_str(text: &str) -> Result<Self, Fault> {
        let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let is_name = |name: &str| {
            (1..=96).contains(&name.len()) && !name.starts_with(['.', '-']) && name.bytes().all(is_letter)
        };
        match text.split_once('/') {
            Some((user, model)) if is_name(user) && is_name(model) => {
                Ok(Self { user: user.to_owned(), model: model.to_owned() })
            }
            _ => Err(Fault::RepoName(text.to_owned())),
        }
    }
}

/// What the caller is told while files are downloaded.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// So many files, of so many bytes together, are to be downloaded to `folder`.
    Begin { files: usize, bytes: u64, folder: &'a Path },
    /// So many of those bytes are there.
    Bytes(u64),
    /// Another process is downloading `file`.
    Waiting { file: &'a str },
}

/// A model as it was found.
#[derive(Debug)]
pub struct Revision {
    pub repo: RepoName,
    /// The git commit.
    pub commit: String,
    /// Names of its files; of those that were downloaded if the hub was not asked or did not answer.
    pub files: Vec<String>,
    /// Why the hub did not answer.
    pub unreachable: Option<Fault>,
}

/// The hub and the folder that keeps what came from it.
#[derive(Debug)]
pub struct Hub {
    cache: Cache,
    /// `None`: only what is in the cache.
    client: Option<Client>,
}

impl Hub {
    /// As the environment says: HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_TOKEN, the token of
    /// `hf auth login`, SSL_CERT_FILE and the usual proxy variables. `token` goes before the others; with `offline`
    /// nothing is asked of the network.
    ///
    /// # Errors
    /// [`Error::Usage`] for settings that make no sense.
    pub fn from_env(token: Option<String>, offline: bool) -> Result<Self> {
        Self::new(|name| std::env::var_os(name), token, offline)
    }

    fn new(
        variable: impl Fn(&str) -> Option<OsString>,
        token: Option<String>,
        offline: bool,
    ) -> Result<Self> {
        let text = |name: &str| variable(name)?.into_string().ok().filter(|value| !value.is_empty());
        let cache = Cache::from_env(&variable, std::env::home_dir())?;
        let is_on =
            |value: String| matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on");
        if offline || text("HF_HUB_OFFLINE").is_some_and(is_on) {
            return Ok(Self { cache, client: None });
        }
        let stored = || {
            let path = text("HF_TOKEN_PATH").map_or_else(|| cache.token_file(), PathBuf::from);
            std::fs::read_to_string(path).ok()
        };
        let token = token.or_else(|| text("HF_TOKEN")).or_else(stored);
        let token = token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| client::ENDPOINT.to_owned());
        let certificates = text("SSL_CERT_FILE").map(PathBuf::from);
        let client = Client::new(&endpoint, token, certificates.as_deref())?;
        Ok(Self { cache, client: Some(client) })
    }

    /// Looks up which files a model has now. If the hub cannot be reached, it is what was downloaded before.
    ///
    /// # Errors
    /// [`Error::Remote`]: no such model, no access to it, no network and nothing downloaded.
    pub fn revision(&self, repo: &RepoName) -> Result<Revision> {
        let Some(client) = &self.client else {
            return self.kept(repo, None).ok_or_else(|| Error::remote(repo, Fault::NotThere));
        };
        match client.describe(repo) {
            Ok((commit, files)) => Ok(Revision { repo: repo.clone(), commit, files, unreachable: None }),
            Err(fault) if fault.is_transient() => match self.cache.commit(repo) {
                Some(_) => self.kept(repo, Some(fault)).ok_or_else(|| Error::remote(repo, Fault::NotThere)),
                None => Err(Error::remote(repo, fault)),
            },
            Err(fault) => Err(Error::remote(repo, fault)),
        }
    }

    /// What was downloaded of a model.
    fn kept(&self, repo: &RepoName, unreachable: Option<Fault>) -> Option<Revision> {
        let commit = self.cache.commit(repo)?;
        let files = self.cache.files(repo, &commit);
        Some(Revision { repo: repo.clone(), commit, files, unreachable })
    }

    /// Downloads a GGUF file, or all parts of a split one; returns the path of the first.
    pub fn fetch_gguf(
        &self,
        revision: &Revision,
        files: &[String],
        progress: &mut dyn FnMut(Event<'_>),
    ) -> Result<PathBuf> {
        let folder = self.fetch(revision, files, progress)?;
        self.cache.set_commit(&revision.repo, &revision.commit)?;
        Ok(files.first().map_or(folder.clone(), |first| folder.join(first)))
    }

    /// Downloads a checkpoint; returns its folder.
    pub fn fetch_checkpoint(
        &self,
        revision: &Revision,
        files: &CheckpointFiles,
        progress: &mut dyn FnMut(Event<'_>),
    ) -> Result<PathBuf> {
        let folder = self.fetch_texts(revision, files, progress)?;
        let weights = match folders::shards(&folder)? {
            Some(shards) => shards.into_iter().collect(),
            None => files.weights.clone(),
        };
        self.fetch(revision, &weights, progress)?;
        // Last, so that what is not whole is not taken for it without a network.
        self.cache.set_commit(&revision.repo, &revision.commit)?;
        Ok(folder)
    }

    /// Downloads a checkpoint without its weights; returns its folder.
    pub fn fetch_texts(
        &self,
        revision: &Revision,
        files: &CheckpointFiles,
        progress: &mut dyn FnMut(Event<'_>),
    ) -> Result<PathBuf> {
        self.fetch(revision, &files.texts, progress)
    }

    /// Where a checkpoint quantized to `kind` is kept, whether it is there or not.
    pub fn made_path(&self, revision: &Revision, kind: &str) -> PathBuf {
        self.cache.made(&revision.repo, &revision.commit, kind)
    }

    /// Downloads those of `files` that are not there; returns the snapshot's folder.
    fn fetch(
        &self,
        revision: &Revision,
        files: &[String],
        progress: &mut dyn FnMut(Event<'_>),
    ) -> Result<PathBuf> {
        let Revision { repo, commit, .. } = revision;
        let folder = self.cache.snapshot(repo, commit);
        for file in files {
            checked_name(file).map_err(|fault| Error::remote(repo, fault))?;
        }
        let missing: Vec<&String> = files.iter().filter(|file| !folder.join(file).exists()).collect();
        if missing.is_empty() {
            return Ok(folder);
        }
        let about = |file: &str, fault| Error::remote(format!("{repo}/{file}"), fault);
        let client = match (&self.client, &revision.unreachable) {
            (Some(client), None) => client,
            _ => return Err(about(missing[0], Fault::NotThere)),
        };
        let heads =
            missing.iter().map(|file| client.head(repo, commit, file).map_err(|fault| about(file, fault)));
        let heads: Vec<Remote> = heads.collect::<Result<_>>()?;
        let bytes = heads.iter().fold(0_u64, |sum, head| sum.saturating_add(head.size));
        progress(Event::Begin { files: missing.len(), bytes, folder: &folder });
        let mut before = 0;
        for (file, remote) in missing.into_iter().zip(&heads) {
            let job = download::Job { client, cache: &self.cache, repo, commit, file, remote };
            job.run(&mut |event| match event {
                Event::Bytes(done) => progress(Event::Bytes(before + done)),
                other => progress(other),
            })?;
            self.cache.link(repo, commit, file, &remote.etag)?;
            before += remote.size;
            progress(Event::Bytes(before));
        }
        Ok(folder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_models() {
        for name in ["microsoft/Phi-3.5-mini-instruct", "a/b", "A_1/b.c"] {
            assert_eq!(name.parse::<RepoName>().unwrap().to_string(), name);
        }
        for name in
            ["", "phi", "a/b/c", "../b", "a/..", "a/.b", "/b", "a/", "a b/c", "a/b?c", "a\\b/c", "-a/b"]
        {
            assert!(matches!(name.parse::<RepoName>(), Err(Fault::RepoName(_))), "{name}");
        }
    }
}
