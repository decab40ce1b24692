//! The engine on models/phi-tiny: logits as transformers gives them, the trained answers word for word,
//! and the same results whatever the threads, the batches and the order of things.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use phi::checkpoint::Checkpoint;
use phi::convert::{self, Conversion, OutType};
use phi::engine::{Engine, EngineOptions, KvType, Sequence, Useless};
use phi::gguf::{Gguf, Output};
use phi::quant::recipe::{FileType, Recipe};
use phi::quantize::{self, Sink};
use phi::text::{ChatTemplate, Detokenizer, Message, Special, Tokenizer};
use serde_json::Value;

/// models/phi-tiny as `kind`, made in memory.
fn model(kind: &str) -> Arc<Gguf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/phi-tiny");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let options = convert::Options { outtype: OutType::Stored, ..convert::Options::default() };
    let conversion = Conversion::plan(&checkpoint, &options).unwrap();
    let options = quantize::Options::new(Some(Recipe::new(FileType::from_name(kind).unwrap())));
    let summary =
        quantize::run(&conversion, Sink::Memory(kind), &options, &mut |_| ControlFlow::Continue(()));
    match summary.unwrap().outputs.pop() {
        Some(Output::Memory(image)) => Arc::new(Gguf::from_bytes(image, kind).unwrap()),
        _ => unreachable!("one output was asked for, in memory"),
    }
}

fn f32_model() -> Arc<Gguf> {
    static MODEL: OnceLock<Arc<Gguf>> = OnceLock::new();
    Arc::clone(MODEL.get_or_init(|| model("F32")))
}

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

fn golden(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Expected values: scripts/logits_goldens.py (transformers, float32, eager attention).
#[test]
fn logits_are_those_of_transformers_on_both_sides_of_the_longrope_limit() {
    let engine = engine(&f32_model(), 2, 64);
    for case in golden("phi-tiny-logits.json").as_array().unwrap() {
        let (name, ids) = (case["name"].as_str().unwrap(), numbers(&case["ids"]));
        let mut sequence = engine.sequence(engine.model_context()).unwrap();
        let logits = feed(&engine, &mut sequence, &ids, 4);
        for (i, row) in logits.chunks_exact(engine.vocab_size()).enumerate() {
            let l2 = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
            let want = case["l2"][i].as_f64().unwrap();
            assert!((l2 / want - 1.0).abs() < 1e-4, "{name}, position {i}: l2 {l2} where {want} is right");
            for top in case["top10"][i].as_array().unwrap() {
                let (id, want) = (top[0].as_u64().unwrap() as usize, top[1].as_f64().unwrap());
                let got = f64::from(row[id]);
                // A logit's share of the error of the whole row.
                assert!(
                    (got - want).abs() < 1e-4 * l2 / 10.0,
                    "{name}, position {i}, token {id}: {got}, not {want}"
                );
            }
        }
    }
}

#[test]
fn the_trained_answers_come_word_for_word() {
    let answers = golden("phi-tiny-answers.json");
    for kind in ["F16", "Q8_0", "Q4_K_M"] {
        let gguf = model(kind);
        let tokenizer = Tokenizer::from_gguf(gguf.metadata()).unwrap();
        let template = ChatTemplate::from_gguf(gguf.metadata()).unwrap().expect("phi-tiny has a template");
        let engine = Engine::new(Arc::clone(&gguf), EngineOptions::default()).unwrap();
        for case in answers.as_array().unwrap() {
            let (question, answer) = (case["question"].as_str().unwrap(), case["answer"].as_str().unwrap());
            let segments = template.render(&[Message::new("user", question)], true).unwrap();
            let prompt = tokenizer.encode_segments(&segments);
            assert_eq!(greedy(&engine, &tokenizer, &prompt), answer, "{kind}: {question}");
        }
    }
}

fn greedy(engine: &Engine, tokenizer: &Tokenizer, prompt: &[u32]) -> String {
    let mut sequence = engine.sequence(engine.model_context()).unwrap();
    let mut logits = feed(engine, &mut sequence, prompt, 1);
    let mut detokenizer = Detokenizer::new(tokenizer, false);
    let mut text = String::new();
    loop {
        let best = argmax(&logits);
        if tokenizer.is_eog(best) || sequence.tokens().len() > 400 {
            text.push_str(&detokenizer.finish());
            return text.trim().to_owned();
        }
        text.push_str(&detokenizer.push(best));
        logits = feed(engine, &mut sequence, &[best], 1);
    }
}

fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
    best.unwrap().0 as u32
}

