//! What a model on the hub is made of, without its weights: the tables of its files, in files of the same size with
//! nothing behind the table.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use super::cache::{checked_name, create_parent};
use super::client::Client;
use super::{CheckpointFiles, Event, Fault, Hub, Revision};
use crate::{Error, Result, checkpoint as folders};

/// What is taken of a GGUF file: more than the metadata of any model with a large vocabulary.
const GGUF_HEAD: u64 = 32 << 20;
/// Longest table of a safetensors file that is read; the format's own limit.
const SAFETENSORS_HEAD: u64 = 100_000_000;

impl Hub {
    /// Writes a checkpoint's texts, and its weights' tables, to `folder`.
    pub fn outline_checkpoint(
        &self,
        revision: &Revision,
        files: &CheckpointFiles,
        folder: &Path,
    ) -> Result<()> {
        let snapshot = self.fetch_texts(revision, files, &mut |_: Event<'_>| ())?;
        for name in &files.texts {
            let to = place(revision, folder, name)?;
            std::fs::copy(snapshot.join(name), &to).map_err(|error| Error::io("write", &to, error))?;
        }
        let weights = match folders::shards(&snapshot)? {
            Some(shards) => shards.into_iter().collect(),
            None => files.weights.clone(),
        };
        weights.iter().try_for_each(|name| self.outline(revision, name, folder, safetensors_head))
    }

    /// Writes the heads of a GGUF file's parts to `folder`.
    pub fn outline_gguf(&self, revision: &Revision, files: &[String], folder: &Path) -> Result<()> {
        files.iter().try_for_each(|name| self.outline(revision, name, folder, |_, _| Ok(GGUF_HEAD)))
    }

    /// Writes the first bytes of a file; `length` says how many after it has read some of them.
    fn outline(
        &self,
        revision: &Revision,
        name: &str,
        folder: &Path,
        length: impl Fn(&mut dyn Read, &mut Vec<u8>) -> std::io::Result<u64>,
    ) -> Result<()> {
        let about = |fault: Fault| Error::remote(format!("{}/{name}", revision.repo), fault);
        let client = match (&self.client, &revision.unreachable) {
            (Some(client), None) => client,
            _ => return Err(about(Fault::NotThere)),
        };
        let (size, mut body) = open(client, revision, name).map_err(about)?;
        let broken = |error: std::io::Error| about(Fault::Broken(error.to_string()));
        let mut head = Vec::new();
        let length = length(&mut body, &mut head).map_err(broken)?.min(size);
        let rest = length.saturating_sub(head.len() as u64);
        body.take(rest).read_to_end(&mut head).map_err(broken)?;
        let path = place(revision, folder, name)?;
        let written = File::create(&path).and_then(|mut file| {
            file.write_all(&head)?;
            // The weights' bytes are a hole, which takes no space.
            file.set_len(size)
        });
        written.map_err(|error| Error::io("write", &path, error))
    }
}

/// The size and the bytes of a file.
fn open(client: &Client, revision: &Revision, name: &str) -> Result<(u64, impl Read + use<>), Fault> {
    let remote = client.head(&revision.repo, &revision.commit, name)?;
    let (_, body) = client.bytes(&revision.repo, &revision.commit, name, 0)?;
    Ok((remote.size, body))
}

/// Reads the length of the table, which is what such a file begins with.
fn safetensors_head(body: &mut dyn Read, head: &mut Vec<u8>) -> std::io::Result<u64> {
    let mut length = [0; 8];
    body.read_exact(&mut length)?;
    head.extend_from_slice(&length);
    Ok(u64::from_le_bytes(length).min(SAFETENSORS_HEAD) + length.len() as u64)
}

/// Where the file called `name` goes, its folder made.
fn place(revision: &Revision, folder: &Path, name: &str) -> Result<std::path::PathBuf> {
    let path = folder.join(checked_name(name).map_err(|fault| Error::remote(&revision.repo, fault))?);
    create_parent(&path)?;
    Ok(path)
}
