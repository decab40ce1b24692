//! Files that appear whole or not at all, and read-only maps.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{Error, Result};

/// Named temporary files that would be left behind if the process ended now.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn unfinished() -> MutexGuard<'static, Vec<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes the temporary files of all outputs that are still being written. For signal handlers that run
/// on a thread of their own (the ctrlc crate's), right before the process exits.
pub fn remove_unfinished() {
    for path in unfinished().drain(..) {
        let _ = std::fs::remove_file(path);
    }
}

/// Started writeback is bounded to this many bytes behind the writer, so that the final sync has little left.
const WRITEBACK_STEP: u64 = 32 << 20;

/// Bytes of the largest page that a map of a file may have where the system keeps files in such pages, as Linux does on x86-64.
const LARGE_PAGE: usize = 2 << 20;

/// Writes to `to` in whole large pages, each at a multiple of its size: written so, a file stays in such pages in memory, and whoever
/// maps it has the processor look up one address where it would look up 512.
#[derive(Debug)]
struct LargePages<W: Write> {
    to: W,
    /// Bytes that `to` has.
    written: u64,
    /// What follows them: less than a page.
    pending: Vec<u8>,
}

impl<W: Write> LargePages<W> {
    /// `to` is empty.
    fn new(to: W) -> Self {
        Self { to, written: 0, pending: Vec::new() }
    }

