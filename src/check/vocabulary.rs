//! The vocabulary, the tokenizer and the chat template.

use std::collections::HashMap;

use super::{Report, Severity, list};
use crate::gguf::{Array, Gguf, Metadata, Value};
use crate::text::{ChatTemplate, Message, Tokenizer};

const TOKENS: &str = "tokenizer.ggml.tokens";
const TEMPLATE: &str = "tokenizer.chat_template";

/// Reports what is wrong with the vocabulary and what is made from it.
pub fn check(gguf: &Gguf, report: &mut Report) {
    let metadata = gguf.metadata();
    let Ok(Some(tokens)) = metadata.strings(TOKENS) else {
        if !metadata.contains(TOKENS) {
            report.warning(
                "vocabulary",
                "there is none (tokenizer.ggml.tokens is missing), so text cannot be read",
            );
        }
        return;
    };
    let before = report.problems.len();
    lengths(metadata, tokens.len(), report);
    ids(metadata, tokens.len(), report);
    scores_and_types(metadata, report);
    duplicates(tokens, report);
    merges(metadata, tokens, report);
    embedding(gguf, tokens.len(), report);
    // What the tokenizer itself refuses is the same again where something was found.
    if let Err(fault) = Tokenizer::from_gguf(metadata)
        && report.problems.len() == before
    {
        report.error("vocabulary", fault.to_string());
    }
    let is_sound = report.problems[before..].iter().all(|problem| problem.severity == Severity::Warning);
    template(metadata, is_sound, report);
}

fn lengths(metadata: &Metadata, tokens: usize, report: &mut Report) {
    for key in ["tokenizer.ggml.scores", "tokenizer.ggml.token_type"] {
        if let Some(Value::Array(array)) = metadata.get(key)
            && array.len() != tokens
        {
            let found = array.len();
            report.error("vocabulary", format!("{key} has {found} entries for {tokens} tokens"));
        }
    }
}

/// Ids that some key names, which must be in the vocabulary.
fn ids(metadata: &Metadata, tokens: usize, report: &mut Report) {
    let outside = |id: i128| id < 0 || id >= tokens as i128;
    for (key, value) in metadata.iter() {
        // The largest number of its type stands for "none".
        let none = i128::from(u32::MAX);
        if key.starts_with("tokenizer.ggml.") && key.ends_with("_token_id") {
            if let Some(id) = value.as_integer().filter(|&id| outside(id) && id != none) {
                report.error("vocabulary", format!("{key} is {id}, but there are {tokens} tokens"));
            }
        } else if let Value::Array(Array::I32(ids)) = value
            && (key.ends_with("_token_ids") || key == "phi.tokenizer.added.ids")
            && let Some(id) = ids.iter().find(|&&id| outside(id.into()))
        {
            report.error("vocabulary", format!("{key} names token {id}, but there are {tokens} tokens"));
        }
    }
}

fn scores_and_types(metadata: &Metadata, report: &mut Report) {
    if let Ok(Some(scores)) = metadata.f32s("tokenizer.ggml.scores")
        && let Some(id) = scores.iter().position(|score| !score.is_finite())
    {
        report.error("vocabulary", format!("the score of token {id} is NaN or infinite"));
    }
    if let Ok(Some(types)) = metadata.i32s("tokenizer.ggml.token_type")
        && let Some(id) = types.iter().position(|kind| !(1..=6).contains(kind))
    {
        let kind = types[id];
        report.error("vocabulary", format!("token {id} is of type {kind}; types 1 to 6 exist"));
    }
}

fn duplicates(tokens: &[String], report: &mut Report) {
    let mut first = HashMap::with_capacity(tokens.len());
    let twice: Vec<String> = tokens
        .iter()
        .enumerate()
        .filter_map(|(id, text)| {
            let earlier = first.insert(text.as_str(), id)?;
            Some(format!("{text:?} ({earlier} and {id})"))
        })
        .collect();
    if !twice.is_empty() {
        let shown: Vec<&str> = twice.iter().map(String::as_str).collect();
        let (count, shown) = (twice.len(), list(&shown));
        report.warning("vocabulary", format!("{count} texts belong to more than one token: {shown}"));
    }
    if let Some(id) = tokens.iter().position(String::is_empty) {
        report.warning("vocabulary", format!("token {id} has no text"));
    }
}

/// Merges of a byte-level vocabulary: two tokens with a space between, which together are a third.
fn merges(metadata: &Metadata, tokens: &[String], report: &mut Report) {
    let Ok(Some(merges)) = metadata.strings("tokenizer.ggml.merges") else { return };
    let known: std::collections::HashSet<&str> = tokens.iter().map(String::as_str).collect();
    let wrong: Vec<&str> =
        merges.iter().map(String::as_str).filter(|merge| !is_merge(merge, &known)).collect();
    if !wrong.is_empty() {
        let (count, shown) = (wrong.len(), list(&wrong));
        report.error("vocabulary", format!("{count} merges are not made of tokens: {shown}"));
    }
}

fn is_merge(merge: &str, known: &std::collections::HashSet<&str>) -> bool {
    // A part may itself hold a space, so every way to take it apart counts.
    merge.match_indices(' ').any(|(at, _)| {
        let (left, right) = (&merge[..at], &merge[at + 1..]);
        known.contains(left) && known.contains(right) && known.contains(format!("{left}{right}").as_str())
    })
}

fn embedding(gguf: &Gguf, tokens: usize, report: &mut Report) {
    let Some(embedding) = gguf.tensor("token_embd.weight") else { return };
    let rows = embedding.rows();
    if rows < tokens as u64 {
        report.error("vocabulary", format!("token_embd.weight has {rows} rows for {tokens} tokens"));
    } else if rows > tokens as u64 {
        report.warning("vocabulary", format!("token_embd.weight has {rows} rows for only {tokens} tokens"));
    }
}

/// Compiles the template and renders a question with it.
fn template(metadata: &Metadata, vocabulary_is_sound: bool, report: &mut Report) {
    let Some(source) = metadata.get(TEMPLATE) else {
        return report.warning("template", "there is no chat template (tokenizer.chat_template)");
    };
    // A vocabulary at fault would hide what is wrong with the template.
    let mut alone = Metadata::new();
    alone.set(TEMPLATE, source.clone());
    alone.set(TOKENS, Value::Array(Array::String(vec!["<s>".into()])));
    match ChatTemplate::from_gguf(if vocabulary_is_sound { metadata } else { &alone }) {
        Err(fault) => report.error("template", fault.to_string()),
        Ok(None) => {}
        Ok(Some(template)) => {
            if let Err(fault) = template.render(&[Message::new("user", "Hello")], true) {
                report.error("template", fault.to_string());
            }
        }
    }
}
