//! The cache folder, in the layout of the huggingface_hub package, so that either finds what the other downloaded:
//!
//! ```text
//! HOME/hub/models--USER--MODEL/refs/main              the commit that "main" was last seen at
//!                             /snapshots/COMMIT/FILE  links to
//!                             /blobs/ETAG             the contents; ETAG.incomplete while they arrive
//!         /.locks/models--USER--MODEL/ETAG.lock       held by who downloads
//! HOME/phi/v1/USER--MODEL-COMMIT-TYPE.gguf            what was quantized from a checkpoint
//! ```

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::{Fault, RepoName};
use crate::fs::AtomicFile;
use crate::{Error, Result};

/// Goes up when conversion or quantization change, so that files made before are not taken for current ones.
const MADE: &str = "v1";

/// Where downloads are kept.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    /// HF_HOME.
    home: PathBuf,
    /// HF_HUB_CACHE.
    hub: PathBuf,
}

impl Cache {
    /// The folder that the environment names: HF_HUB_CACHE, HF_HOME/hub, XDG_CACHE_HOME/huggingface/hub or
    /// ~/.cache/huggingface/hub.
    pub fn from_env(variable: impl Fn(&str) -> Option<OsString>, user: Option<PathBuf>) -> Result<Self> {
        let folder = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let shared =
            || Some(folder("XDG_CACHE_HOME").or_else(|| Some(user?.join(".cache")))?.join("huggingface"));
        let home = folder("HF_HOME").or_else(shared).ok_or_else(|| {
            Error::Usage("there is no home folder to download to; set HF_HOME to a folder".into())
        })?;
        let hub = folder("HF_HUB_CACHE").unwrap_or_else(|| home.join("hub"));
        Ok(Self { home, hub })
    }

    /// The file that holds the token that `hf auth login` stored.
    pub fn token_file(&self) -> PathBuf {
        self.home.join("token")
    }

    /// Where the model quantized to `kind` is kept.
    pub fn made(&self, repo: &RepoName, commit: &str, kind: &str) -> PathBuf {
        let name = format!("{}--{}-{commit}-{kind}.gguf", repo.user(), repo.model());
        self.home.join("phi").join(MADE).join(name)
    }

    pub fn repo(&self, repo: &RepoName) -> PathBuf {
        self.hub.join(folder_name(repo))
    }

    pub fn snapshot(&self, repo: &RepoName, commit: &str) -> PathBuf {
        self.repo(repo).join("snapshots").join(commit)
    }

    pub fn blob(&self, repo: &RepoName, etag: &str) -> PathBuf {
        self.repo(repo).join("blobs").join(etag)
    }

    pub fn partial(&self, repo: &RepoName, etag: &str) -> PathBuf {
        self.repo(repo).join("blobs").join(format!("{etag}.incomplete"))
    }

    pub fn lock(&self, repo: &RepoName, etag: &str) -> PathBuf {
        self.hub.join(".locks").join(folder_name(repo)).join(format!("{etag}.lock"))
    }

    fn main(&self, repo: &RepoName) -> PathBuf {
        self.repo(repo).join("refs").join("main")
    }

