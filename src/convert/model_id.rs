//! What a model's name says: "Phi-3-mini-4k-instruct" is base name, size, context length, fine-tune.
//!
//! GGUF files carry these parts as `general.basename`, `general.size_label`, `general.finetune`, `general.version`.
//! The rules are those of the gguf package for Python, so that the same name gives the same keys.

use std::sync::LazyLock;

use regex::Regex;

/// The parts of a model id such as "microsoft/Phi-3-mini-4k-instruct".
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ModelId {
    pub name: Option<String>,
    pub organization: Option<String>,
    pub basename: Option<String>,
    pub finetune: Option<String>,
    pub version: Option<String>,
    pub size_label: Option<String>,
}

/// What a part of a name may be. A part can be several things.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Role {
    basename: bool,
    size_label: bool,
    finetune: bool,
    version: bool,
    encoding: bool,
}

impl Role {
    fn count(self) -> usize {
        [self.basename, self.size_label, self.finetune, self.version, self.encoding]
            .into_iter()
            .filter(|is| *is)
            .count()
    }
}

fn pattern(text: &str) -> Regex {
    Regex::new(&format!("(?i)^(?:{text})$")).expect("the pattern is valid (tested)")
}

static VERSION: LazyLock<Regex> = LazyLock::new(|| pattern(r"(v|iter)?\d+([.]\d+)*"));
static ENCODING: LazyLock<Regex> = LazyLock::new(|| pattern(r"i?q\d(_\w)*|b?fp?(16|32)"));
static SIZE: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"(([A]|\d+[x])?\d+([._]\d+)?[KMBT][\d]?|small|mini|medium|large|x?xl)"));
static FINETUNE: LazyLock<Regex> = LazyLock::new(|| pattern("chat|instruct|vision|lora"));
static UNTITLED: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^(v\d+(?:\.\d+)*|\d.*)$").expect("the pattern is valid (tested)"));

impl ModelId {
    /// Takes `id` apart. `parameters` is the model's size in parameters, 0 if unknown: it tells "4k" (a context) from "4B".
    pub fn parse(id: &str, parameters: u64) -> Self {
        if id.contains(' ') {
            // A sentence rather than an id.
            return Self { name: Some(id.to_owned()), ..Self::default() };
        }
        let (organization, name) = match id.split_once('/') {
            // "./folder" is a path.
            Some((organization, name)) => (Some(organization).filter(|o| !o.starts_with('.')), name),
            None => (None, id),
        };
        let mut parts: Vec<(String, Role)> = name
            .split('-')
            .filter(|part| !part.is_empty())
            .enumerate()
            .map(|(at, part)| annotate(at, part, parameters))
            .collect();
        prefer_numeric_sizes(&mut parts);
        mark_basename(&mut parts);
        let mut this = Self {
            name: Some(name.to_owned()),
            organization: organization.map(str::to_owned),
            basename: join(&parts, |role| role.basename),
            finetune: join(&parts, |role| role.finetune),
            version: join(&parts, |role| role.version && !role.basename),
            size_label: None,
        };
        let mut sizes: Vec<&str> = Vec::new();
        for (part, _) in parts.iter().filter(|(_, role)| role.size_label) {
            if !sizes.contains(&part.as_str()) {
                sizes.push(part);
            }
        }
        this.size_label = Some(sizes.join("-")).filter(|label| !label.is_empty());
        if this.size_label.is_none() && this.finetune.is_none() && this.version.is_none() {
            this.basename = None;
        }
        this
    }
}

/// Part number `at` of a name in its normal notation, and what it is on its own.
fn annotate(at: usize, part: &str, parameters: u64) -> (String, Role) {
    let mut role = Role::default();
    if VERSION.is_match(part) {
        role.version = true;
    } else if ENCODING.is_match(part) {
        role.encoding = true;
        return (part.to_uppercase(), role);
    } else if at > 0 && SIZE.is_match(part) {
        let (part, is_context) = size(part, parameters);
        role.finetune = is_context;
        role.size_label = !is_context;
        return (part, role);
    } else if at > 0 && FINETUNE.is_match(part) {
        role.finetune = true;
    }
    (part.to_owned(), role)
}

