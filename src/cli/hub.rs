//! `-hf USER/MODEL`: models from the Hugging Face hub.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use indicatif::ProgressBar;
use tempfile::TempDir;

use super::progress;
use crate::checkpoint::Checkpoint;
use crate::fs::human_bytes;
use crate::hub::{self, CheckpointFiles, Choice, Event, Hub, RepoName, Revision};
use crate::quant::recipe::FileType;
use crate::{Error, Result};

/// Where a model comes from, if not from this machine.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct HubArgs {
    /// -hf: a model on the Hugging Face hub, downloaded when it is not there yet. TYPE chooses among its GGUF files,
    /// or is what its checkpoint is quantized to [default: Q4_K_M]
    #[arg(long, value_name = "USER/MODEL[:TYPE]")]
    pub hf_repo: Option<Spec>,
    /// -hff: the GGUF file to take from there
    #[arg(long, value_name = "FILE", requires = "hf_repo")]
    pub hf_file: Option<String>,
    #[command(flatten)]
    pub access: Access,
}

/// How the hub is asked.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Access {
    /// -hft: the token for private and gated models; other users can see it here, so better set HF_TOKEN
    #[arg(long, value_name = "TOKEN", requires = "hf_repo")]
    pub hf_token: Option<String>,
    /// Ask nothing of the network, take what was downloaded before (also: HF_HUB_OFFLINE=1)
    #[arg(long)]
    pub offline: bool,
}

/// USER/MODEL[:TYPE].
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    pub repo: RepoName,
    /// Part of a GGUF file's name, or a quantization type.
    pub kind: Option<String>,
}

impl FromStr for Spec {
    type Err = hub::Fault;

    fn from_str(text: &str) -> Result<Self, hub::Fault> {
        let (repo, kind) = match text.split_once(':') {
            Some((repo, kind)) => (repo, Some(kind.to_owned()).filter(|kind| !kind.is_empty())),
            None => (text, None),
        };
        let repo = repo.parse().map_err(|_| hub::Fault::RepoName(text.to_owned()))?;
        Ok(Self { repo, kind })
    }
}

/// A model that was looked up on the hub.
#[derive(Debug)]
pub struct Found {
    hub: Hub,
    revision: Revision,
}

/// What a looked-up model consists of.
#[derive(Debug)]
pub enum Model {
    /// A GGUF file, downloaded.
    Gguf(PathBuf),
    /// A checkpoint, not downloaded yet, and the type to quantize it to if the command line says one.
    Checkpoint(CheckpointFiles, Option<FileType>),
}

impl Found {
    /// Looks up `repo`.
    pub fn look_up(access: &Access, repo: &RepoName) -> Result<Self> {
        let hub = Hub::from_env(access.hf_token.clone(), access.offline)?;
        let revision = hub.revision(repo)?;
        if let Some(fault) = &revision.unreachable {
            eprintln!("phi: {fault}; going on with what was downloaded of {repo} before");
        }
        Ok(Self { hub, revision })
    }

    /// Decides what to run, and downloads it if it is a GGUF file.
    pub fn model(&self, spec: &Spec, file: Option<&str>) -> Result<Model> {
        match self.choice(spec.kind.as_deref(), file)? {
            Choice::Gguf(files) => {
                let fetch = |progress: &mut dyn FnMut(Event<'_>)| {
                    self.hub.fetch_gguf(&self.revision, &files, progress)
                };
                self.download(fetch).map(Model::Gguf)
            }
            Choice::Checkpoint(files) => Ok(Model::Checkpoint(files, self.kind(spec)?)),
        }
    }

    fn choice(&self, kind: Option<&str>, file: Option<&str>) -> Result<Choice> {
        hub::model(&self.revision.files, kind, file).map_err(|fault| self.error(fault))
    }

    /// The type that the checkpoint is to be quantized to, if the command line says one.
    fn kind(&self, spec: &Spec) -> Result<Option<FileType>> {
        let unknown = |kind: &str| {
            Error::Usage(format!(
                "{}: {kind:?} is neither in a GGUF file's name nor a type to quantize the checkpoint to",
                self.revision.repo
            ))
        };
        let parse = |kind: &str| FileType::from_name(kind).ok_or_else(|| unknown(kind));
        spec.kind.as_deref().map(parse).transpose()
    }

    /// The checkpoint's files.
    pub fn checkpoint_files(&self) -> Result<CheckpointFiles> {
        hub::checkpoint(&self.revision.files).map_err(|fault| self.error(fault))
    }

