//! Whether a GGUF model is whole and sound, everything that is wrong with it at once. The job behind `phi check`.

mod metadata;
mod tensors;
mod vocabulary;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::gguf::{Fault, Gguf};
use crate::model::{Model, SUPPORTED};
use crate::{Error, Result};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The model cannot work, or not as it should.
    Error,
    /// Unusual, but nothing that would stop a model from working.
    Warning,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    pub severity: Severity,
    /// Where: "file", "tensors", "metadata", "vocabulary" or "template".
    pub area: &'static str,
    /// A sentence without the file's name.
    pub message: String,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Errors first.
    pub problems: Vec<Problem>,
    /// `general.architecture`, if the file says one.
    pub architecture: Option<String>,
    /// Files the model consists of.
    pub files: Vec<PathBuf>,
    pub tensors: usize,
    /// Bytes of all files.
    pub bytes: u64,
}

impl Report {
    /// Problems of one severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.problems.iter().filter(|problem| problem.severity == severity).count()
    }

    /// Whether there are no errors.
    pub fn is_sound(&self) -> bool {
        self.count(Severity::Error) == 0
    }

    fn error(&mut self, area: &'static str, message: impl Into<String>) {
        self.problems.push(Problem { severity: Severity::Error, area, message: message.into() });
    }

    fn warning(&mut self, area: &'static str, message: impl Into<String>) {
        self.problems.push(Problem { severity: Severity::Warning, area, message: message.into() });
    }
}

/// Reads the model at `path` on `threads` threads and lists what is wrong with it. `progress` is told the tensor bytes
/// done and in all, and may break.
///
/// # Errors
/// A file that cannot be read at all; [`Error::Interrupted`].
pub fn check(
    path: &Path,
    threads: usize,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Report> {
    let mut report = Report::default();
    let gguf = match Gguf::open(path) {
        Ok(gguf) => Arc::new(gguf),
        Err(Error::Invalid { path: part, fault }) => {
            unreadable(&mut report, path, &part, fault.as_ref())?;
            return Ok(report);
        }
        Err(other) => return Err(other),
    };
    report.architecture = gguf.metadata().string("general.architecture").ok().flatten().map(str::to_owned);
    report.files = gguf.files().map(Path::to_owned).collect();
    report.tensors = gguf.tensors().len();
    report.bytes = gguf.file_bytes();
    metadata::check(&gguf, &mut report);
    against_architecture(&gguf, &mut report);
    vocabulary::check(&gguf, &mut report);
    tensors::layout(&gguf, &mut report);
    tensors::values(&gguf, threads, &mut report, progress)?;
    report.problems.sort_by_key(|problem| problem.severity);
    Ok(report)
}

/// Reports why a file, or a part of a split model, cannot be opened.
fn unreadable(report: &mut Report, path: &Path, part: &Path, fault: &dyn std::error::Error) -> Result<()> {
    report.files = vec![path.to_owned()];
    report.bytes = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    let faults = if part.exists() { Gguf::faults(part)? } else { Vec::new() };
    let mut messages: Vec<String> = summary(&faults);
    if messages.is_empty() {
        messages.push(fault.to_string());
    }
    for message in messages {
        let message = if part == path { message } else { format!("{}: {message}", part.display()) };
        report.error("file", message);
    }
    Ok(())
}

/// The faults as sentences; of many of a kind, the first and how many more there are.
fn summary(faults: &[Fault]) -> Vec<String> {
    const SHOWN: usize = 3;
    let mut kinds: Vec<(std::mem::Discriminant<Fault>, Vec<&Fault>)> = Vec::new();
    for fault in faults {
        let kind = std::mem::discriminant(fault);
        match kinds.iter_mut().find(|(other, _)| *other == kind) {
            Some((_, same)) => same.push(fault),
            None => kinds.push((kind, vec![fault])),
        }
    }
    let mut messages = Vec::new();
    for (_, same) in kinds {
        messages.extend(same.iter().take(SHOWN).map(|fault| fault.to_string()));
        if same.len() > SHOWN {
            messages.push(format!("{} more tensors have the same fault", same.len() - SHOWN));
        }
    }
    messages
}

/// Compares hyper-parameters and tensors with what the architecture has.
fn against_architecture(gguf: &Arc<Gguf>, report: &mut Report) {
    let Some(architecture) = report.architecture.clone() else {
        return report
            .error("metadata", "general.architecture is missing, so nothing says what the tensors are for");
    };
    if !SUPPORTED.contains(&architecture.as_str()) {
        return report.warning(
            "tensors",
            format!(
                "the architecture \"{architecture}\" is not known here (known: {}), so names and shapes were not compared",
                SUPPORTED.join(", ")
            ),
        );
    }
    if gguf.tensors().is_empty() {
        return report.warning("tensors", "there are none: the file holds metadata and vocabulary only");
    }
    let survey = Model::survey(gguf);
    for fault in survey.faults {
        let message = match fault {
            Error::Invalid { fault, .. } => fault.to_string(),
            other => without_path(&other.to_string(), gguf.path()),
        };
        let area = if message.starts_with("the tensor") { "tensors" } else { "metadata" };
        report.error(area, message);
    }
    let unused = gguf.tensors().iter().enumerate().filter(|(index, _)| !survey.bound.contains(index));
    let unused: Vec<&str> = unused.map(|(_, tensor)| tensor.name.as_str()).collect();
    // With hyper-parameters at fault nothing is bound, and that says nothing about the tensors.
    if !unused.is_empty() && !survey.bound.is_empty() {
        let (count, names) = (unused.len(), list(&unused));
        report.warning("tensors", format!("{count} tensors are none that {architecture} has: {names}"));
    }
}

fn without_path(message: &str, path: &Path) -> String {
    let prefix = format!("{}: ", path.display());
    message.strip_prefix(&prefix).unwrap_or(message).to_owned()
}

/// The first few of `names`.
fn list(names: &[&str]) -> String {
    const SHOWN: usize = 5;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    if names.len() > SHOWN { format!("{shown}, …") } else { shown }
}