/// Ids that cross the LongRoPE limit of phi-tiny, 256.
fn long_prompt(gguf: &Gguf) -> Vec<u32> {
    let text =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/text.txt")).unwrap();
    let mut ids = Tokenizer::from_gguf(gguf.metadata()).unwrap().encode(&text, Special::Text);
    ids.truncate(300);
    ids
}

#[test]
fn logits_do_not_depend_on_threads_batches_or_how_the_prompt_was_cut() {
    for kind in ["F16", "Q4_K_M", "Q5_0", "Q2_K"] {
        let gguf = model(kind);
        let ids = long_prompt(&gguf);
        let reference = engine(&gguf, 1, 512);
        let mut sequence = reference.sequence(1024).unwrap();
        let want = feed(&reference, &mut sequence, &ids[..250], 3);
        for (threads, batch) in [(2, 512), (3, 7), (1, 1)] {
            let other = engine(&gguf, threads, batch);
            let mut sequence = other.sequence(1024).unwrap();
            let got = feed(&other, &mut sequence, &ids[..250], 3);
            assert!(got == want, "{kind} with {threads} threads in batches of {batch}");
        }
        // Prompts on more threads than the rest.
        let options = EngineOptions { threads: Some(1), threads_batch: Some(3), ..EngineOptions::default() };
        let other = Engine::new(
            Arc::clone(&gguf),
            EngineOptions { cache_type_k: KvType::F32, cache_type_v: KvType::F32, ..options },
        )
        .unwrap();
        let mut sequence = other.sequence(1024).unwrap();
        assert!(
            feed(&other, &mut sequence, &ids[..250], 3) == want,
            "{kind} with more threads for the prompt"
        );
        // In two pieces, the second token by token.
        let mut sequence = reference.sequence(1024).unwrap();
        feed(&reference, &mut sequence, &ids[..240], 1);
        let mut last = Vec::new();
        for id in &ids[240..250] {
            last = feed(&reference, &mut sequence, &[*id], 1);
        }
        assert!(last == want[2 * reference.vocab_size()..], "{kind} token by token");
    }
}

#[test]
fn a_sequence_that_crosses_the_longrope_limit_is_as_one_that_never_was_short() {
    let gguf = f32_model();
    let ids = long_prompt(&gguf);
    let engine = engine(&gguf, 2, 64);
    let mut whole = engine.sequence(1024).unwrap();
    let want = feed(&engine, &mut whole, &ids, 1);
    let mut grown = engine.sequence(1024).unwrap();
    feed(&engine, &mut grown, &ids[..250], 1);
    let mut last = Vec::new();
    for id in &ids[250..] {
        last = feed(&engine, &mut grown, &[*id], 1);
    }
    assert!(last == want, "grown over the limit");
    // And back: what is short again is computed with the short factors.
    let mut short = engine.sequence(1024).unwrap();
    let want = feed(&engine, &mut short, &ids[..200], 1);
    grown.truncate(199);
    assert!(feed(&engine, &mut grown, &ids[199..200], 1) == want, "cut back below the limit");
}