/// A size in its normal notation ("7b1" is "7.1B"), and whether it is rather a context length.
fn size(part: &str, parameters: u64) -> (String, bool) {
    let mut chars: Vec<char> = part.replace('_', ".").chars().collect();
    if let [.., suffix, digit] = chars[..]
        && digit.is_ascii_digit()
    {
        chars.truncate(chars.len() - 2);
        chars.extend(['.', digit, suffix]);
    }
    if let [.., before, suffix] = &mut chars[..]
        && before.is_ascii_digit()
    {
        *suffix = suffix.to_ascii_uppercase();
    }
    let mut is_context = false;
    if let Some((suffix, digits)) = chars.split_last()
        && parameters != 0
        && let Ok(number) = digits.iter().collect::<String>().parse::<f64>()
        && let Some(power) = "KMBT".find(*suffix)
    {
        let size = number * 1000_f64.powi(power as i32 + 1);
        let near = (u128::from(parameters) * 7 / 8) as f64;
        is_context = (size - parameters as f64).abs() > near;
    }
    if is_context && let Some(suffix) = chars.last_mut() {
        *suffix = suffix.to_ascii_lowercase();
    }
    (chars.into_iter().collect(), is_context)
}

/// "mini" is no size label beside "3.8B".
fn prefer_numeric_sizes(parts: &mut [(String, Role)]) {
    let numeric = |part: &str| part.chars().any(|c| c.is_ascii_digit());
    if parts.iter().any(|(part, role)| role.size_label && numeric(part)) {
        for (part, role) in parts {
            if part.chars().all(char::is_alphabetic) {
                role.size_label = false;
            }
        }
    }
}

/// The base name is what stands first: words, and versions between them. Any other word is part of the fine-tune's name.
fn mark_basename(parts: &mut [(String, Role)]) {
    let mut at_start = true;
    for (part, role) in parts.iter_mut() {
        let word = role.count() == 0 && part.starts_with(char::is_alphabetic);
        if at_start && (word || role.version) {
            role.basename = true;
        } else {
            at_start = false;
            if role.count() == 0 {
                role.finetune = true;
            }
        }
    }
    for (_, role) in parts.iter_mut().rev() {
        if !role.basename || role.count() == 1 {
            break;
        }
        role.basename = false;
    }
}

fn join(parts: &[(String, Role)], is: impl Fn(&Role) -> bool) -> Option<String> {
    let chosen: Vec<&str> =
        parts.iter().filter(|(_, role)| is(role)).map(|(part, _)| part.as_str()).collect();
    Some(chosen.join("-")).filter(|joined| !joined.is_empty())
}

