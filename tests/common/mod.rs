//! A checkpoint folder small enough to be made by every test that wants one.

#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

pub const HIDDEN: usize = 32;
pub const FFN: usize = 64;
pub const LAYERS: usize = 2;
pub const VOCAB: usize = 300;
const HEAD_ROWS: usize = 32 + 2 * 16;

/// A checkpoint in a temporary folder named "Phi-9-mini-instruct", removed when dropped.
pub struct TestCheckpoint {
    folder: tempfile::TempDir,
}

impl TestCheckpoint {
    /// A valid one: two layers, BF16, in two shards.
    pub fn new() -> Self {
        let this = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(this.path()).unwrap();
        this.write_json("config.json", &config());
        this.write_json("generation_config.json", &json!({"eos_token_id": [2, 290]}));
        this.write_tokenizer();
        let tensors = tensors();
        let (first, second): (Vec<_>, Vec<_>) =
            tensors.iter().partition(|(name, _)| name.contains("layers.0"));
        this.write_weights(
            "model-00001-of-00002.safetensors",
            first.into_iter().map(|(n, s)| (n.clone(), s.clone())),
            Dtype::BF16,
        );
        this.write_weights(
            "model-00002-of-00002.safetensors",
            second.into_iter().map(|(n, s)| (n.clone(), s.clone())),
            Dtype::BF16,
        );
        this.write_index();
        this
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("Phi-9-mini-instruct")
    }

    /// Another folder beside it, for outputs.
    pub fn out(&self) -> PathBuf {
        let out = self.folder.path().join("out");
        fs::create_dir_all(&out).unwrap();
        out
    }

    pub fn write_json(&self, name: &str, json: &Value) {
        fs::write(self.path().join(name), serde_json::to_vec_pretty(json).unwrap()).unwrap();
    }

    pub fn edit_json(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut json = serde_json::from_slice(&fs::read(self.path().join(name)).unwrap()).unwrap();
        change(&mut json);
        self.write_json(name, &json);
    }

    /// Weights whose n-th element is a small function of n and the tensor's name.
    pub fn write_weights(
        &self,
        file: &str,
        tensors: impl Iterator<Item = (String, Vec<usize>)>,
        dtype: Dtype,
    ) {
        let data: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
            .map(|(name, shape)| {
                let bytes = numbers(&name, shape.iter().product())
                    .into_iter()
                    .flat_map(|number| encode(number, dtype));
                (name, shape, bytes.collect())
            })
            .collect();
        let views = data
            .iter()
            .map(|(name, shape, bytes)| (name, TensorView::new(dtype, shape.clone(), bytes).unwrap()));
        safetensors::serialize_to_file(views, None, &self.path().join(file)).unwrap();
    }

    /// Replaces both shards by one file with `tensors`.
    pub fn rewrite_weights(&self, tensors: BTreeMap<String, Vec<usize>>, dtype: Dtype) {
        for name in [
            "model.safetensors.index.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ] {
            let _ = fs::remove_file(self.path().join(name));
        }
        self.write_weights("model.safetensors", tensors.into_iter(), dtype);
    }

    fn write_index(&self) {
        let file = |name: &str| {
            format!("model-0000{}-of-00002.safetensors", if name.contains("layers.0") { 1 } else { 2 })
        };
        let map: BTreeMap<String, String> =
            tensors().into_keys().map(|name| (name.clone(), file(&name))).collect();
        self.write_json("model.safetensors.index.json", &json!({"metadata": {}, "weight_map": map}));
    }

