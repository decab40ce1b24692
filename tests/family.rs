//! Every model of the family: converted, its f32 logits beside the reference's, the same results whatever the threads and
//! batches, and quantized.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use phi::engine::{Engine, EngineOptions, KvType, Sequence};
use phi::gguf::Gguf;
use phi::model::Model;
use phi::text::{Special, Tokenizer};
use serde_json::Value;

#[path = "common/family.rs"]
mod family;
#[path = "common/tokens.rs"]
mod tokens;

use family::{FamilyCheckpoint, goldens, ranks};

fn engine(gguf: &Arc<Gguf>, threads: usize, batch: usize) -> Engine {
    let options = EngineOptions {
        threads: Some(threads),
        cache_type_k: KvType::F32,
        cache_type_v: KvType::F32,
        batch,
        ..EngineOptions::default()
    };
    Engine::new(Arc::clone(gguf), options).unwrap()
}

fn feed(engine: &Engine, sequence: &mut Sequence, ids: &[u32], last: usize) -> Vec<f32> {
    engine.feed(sequence, ids, last, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn ids(golden: &Value) -> Vec<u32> {
    golden["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Expected values: scripts/family_goldens.py (transformers in float32; tests/phi3_small_reference.py in float64).
#[test]
fn logits_are_those_of_the_reference() {
    for (model, golden) in goldens().as_object().unwrap() {
        let engine = engine(&FamilyCheckpoint::new(model).gguf("F32"), 2, 64);
        let ids = ids(golden);
        for (length, want) in golden["logits"].as_object().unwrap() {
            let length: usize = length.parse().unwrap();
            let mut sequence = engine.sequence(engine.model_context()).unwrap();
            let logits = feed(&engine, &mut sequence, &ids[..length], 1);
            let (mut error, mut size) = (0.0, 0.0);
            for (want, &got) in want.as_array().unwrap().iter().zip(logits.iter().step_by(8)) {
                // Tokens that the model never says have no logit in the reference.
                if got != f32::MIN {
                    let want = want.as_f64().unwrap();
                    error += (want - f64::from(got)).powi(2);
                    size += want * want;
                }
            }
            let relative = (error / size).sqrt();
            println!("{model}, {length} tokens: {relative:.2e}");
            assert!(relative < 1e-4, "{model}, {length} tokens: {relative:.2e}");
        }
    }
}

#[test]
fn logits_do_not_depend_on_threads_batches_or_how_the_prompt_was_cut() {
    for model in ["phi-2", "phi-3.5-moe", "phi-3-small-8k"] {
        for kind in ["F16", "Q8_0"] {
            let gguf = FamilyCheckpoint::new(model).gguf(kind);
            let ids = ids(&goldens()[model]);
            let ids = &ids[..ids.len().min(300)];
            let (head, tail) = ids.split_at(ids.len() - 5);
            let reference = engine(&gguf, 1, 512);
            let mut sequence = reference.sequence(512.min(reference.model_context())).unwrap();
            let want = feed(&reference, &mut sequence, ids, 3);
            for (threads, batch) in [(2, 512), (3, 7), (2, 1)] {
                let other = engine(&gguf, threads, batch);
                let mut sequence = other.sequence(other.model_context()).unwrap();
                let got = feed(&other, &mut sequence, ids, 3);
                assert!(got == want, "{model} {kind} with {threads} threads in batches of {batch}");
            }
            let mut sequence = reference.sequence(reference.model_context()).unwrap();
            feed(&reference, &mut sequence, head, 1);
            let mut last = Vec::new();
            for id in tail {
                last = feed(&reference, &mut sequence, &[*id], 1);
            }
            assert!(last == want[2 * reference.vocab_size()..], "{model} {kind} token by token");
        }
    }
}

/// Token by token over the limit, each step's logits are those of the whole sequence so far, which the goldens vouch for.
#[test]
fn sequences_that_grow_over_the_longrope_limit_are_as_computed_at_once() {
    for (model, golden) in goldens().as_object().unwrap() {
        let limit = &golden["config"]["original_max_position_embeddings"];
        let Some(limit) = limit.as_u64().filter(|_| golden["config"]["rope_scaling"].is_object()) else {
            continue;
        };
        let limit = limit as usize;
        assert!(
            golden["logits"].get((limit + 1).to_string()).is_some(),
            "{model} has no golden beyond its limit"
        );
        let ids = ids(golden);
        let engine = engine(&FamilyCheckpoint::new(model).gguf("F32"), 2, 64);
        let whole = |length: usize| {
            let mut sequence = engine.sequence(engine.model_context()).unwrap();
            feed(&engine, &mut sequence, &ids[..length], 1)
        };
        let mut grown = engine.sequence(engine.model_context()).unwrap();
        feed(&engine, &mut grown, &ids[..limit - 2], 1);
        for length in limit - 1..=limit + 3 {
            assert!(
                feed(&engine, &mut grown, &ids[length - 1..length], 1) == whole(length),
                "{model}, {length} tokens"
            );
        }
    }
}

#[test]
fn every_tensor_has_its_place_and_what_is_missing_is_told() {
    for model in goldens().as_object().unwrap().keys() {
        let gguf = FamilyCheckpoint::new(model).gguf("Q8_0");
        let survey = Model::survey(&gguf);
        assert!(survey.faults.is_empty(), "{model}: {:?}", survey.faults);
        assert_eq!(survey.bound.len(), gguf.tensors().len(), "{model}");
    }
    let checkpoint = FamilyCheckpoint::new("phi-3.5-moe");
    let path = checkpoint.path().join("config.json");
    let config =
        std::fs::read_to_string(&path).unwrap().replace("\"num_local_experts\":8", "\"num_local_experts\":9");
    std::fs::write(&path, config).unwrap();
    let options = phi::convert::Options::default();
    let checkpoint = phi::checkpoint::Checkpoint::open(checkpoint.path()).unwrap();
    let fault = phi::convert::Conversion::plan(&checkpoint, &options).err().unwrap().to_string();
    assert!(fault.contains("block_sparse_moe.gate.weight") && fault.contains("num_local_experts"), "{fault}");
}

#[test]
fn quantized_models_stay_close() {
    for model in goldens().as_object().unwrap().keys() {
        let checkpoint = FamilyCheckpoint::new(model);
        let ids = ids(&goldens()[model]);
        let logits = |kind: &str| {
            let engine = engine(&checkpoint.gguf(kind), 2, 64);
            let mut sequence = engine.sequence(engine.model_context()).unwrap();
            feed(&engine, &mut sequence, &ids[..40], 1)
        };
        let exact = logits("F32");
        let used = || exact.iter().enumerate().filter(|(_, x)| **x != f32::MIN).map(|(at, _)| at);
        // Random weights have no redundancy: an expert chosen differently is another model.
        for (kind, limit) in [("F16", 0.02), ("Q8_0", 0.15)] {
            let got = logits(kind);
            let error: f32 = used().map(|at| (got[at] - exact[at]).powi(2)).sum();
            let size: f32 = used().map(|at| exact[at].powi(2)).sum();
            let relative = (error / size).sqrt();
            println!("{model} {kind}: {relative:.2e}");
            assert!(relative < limit, "{model} {kind}: {relative:.2e}");
        }
        assert!(logits("Q4_K_M").iter().all(|x| x.is_finite()), "{model}");
    }
}

/// tiktoken's own definition: merge the neighbours that together have the best rank, leftmost first.
fn tiktoken_encode(ranks: &HashMap<Vec<u8>, u32>, word: &[u8], out: &mut Vec<u32>) {
    let mut parts: Vec<Vec<u8>> = word.iter().map(|byte| vec![*byte]).collect();
    loop {
        let joined = parts.windows(2).enumerate();
        let ranked = joined.filter_map(|(at, pair)| Some((*ranks.get(&pair.concat())?, at)));
        let Some((_, at)) = ranked.min() else { break };
        let right = parts.remove(at + 1);
        parts[at].extend(right);
    }
    out.extend(parts.iter().map(|part| ranks[part]));
}

#[test]
fn phi_3_small_is_tokenized_as_tiktoken_does() {
    let gguf = FamilyCheckpoint::new("phi-3-small-8k").gguf("F16");
    let tokenizer = Tokenizer::from_gguf(gguf.metadata()).unwrap();
    let ranks: HashMap<Vec<u8>, u32> =
        ranks().into_iter().enumerate().map(|(rank, token)| (token, rank as u32)).collect();
    let pattern = fancy_regex::Regex::new(
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    )
    .unwrap();
    let json = std::fs::read_to_string(family::root("tests/data/tokenizer-phi-4.json")).unwrap();
    let mut count = 0;
    for line in tokens::lines(&json, 5000) {
        let mut want = Vec::new();
        for word in pattern.find_iter(&line) {
            tiktoken_encode(&ranks, word.unwrap().as_str().as_bytes(), &mut want);
        }
        assert_eq!(tokenizer.encode(&line, Special::Text), want, "{line:?}");
        count += want.len();
    }
    assert!(count > 50_000);
    let end = tokenizer.added_token("<|end|>").unwrap();
    assert_eq!(tokenizer.encode("<|user|>\nHi<|end|>", Special::Parse).last(), Some(&end));
    assert!(tokenizer.is_eog(end) && tokenizer.is_control(end));
}

#[test]
fn an_unknown_architecture_is_named_with_those_that_are_supported() {
    let checkpoint = FamilyCheckpoint::new("phi-2");
    let path = checkpoint.path().join("config.json");
    let config = std::fs::read_to_string(&path).unwrap().replace("PhiForCausalLM", "LlamaForCausalLM");
    std::fs::write(&path, config).unwrap();
    let error = phi::checkpoint::Checkpoint::open(checkpoint.path()).unwrap_err().to_string();
    for word in ["LlamaForCausalLM", "PhiForCausalLM", "Phi3SmallForCausalLM", "PhiMoEForCausalLM"] {
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn an_unknown_tokenizer_is_named_with_those_that_are_supported() {
    let plan = |model: &str, change: &dyn Fn(&mut Value)| {
        let checkpoint = FamilyCheckpoint::new(model);
        let path = checkpoint.path().join("tokenizer.json");
        let mut json: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        change(&mut json);
        std::fs::write(&path, json.to_string()).unwrap();
        let checkpoint = phi::checkpoint::Checkpoint::open(checkpoint.path()).unwrap();
        phi::convert::Conversion::plan(&checkpoint, &phi::convert::Options::default())
    };
    /// A model, what is changed in its tokenizer.json, and what the error says.
    type Case = (&'static str, fn(&mut Value), [&'static str; 2]);
    let refused: [Case; 4] = [
        ("phi-2", |json| json["model"]["type"] = "Unigram".into(), ["\"Unigram\"", "BPE"]),
        (
            "phi-2",
            |json| {
                json["model"]["type"] = "WordPiece".into();
                json["decoder"] = Value::Null;
            },
            ["WordPiece", "SentencePiece's tokenizer.model"],
        ),
        (
            "phi-2",
            |json| json["pre_tokenizer"] = serde_json::json!({ "type": "Whitespace" }),
            ["Whitespace", "Split with a regular expression, and ByteLevel"],
        ),
        (
            "phi-4",
            |json| json["normalizer"] = serde_json::json!({ "type": "NFKC" }),
            ["NFKC", "supported is no normalizer"],
        ),
    ];
    for (model, change, words) in refused {
        let error = plan(model, &change).err().unwrap().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
    // A pattern that has no name is no unknown tokenizer: the file carries it.
    let unnamed = plan("phi-4", &|json| {
        json["pre_tokenizer"]["pretokenizers"][0]["pattern"] = serde_json::json!({ "Regex": r"\w+|\W+" });
        json["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Isolated".into();
    })
    .unwrap();
    assert!(unnamed.warnings().is_empty());
    let tokenizer = Tokenizer::from_gguf(phi::gguf::Source::metadata(&unnamed)).unwrap();
    assert_eq!(tokenizer.decode(&tokenizer.encode("a1, b", Special::Text), false), "a1, b");
}
