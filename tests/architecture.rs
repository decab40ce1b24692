//! Imports point downward only: the picture of docs/architecture.md, checked.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Modules that anyone may import, and that import only each other.
const LEAVES: &[&str] = &["checkpoint", "error", "fs", "gguf", "hub", "machine"];

/// What each other module may import besides the leaves.
const LAYERS: &[(&str, &[&str])] = &[
    ("simd", &[]),
    ("quant", &["simd"]),
    ("kernel", &["quant", "simd"]),
    ("backend", &["kernel", "quant", "simd"]),
    ("text", &[]),
    ("model", &["backend", "kernel", "quant", "simd"]),
    ("engine", &["model", "text", "backend", "kernel", "quant", "simd"]),
    ("check", &["model", "text", "quant"]),
    ("convert", &["engine", "model", "text", "quant", "simd"]),
    ("bench", &["quantize", "engine", "model", "text", "backend", "kernel", "quant", "simd"]),
    ("imatrix", &["engine", "model", "text", "backend", "kernel", "quant", "simd"]),
    ("perplexity", &["engine", "model", "text", "backend", "kernel", "quant", "simd"]),
    ("quantize", &["imatrix", "engine", "model", "text", "quant", "simd"]),
    (
        "cli",
        &[
            "bench",
            "check",
            "convert",
            "imatrix",
            "perplexity",
            "quantize",
            "engine",
            "model",
            "text",
            "backend",
            "kernel",
            "quant",
            "simd",
        ],
    ),
];

/// Modules that import nothing at all from the crate.
const BARE: &[&str] = &["simd"];

/// Modules that do no input or output.
const PURE: &[&str] = &["simd", "quant", "kernel", "text"];