/// "phi-3-mini" as "Phi 3 Mini": lower-case words get a capital, versions and acronyms stay.
pub(super) fn title(id: &str) -> String {
    let dashless = id.trim().replace('-', " ");
    let words = dashless.split_whitespace().map(|word| {
        let is_lower = word.chars().any(char::is_lowercase) && !word.chars().any(char::is_uppercase);
        if is_lower && !UNTITLED.is_match(word) { capitalize(word) } else { word.to_owned() }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// A capital at the start of each run of letters.
fn capitalize(word: &str) -> String {
    let mut capital = true;
    let mut out = String::with_capacity(word.len());
    for c in word.chars() {
        if capital && c.is_alphabetic() {
            out.extend(c.to_uppercase());
        } else {
            out.push(c);
        }
        capital = !c.is_alphabetic();
    }
    out
}

/// A number of parameters as a label with two digits at least: "3.8B", "20M", "950K".
pub(super) fn size_label(parameters: u64) -> String {
    let (scale, suffix) = match parameters as f64 {
        count if count > 1e12 => (1e-12, "T"),
        count if count > 1e9 => (1e-9, "B"),
        count if count > 1e6 => (1e-6, "M"),
        _ => (1e-3, "K"),
    };
    let scaled = parameters as f64 * scale;
    let whole = scaled.round_ties_even().to_string();
    let decimals = 2_usize.saturating_sub(whole.trim_start_matches('0').len());
    format!("{scaled:.decimals$}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values: gguf.Metadata.get_model_id_components of the Python package, for the same arguments.
    #[test]
    fn names_are_taken_apart_as_the_python_package_does() {
        let cases: [(&str, u64, [Option<&str>; 6]); 12] = [
            (
                "Phi-3.5-mini-instruct",
                3_821_079_552,
                [Some("Phi-3.5-mini-instruct"), None, Some("Phi-3.5"), Some("instruct"), None, Some("mini")],
            ),
            (
                "microsoft/Phi-3-mini-4k-instruct",
                3_821_079_552,
                [
                    Some("Phi-3-mini-4k-instruct"),
                    Some("microsoft"),
                    Some("Phi-3"),
                    Some("4k-instruct"),
                    None,
                    Some("mini"),
                ],
            ),
            (
                "Phi-3-mini-4k-instruct",
                0,
                [
                    Some("Phi-3-mini-4k-instruct"),
                    None,
                    Some("Phi-3-mini"),
                    Some("instruct"),
                    None,
                    Some("4K"),
                ],
            ),
            (
                "Phi-3-medium-128k-instruct",
                13_960_238_080,
                [
                    Some("Phi-3-medium-128k-instruct"),
                    None,
                    Some("Phi-3"),
                    Some("128k-instruct"),
                    None,
                    Some("medium"),
                ],
            ),
            ("phi-tiny", 3_000_000, [Some("phi-tiny"), None, None, None, None, None]),
            (
                "org/Some-Phi3-3.8b-v2-chat",
                3_821_079_552,
                [
                    Some("Some-Phi3-3.8b-v2-chat"),
                    Some("org"),
                    Some("Some-Phi3"),
                    Some("chat"),
                    Some("v2"),
                    Some("3.8B"),
                ],
            ),
            ("A model with spaces", 0, [Some("A model with spaces"), None, None, None, None, None]),
            ("./phi-3", 0, [Some("phi-3"), None, Some("phi"), None, Some("3"), None]),
            ("bloom-7b1", 0, [Some("bloom-7b1"), None, Some("bloom"), None, None, Some("7.1B")]),
            (
                "x-mini-7_5B-q4_k-fp16",
                7_500_000_000,
                [Some("x-mini-7_5B-q4_k-fp16"), None, Some("x-mini"), None, None, Some("7.5B")],
            ),
            ("--", 0, [Some("--"), None, None, None, None, None]),
            ("phi-3.5-tiny-gqa", 19_000_000, [Some("phi-3.5-tiny-gqa"), None, None, None, None, None]),
        ];
        for (id, parameters, expected) in cases {
            let found = ModelId::parse(id, parameters);
            let found = [
                found.name,
                found.organization,
                found.basename,
                found.finetune,
                found.version,
                found.size_label,
            ];
            assert_eq!(found.each_ref().map(Option::as_deref), expected, "{id}");
        }
    }

    #[test]
    fn titles_and_sizes_read_as_in_the_python_package() {
        assert_eq!(title("phi-3.5-mini-instruct"), "Phi 3.5 Mini Instruct");
        assert_eq!(title(" my_model-v1.2-GGUF-4k "), "My_Model v1.2 GGUF 4k");
        assert_eq!(size_label(3_821_079_552), "3.8B");
        assert_eq!(size_label(19_828_000), "20M");
        assert_eq!(size_label(1_000_000), "1000K");
        assert_eq!(size_label(400), "0.40K");
    }
}