    /// Downloads the checkpoint and opens it.
    pub fn open_checkpoint(&self, files: &CheckpointFiles) -> Result<Checkpoint> {
        let fetch =
            |progress: &mut dyn FnMut(Event<'_>)| self.hub.fetch_checkpoint(&self.revision, files, progress);
        let folder = self.download(fetch)?;
        Ok(Checkpoint::open(&folder)?.named(self.revision.repo.model()))
    }

    /// Downloads what a checkpoint's vocabulary takes and opens it.
    pub fn open_vocabulary(&self, files: &CheckpointFiles) -> Result<Checkpoint> {
        let fetch =
            |progress: &mut dyn FnMut(Event<'_>)| self.hub.fetch_texts(&self.revision, files, progress);
        let folder = self.download(fetch)?;
        Ok(Checkpoint::open_for_vocabulary(&folder)?.named(self.revision.repo.model()))
    }

    /// Where the checkpoint quantized to `file_type` is kept.
    pub fn made_path(&self, file_type: FileType) -> PathBuf {
        self.hub.made_path(&self.revision, file_type.name())
    }

    fn error(&self, fault: hub::Fault) -> Error {
        Error::remote(&self.revision.repo, fault)
    }

    fn download<T>(&self, fetch: impl FnOnce(&mut dyn FnMut(Event<'_>)) -> Result<T>) -> Result<T> {
        let mut bar: Option<ProgressBar> = None;
        let fetched = fetch(&mut |event| match event {
            Event::Begin { files, bytes, folder } => {
                let plural = if files == 1 { "" } else { "s" };
                let (repo, size) = (&self.revision.repo, human_bytes(bytes));
                let line = format!(
                    "phi: downloading {files} file{plural} of {repo}, {size}, to {}",
                    folder.display()
                );
                eprintln!("{line}");
                let begun = progress::bytes("downloading");
                begun.set_length(bytes);
                if let Some(before) = bar.replace(begun) {
                    before.finish_and_clear();
                }
            }
            Event::Bytes(done) => bar.iter().for_each(|bar| bar.set_position(done)),
            Event::Waiting { file } => {
                let line = format!("phi: waiting for another process that is downloading {file}");
                bar.iter().for_each(|bar| bar.suspend(|| eprintln!("{line}")));
            }
        });
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        fetched
    }
}

/// A model to look at, where it is or as an outline.
#[derive(Debug)]
pub struct Outline {
    pub path: PathBuf,
    /// Keeps an outline until it was looked at.
    _folder: Option<TempDir>,
}

impl Outline {
    /// What there is to look at of `spec`: what was downloaded of it, or what its checkpoint was quantized to, or else its
    /// files without their weights.
    pub fn of(spec: &Spec, file: Option<&str>, access: &Access) -> Result<Self> {
        let here = Access { hf_token: None, offline: true };
        match Found::look_up(&here, &spec.repo).and_then(|found| found.downloaded(spec, file)) {
            Ok(path) => return Ok(Self { path, _folder: None }),
            Err(error @ Error::Usage(_)) => return Err(error),
            Err(error) if access.offline => return Err(error),
            Err(_) => {}
        }
        let found = Found::look_up(access, &spec.repo)?;
        let scratch = tempfile::Builder::new().prefix("phi-").tempdir();
        let scratch = scratch.map_err(|error| Error::io("write to", std::env::temp_dir(), error))?;
        let path = found.outline(spec, file, scratch.path())?;
        eprintln!("phi: {} has not been downloaded; this is what the tables of its files say", spec.repo);
        Ok(Self { path, _folder: Some(scratch) })
    }
}

impl Found {
    /// Where a model is that was downloaded before.
    fn downloaded(&self, spec: &Spec, file: Option<&str>) -> Result<PathBuf> {
        let silent = &mut |_: Event<'_>| ();
        match self.choice(spec.kind.as_deref(), file)? {
            Choice::Gguf(files) => self.hub.fetch_gguf(&self.revision, &files, silent),
            Choice::Checkpoint(files) => match self.made(spec)? {
                Some(path) => Ok(path),
                None => self.hub.fetch_checkpoint(&self.revision, &files, silent),
            },
        }
    }

    /// Writes the model's files without their weights to `folder`; returns what is to be opened.
    fn outline(&self, spec: &Spec, file: Option<&str>, folder: &Path) -> Result<PathBuf> {
        match self.choice(spec.kind.as_deref(), file)? {
            Choice::Gguf(files) => {
                self.hub.outline_gguf(&self.revision, &files, folder)?;
                Ok(files.first().map_or(folder.to_owned(), |first| folder.join(first)))
            }
            Choice::Checkpoint(files) => {
                self.made(spec)?;
                // Names are guessed from a folder's.
                let folder = folder.join(self.revision.repo.model());
                self.hub.outline_checkpoint(&self.revision, &files, &folder)?;
                Ok(folder)
            }
        }
    }

    /// What the checkpoint was quantized to, if a type is asked for.
    fn made(&self, spec: &Spec) -> Result<Option<PathBuf>> {
        let Some(kind) = self.kind(spec)? else { return Ok(None) };
        let (repo, name) = (&spec.repo, kind.name());
        let path = Some(self.made_path(kind)).filter(|path| path.is_file());
        path.map(Some).ok_or_else(|| {
            Error::Usage(format!(
                "{repo} has not been quantized to {name} yet, which `phi run -hf {repo}:{name}` does; without a type it is the checkpoint that is meant"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_and_its_type() {
        let spec = |text: &str| text.parse::<Spec>().map(|spec| (spec.repo.to_string(), spec.kind));
        assert_eq!(spec("a/b").unwrap(), ("a/b".into(), None));
        assert_eq!(spec("a/b:").unwrap(), ("a/b".into(), None));
        assert_eq!(spec("a/b:Q4_K_M").unwrap(), ("a/b".into(), Some("Q4_K_M".into())));
        for text in ["b", "b:Q4_K_M", "../b", "a/b/c", ":Q4"] {
            assert!(spec(text).unwrap_err().to_string().contains(text), "{text}");
        }
    }
}
