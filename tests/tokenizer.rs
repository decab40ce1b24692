//! The tokenizer against the `tokenizers` package, which defines what the tokens are.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use phi::gguf::{Array, Gguf, Metadata, Value};
use phi::text::{
    ADDED_FLAGS_KEY, ADDED_IDS_KEY, AddedFlags, Detokenizer, EOS_IDS_KEY, Fault, Segment, Special, Tokenizer,
};
use serde_json::Value as Json;

#[path = "common/tokens.rs"]
mod tokens;

use tokens::{Random, compare, lines, reference};

const JSON_KEY: &str = "tokenizer.huggingface.json";

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn tokenizer_json() -> String {
    std::fs::read_to_string(root("models/phi-tiny/tokenizer.json"))
        .expect("the model in the box has a tokenizer.json")
}

/// What a converter writes for a tokenizer.json of this kind: tokens, scores by the order of the merges, types, flags.
fn metadata(json: &str) -> Metadata {
    let file: Json = serde_json::from_str(json).unwrap();
    let vocab = file["model"]["vocab"].as_object().unwrap();
    let added = file["added_tokens"].as_array().unwrap();
    let id = |value: &Json| value.as_u64().unwrap() as usize;
    let size = vocab.values().map(id).chain(added.iter().map(|token| id(&token["id"]))).max().unwrap() + 1;
    let mut tokens: Vec<String> = (0..size).map(|id| format!("[PAD{id}]")).collect();
    let (mut scores, mut kinds) = (vec![-10000.0; size], vec![5; size]);
    let mut ranks = HashMap::new();
    for merge in file["model"]["merges"].as_array().unwrap() {
        let rank = ranks.len();
        let product = match merge {
            Json::String(pair) => pair.replacen(' ', "", 1),
            pair => format!("{}{}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
        };
        ranks.entry(product).or_insert(rank);
    }
    for (token, at) in vocab {
        let at = id(at);
        tokens[at] = token.clone();
        scores[at] = -(ranks.get(token).copied().unwrap_or(ranks.len() + at) as f32);
        kinds[at] = if token.starts_with("<0x") && token.len() == 6 { 6 } else { 1 };
    }
    let (mut ids, mut flags) = (Vec::new(), Vec::new());
    for token in added {
        let at = id(&token["id"]);
        tokens[at] = token["content"].as_str().unwrap().to_owned();
        kinds[at] = if token["special"] == true { 3 } else { 4 };
        ids.push(at as i32);
        let flag = |name: &str, flag: u32| if token[name] == true { flag as i32 } else { 0 };
        flags.push(
            flag("lstrip", AddedFlags::LSTRIP)
                | flag("rstrip", AddedFlags::RSTRIP)
                | flag("normalized", AddedFlags::NORMALIZED)
                | flag("single_word", AddedFlags::SINGLE_WORD)
                | flag("special", AddedFlags::SPECIAL),
        );
    }
    kinds[0] = 2;
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", Value::String("phi3".into()));
    metadata.set("tokenizer.ggml.model", Value::String("llama".into()));
    metadata.set("tokenizer.ggml.tokens", Value::Array(Array::String(tokens)));
    metadata.set("tokenizer.ggml.scores", Value::Array(Array::F32(scores)));
    metadata.set("tokenizer.ggml.token_type", Value::Array(Array::I32(kinds)));
    metadata.set("tokenizer.ggml.add_bos_token", Value::Bool(false));
    metadata.set(ADDED_IDS_KEY, Value::Array(Array::I32(ids)));
    metadata.set(ADDED_FLAGS_KEY, Value::Array(Array::I32(flags)));
    metadata
}

#[test]
fn six_thousand_lines_are_tokenized_as_the_package_does() {
    let json = tokenizer_json();
    let tokenizer = Tokenizer::from_gguf(&metadata(&json)).unwrap();
    compare(&tokenizer, &reference(&json), &lines(&json, 6000));
}

#[test]
fn an_embedded_tokenizer_json_decides() {
    let json = tokenizer_json();
    let mut metadata = metadata(&json);
    // Scores that say something else.
    let size = metadata.f32s("tokenizer.ggml.scores").unwrap().unwrap().len();
    metadata.set("tokenizer.ggml.scores", Value::Array(Array::F32(vec![0.0; size])));
    metadata.set(JSON_KEY, Value::String(json.clone()));
    compare(&Tokenizer::from_gguf(&metadata).unwrap(), &reference(&json), &lines(&json, 1000));
}

/// Variants of the file, each changed by one of these.
const VARIANTS: &[fn(&mut Json)] = &[
    // Merges in another order: the scores no longer tell.
    |file| file["model"]["merges"].as_array_mut().unwrap().reverse(),
    // The older way of writing merges.
    |file| {
        for merge in file["model"]["merges"].as_array_mut().unwrap() {
            *merge = Json::String(format!("{} {}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap()));
        }
    },
    // No decoder step that strips.
    |file| drop(file["decoder"]["decoders"].as_array_mut().unwrap().pop()),
    |file| file["decoder"]["decoders"][3]["start"] = 3.into(),
    // Metaspace instead of a normaliser.
    |file| metaspace(file, "first", false),
    |file| metaspace(file, "always", true),
    |file| metaspace(file, "never", true),
    // Added tokens of every kind.
    |file| {
        for (at, flag) in ["lstrip", "single_word", "normalized"].into_iter().enumerate() {
            file["added_tokens"][4 + at][flag] = true.into();
        }
        file["added_tokens"][7]["normalized"] = true.into();
        file["added_tokens"][7]["special"] = false.into();
        file["added_tokens"][8]["content"] = "the".into();
        file["added_tokens"][8]["special"] = false.into();
        file["added_tokens"][8]["single_word"] = true.into();
        file["added_tokens"][9]["content"] = "\n\n".into();
    },
    // Bytes that are missing: some characters are unknown.
    |file| {
        let vocab = file["model"]["vocab"].as_object_mut().unwrap();
        for token in ["<0xF0>", "<0xE2>"] {
            let id = vocab.remove(token).unwrap();
            vocab.insert(format!("no {token}"), id);
        }
    },
    |file| {
        file["model"]["byte_fallback"] = false.into();
        file["model"]["fuse_unk"] = false.into();
    },
];

fn metaspace(file: &mut Json, scheme: &str, split: bool) {
    file["normalizer"] = Json::Null;
    file["pre_tokenizer"] = serde_json::json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split });
}

#[test]
fn variants_of_the_file_are_followed_too() {
    let original = tokenizer_json();
    let lines = lines(&original, 600);
    for (number, change) in VARIANTS.iter().enumerate() {
        let mut file: Json = serde_json::from_str(&original).unwrap();
        change(&mut file);
        let json = file.to_string();
        let mut metadata = metadata(&json);
        // Reversed merges, and what is put around them, are not what the scores say.
        let suffices = Tokenizer::metadata_suffices(&metadata, &json).unwrap();
        assert_eq!(suffices, [1, 7, 8].contains(&number), "variant {number}");
        metadata.set(JSON_KEY, Value::String(json.clone()));
        println!("variant {number}");
        compare(&Tokenizer::from_gguf(&metadata).unwrap(), &reference(&json), &lines);
    }
}

fn set_token(metadata: &mut Metadata, at: usize, content: &str) {
    let mut tokens = metadata.strings("tokenizer.ggml.tokens").unwrap().unwrap().to_vec();
    tokens[at] = content.to_owned();
    metadata.set("tokenizer.ggml.tokens", Value::Array(Array::String(tokens)));
}

#[test]
fn the_metadata_alone_suffices_for_the_model_in_the_box() {
    let json = tokenizer_json();
    assert!(Tokenizer::metadata_suffices(&metadata(&json), &json).unwrap());
}

#[test]
fn control_tokens_in_text_are_letters() {
    let json = tokenizer_json();
    let tokenizer = Tokenizer::from_gguf(&metadata(&json)).unwrap();
    let end = tokenizer.added_token("<|end|>").unwrap();
    for text in ["<|end|>", "a<|end|> b", "<|en<|end|>d|>", "</s>", "<s><unk>"] {
        let ids = tokenizer.encode(text, Special::Text);
        assert!(!ids.iter().any(|id| tokenizer.is_control(*id)), "{text}");
        assert_eq!(tokenizer.decode(&ids, false), text);
        assert!(tokenizer.holds_control_tokens(text));
    }
    assert!(!tokenizer.holds_control_tokens("<|en d|> <0x0A>"));
    let segments = [
        Segment::parse("<|user|>\n"),
        Segment::text("say <|end|>"),
        Segment::parse("<|end|>\n<|assis"),
        Segment::parse("tant|>\n"),
    ];
    let ids = tokenizer.encode_segments(&segments);
    assert_eq!(ids.iter().filter(|id| **id == end).count(), 1);
    assert_eq!(ids.last(), tokenizer.added_token("<|assistant|>").as_ref());
    assert_eq!(tokenizer.decode(&ids, true), "<|user|> say <|end|><|end|><|assistant|>");
    // A token must lie within what may be parsed.
    let ids = tokenizer.encode_segments(&[Segment::parse("<|"), Segment::text("end"), Segment::parse("|>")]);
    assert!(!ids.contains(&end));
}

#[test]
fn segments_without_control_tokens_are_one_text() {
    let json = tokenizer_json();
    let tokenizer = Tokenizer::from_gguf(&metadata(&json)).unwrap();
    let mut random = Random(1);
    for text in lines(&json, 1000).iter().filter(|text| !tokenizer.holds_control_tokens(text)) {
        let cut = (0..=random.below(text.len() + 1)).rev().find(|at| text.is_char_boundary(*at)).unwrap();
        let segments = [Segment::parse(&text[..cut]), Segment::text(&text[cut..])];
        assert_eq!(tokenizer.encode_segments(&segments), tokenizer.encode(text, Special::Parse), "{text:?}");
    }
}

#[test]
fn any_tokens_decode_as_the_package_decodes_them_and_no_character_is_cut() {
    let json = tokenizer_json();
    let (tokenizer, reference) = (Tokenizer::from_gguf(&metadata(&json)).unwrap(), reference(&json));
    let mut random = Random(3);
    for round in 0..3000 {
        // Mostly byte tokens in every third round: invalid UTF-8 of all kinds.
        let limit = if round % 3 == 0 { 270 } else { tokenizer.vocab_size() };
        let ids: Vec<u32> = (0..random.below(30)).map(|_| random.below(limit) as u32).collect();
        for show_special in [false, true] {
            assert_eq!(
                tokenizer.decode(&ids, show_special),
                reference.decode(&ids, !show_special).unwrap(),
                "{ids:?}"
            );
        }
    }
    let ids = tokenizer.encode("👩\u{200d}👧 日本", Special::Parse);
    let mut detokenizer = Detokenizer::new(&tokenizer, false);
    let parts: Vec<String> = ids.iter().map(|id| detokenizer.push(*id)).collect();
    assert!(parts.iter().all(|part| !part.contains('\u{FFFD}')), "{parts:?}");
    assert_eq!(parts.concat() + &detokenizer.finish(), "👩\u{200d}👧 日本");
    let mut detokenizer = Detokenizer::continuing(&tokenizer, false);
    assert_eq!(detokenizer.push(tokenizer.encode("the", Special::Parse)[0]), " the");
}

#[test]
fn long_words_take_time_in_proportion() {
    let json = tokenizer_json();
    let (tokenizer, reference) = (Tokenizer::from_gguf(&metadata(&json)).unwrap(), reference(&json));
    for unit in ["a", "the", "日", "x=", "\n", "🚀"] {
        let text = unit.repeat(20_000);
        assert_eq!(
            tokenizer.encode(&text, Special::Parse),
            reference.encode_fast(text.as_str(), false).unwrap().get_ids(),
            "{unit}"
        );
        let start = std::time::Instant::now();
        let text = unit.repeat((1 << 20) / unit.len());
        assert!(!tokenizer.encode(&text, Special::Parse).is_empty());
        // Quadratic would be hours.
        assert!(start.elapsed().as_secs() < 20, "{unit}");
    }
}

#[test]
fn generation_ends_where_the_model_says() {
    let json = tokenizer_json();
    let mut metadata = metadata(&json);
    let id = |tokenizer: &Tokenizer, text: &str| tokenizer.added_token(text).unwrap();
    // Without a list: Phi-3's generation_config.json.
    let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
    let eog = tokenizer.eog_tokens();
    for text in ["<|end|>", "<|endoftext|>", "<|assistant|>"] {
        assert!(eog.contains(&id(&tokenizer, text)), "{text}");
    }
    assert!(!eog.contains(&id(&tokenizer, "<|user|>")));
    assert_eq!(tokenizer.bos_to_add(), None);
    metadata.set(EOS_IDS_KEY, Value::Array(Array::I32(vec![5])));
    metadata.set("tokenizer.ggml.eos_token_id", Value::U32(6));
    metadata.set("tokenizer.ggml.bos_token_id", Value::U32(1));
    metadata.set("tokenizer.ggml.add_bos_token", Value::Bool(true));
    let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
    assert_eq!(tokenizer.eog_tokens(), [5, 6]);
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.bos_to_add()), (Some(1), Some(6), Some(1)));
}

