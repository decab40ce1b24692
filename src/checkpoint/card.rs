//! The model card: the YAML front matter of README.md.
//!
//! Only what model cards use is understood: top-level keys with a plain or quoted text, a list of texts in either
//! notation, or a text block. Anything nested deeper is passed over; a card never fails a conversion.

use std::path::Path;

/// A front matter value.
#[derive(Clone, Debug, PartialEq)]
pub enum CardValue {
    Text(String),
    /// Entries that are no texts (nested mappings) are left out.
    List(Vec<String>),
}

/// The top-level entries of a model card's front matter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Card {
    entries: Vec<(String, CardValue)>,
}

impl Card {
    /// The card in the file at `path`; an empty one if there is none.
    pub fn read(path: &Path) -> Self {
        match super::read_text_if_there(path) {
            Ok(Some(text)) => Self::parse(&text),
            _ => Self::default(),
        }
    }

    /// The card at the start of a README.md's `text`.
    pub fn parse(text: &str) -> Self {
        let mut lines = text.lines();
        if lines.next() != Some("---") {
            return Self::default();
        }
        let lines: Vec<&str> = lines.take_while(|line| *line != "---").collect();
        let mut entries: Vec<(String, CardValue)> = Vec::new();
        let mut at = 0;
        while let Some(line) = lines.get(at) {
            at += 1;
            let Some((key, rest)) = key_and_rest(line) else { continue };
            let body_end = at + lines[at..].iter().take_while(|line| belongs_to_value(line)).count();
            let value = value(rest, &lines[at..body_end]);
            at = body_end;
            // A key that occurs again replaces the earlier one, as YAML readers do.
            if let Some(value) = value {
                match entries.iter_mut().find(|(known, _)| *known == key) {
                    Some(entry) => entry.1 = value,
                    None => entries.push((key, value)),
                }
            }
        }
        Self { entries }
    }

    pub fn get(&self, key: &str) -> Option<&CardValue> {
        self.entries.iter().find(|(known, _)| known == key).map(|(_, value)| value)
    }

    /// The value of `key` if it is a text.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.get(key) {
            Some(CardValue::Text(text)) => Some(text),
            _ => None,
        }
    }
}

/// Splits "key: rest" at the margin; `None` for any other line.
fn key_and_rest(line: &str) -> Option<(String, &str)> {
    if line.starts_with([' ', '\t', '#', '-']) {
        return None;
    }
    let (key, rest) = match line.strip_suffix(':') {
        Some(key) if !key.contains(": ") => (key, ""),
        _ => line.split_once(": ")?,
    };
    let key = unquote(key.trim())?;
    (!key.is_empty()).then(|| (key, rest.trim()))
}

/// Whether a line continues the value of the key above it.
fn belongs_to_value(line: &str) -> bool {
    line.is_empty() || line.starts_with([' ', '\t', '-', '#'])
}

/// A value: what stands after the key, and the lines below it.
fn value(rest: &str, body: &[&str]) -> Option<CardValue> {
    let body = || body.iter().map(|line| line.trim_end()).filter(|line| !line.trim_start().starts_with('#'));
    let rest = without_comment(rest);
    match rest.chars().next() {
        Some('[') => {
            let whole: String = std::iter::once(rest).chain(body().map(str::trim)).collect();
            let inner = whole.strip_prefix('[')?.strip_suffix(']')?;
            Some(CardValue::List(split_flow(inner).iter().filter_map(|item| scalar(item)).collect()))
        }
        Some('|') => Some(CardValue::Text(block(body(), "\n"))),
        Some('>') => Some(CardValue::Text(block(body(), " "))),
        Some('{' | '&' | '*' | '!') => None,
        Some(_) => {
            let mut text = rest.to_owned();
            for line in body().map(str::trim).filter(|line| !line.is_empty()) {
                text.push(' ');
                text.push_str(line);
            }
            scalar(&text).map(CardValue::Text)
        }
        None => list(body()),
    }
}

/// A list of "- item" lines; lines that are indented further than the dashes belong to nested entries.
fn list<'a>(lines: impl Iterator<Item = &'a str>) -> Option<CardValue> {
    let mut items = Vec::new();
    let mut margin = None;
    for line in lines.filter(|line| !line.is_empty()) {
        let indent = line.len() - line.trim_start().len();
        let item =
            line.trim_start().strip_prefix('-').filter(|item| item.is_empty() || item.starts_with(' '));
        match (item, margin) {
            (Some(item), None) => {
                margin = Some(indent);
                items.extend(scalar(without_comment(item.trim())));
            }
            (Some(item), Some(margin)) if margin == indent => {
                items.extend(scalar(without_comment(item.trim())));
            }
            (None, None) => return None,
            _ => {}
        }
    }
    margin.map(|_| CardValue::List(items))
}