#[test]
fn sequences_in_one_batch_are_as_each_alone() {
    for (kind, batch) in [("F16", 512), ("Q4_K_M", 512), ("Q4_K_M", 3)] {
        let gguf = model(kind);
        let ids = long_prompt(&gguf);
        let engine = engine(&gguf, 2, batch);
        // Prompts of all sorts; the last sequence crosses the LongRoPE limit at its second step.
        let starts = [&ids[..40], &ids[7..8], &ids[..255]];
        let next =
            [[&ids[40..41], &ids[90..95]], [&ids[8..10], &ids[1..2]], [&ids[255..256], &ids[256..260]]];
        let alone: Vec<Vec<Vec<f32>>> = starts
            .iter()
            .zip(&next)
            .map(|(start, next)| {
                let mut sequence = engine.sequence(1024).unwrap();
                [&start[..]].iter().chain(next).map(|ids| feed(&engine, &mut sequence, ids, 1)).collect()
            })
            .collect();
        let mut sequences: Vec<Sequence> = (0..3).map(|_| engine.sequence(1024).unwrap()).collect();
        for step in 0..3 {
            let tokens = (0..3).map(|i| if step == 0 { starts[i] } else { next[i][step - 1] });
            let mut batch: Vec<_> = sequences.iter_mut().zip(tokens).collect();
            let logits = engine.step(&mut batch).unwrap();
            for (i, row) in logits.chunks_exact(engine.vocab_size()).enumerate() {
                assert!(
                    row == alone[i][step],
                    "{kind}, sequence {i}, step {step}, batches of {batch:?}",
                    batch = batch.len()
                );
            }
        }
        assert_eq!(sequences[2].tokens(), &ids[..260]);
        // A batch that cannot be met leaves everything as it was.
        let [first, second, ..] = &mut sequences[..] else { unreachable!() };
        assert!(engine.step(&mut [(first, &ids[..1]), (second, &[u32::MAX])]).is_err());
        assert_eq!(sequences[0].tokens().len(), 46);
        assert!(engine.step(&mut []).unwrap().is_empty());
    }
}

#[test]
fn a_prompt_cache_gives_the_same_logits() {
    let gguf = model("Q4_K_M");
    let ids = long_prompt(&gguf);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache");
    for (cache_type_k, cache_type_v) in
        KvType::ALL.into_iter().zip([KvType::F32, KvType::Q8_0, KvType::Bf16, KvType::Q8_0, KvType::F16])
    {
        let options = EngineOptions {
            threads: Some(2),
            cache_type_k,
            cache_type_v,
            batch: 64,
            ..EngineOptions::default()
        };
        let engine = Engine::new(Arc::clone(&gguf), options).unwrap();
        // On both sides of the LongRoPE limit, over the border of a page, and one token only.
        for (kept, whole) in [(240, 250), (257, 300), (256, 256), (1, 9)] {
            let mut sequence = engine.sequence(1024).unwrap();
            let want = feed(&engine, &mut sequence, &ids[..whole], 1);
            engine.save(&path, &mut sequence, kept).unwrap();
            let mut restored = engine.sequence(1024).unwrap();
            assert_eq!(engine.restore(&path, &mut restored, &ids[..whole]).unwrap(), Ok(kept));
            restored.truncate(kept.min(whole - 1));
            let rest = &ids[restored.tokens().len()..whole];
            assert!(feed(&engine, &mut restored, rest, 1) == want, "{cache_type_k:?}, {kept} of {whole}");
            // A prompt that begins alike takes what is alike.
            let mut other = ids[..whole].to_vec();
            other[kept - 1] += 1;
            let mut restored = engine.sequence(1024).unwrap();
            let found = engine.restore(&path, &mut restored, &other).unwrap();
            assert_eq!(found, if kept > 1 { Ok(kept - 1) } else { Err(Useless::OtherText) });
        }
    }
}