/// A word of a fault's message, and how to damage the metadata for it.
type Damage = (&'static str, fn(&mut Metadata));

const FAULTS: &[Damage] = &[
    ("tokenizer.ggml.model", |metadata| drop(metadata.remove("tokenizer.ggml.model"))),
    ("\"t5\"", |metadata| drop(metadata.set("tokenizer.ggml.model", Value::String("t5".into())))),
    ("no tokenizer.ggml.merges", |metadata| {
        drop(metadata.set("tokenizer.ggml.model", Value::String("gpt2".into())))
    }),
    ("cannot be read", |metadata| drop(metadata.set("tokenizer.ggml.model", Value::U32(1)))),
    ("no tokenizer.ggml.tokens", |metadata| drop(metadata.remove("tokenizer.ggml.tokens"))),
    ("0 entries", |metadata| {
        drop(metadata.set("tokenizer.ggml.tokens", Value::Array(Array::String(vec![]))))
    }),
    ("no tokenizer.ggml.scores", |metadata| drop(metadata.remove("tokenizer.ggml.scores"))),
    ("tokenizer.ggml.scores has 1", |metadata| {
        drop(metadata.set("tokenizer.ggml.scores", Value::Array(Array::F32(vec![0.0]))))
    }),
    ("tokenizer.ggml.token_type has 2", |metadata| {
        drop(metadata.set("tokenizer.ggml.token_type", Value::Array(Array::I32(vec![1, 1]))))
    }),
    ("bos_token_id names token 99999", |metadata| {
        drop(metadata.set("tokenizer.ggml.bos_token_id", Value::U32(99_999)))
    }),
    ("token -1", |metadata| drop(metadata.set(EOS_IDS_KEY, Value::Array(Array::I32(vec![-1]))))),
    ("added.ids names token -7", |metadata| {
        drop(metadata.set(ADDED_IDS_KEY, Value::Array(Array::I32(vec![-7]))))
    }),
    ("added.flags has 1", |metadata| drop(metadata.set(ADDED_FLAGS_KEY, Value::Array(Array::I32(vec![0]))))),
    ("no phi.tokenizer.added.flags", |metadata| drop(metadata.remove(ADDED_FLAGS_KEY))),
    ("not a tokenizer", |metadata| drop(metadata.set(JSON_KEY, Value::String("{".into())))),
    ("not a tokenizer", |metadata| drop(metadata.set(JSON_KEY, Value::String("[".repeat(100_000))))),
    ("\"Unigram\"", |metadata| {
        drop(
            metadata
                .set(JSON_KEY, Value::String(r#"{"model":{"type":"Unigram","vocab":[["a",0.0]]}}"#.into())),
        )
    }),
    ("not in its vocabulary", |metadata| {
        drop(metadata.set(
            JSON_KEY,
            Value::String(r#"{"model":{"type":"BPE","vocab":{"a":0},"merges":["a b"]}}"#.into()),
        ));
    }),
    ("names token 4000000", |metadata| {
        drop(metadata.set(
            JSON_KEY,
            Value::String(r#"{"model":{"type":"BPE","vocab":{"a":4000000},"merges":[]}}"#.into()),
        ));
    }),
    ("16384", |metadata| set_token(metadata, 300, &"a".repeat(20_000))),
];

#[test]
fn each_fault_has_its_message() {
    let original = metadata(&tokenizer_json());
    for (word, damage) in FAULTS {
        let mut metadata = original.clone();
        damage(&mut metadata);
        let fault: Fault =
            Tokenizer::from_gguf(&metadata).err().unwrap_or_else(|| panic!("no fault: {word}"));
        assert!(fault.to_string().contains(word), "{fault} / {word}");
    }
}

#[test]
fn odd_vocabularies_do_no_harm() {
    let original = metadata(&tokenizer_json());
    let changes: [fn(&mut Metadata); 4] = [
        |metadata| (0..400).for_each(|id| set_token(metadata, id, "")),
        |metadata| (3..500).for_each(|id| set_token(metadata, id, "a")),
        |metadata| {
            let size = metadata.f32s("tokenizer.ggml.scores").unwrap().unwrap().len();
            metadata.set("tokenizer.ggml.scores", Value::Array(Array::F32(vec![f32::NAN; size])));
        },
        |metadata| {
            ["<0x-1>", "<0x1>", "<0xZZ>", "<0x>", "<0x+5>"]
                .iter()
                .enumerate()
                .for_each(|(id, token)| set_token(metadata, 3 + id, token))
        },
    ];
    for change in changes {
        let mut metadata = original.clone();
        change(&mut metadata);
        let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
        let ids = tokenizer.encode("the quick \u{0}\u{1} 日本 <|end|> <0x-1>", Special::Parse);
        tokenizer.decode(&ids, true);
        for id in 0..tokenizer.vocab_size() as u32 + 2 {
            tokenizer.token_bytes(id, true);
        }
    }
}

/// The real Phi-3 vocabulary, where the reference material is beside the project (or in `PHI_SHARED`).
fn shared(path: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("PHI_SHARED").map_or_else(|| root("../shared"), PathBuf::from);
    Some(folder.join(path)).filter(|path| path.exists())
}

#[test]
fn phi_3_5_tokens_are_those_of_its_tokenizer_json() {
    let (Some(vocabulary), Some(golden)) =
        (shared("data/ggml-vocab-phi-3.gguf"), shared("golden/tokens-hf.json"))
    else {
        return;
    };
    let gguf = Gguf::open(&vocabulary).unwrap();
    // The file says nothing of flags: the architecture and the vocabulary do.
    let tokenizer = Tokenizer::from_gguf(gguf.metadata()).unwrap();
    let golden: Json = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
    for case in golden.as_array().unwrap() {
        let expected: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        assert_eq!(
            tokenizer.encode(case["text"].as_str().unwrap(), Special::Parse),
            expected,
            "{}",
            case["text"]
        );
    }
    assert_eq!(tokenizer.eog_tokens(), [32000, 32001, 32007]);
}

#[test]
fn llama_cpps_published_cases_come_out_the_same() {
    let (Some(vocabulary), Some(texts), Some(tokens)) = (
        shared("data/ggml-vocab-phi-3.gguf"),
        shared("data/ggml-vocab-phi-3.gguf.inp"),
        shared("data/ggml-vocab-phi-3.gguf.out"),
    ) else {
        return;
    };
    let gguf = Gguf::open(&vocabulary).unwrap();
    let tokenizer = Tokenizer::from_gguf(gguf.metadata()).unwrap();
    let (texts, tokens) = (std::fs::read_to_string(texts).unwrap(), std::fs::read_to_string(tokens).unwrap());
    let texts = texts.split("\n__ggml_vocab_test__\n");
    for (text, tokens) in texts.zip(tokens.lines()) {
        let expected: Vec<u32> = tokens.split_whitespace().map(|id| id.parse().unwrap()).collect();
        assert_eq!(tokenizer.encode(text, Special::Parse), expected, "{text:?}");
    }
}

#[test]
fn a_phi3_file_made_elsewhere_strips_by_its_vocabulary_not_by_its_name() {
    let mut tokens: Vec<String> = (0..32_064).map(|id| format!("[PAD{id}]")).collect();
    let mut kinds = vec![5; tokens.len()];
    for (id, (text, kind)) in [("<unk>", 2), ("<s>", 3), ("</s>", 4)].into_iter().enumerate() {
        (tokens[id], kinds[id]) = (text.into(), kind);
    }
    for (id, text) in
        [(32_000, "<|endoftext|>"), (32_001, "<|assistant|>"), (32_007, "<|end|>"), (32_010, "<|user|>")]
    {
        (tokens[id], kinds[id]) = (text.into(), 3);
    }
    for byte in 0..256 {
        (tokens[3 + byte], kinds[3 + byte]) = (format!("<0x{byte:02X}>"), 6);
    }
    (tokens[29_871], kinds[29_871]) = ("▁".into(), 1);
    let mut metadata = Metadata::new();
    metadata.set("tokenizer.ggml.model", Value::String("llama".into()));
    metadata.set("tokenizer.ggml.scores", Value::Array(Array::F32(vec![0.0; tokens.len()])));
    metadata.set("tokenizer.ggml.tokens", Value::Array(Array::String(tokens)));
    metadata.set("tokenizer.ggml.token_type", Value::Array(Array::I32(kinds)));
    let ids = |metadata: &Metadata| {
        Tokenizer::from_gguf(metadata).unwrap().encode("<|user|>\n \n<|endoftext|>\n</s> <s>", Special::Parse)
    };
    let not_stripped = [32_010, 29_871, 13, 29_871, 13, 32_000, 29_871, 13, 2, 29_871, 29_871, 1];
    metadata.set("general.name", Value::String("phi-3".into()));
    assert_eq!(ids(&metadata), not_stripped);
    metadata.set("general.name", Value::String("Anything".into()));
    metadata.set("general.architecture", Value::String("phi3".into()));
    assert_eq!(ids(&metadata), [32_010, 32_000, 29_871, 13, 2, 1]);
    assert_eq!(Tokenizer::from_gguf(&metadata).unwrap().eog_tokens(), [2, 32_000, 32_001, 32_007]);
}