/// The lines of a text block without their common indentation.
fn block<'a>(lines: impl Iterator<Item = &'a str>, separator: &str) -> String {
    let lines: Vec<&str> = lines.collect();
    let indent = |line: &&str| line.len() - line.trim_start().len();
    let margin = lines.iter().filter(|line| !line.is_empty()).map(indent).min().unwrap_or(0);
    let lines: Vec<&str> = lines.iter().map(|line| line.get(margin..).unwrap_or_default()).collect();
    let mut text = lines.join(separator).trim_end().to_owned();
    text.push('\n');
    text
}

/// A text, plain or quoted; `None` for what YAML reads as something else (a mapping, null, a truth value).
fn scalar(text: &str) -> Option<String> {
    let plain = unquote(text)?;
    if text.starts_with(['"', '\'']) {
        return Some(plain);
    }
    let word = plain.to_ascii_lowercase();
    let other = matches!(word.as_str(), "" | "null" | "~" | "true" | "false" | "yes" | "off" | "on");
    // "- no" in a list of languages is Norwegian: readers of model cards agree on that.
    (!other && !plain.contains(": ") && !plain.ends_with(':')).then_some(plain)
}

fn unquote(text: &str) -> Option<String> {
    let inner = |quote: char| text.strip_prefix(quote).map(|rest| rest.strip_suffix(quote));
    if let Some(inner) = inner('\'') {
        return inner.map(|inner| inner.replace("''", "'"));
    }
    if let Some(inner) = inner('"') {
        // YAML's double quotes are JSON's for what cards contain.
        return inner.and_then(|inner| serde_json::from_str(&format!("\"{inner}\"")).ok());
    }
    Some(text.to_owned())
}

fn without_comment(text: &str) -> &str {
    if text.starts_with(['"', '\'']) {
        return text;
    }
    match text.find(" #") {
        Some(at) => text[..at].trim_end(),
        None => text,
    }
}

/// Splits "a, 'b, c', d" at the commas outside of quotes.
fn split_flow(text: &str) -> Vec<&str> {
    let mut items = Vec::new();
    let mut start = 0;
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match (c, quote) {
            ('"' | '\'', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            (',', None) => {
                items.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    items.push(text[start..].trim());
    items.retain(|item| !item.is_empty());
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(items: &[&str]) -> CardValue {
        CardValue::List(items.iter().map(|item| item.to_string()).collect())
    }

    #[test]
    fn a_model_card_is_read() {
        let card = Card::parse(
            "---\nlicense: mit\nlicense_link: https://example.org/a#b # where\nlanguage:\n- multilingual\n- no\n\
             pipeline_tag: text-generation\ntags: [nlp, 'c, d', \"e\"]\nwidget:\n- messages:\n  - role: user\n    content: Hi?\n\
             base_model:\n  - a/b\ndescription: >\n  Two\n  lines.\nflag: true\nname: |\n  x\n---\n# Text\nignored: yes\n",
        );
        assert_eq!(card.text("license"), Some("mit"));
        assert_eq!(card.text("license_link"), Some("https://example.org/a#b"));
        assert_eq!(card.get("language"), Some(&texts(&["multilingual", "no"])));
        assert_eq!(card.get("tags"), Some(&texts(&["nlp", "c, d", "e"])));
        assert_eq!(card.get("widget"), Some(&texts(&[])));
        assert_eq!(card.get("base_model"), Some(&texts(&["a/b"])));
        assert_eq!(card.text("description"), Some("Two lines.\n"));
        assert_eq!(card.text("name"), Some("x\n"));
        assert_eq!((card.get("flag"), card.get("ignored")), (None, None));
    }

    #[test]
    fn odd_cards_are_passed_over() {
        for text in [
            "",
            "---",
            "no card",
            "---\n- a\n  b: c\n: x\n---",
            "---\ntags: [a, b\n---",
            "---\na: \"\\u12\"\n---",
        ] {
            assert_eq!(Card::parse(text), Card::default(), "{text:?}");
        }
    }
}