#[test]
fn imports_point_downward() {
    let mut wrong = Vec::new();
    for file in source_files() {
        for import in imports(&file) {
            if let Err(reason) = check(&file.module[0], &import) {
                wrong.push(format!("{}: {reason}", file.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "see docs/architecture.md:\n{}", wrong.join("\n"));
}

#[test]
fn pure_modules_do_no_input_or_output() {
    let mut wrong = Vec::new();
    for file in source_files().into_iter().filter(|file| PURE.contains(&file.module[0].as_str())) {
        for path in ["std::fs", "std::net", "std::process", "std::io"] {
            if file.code.contains(path) {
                wrong.push(format!("{} uses {path}", file.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_module_has_its_place() {
    let known: BTreeSet<_> = LEAVES.iter().chain(LAYERS.iter().map(|(name, _)| name)).copied().collect();
    let there: BTreeSet<_> = source_files().into_iter().map(|file| file.module[0].clone()).collect();
    for module in there {
        assert!(known.contains(module.as_str()), "where does src/{module} belong? Say so in {}", file!());
    }
}

fn check(from: &str, to: &str) -> Result<(), String> {
    let leaf = LEAVES.contains(&to);
    let allowed = match LAYERS.iter().find(|(name, _)| *name == from) {
        _ if from == to => true,
        Some((_, below)) => below.contains(&to) || leaf && !BARE.contains(&from),
        None => leaf,
    };
    if allowed { Ok(()) } else { Err(format!("{from} must not import {to}")) }
}

struct SourceFile {
    path: PathBuf,
    /// `["cli", "run", "args"]` for src/cli/run/args.rs.
    module: Vec<String>,
    /// Its text without comments, literals and tests.
    code: String,
}

/// All of src but lib.rs and main.rs, and but the tests.
fn source_files() -> Vec<SourceFile> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    assert!(files.len() > 10, "the sources were not found");
    files.into_iter().filter_map(|path| source_file(&root, path)).collect()
}

fn source_file(root: &Path, path: PathBuf) -> Option<SourceFile> {
    let relative = path.strip_prefix(root).unwrap().with_extension("");
    let mut module: Vec<_> = relative.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    if module.last().is_some_and(|name| name == "mod") {
        module.pop();
    }
    let is_test = module.iter().any(|name| name == "tests" || name.ends_with("_tests"));
    if is_test || matches!(module.join("/").as_str(), "lib" | "main") {
        return None;
    }
    let code = without_tests(&without_comments_and_literals(&fs::read_to_string(&path).unwrap()));
    Some(SourceFile { path, module, code })
}

/// The top-level modules that a file names.
fn imports(file: &SourceFile) -> BTreeSet<String> {
    let up = "super::".repeat(file.module.len());
    let from_root = roots(&file.code, "crate::");
    // Inside an inline module that path is one shorter, so other names than modules may turn up.
    let from_super = roots(&file.code, &up).into_iter().filter(|name| is_module(name));
    from_root.into_iter().chain(from_super).map(|name| owner(&name)).collect()
}

fn is_module(name: &str) -> bool {
    LEAVES.contains(&name) || LAYERS.iter().any(|(layer, _)| *layer == name)
}

/// The module that a name of the crate's root belongs to.
fn owner(name: &str) -> String {
    match name {
        "Error" | "Result" => "error".into(),
        name => name.into(),
    }
}

/// The first segments of the paths that follow `prefix`: `a` and `b` for `crate::{a::X, b}`.
fn roots(code: &str, prefix: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices(prefix) {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|letter| letter.is_alphanumeric() || letter == '_' || letter == ':') {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        match rest.strip_prefix('{') {
            Some(tree) => found.extend(branches(tree)),
            None => found.extend(first_name(rest)),
        }
    }
    found
}

/// The first segment of each branch of a use tree, its opening brace already taken.
fn branches(tree: &str) -> Vec<String> {
    let mut depth = 0usize;
    let mut start = 0;
    let mut found = Vec::new();
    for (at, letter) in tree.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => {
                found.extend(first_name(&tree[start..at]));
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                found.extend(first_name(&tree[start..at]));
                start = at + 1;
            }
            _ => {}
        }
    }
    found
}

fn first_name(path: &str) -> Option<String> {
    let path = path.trim_start();
    let end = path.find(|letter: char| !letter.is_alphanumeric() && letter != '_').unwrap_or(path.len());
    (end > 0).then(|| path[..end].to_owned())
}

/// Blanks out comments, strings and character literals.
fn without_comments_and_literals(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(letter) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if letter == 'r' && !out.ends_with(|last: char| last.is_alphanumeric() || last == '_') {
            raw_string(rest)
        } else if letter == '"' {
            quoted(rest, '"')
        } else if letter == '\'' {
            character(rest)
        } else {
            0
        };
        if skipped == 0 {
            out.push(letter);
            rest = &rest[letter.len_utf8()..];
        } else {
            out.push(' ');
            rest = &rest[skipped..];
        }
    }
    out
}

/// Bytes of the raw string that `text` begins with, or 0.
fn raw_string(text: &str) -> usize {
    let hashes = text[1..].bytes().take_while(|&byte| byte == b'#').count();
    if text.as_bytes().get(1 + hashes) != Some(&b'"') {
        return 0;
    }
    let close = format!("\"{}", "#".repeat(hashes));
    let open = hashes + 2;
    text[open..].find(&close).map_or(text.len(), |end| open + end + close.len())
}

fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, letter) in text.char_indices().skip(1) {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            letter if letter == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Bytes of the character literal that `text` begins with, or 0 for a lifetime.
fn character(text: &str) -> usize {
    let mut letters = text.chars().skip(1);
    match (letters.next(), letters.next()) {
        (Some('\\'), _) | (Some(_), Some('\'')) => quoted(text, '\''),
        _ => 0,
    }
}

/// Cuts out what `#[cfg(test)]` stands before.
fn without_tests(code: &str) -> String {
    let mut out = String::new();
    let mut rest = code;
    while let Some(at) = rest.find("#[cfg(test)]") {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let end = rest.find([';', '{']).unwrap_or(rest.len());
        rest = if rest[end..].starts_with('{') { &rest[end + block(&rest[end..])..] } else { &rest[end..] };
    }
    out + rest
}

/// Bytes of the braced block that `text` begins with.
fn block(text: &str) -> usize {
    let mut depth = 0usize;
    for (at, letter) in text.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 1 => return at + 1,
            '}' => depth -= 1,
            _ => {}
        }
    }
    text.len()
}

#[test]
fn the_checker_sees_what_it_should() {
    let source = r####"
        // use crate::comment;
        use crate::{Result, gguf::{Gguf, Value}, text};
        /* crate::block */
        fn f<'a>(c: char) -> crate::engine::Engine { if c == '"' { "crate::string" } else { r#"crate::"raw"# } }
        use super::kernel::K;
        #[cfg(test)]
        mod tests { use crate::cli; fn g() { if true {} } }
        use crate::quant;
    "####;
    let code = without_tests(&without_comments_and_literals(source));
    let file = SourceFile { path: PathBuf::new(), module: vec!["model".into()], code };
    let found = imports(&file);
    let found: Vec<_> = found.iter().map(String::as_str).collect();
    assert_eq!(found, ["engine", "error", "gguf", "kernel", "quant", "text"]);
    assert!(check("model", "kernel").is_ok() && check("model", "gguf").is_ok());
    assert!(
        check("model", "engine").is_err()
            && check("gguf", "quant").is_err()
            && check("simd", "error").is_err()
    );
}