#[test]
fn a_prompt_cache_of_no_use_is_told_and_never_believed() {
    let gguf = model("Q4_K_M");
    let ids = long_prompt(&gguf);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache");
    let engine = engine(&gguf, 1, 64);
    let mut sequence = engine.sequence(1024).unwrap();
    feed(&engine, &mut sequence, &ids[..40], 1);
    let mut fresh = engine.sequence(1024).unwrap();
    assert_eq!(engine.restore(&path, &mut fresh, &ids).unwrap(), Err(Useless::Missing));
    engine.save(&path, &mut sequence, 40).unwrap();
    assert!(engine.save(&path, &mut sequence, 41).is_err());
    let good = std::fs::read(&path).unwrap();

    let restore = |engine: &Engine, bytes: &[u8], prompt: &[u32]| {
        std::fs::write(&path, bytes).unwrap();
        let mut sequence = engine.sequence(1024).unwrap();
        let found = engine.restore(&path, &mut sequence, prompt);
        assert!(matches!(found, Ok(Ok(_))) || sequence.tokens().is_empty());
        found
    };
    assert_eq!(restore(&engine, &good, &ids[..50]).unwrap(), Ok(40));
    assert_eq!(
        restore(&engine, &good, &ids).unwrap(),
        Err(Useless::OtherRegime),
        "300 tokens are beyond the limit"
    );
    let other = Engine::new(
        model("Q8_0"),
        EngineOptions { cache_type_k: KvType::F32, cache_type_v: KvType::F32, ..EngineOptions::default() },
    );
    assert_eq!(restore(&other.unwrap(), &good, &ids[..50]).unwrap(), Err(Useless::Model));
    let other = Engine::new(Arc::clone(&gguf), EngineOptions::default()).unwrap();
    assert_eq!(restore(&other, &good, &ids[..50]).unwrap(), Err(Useless::KvType));
    assert!(restore(&engine, b"GGUF and so on", &ids).is_err(), "somebody's model is not to be overwritten");
    assert_eq!(restore(&engine, b"", &ids).unwrap(), Err(Useless::Missing));
    // Cut anywhere, or with a bit flipped anywhere: never believed.
    for end in (8..good.len()).step_by(997) {
        assert!(restore(&engine, &good[..end], &ids[..50]).unwrap().is_err(), "cut at {end}");
    }
    let mut places: Vec<usize> = (8..260).collect();
    places.extend((260..good.len()).step_by(2003));
    for at in places {
        let mut bad = good.clone();
        bad[at] ^= 0x40;
        assert!(restore(&engine, &bad, &ids[..50]).unwrap().is_err(), "changed at {at}");
    }
}

#[test]
fn requests_that_cannot_be_met_are_errors() {
    let engine = engine(&f32_model(), 1, 64);
    let mut sequence = engine.sequence(8).unwrap();
    let mut ask = |ids: &[u32]| engine.feed(&mut sequence, ids, 1, &mut |_| ControlFlow::Continue(()));
    assert!(ask(&[]).unwrap_err().to_string().contains("no tokens"));
    assert!(ask(&[u32::MAX]).unwrap_err().to_string().contains("not one of the model's"));
    assert!(ask(&[1; 9]).unwrap_err().to_string().contains("do not fit the context of 8"));
    assert!(ask(&[1; 8]).is_ok());
    assert!(engine.sequence(0).is_err() && engine.sequence(engine.model_context() + 1).is_err());
    assert!(engine.check_context(usize::MAX).is_err());
}

#[test]
fn an_interrupted_prompt_leaves_what_was_read() {
    let engine = engine(&f32_model(), 1, 4);
    let mut sequence = engine.sequence(64).unwrap();
    let ids: Vec<u32> = (5..25).collect();
    let mut stop = |done: usize| if done >= 8 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    assert!(engine.feed(&mut sequence, &ids, 1, &mut stop).is_err());
    assert_eq!(sequence.tokens(), &ids[..8]);
    let rest = feed(&engine, &mut sequence, &ids[8..], 1);
    let mut whole = engine.sequence(64).unwrap();
    assert!(rest == feed(&engine, &mut whole, &ids, 1));
}