    /// The commit that "main" was at when it was last downloaded.
    pub fn commit(&self, repo: &RepoName) -> Option<String> {
        let commit = std::fs::read_to_string(self.main(repo)).ok()?;
        Some(commit.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// Remembers that "main" is at `commit`.
    pub fn set_commit(&self, repo: &RepoName, commit: &str) -> Result<()> {
        if self.commit(repo).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.main(repo);
        create_parent(&path)?;
        let mut file = AtomicFile::create(&path, commit.len() as u64)?;
        file.write_all(commit.as_bytes()).map_err(|error| file.write_error(error))?;
        file.commit()
    }

    /// The names of the files of a snapshot, sorted, with '/' between folders.
    pub fn files(&self, repo: &RepoName, commit: &str) -> Vec<String> {
        let mut names = Vec::new();
        list(&self.snapshot(repo, commit), "", &mut names);
        names.sort();
        names
    }

    /// Gives the blob `etag` its name in a snapshot.
    pub fn link(&self, repo: &RepoName, commit: &str, file: &str, etag: &str) -> Result<()> {
        let path = self.snapshot(repo, commit).join(checked_name(file).map_err(|fault| remote(repo, fault))?);
        create_parent(&path)?;
        // A link that leads nowhere: its blob was cleaned away before.
        if path.symlink_metadata().is_ok() && !path.exists() {
            std::fs::remove_file(&path).map_err(|error| Error::io("replace", &path, error))?;
        }
        let up = "../".repeat(2 + file.matches('/').count());
        match symlink(Path::new(&format!("{up}blobs/{etag}")), &self.blob(repo, etag), &path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(Error::io("create", &path, error))
            }
            _ => Ok(()),
        }
    }
}

fn remote(repo: &RepoName, fault: Fault) -> Error {
    Error::remote(repo, fault)
}

fn folder_name(repo: &RepoName) -> String {
    format!("models--{}--{}", repo.user(), repo.model())
}

/// The folders above `path`.
pub(super) fn create_parent(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    std::fs::create_dir_all(folder).map_err(|error| Error::io("create the folder", folder, error))
}

#[cfg(unix)]
fn symlink(relative: &Path, _blob: &Path, path: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(relative, path)
}

/// Symbolic links are a privilege there; a second name is none.
#[cfg(not(unix))]
fn symlink(_relative: &Path, blob: &Path, path: &Path) -> io::Result<()> {
    std::fs::hard_link(blob, path)
}

/// Deeper than any model's folders; the cache holds links, and a loop of them must end.
const DEPTH: usize = 8;

fn list(folder: &Path, prefix: &str, names: &mut Vec<String>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let name = format!("{prefix}{name}");
        if entry.path().is_file() {
            names.push(name);
        } else if entry.path().is_dir() && name.matches('/').count() < DEPTH {
            list(&entry.path(), &format!("{name}/"), names);
        }
    }
}

/// Whether `text` can be a git commit: it becomes part of a path.
pub(super) fn is_commit(text: &str) -> bool {
    (7..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// A file name from the network, if it stays in its folder on every system.
pub(super) fn checked_name(name: &str) -> Result<&Path, Fault> {
    let is_plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with("..")
            && part != "."
            && !part.ends_with(['.', ' '])
            && !part.contains(|letter: char| letter.is_control() || matches!(letter, '\\' | ':'))
    };
    match name.len() <= 512 && name.split('/').all(is_plain) {
        true => Ok(Path::new(name)),
        false => Err(Fault::FileName(name.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(variables: &'static [(&str, &str)], user: Option<&str>) -> Result<Cache> {
        let find = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
        Cache::from_env(find, user.map(PathBuf::from))
    }

    #[test]
    fn the_environment_says_where() {
        let hub = |variables, user| cache(variables, user).unwrap().hub;
        assert_eq!(hub(&[], Some("/u")), Path::new("/u/.cache/huggingface/hub"));
        assert_eq!(hub(&[("HF_HOME", "")], Some("/u")), Path::new("/u/.cache/huggingface/hub"));
        assert_eq!(hub(&[("XDG_CACHE_HOME", "/x")], None), Path::new("/x/huggingface/hub"));
        assert_eq!(hub(&[("HF_HOME", "/h"), ("XDG_CACHE_HOME", "/x")], Some("/u")), Path::new("/h/hub"));
        assert_eq!(hub(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")], None), Path::new("/c"));
        assert!(matches!(cache(&[], None), Err(Error::Usage(_))));
    }

    #[test]
    fn names_from_the_network_stay_in_their_folder() {
        for name in ["config.json", "BF16/a b-00001-of-00002.gguf", ".hidden", "a..b"] {
            assert!(checked_name(name).is_ok(), "{name}");
        }
        let long = "a".repeat(600);
        for name in [
            "",
            "/etc/passwd",
            "..",
            "../a",
            "a/../b",
            "a//b",
            "a/",
            ".",
            "./a",
            "a\\..\\b",
            "C:a",
            "a\0b",
            "...",
            "a/. ",
            &long,
        ] {
            assert!(matches!(checked_name(name), Err(Fault::FileName(_))), "{name:?}");
        }
        assert!(is_commit("0123456789abcdef") && !is_commit("main") && !is_commit("../../etc"));
    }
}
