//! Byte-level tokenizers of the structure that Phi-2, Phi-4 and Phi-4-mini publish, against the `tokenizers` package.
//!
//! tests/data/tokenizer-*.json: scripts/family_goldens.py --tokenizers.

use phi::gguf::{Array, Metadata, Value};
use phi::text::{ADDED_FLAGS_KEY, ADDED_IDS_KEY, Detokenizer, Segment, Special, Tokenizer};
use serde_json::{Value as Json, json};

#[path = "common/tokens.rs"]
mod tokens;

use tokens::{Random, compare, lines, reference};

const JSON_KEY: &str = "tokenizer.huggingface.json";
const MODELS: [(&str, &str); 3] = [("phi-2", "phi-2"), ("phi-4", "dbrx"), ("phi-4-mini", "gpt-4o")];

fn tokenizer_json(model: &str) -> String {
    let path = format!("{}/tests/data/tokenizer-{model}.json", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).unwrap()
}

/// What a converter writes for such a tokenizer.json, flags included.
fn metadata(json: &str, pre: &str) -> Metadata {
    let file: Json = serde_json::from_str(json).unwrap();
    let mut tokens = vec![String::new(); 1000];
    let mut kinds = vec![5; 1000];
    for (token, id) in file["model"]["vocab"].as_object().unwrap() {
        let id = id.as_u64().unwrap() as usize;
        (tokens[id], kinds[id]) = (token.clone(), 1);
    }
    let (mut ids, mut flags) = (Vec::new(), Vec::new());
    for token in file["added_tokens"].as_array().unwrap() {
        let id = token["id"].as_u64().unwrap() as usize;
        let special = token["special"] == true;
        (tokens[id], kinds[id]) =
            (token["content"].as_str().unwrap().to_owned(), if special { 3 } else { 4 });
        ids.push(id as i32);
        let names = ["lstrip", "rstrip", "normalized", "single_word", "special"];
        flags.push(names.iter().enumerate().map(|(bit, name)| i32::from(token[name] == true) << bit).sum());
    }
    let merges = file["model"]["merges"].as_array().unwrap();
    let merges = merges.iter().map(|merge| merge.as_str().unwrap().to_owned()).collect();
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", Value::from("phi3"));
    metadata.set("tokenizer.ggml.model", Value::from("gpt2"));
    metadata.set("tokenizer.ggml.pre", Value::from(pre));
    metadata.set("tokenizer.ggml.tokens", Value::Array(Array::String(tokens)));
    metadata.set("tokenizer.ggml.token_type", Value::Array(Array::I32(kinds)));
    metadata.set("tokenizer.ggml.merges", Value::Array(Array::String(merges)));
    metadata.set(ADDED_IDS_KEY, Value::Array(Array::I32(ids)));
    metadata.set(ADDED_FLAGS_KEY, Value::Array(Array::I32(flags)));
    metadata
}

#[test]
fn six_thousand_lines_of_each_are_tokenized_as_the_package_does() {
    for (model, pre) in MODELS {
        let json = tokenizer_json(model);
        let metadata = metadata(&json, pre);
        assert!(Tokenizer::metadata_suffices(&metadata, &json).unwrap(), "{model}");
        let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
        compare(&tokenizer, &reference(&json), &lines(&json, 6000));
        assert_eq!(tokenizer.bos_to_add(), None);
    }
}

/// Variants of a file: whether the plain keys still suffice, and the change.
type Variant = (bool, fn(&mut Json));

const VARIANTS: &[Variant] = &[
    // A pattern that only backtracking runs.
    (false, |file| {
        file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] =
            json!(r"(?<=\d)\p{L}+|\p{N}++|\s+(?!\S)| ?[^\s\p{N}]+|\s")
    }),
    // A pattern with gaps, dropped and kept.
    (false, |file| {
        file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!(r"\p{L}+|\s+(?!\S)|\s+")
    }),
    (false, |file| {
        let split = &mut file["pre_tokenizer"]["pretokenizers"][0];
        (split["behavior"], split["invert"]) = (json!("Isolated"), json!(false));
        split["pattern"]["Regex"] = json!(r"\p{L}+");
    }),
    // Two splits, one after the other.
    (false, |file| {
        let steps = file["pre_tokenizer"]["pretokenizers"].as_array_mut().unwrap();
        let digits =
            json!({"type": "Split", "pattern": {"Regex": r"\p{N}"}, "behavior": "Isolated", "invert": false});
        steps.insert(0, digits);
    }),
    // tiktoken's own spelling of the pattern.
    (true, |file| {
        file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!(
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
        )
    }),
    (false, |file| {
        file["pre_tokenizer"] = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true});
    }),
    (false, |file| file["model"]["ignore_merges"] = json!(true)),
    (true, |file| {
        for (at, flag) in ["lstrip", "single_word", "normalized"].into_iter().enumerate() {
            file["added_tokens"][4 + at][flag] = true.into();
        }
        file["added_tokens"][2]["content"] = "\n\n".into();
        file["added_tokens"][3]["content"] = "the ä".into();
    }),
];

#[test]
fn variants_of_the_file_are_followed_too() {
    let original = tokenizer_json("phi-4");
    let lines = lines(&original, 800);
    for (number, (suffices, change)) in VARIANTS.iter().enumerate() {
        let mut file: Json = serde_json::from_str(&original).unwrap();
        change(&mut file);
        let json = file.to_string();
        let mut metadata = metadata(&json, "dbrx");
        assert_eq!(Tokenizer::metadata_suffices(&metadata, &json).unwrap(), *suffices, "variant {number}");
        metadata.set(JSON_KEY, Value::String(json.clone()));
        println!("variant {number}");
        compare(&Tokenizer::from_gguf(&metadata).unwrap(), &reference(&json), &lines);
    }
}

