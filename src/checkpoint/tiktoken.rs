//! tiktoken's vocabulary files: a line a token, its bytes in base64 and its rank.

use std::path::Path;

use super::{Fault, read_text_if_there};
use crate::{Error, Result};

/// The file that Phi-3-small comes with.
pub(super) const NAME: &str = "cl100k_base.tiktoken";
/// More tokens than this are no vocabulary.
const LIMIT: usize = 1 << 24;

/// The tokens in `folder`'s file, by rank; `None` if there is no such file.
pub(super) fn read(folder: &Path) -> Result<Option<Vec<Vec<u8>>>> {
    let path = folder.join(NAME);
    let Some(text) = read_text_if_there(&path)? else { return Ok(None) };
    parse(&text).map(Some).map_err(|fault| Error::invalid(&path, fault))
}

/// Parses the file. Ranks are 0, 1, 2, … in some order, each once.
fn parse(text: &str) -> Result<Vec<Vec<u8>>, Fault> {
    let count = text.lines().filter(|line| !line.trim().is_empty()).count();
    if count == 0 || count > LIMIT {
        return Err(Fault::Tiktoken { line: 0, reason: "expected 1 to 16,777,216 tokens" });
    }
    let mut tokens: Vec<Option<Vec<u8>>> = vec![None; count];
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let fault = |reason| Fault::Tiktoken { line: number + 1, reason };
        let (token, rank) =
            line.trim().split_once(' ').ok_or_else(|| fault("expected a token and its rank"))?;
        let token = decode(token)
            .filter(|token| !token.is_empty())
            .ok_or_else(|| fault("the token is not base64"))?;
        let slot = rank.trim().parse::<usize>().ok().and_then(|rank| tokens.get_mut(rank));
        let slot = slot.ok_or_else(|| fault("the rank is not one of the file's"))?;
        if slot.replace(token).is_some() {
            return Err(fault("the rank was there before"));
        }
    }
    // As many ranks as tokens, none twice: every one is there.
    Ok(tokens.into_iter().flatten().collect())
}

/// Standard base64 with padding.
fn decode(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| {
        Some(match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        })
    };
    let (quads, rest) = text.as_bytes().as_chunks::<4>();
    if !rest.is_empty() {
        return None;
    }
    let mut bytes = Vec::with_capacity(quads.len() * 3);
    for (at, quad) in quads.iter().enumerate() {
        let padding = quad.iter().rev().take_while(|c| **c == b'=').count();
        if padding > 2 || (padding > 0 && at + 1 != quads.len()) {
            return None;
        }
        let mut word = 0_u32;
        for c in &quad[..4 - padding] {
            word = word << 6 | u32::from(digit(*c)?);
        }
        let word = word << (6 * padding);
        bytes.extend_from_slice(&word.to_be_bytes()[1..4 - padding]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_by_rank() {
        assert_eq!(
            parse("YQ== 1\nIGFi 0\n\nYWI= 2\n").unwrap(),
            [b" ab".to_vec(), b"a".to_vec(), b"ab".to_vec()]
        );
    }

    #[test]
    fn base64_is_read_strictly() {
        assert_eq!(decode("+/8=").unwrap(), [0xfb, 0xff]);
        for text in ["A", "AAA", "A===", "=AAA", "AA==AAAA", "A A=", "AAA-"] {
            assert_eq!(decode(text), None, "{text}");
        }
    }

    #[test]
    fn each_fault_names_its_line() {
        let faults = [
            ("", "16,777,216"),
            ("YQ==", "its rank"),
            ("?? 0", "base64"),
            ("YQ== 7", "not one"),
            ("YQ== -1", "not one"),
            ("YQ== 0\nYg== 0", "line 2"),
        ];
        for (text, word) in faults {
            let fault = parse(text).unwrap_err().to_string();
            assert!(fault.contains(word), "{text:?}: {fault}");
        }
    }
}
