//! Texts from the command line, files and stdin.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Read};
use std::path::Path;

use crate::{Error, Result};

/// Resolves `\n \r \t \\ \' \" \xHH`; anything else behind a backslash stays as it is, as in llama.cpp.
///
/// Fails if `\x` bytes do not make UTF-8.
pub fn unescape(text: &str) -> Result<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.as_bytes();
    while let [byte, rest @ ..] = bytes {
        bytes = rest;
        if *byte != b'\\' {
            out.push(*byte);
            continue;
        }
        let (resolved, length) = match rest {
            [b'n', ..] => (b'\n', 1),
            [b'r', ..] => (b'\r', 1),
            [b't', ..] => (b'\t', 1),
            [b @ (b'\\' | b'\'' | b'"'), ..] => (*b, 1),
            [b'x', high, low, ..] => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => (high << 4 | low, 3),
                _ => (b'\\', 0),
            },
            _ => (b'\\', 0),
        };
        out.push(resolved);
        bytes = &rest[length..];
    }
    String::from_utf8(out).map_err(|_| {
        Error::Usage(format!(
            "the \\x escapes in {text:?} do not make UTF-8 text (--no-escape takes them literally)"
        ))
    })
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

/// A text file's content without its last newline.
pub fn read_file(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|error| Error::io("read", path, error))?;
    into_text(bytes, path)
}

/// All of stdin without its last newline; `None` if that is a terminal, or there is nothing in it.
pub fn read_stdin() -> Result<Option<String>> {
    let mut stdin = io::stdin();
    if stdin.is_terminal() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    if let Err(error) = stdin.read_to_end(&mut bytes) {
        // A closed or write-only descriptor is as good as an empty one.
        let unreadable = matches!(error.raw_os_error(), Some(libc::EBADF | libc::EIO));
        return if unreadable { Ok(None) } else { Err(Error::io("read", "standard input", error)) };
    }
    let text = into_text(bytes, Path::new("standard input"))?;
    Ok((!text.is_empty()).then_some(text))
}

fn into_text(bytes: Vec<u8>, path: &Path) -> Result<String> {
    let mut text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Error::invalid(path, format!("byte {at} is no UTF-8; save the text as UTF-8"))
    })?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

/// Resolves escapes where they are wanted.
pub fn escaped(text: &str, wanted: bool) -> Result<Cow<'_, str>> {
    if wanted { unescape(text).map(Cow::Owned) } else { Ok(Cow::Borrowed(text)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_llama_cpps() {
        for (from, to) in [
            (r"a\nb\tc\r", "a\nb\tc\r"),
            (r#"\'\"\\n"#, "'\"\\n"),
            (r"\x41\xe2\x82\xac", "A€"),
            (r"\x4", r"\x4"),
            (r"\xzz\x4g", r"\xzz\x4g"),
            (r"C:\dir\", "C:\\dir\\"),
            ("caf\\é", "caf\\é"),
            ("", ""),
        ] {
            assert_eq!(unescape(from).unwrap(), to);
        }
        assert!(unescape(r"\xff").is_err());
    }

    #[test]
    fn text_must_be_utf8_and_loses_one_newline() {
        let read = |bytes: &[u8]| into_text(bytes.to_vec(), Path::new("f.txt"));
        assert_eq!(read(b"a\n\n").unwrap(), "a\n");
        assert_eq!(read(b"a\r\n").unwrap(), "a");
        let error = read(b"ab\xff").unwrap_err().to_string();
        assert!(error.contains("f.txt") && error.contains("byte 2"), "{error}");
    }
}
