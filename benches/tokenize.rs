//! How fast a tokenizer is made, encodes and decodes; each result is checked before it is measured.
//!
//! `PHI_BENCH_MODEL=FILE.gguf` measures with another vocabulary than that of the model in the box.

use std::hint::black_box;
use std::path::Path;

use criterion::{Criterion, Throughput};
use phi::gguf::{Array, Gguf, Metadata, Value};
use phi::text::{Sampler, SamplerOptions, Special, Tokenizer};

/// The metadata of `PHI_BENCH_MODEL`, or of the model in the box with its tokenizer.json embedded.
fn metadata() -> Metadata {
    if let Some(path) = std::env::var_os("PHI_BENCH_MODEL") {
        return Gguf::open(Path::new(&path)).expect("a GGUF file").metadata().clone();
    }
    let json = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/phi-tiny/tokenizer.json");
    let json = std::fs::read_to_string(json).expect("the model in the box has a tokenizer.json");
    let file: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let mut tokens = vec![String::new(); 4096];
    for (token, id) in file["model"]["vocab"].as_object().expect("a vocabulary") {
        tokens[id.as_u64().expect("an id") as usize] = token.clone();
    }
    let mut metadata = Metadata::new();
    metadata.set("tokenizer.ggml.model", Value::String("llama".into()));
    metadata.set("tokenizer.ggml.tokens", Value::Array(Array::String(tokens)));
    metadata.set("tokenizer.huggingface.json", Value::String(json));
    metadata
}

fn prose() -> String {
    let source = include_str!("../src/text/tokenizer.rs");
    let text = "Phi-3.5-mini is a small language model; it answers questions about GGUF, quantization and .NET. 日本語も。 ";
    (text.repeat(20) + source).repeat(40)
}

fn tokenize(criterion: &mut Criterion) {
    let metadata = metadata();
    let tokenizer = Tokenizer::from_gguf(&metadata).expect("a tokenizer");
    criterion.bench_function("tokenizer/load", |bencher| {
        bencher.iter(|| Tokenizer::from_gguf(black_box(&metadata)).is_ok())
    });
    let letters: String = (0..1 << 20)
        .map(|n: u32| char::from(b'a' + (n.wrapping_mul(2_654_435_761) >> 27) as u8 % 26))
        .collect();
    for (name, text) in [("text", prose()), ("one-word", letters)] {
        let ids = tokenizer.encode(&text, Special::Parse);
        assert_eq!(tokenizer.decode(&ids, true), text, "what is measured must be right");
        let mut group = criterion.benchmark_group("tokenizer");
        group.sample_size(10).throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(format!("encode/{name}"), |bencher| {
            bencher.iter(|| tokenizer.encode(black_box(&text), Special::Parse))
        });
        group.bench_function(format!("decode/{name}"), |bencher| {
            bencher.iter(|| tokenizer.decode(black_box(&ids), true))
        });
        group.finish();
    }
}

fn sample(criterion: &mut Criterion) {
    for vocabulary in [32_064, 200_064] {
        let logits: Vec<f32> =
            (0..vocabulary as u32).map(|id| (id.wrapping_mul(2_654_435_761) >> 8) as f32 * 1e-6).collect();
        let best = (0..vocabulary).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).expect("logits");
        let mut greedy = Sampler::new(SamplerOptions::greedy(), vocabulary).expect("options");
        assert_eq!(greedy.sample(&mut logits.clone()).expect("a token"), best as u32);
        let cases = [
            ("greedy", SamplerOptions::greedy()),
            ("default", SamplerOptions::default()),
            ("top-p only", SamplerOptions { top_k: 0, ..SamplerOptions::default() }),
        ];
        for (name, options) in cases {
            let mut sampler =
                Sampler::new(SamplerOptions { seed: Some(1), ..options }, vocabulary).expect("options");
            let mut logits = logits.clone();
            criterion.bench_function(&format!("sample/{name}/{vocabulary}"), |bencher| {
                bencher.iter(|| sampler.sample(black_box(&mut logits)))
            });
        }
    }
}

criterion::criterion_group!(benches, tokenize, sample);
criterion::criterion_main!(benches);