#[test]
fn any_tokens_decode_as_the_package_decodes_them_and_no_character_is_cut() {
    let json = tokenizer_json("phi-4");
    let tokenizer = Tokenizer::from_gguf(&metadata(&json, "dbrx")).unwrap();
    let reference = reference(&json);
    let mut random = Random(3);
    for round in 0..3000 {
        // Only single bytes in every third round: invalid UTF-8 of all kinds.
        let limit = if round % 3 == 0 { 256 } else { 909 };
        let ids: Vec<u32> = (0..random.below(30)).map(|_| random.below(limit) as u32).collect();
        for show_special in [false, true] {
            let expected = reference.decode(&ids, !show_special).unwrap();
            assert_eq!(tokenizer.decode(&ids, show_special), expected, "{ids:?}");
        }
    }
    let text = "👩\u{200d}👧 日本\u{fffd}";
    let mut detokenizer = Detokenizer::new(&tokenizer, false);
    let parts: Vec<String> =
        tokenizer.encode(text, Special::Parse).into_iter().map(|id| detokenizer.push(id)).collect();
    assert!(parts.iter().filter(|part| part.contains('\u{FFFD}')).count() == 1, "{parts:?}");
    assert_eq!(parts.concat() + &detokenizer.finish(), text);
}

#[test]
fn control_tokens_in_text_are_letters() {
    // Also those that tokenizer.json does not call special.
    for (model, pre) in MODELS {
        let tokenizer = Tokenizer::from_gguf(&metadata(&tokenizer_json(model), pre)).unwrap();
        for text in ["<|im_end|>", "a<|end|> b", "<|tool_call|>{}", "<|endoftext|>"] {
            let ids = tokenizer.encode(text, Special::Text);
            assert!(!ids.iter().any(|id| tokenizer.is_control(*id)), "{text}");
            assert_eq!(tokenizer.decode(&ids, false), text);
        }
    }
    let tokenizer = Tokenizer::from_gguf(&metadata(&tokenizer_json("phi-4"), "dbrx")).unwrap();
    let segments = [
        Segment::parse("<|im_start|>user<|im_sep|>"),
        Segment::text("<|im_end|>"),
        Segment::parse("<|im_end|>"),
    ];
    let ids = tokenizer.encode_segments(&segments);
    let end = tokenizer.added_token("<|im_end|>").unwrap();
    assert_eq!(ids.iter().filter(|id| **id == end).count(), 1);
    assert!(tokenizer.is_eog(end));
}

#[test]
fn long_words_take_time_in_proportion() {
    let json = tokenizer_json("phi-4-mini");
    let tokenizer = Tokenizer::from_gguf(&metadata(&json, "gpt-4o")).unwrap();
    let reference = reference(&json);
    for unit in ["a", "the", "日", " ", "\n", "=", "1", "🚀"] {
        let text = unit.repeat(10_000);
        let expected = reference.encode_fast(text.as_str(), false).unwrap();
        assert_eq!(tokenizer.encode(&text, Special::Parse), expected.get_ids(), "{unit}");
        let start = std::time::Instant::now();
        assert!(!tokenizer.encode(&unit.repeat((1 << 20) / unit.len()), Special::Parse).is_empty());
        assert!(start.elapsed().as_secs() < 20, "{unit}");
    }
}

/// A word of a fault's message, and what to change for it.
type Damage<T> = (&'static str, fn(&mut T));

#[test]
fn faults_say_what_is_missing() {
    let json = tokenizer_json("phi-4");
    let cases: [Damage<Metadata>; 4] = [
        ("\"klingon\"", |metadata| drop(metadata.set("tokenizer.ggml.pre", Value::from("klingon")))),
        ("no tokenizer.ggml.merges", |metadata| drop(metadata.remove("tokenizer.ggml.merges"))),
        ("entry 0", |metadata| {
            let merges = Array::String(vec!["a no-such-token".into()]);
            metadata.set("tokenizer.ggml.merges", Value::Array(merges));
        }),
        ("0x21", |metadata| {
            let mut tokens = metadata.strings("tokenizer.ggml.tokens").unwrap().unwrap().to_vec();
            let at = tokens.iter().position(|token| token == "!").unwrap();
            tokens[at] = "no !".into();
            metadata.set("tokenizer.ggml.tokens", Value::Array(Array::String(tokens)));
            metadata.set("tokenizer.ggml.merges", Value::Array(Array::String(vec![])));
        }),
    ];
    for (word, damage) in cases {
        let mut metadata = metadata(&json, "dbrx");
        damage(&mut metadata);
        let fault = Tokenizer::from_gguf(&metadata).err().unwrap_or_else(|| panic!("no fault: {word}"));
        assert!(fault.to_string().contains(word), "{fault} / {word}");
    }
    let unsupported: [Damage<Json>; 3] = [
        ("NFC", |file| file["normalizer"] = json!({"type": "NFC"})),
        ("Digits", |file| file["pre_tokenizer"]["pretokenizers"][0] = json!({"type": "Digits"})),
        ("no regular expression", |file| {
            file["pre_tokenizer"]["pretokenizers"][0]["pattern"] = json!({"String": " "});
        }),
    ];
    for (word, change) in unsupported {
        let mut file: Json = serde_json::from_str(&json).unwrap();
        change(&mut file);
        let mut metadata = metadata(&json, "dbrx");
        metadata.set(JSON_KEY, Value::String(file.to_string()));
        let fault = Tokenizer::from_gguf(&metadata).err().unwrap_or_else(|| panic!("no fault: {word}"));
        assert!(fault.to_string().contains(word), "{fault} / {word}");
    }
}