    /// A vocabulary of 3 + 256 + 20 pieces: letters a to j, and pairs of them; in SentencePiece's and HF's notation.
    fn write_tokenizer(&self) {
        let pieces = pieces();
        let mut model = Vec::new();
        for (text, score, kind) in &pieces {
            let mut piece = vec![0x0a, text.len() as u8];
            piece.extend_from_slice(text.as_bytes());
            piece.push(0x15);
            piece.extend_from_slice(&score.to_le_bytes());
            piece.extend_from_slice(&[0x18, *kind]);
            model.extend_from_slice(&[0x0a, piece.len() as u8]);
            model.extend_from_slice(&piece);
        }
        model.extend_from_slice(&[0x12, 2, 0x18, 2]);
        fs::write(self.path().join("tokenizer.model"), model).unwrap();
        let vocab: serde_json::Map<String, Value> =
            pieces.iter().enumerate().map(|(id, (text, ..))| (text.clone(), json!(id))).collect();
        let merges: Vec<Value> = (0..9_u8).map(|n| json!([letter(n), letter(n + 1)])).collect();
        let added = |id: usize, content: &str, rstrip: bool, special: bool| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": rstrip, "normalized": false, "special": special});
        let added: Vec<Value> = vec![
            added(0, "<unk>", false, true),
            added(1, "<s>", false, true),
            added(2, "</s>", true, false),
            added(290, "<|end|>", true, true),
        ];
        self.write_json("tokenizer.json", &json!({
            "version": "1.0", "added_tokens": added, "pre_tokenizer": null, "post_processor": null,
            "decoder": {"type": "Sequence", "decoders": [
                    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
                    {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
            "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false, "vocab": vocab, "merges": merges},
        }));
        self.write_json("tokenizer_config.json", &json!({
            "add_bos_token": false, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "LlamaTokenizer",
            "chat_template": "{{ messages }}",
        }));
        self.write_json("added_tokens.json", &json!({"<|end|>": 290}));
    }
}

fn letter(n: u8) -> String {
    char::from(b'a' + n).to_string()
}

/// Text, score and SentencePiece type of each piece.
fn pieces() -> Vec<(String, f32, u8)> {
    let mut pieces =
        vec![("<unk>".to_owned(), 0.0, 2), ("<s>".to_owned(), 0.0, 3), ("</s>".to_owned(), 0.0, 3)];
    pieces.extend((0..256).map(|byte| (format!("<0x{byte:02X}>"), 0.0, 6)));
    pieces.extend((0..9).map(|n| (letter(n) + &letter(n + 1), -f32::from(n), 1)));
    pieces.extend((0..10).map(|n| (letter(n), -9.0 - f32::from(n), 1)));
    pieces.push(("▁".to_owned(), -19.0, 1));
    pieces
}

pub fn config() -> Value {
    json!({
        "_name_or_path": "Phi-9-mini-instruct", "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_act": "silu",
        "hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": VOCAB, "max_position_embeddings": 8192, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "sliding_window": 2047, "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
        "rope_scaling": {"type": "longrope", "long_factor": [1.0, 2.0, 3.0, 4.0], "short_factor": [1.0, 1.1, 1.2, 1.3]},
    })
}

/// Names and shapes of the tensors, as in the checkpoint.
pub fn tensors() -> BTreeMap<String, Vec<usize>> {
    let mut tensors: BTreeMap<String, Vec<usize>> = [
        ("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
        ("lm_head.weight".to_owned(), vec![VOCAB, HIDDEN]),
    ]
    .into();
    for layer in 0..LAYERS {
        for (part, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("self_attn.qkv_proj", vec![HEAD_ROWS, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("mlp.gate_up_proj", vec![2 * FFN, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, FFN]),
        ] {
            tensors.insert(format!("model.layers.{layer}.{part}.weight"), shape);
        }
    }
    tensors
}

/// A tensor's numbers: exact in BF16.
pub fn numbers(name: &str, count: usize) -> Vec<f32> {
    let seed = name.bytes().map(usize::from).sum::<usize>();
    (0..count).map(|n| ((n * 37 + seed) % 255) as f32 / 128.0 - 1.0).collect()
}

pub fn encode(number: f32, dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F32 => number.to_le_bytes().to_vec(),
        Dtype::F16 => half::f16::from_f32(number).to_le_bytes().to_vec(),
        Dtype::BF16 => half::bf16::from_f32(number).to_le_bytes().to_vec(),
        other => vec![0; other.bitsize() / 8],
    }
}

/// The names of the files in a folder, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The `phi` binary.
pub fn phi() -> std::process::Command {
    let mut phi = std::process::Command::new(env!("CARGO_BIN_EXE_phi"));
    // What a machine's GPU gives may differ in the last bits: tests/gpu.rs is for that.
    phi.env("PHI_DEVICE", "none");
    phi
}
