//! Tiny checkpoints of every model of the family, made from tests/golden/family.json.

#![allow(dead_code, reason = "each test file uses a part")]

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use phi::checkpoint::Checkpoint;
use phi::convert::{self, Conversion, OutType};
use phi::gguf::{Gguf, Output};
use phi::quant::recipe::{FileType, Recipe};
use phi::quantize::{self, Sink};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

pub fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// scripts/family_goldens.py: configuration, tensor shapes, token ids and logits by model.
pub fn goldens() -> Value {
    serde_json::from_str(&fs::read_to_string(root("tests/golden/family.json")).unwrap()).unwrap()
}

/// The weights' numbers, as `numbers` in scripts/family_goldens.py makes them.
fn numbers(name: &str, count: usize) -> impl Iterator<Item = f32> {
    let seed = name
        .bytes()
        .fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3));
    (1..=count as u64).map(move |at| {
        let mut z = seed.wrapping_add(at.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        ((z >> 56) as f32 - 127.5).round_ties_even() / 128.0
    })
}

fn weight(name: &str, shape: &[usize]) -> Vec<f32> {
    let values = numbers(name, shape.iter().product());
    if name.ends_with("norm.weight") {
        return values.map(|value| 1.0 + value / 4.0).collect();
    }
    if name.ends_with("bias") {
        return values.map(|value| value / 8.0).collect();
    }
    if name.contains("embed_tokens") {
        return values.collect();
    }
    let columns = shape[shape.len() - 1] as f64;
    let scale = 2.0_f64.powf((1.7 / columns.sqrt()).log2().round()) as f32;
    values.map(|value| value * scale).collect()
}

/// A checkpoint folder of `model` with F32 weights; removed when dropped.
pub struct FamilyCheckpoint(tempfile::TempDir);

impl FamilyCheckpoint {
    pub fn new(model: &str) -> Self {
        let golden = &goldens()[model];
        let this = Self(tempfile::tempdir().unwrap());
        fs::write(this.path().join("config.json"), golden["config"].to_string()).unwrap();
        let tensors: Vec<(&String, Vec<usize>, Vec<u8>)> = golden["tensors"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, shape)| {
                let shape: Vec<usize> =
                    shape.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
                let bytes = weight(name, &shape).iter().flat_map(|x| x.to_le_bytes()).collect();
                (name, shape, bytes)
            })
            .collect();
        let views = tensors
            .iter()
            .map(|(name, shape, bytes)| (*name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
        safetensors::serialize_to_file(views, None, &this.path().join("model.safetensors")).unwrap();
        this.write_tokenizer(model);
        this
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    fn write_tokenizer(&self, model: &str) {
        let copy = |from: &str, name: &str| {
            fs::copy(root(from), self.path().join(name)).unwrap();
        };
        match model {
            "phi-1_5" | "phi-2" => copy("tests/data/tokenizer-phi-2.json", "tokenizer.json"),
            "phi-4" | "phi-4-mini" => copy(&format!("tests/data/tokenizer-{model}.json"), "tokenizer.json"),
            "phi-3-small-8k" | "phi-3-small-128k" => {
                fs::write(self.path().join("cl100k_base.tiktoken"), tiktoken(&ranks())).unwrap();
            }
            _ => {
                for name in
                    ["tokenizer.json", "tokenizer.model", "added_tokens.json", "tokenizer_config.json"]
                {
                    copy(&format!("models/phi-tiny/{name}"), name);
                }
            }
        }
        if self.path().join("tokenizer.json").exists() && !self.path().join("tokenizer_config.json").exists()
        {
            let end = json!({"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"});
            fs::write(self.path().join("tokenizer_config.json"), end.to_string()).unwrap();
        }
    }

    /// The checkpoint as a GGUF of the file type `kind`, made in memory.
    pub fn gguf(&self, kind: &str) -> Arc<Gguf> {
        let checkpoint = Checkpoint::open(self.path()).unwrap();
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
}

/// The small byte-level vocabulary as tiktoken has it: the bytes of each token, by rank.
pub fn ranks() -> Vec<Vec<u8>> {
    let file = fs::read_to_string(root("tests/data/tokenizer-phi-4.json")).unwrap();
    let file: Value = serde_json::from_str(&file).unwrap();
    let vocab = file["model"]["vocab"].as_object().unwrap();
    // GPT-2's table: printable bytes are themselves, the others follow from U+0100 on.
    let printable = |byte: u32| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let others: Vec<u32> = (0..256).filter(|byte| !printable(*byte)).collect();
    let byte = |c: char| {
        let c = c as u32;
        if c < 256 { c as u8 } else { others[c as usize - 256] as u8 }
    };
    let mut ranks = vec![Vec::new(); vocab.len()];
    for (token, id) in vocab {
        ranks[id.as_u64().unwrap() as usize] = token.chars().map(byte).collect();
    }
    ranks
}

/// A tiktoken file.
pub fn tiktoken(ranks: &[Vec<u8>]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let line = |(rank, token): (usize, &Vec<u8>)| {
        let mut text = String::new();
        for chunk in token.chunks(3) {
            let word = chunk.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte))
                << (8 * (3 - chunk.len()));
            for digit in 0..4 {
                let index = (word >> (18 - 6 * digit) & 63) as usize;
                text.push(if digit <= chunk.len() { char::from(DIGITS[index]) } else { '=' });
            }
        }
        format!("{text} {rank}\n")
    };
    ranks.iter().enumerate().map(line).collect()
}
