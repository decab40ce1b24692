//! Split models: NAME-00001-of-00003.gguf with `split.no`, `split.count` and `split.tensors.count`.
//!
//! The first part carries the model's metadata; the others only their `split.*` keys (as llama-gguf-split writes them).

use std::path::{Path, PathBuf};

use super::{Fault, Metadata};

pub(super) const NO: &str = "split.no";
pub(super) const COUNT: &str = "split.count";
pub(super) const TENSORS: &str = "split.tensors.count";

/// Which part of a split model a file is.
pub(super) struct Position {
    /// Counted from 0.
    pub no: u32,
    pub count: u32,
    /// The file name before "-00001-of-00003.gguf".
    prefix: String,
}

impl Position {
    /// The path of part `no`, beside `path`.
    pub fn sibling(&self, path: &Path, no: u32) -> PathBuf {
        path.with_file_name(part_name(&self.prefix, no, self.count))
    }
}

/// The name of part `no` (from 0) of `count`.
pub fn part_name(prefix: &str, no: u32, count: u32) -> String {
    format!("{prefix}-{:05}-of-{count:05}.gguf", no + 1)
}

/// The parts that the model says it has; 1 if it says nothing.
pub(super) fn count(metadata: &Metadata) -> Result<u32, Fault> {
    Ok(metadata.u32(COUNT)?.unwrap_or(1))
}

/// The file's place in a split model; `None` for a model in one file.
pub(super) fn position(path: &Path, metadata: &Metadata) -> Result<Option<Position>, Fault> {
    let count = count(metadata)?;
    if count <= 1 {
        return Ok(None);
    }
    let no = metadata.u32(NO)?.ok_or_else(|| Fault::MissingKey(NO.to_owned()))?;
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let (prefix, name_no, name_count) = parse_part_name(name).ok_or(Fault::SplitName { count })?;
    if name_no != no.saturating_add(1) || name_count != count {
        return Err(Fault::SplitNumber { name_no, name_count, no: no.saturating_add(1), count });
    }
    Ok(Some(Position { no, count, prefix: prefix.to_owned() }))
}

/// Takes "NAME-00002-of-00003.gguf" apart into NAME, 2, 3; the parts are counted from 1.
pub fn parse_part_name(name: &str) -> Option<(&str, u32, u32)> {
    let stem = name.strip_suffix(".gguf")?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (prefix, no) = rest.rsplit_once('-')?;
    let number = |digits: &str| {
        (digits.len() == 5 && digits.bytes().all(|byte| byte.is_ascii_digit()))
            .then(|| digits.parse().ok())?
    };
    let (no, count) = (number(no)?, number(count)?);
    (1..=count).contains(&no).then_some((prefix, no, count))
}

pub(super) fn check_tensor_count(metadata: &Metadata, found: usize) -> Result<(), Fault> {
    match metadata.u32(TENSORS)? {
        Some(expected) if expected as usize != found => {
            Err(Fault::SplitTensorCount { found, expected: expected.into() })
        }
        _ => Ok(()),
    }
}

/// Removes what describes the part rather than the model.
pub(super) fn strip(metadata: &mut Metadata) {
    for key in [NO, COUNT, TENSORS] {
        metadata.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        assert_eq!(parse_part_name("a-b-00002-of-00003.gguf"), Some(("a-b", 2, 3)));
        assert_eq!(parse_part_name("m-00004-of-00003.gguf"), None);
        assert_eq!(parse_part_name("m-00000-of-00003.gguf"), None);
        assert_eq!(parse_part_name("m-1-of-3.gguf"), None);
        assert_eq!(parse_part_name("m-+0001-of-00003.gguf"), None);
        assert_eq!(part_name("a-b", 1, 3), "a-b-00002-of-00003.gguf");
    }
}