    fn write_pending(&mut self) -> io::Result<()> {
        while !self.pending.is_empty() {
            match self.to.write(&self.pending) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.written += count as u64;
                    self.pending.drain(..count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl<W: Write> Write for LargePages<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let end = self.written + self.pending.len() as u64;
        let left = LARGE_PAGE - (end % LARGE_PAGE as u64) as usize;
        if self.pending.is_empty() && bytes.len() >= left {
            let whole = bytes.len() - (bytes.len() - left) % LARGE_PAGE;
            let count = self.to.write(&bytes[..whole])?;
            self.written += count as u64;
            return Ok(count);
        }
        let count = bytes.len().min(left);
        self.pending.extend_from_slice(&bytes[..count]);
        if count == left {
            self.write_pending()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.write_pending()?;
        self.to.flush()
    }
}

/// A file being written that takes its place only on [`commit`](Self::commit).
///
/// Until then its bytes are in a temporary file in the same folder: one without a name where the file system
/// has such (Linux: O_TMPFILE), so that not even a killed process leaves anything, or else a hidden one.
/// Dropped without commit, nothing is left and an existing file at `path` is untouched.
#[derive(Debug)]
pub struct AtomicFile {
    file: LargePages<File>,
    /// Where the file goes, symbolic links resolved.
    target: PathBuf,
    stage: Stage,
    expected: u64,
    /// Bytes for which writeback was started.
    flushing: u64,
}

#[derive(Debug)]
enum Stage {
    /// An unnamed file: vanishes when closed.
    Unnamed,
    /// A hidden file beside the target, listed in `UNFINISHED`.
    Named(PathBuf),
    /// The target is no regular file (a pipe, /dev/null): written as it is.
    Direct,
    Committed,
}

impl AtomicFile {
    /// Starts a file that is to become `path` and will take about `expected_bytes`.
    ///
    /// Errors: no such folder, no right to write there, `path` is a folder, too little free space ("needs X, has Y").
    pub fn create(path: &Path, expected_bytes: u64) -> Result<Self> {
        let target = resolve(path)?;
        if let Ok(existing) = std::fs::metadata(&target) {
            if existing.is_dir() {
                return Err(Error::io("write", path, io::Error::from(io::ErrorKind::IsADirectory)));
            }
            if !existing.is_file() {
                let file = OpenOptions::new().write(true).open(&target);
                let file = file.map_err(|error| Error::io("write", path, error))?;
                return Ok(Self::new(file, target, Stage::Direct, expected_bytes));
            }
        }
        let folder = folder_of(&target);
        if !folder.exists() {
            let missing = format!("the folder {} does not exist", folder.display());
            return Err(Error::io("write", path, io::Error::new(io::ErrorKind::NotFound, missing)));
        }
        ensure_space(&target, expected_bytes)?;
        if let Some(file) = unnamed(folder) {
            return Ok(Self::new(file, target, Stage::Unnamed, expected_bytes));
        }
        for attempt in 0.. {
            let temporary = temporary_path(&target, attempt);
            let mut listed = unfinished();
            match OpenOptions::new().write(true).create_new(true).open(&temporary) {
                Ok(file) => {
                    listed.push(temporary.clone());
                    return Ok(Self::new(file, target, Stage::Named(temporary), expected_bytes));
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < 1000 => {}
                Err(error) => return Err(Error::io("create", path, error)),
            }
        }
        unreachable!("the loop ends by returning")
    }

    fn new(file: File, target: PathBuf, stage: Stage, expected: u64) -> Self {
        Self { file: LargePages::new(file), target, stage, expected, flushing: 0 }
    }

    /// Puts the file in its place, synced; a file that was there is replaced in the same instant.
    pub fn commit(mut self) -> Result<()> {
        if matches!(self.stage, Stage::Direct) {
            self.stage = Stage::Committed;
            return self.file.flush().map_err(|error| self.write_error(error));
        }
        let synced = self.file.flush().and_then(|()| self.file.to.sync_all());
        synced.map_err(|error| self.write_error(error))?;
        let temporary = match &self.stage {
            Stage::Named(temporary) => temporary.clone(),
            _ => self.give_name()?,
        };
        let renamed = std::fs::rename(&temporary, &self.target);
        renamed.map_err(|error| Error::io("rename a finished file to", &self.target, error))?;
        unlist(&temporary);
        self.stage = Stage::Committed;
        // The rename itself must survive a power cut; a folder that cannot be synced is no reason to fail.
        if let Ok(folder) = File::open(folder_of(&self.target)) {
            let _ = folder.sync_all();
        }
        Ok(())
    }

    /// The error for a failed write: says what was needed if the disk is full.
    pub fn write_error(&self, error: io::Error) -> Error {
        write_error(&self.target, self.expected, self.file.written, "nothing was left behind", error)
    }

    /// Gives the unnamed file a hidden name beside the target (a link cannot replace an existing file).
    fn give_name(&mut self) -> Result<PathBuf> {
        for attempt in 0.. {
            let temporary = temporary_path(&self.target, attempt);
            let mut listed = unfinished();
            match link(&self.file.to, &temporary) {
                Ok(()) => {
                    listed.push(temporary.clone());
                    self.stage = Stage::Named(temporary.clone());
                    return Ok(temporary);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < 1000 => {}
                Err(error) => return Err(Error::io("create", &self.target, error)),
            }
        }
        unreachable!("the loop ends by returning")
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        let written = self.file.written;
        if written - self.flushing >= WRITEBACK_STEP && !matches!(self.stage, Stage::Direct) {
            start_writeback(&self.file.to, self.flushing, written - self.flushing);
            self.flushing = written;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if let Stage::Named(temporary) = &self.stage {
            let _ = std::fs::remove_file(temporary);
            unlist(temporary);
        }
    }
}

/// The error for a failed write to `path`: says what was needed if the disk is full, and what `became` of the bytes.
pub(crate) fn write_error(path: &Path, needed: u64, written: u64, became: &str, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::Resources(format!(
            "{}: the disk is full: the file needs {}, {} were written; {became}, free some space or write elsewhere",
            path.display(),
            human_bytes(needed),
            human_bytes(written)
        )),
        _ => Error::io("write", path, error),
    }
}

fn unlist(temporary: &Path) {
    unfinished().retain(|path| path != temporary);
}

/// Follows symbolic links, so that a link's target is replaced and not the link.
fn resolve(path: &Path) -> Result<PathBuf> {
    if path.file_name().is_none() {
        return Err(Error::Usage(format!("{} is no name for a file to write", path.display())));
    }
    match std::fs::canonicalize(path) {
        Ok(target) => Ok(target),
        Err(_) => Ok(path.to_owned()),
    }
}

fn folder_of(target: &Path) -> &Path {
    match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// ".NAME.PROCESS.ATTEMPT.tmp" beside `target`.
fn temporary_path(target: &Path, attempt: u32) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(format!(".{}.{attempt}.tmp", std::process::id()));
    target.with_file_name(name)
}

/// Fails if the file system that `path` is on has less than `needed` bytes free for this user.
pub(crate) fn ensure_space(path: &Path, needed: u64) -> Result<()> {
    let free = free_bytes(folder_of(path)).map_err(|error| Error::io("write", path, error))?;
    match free {
        Some(free) if free < needed => Err(Error::Resources(format!(
            "{} needs {} of disk space, its file system has {} free; free some or write elsewhere",
            path.display(),
            human_bytes(needed),
            human_bytes(free)
        ))),
        _ => Ok(()),
    }
}

/// Bytes a user may still write to `folder`'s file system; `None` where that cannot be asked.
#[cfg(unix)]
fn free_bytes(folder: &Path) -> io::Result<Option<u64>> {
    let folder = c_path(folder)?;
    let mut stats = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `folder` is NUL-terminated and `stats` has room for what statvfs writes.
    if unsafe { libc::statvfs(folder.as_ptr(), stats.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: statvfs returned 0, so it filled `stats`.
    let stats = unsafe { stats.assume_init() };
    #[allow(clippy::unnecessary_cast, reason = "the fields' types differ between systems")]
    Ok(Some((stats.f_bavail as u64).saturating_mul(stats.f_frsize as u64)))
}

#[cfg(not(unix))]
fn free_bytes(_folder: &Path) -> io::Result<Option<u64>> {
    Ok(None)
}

#[cfg(unix)]
fn c_path(path: &Path) -> io::Result<std::ffi::CString> {
    use std::os::unix::ffi::OsStrExt;
    std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
}

/// A file in `folder` that has no name; `None` where the system or file system has no such thing.
#[cfg(target_os = "linux")]
fn unnamed(folder: &Path) -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt;
    // Naming it later goes through /proc, so it must be there.
    if !Path::new("/proc/self/fd").exists() {
        return None;
    }
    OpenOptions::new().write(true).mode(0o666).custom_flags(libc::O_TMPFILE).open(folder).ok()
}

#[cfg(not(target_os = "linux"))]
fn unnamed(_folder: &Path) -> Option<File> {
    None
}

/// Links the unnamed `file` at `path`.
#[cfg(target_os = "linux")]
fn link(file: &File, path: &Path) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let from = std::ffi::CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let to = c_path(path)?;
    // SAFETY: both paths are NUL-terminated and outlive the call.
    let result = unsafe {
        libc::linkat(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), libc::AT_SYMLINK_FOLLOW)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(not(target_os = "linux"))]
fn link(_file: &File, _path: &Path) -> io::Result<()> {
    Err(io::Error::from(io::ErrorKind::Unsupported))
}

/// Has the kernel start writing a range to disk, without waiting. Only a hint, so its result is not looked at.
#[cfg(target_os = "linux")]
fn start_writeback(file: &File, offset: u64, length: u64) {
    use std::os::fd::AsRawFd;
    // SAFETY: takes a descriptor that `file` keeps open, and numbers.
    unsafe {
        libc::sync_file_range(
            file.as_raw_fd(),
            offset as libc::off64_t,
            length as libc::off64_t,
            libc::SYNC_FILE_RANGE_WRITE,
        );
    }
}

#[cfg(not(target_os = "linux"))]
fn start_writeback(_file: &File, _offset: u64, _length: u64) {}

/// Refuses to write over what is being read: `output` must be none of `inputs`, by whatever name.
pub fn ensure_distinct<'a>(output: &Path, inputs: impl IntoIterator<Item = &'a Path>) -> Result<()> {
    let Some(id) = file_id(output) else { return Ok(()) };
    for input in inputs {
        if file_id(input).as_ref() == Some(&id) {
            return Err(Error::invalid(
                output,
                "it is also the input, so it cannot be the output; write to another file",
            ));
        }
    }
    Ok(())
}

/// What identifies an existing file whatever its name; `None` if there is none.
#[cfg(unix)]
fn file_id(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn file_id(path: &Path) -> Option<PathBuf> {
    std::fs::canonicalize(path).ok()
}

/// Where programs keep what can be made again, as the system has it.
#[cfg_attr(not(feature = "gpu"), allow(dead_code))]
pub fn cache_folder() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || std::env::home_dir().map(|home| home.join(".cache"));
    variable("XDG_CACHE_HOME").or_else(|| variable("LOCALAPPDATA")).or_else(home)
}

/// `bytes` in decimal units, three digits: "7.64 GB", "512 bytes".
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes < 1000 {
        return format!("{bytes} bytes");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    format!("{value:.decimals$} {}", UNITS[unit])
}

/// A whole file, mapped read-only.
#[derive(Debug)]
pub struct Map {
    /// `None` for an empty file, which cannot be mapped.
    map: Option<memmap2::Mmap>,
}

impl Map {
    /// Maps the file at `path`.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|error| Error::io("open", path, error))?;
        let metadata = file.metadata().map_err(|error| Error::io("read", path, error))?;
        if metadata.is_dir() {
            return Err(Error::io("read", path, io::Error::from(io::ErrorKind::IsADirectory)));
        }
        if metadata.len() == 0 {
            return Ok(Self { map: None });
        }
        // SAFETY: a mapped file must not shrink or change while it is read. Nothing here writes to a model
        // file (outputs are new files, renamed into place, and `ensure_distinct` refuses output = input); that
        // no other program truncates a model in use is an assumption all mapping loaders make. A change of
        // the bytes cannot break an invariant: heads are parsed into owned values, and tensor bytes have no
        // invalid bit patterns.
        let map = unsafe { memmap2::Mmap::map(&file) };
        let map = map.map_err(|error| Error::io("map", path, error))?;
        // Only a hint: pages that are read or were written in such pieces are then mapped as one, and weights are read faster.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self { map: Some(map) })
    }

    /// Reads `range` into memory ahead of its use, where the system takes such hints.
    pub fn prefetch(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Some(map) = &self.map
            && range.start < range.end
            && range.end <= map.len()
        {
            let _ = map.advise_range(memmap2::Advice::WillNeed, range.start, range.len());
        }
    }

    /// Drops the pages that lie wholly in `range` from this process's memory; they come back when touched.
    pub fn forget(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Some(map) = &self.map {
            const PAGE: usize = 4096;
            let start = range.start.next_multiple_of(PAGE);
            let end = range.end.min(map.len()) / PAGE * PAGE;
            if start < end {
                // SAFETY: MADV_DONTNEED on a shared read-only file map loses nothing: the next access reads
                // the same bytes from the file. A page size above 4096 makes the call fail, harmlessly.
                let _ = unsafe {
                    map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start)
                };
            }
        }
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_appears_on_commit_and_replaces_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        std::fs::write(&path, "old").unwrap();
        let mut file = AtomicFile::create(&path, 3).unwrap();
        file.write_all(b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        file.commit().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["out"]);
        assert!(unfinished().iter().all(|temporary| !temporary.starts_with(folder.path())));
    }

    #[test]
    fn large_pages_are_written_whole() {
        /// Lengths of the writes, of which every third takes half.
        #[derive(Default)]
        struct Lengths(Vec<usize>, Vec<u8>, bool);
        impl Write for Lengths {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let count =
                    if self.2 && self.0.len() % 3 == 2 { bytes.len().div_ceil(2) } else { bytes.len() };
                self.0.push(count);
                self.1.extend_from_slice(&bytes[..count]);
                Ok(count)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let bytes: Vec<u8> = (0..9 * LARGE_PAGE + 5).map(|i| (i * 7 + i / 251) as u8).collect();
        for is_partial in [false, true] {
            for start in [0, 3] {
                let to = Lengths(vec![], vec![], is_partial);
                let mut pages = LargePages { to, written: start as u64, pending: vec![] };
                let mut rest = &bytes[start..];
                for length in
                    [5, 0, LARGE_PAGE, LARGE_PAGE - 5, 3 * LARGE_PAGE + 1, LARGE_PAGE - 1, usize::MAX]
                {
                    let (now, later) = rest.split_at(length.min(rest.len()));
                    pages.write_all(now).unwrap();
                    rest = later;
                }
                pages.flush().unwrap();
                assert_eq!(pages.written, bytes.len() as u64);
                assert!(pages.to.1 == bytes[start..]);
                if !is_partial {
                    let mut at = start;
                    for &length in &pages.to.0[..pages.to.0.len() - 1] {
                        at += length;
                        assert_eq!(at % LARGE_PAGE, 0, "{:?}", pages.to.0);
                    }
                }
            }
        }
    }

    #[test]
    fn nothing_is_left_without_commit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let mut file = AtomicFile::create(&path, 3).unwrap();
        file.write_all(b"new").unwrap();
        file.give_name().unwrap();
        assert_eq!(names(folder.path()).len(), 1, "named, as it is where unnamed files do not exist");
        drop(file);
        assert_eq!(names(folder.path()), [""; 0]);
    }

    #[test]
    fn too_little_space_is_told_before_writing() {
        let folder = tempfile::tempdir().unwrap();
        let error = AtomicFile::create(&folder.path().join("out"), u64::MAX / 2).unwrap_err();
        assert!(matches!(error, Error::Resources(_)), "{error}");
        assert!(error.to_string().contains("needs 9223 PB of disk space"), "{error}");
        assert_eq!(names(folder.path()), [""; 0]);
    }

    #[test]
    fn a_missing_folder_and_a_folder_as_target_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(AtomicFile::create(&folder.path().join("none/out"), 0).is_err());
        assert!(AtomicFile::create(folder.path(), 0).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_written_through_and_a_device_directly() {
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("real"), folder.path().join("link"));
        std::fs::write(&real, "old").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let mut file = AtomicFile::create(&link, 3).unwrap();
        file.write_all(b"new").unwrap();
        file.commit().unwrap();
        assert_eq!(std::fs::read(&real).unwrap(), b"new");
        assert!(link.is_symlink());
        let mut file = AtomicFile::create(Path::new("/dev/null"), 3).unwrap();
        file.write_all(b"new").unwrap();
        file.commit().unwrap();
    }

    #[test]
    fn output_over_input_is_refused_under_any_name() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        std::fs::write(&one, "x").unwrap();
        std::fs::hard_link(&one, &two).unwrap();
        assert!(ensure_distinct(&two, [one.as_path()]).is_err());
        assert!(ensure_distinct(&folder.path().join("new"), [one.as_path()]).is_ok());
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!(human_bytes(999), "999 bytes");
        assert_eq!(human_bytes(7_640_000_000), "7.64 GB");
        assert_eq!(human_bytes(999_700), "1.00 MB");
        assert_eq!(human_bytes(38_870_424), "38.9 MB");
    }

    #[test]
    fn an_empty_file_maps_to_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("empty");
        std::fs::write(&path, "").unwrap();
        let map = Map::open(&path).unwrap();
        map.forget(0..10);
        assert!(map.is_empty());
    }
}
