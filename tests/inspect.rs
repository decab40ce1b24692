//! `phi inspect`, for people and as JSON.

mod common;

use std::path::Path;

use common::{TestCheckpoint, phi};
use phi::checkpoint::Checkpoint;
use phi::convert::{Conversion, Options, OutType};
use serde_json::Value;

fn inspect(path: &Path, flags: &[&str]) -> String {
    let done = phi().arg("inspect").arg(path).args(flags).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

fn gguf(checkpoint: &TestCheckpoint) -> std::path::PathBuf {
    let options = Options { outtype: OutType::Q8_0, ..Options::default() };
    let conversion = Conversion::plan(&Checkpoint::open(&checkpoint.path()).unwrap(), &options).unwrap();
    let path = checkpoint.out().join("model.gguf");
    conversion.write(&path, 1, &mut |_| {}).unwrap();
    path
}

#[test]
fn a_gguf_file_is_shown() {
    let checkpoint = TestCheckpoint::new();
    let path = gguf(&checkpoint);
    let text = inspect(&path, &[]);
    assert!(text.starts_with("model.gguf: GGUF version 3, "), "{text}");
    let line = |start: &str| {
        text.lines().find(|line| line.trim_start().starts_with(start)).unwrap_or_default().to_owned()
    };
    assert_eq!(
        line("phi3.block_count").split_whitespace().collect::<Vec<_>>(),
        ["phi3.block_count", "UINT32", "2"]
    );
    assert!(line("tokenizer.ggml.tokens").contains("300 elements: \"<unk>\", \"<s>\""));
    let tensor = line("blk.0.ffn_down.weight");
    let words: Vec<&str> = tensor.split_whitespace().collect();
    assert_eq!(words[..7], ["blk.0.ffn_down.weight", "Q8_0", "64", "×", "32", "2.18", "kB"]);
    assert_eq!(
        line("all").split_whitespace().collect::<Vec<_>>(),
        ["all", "17", "37.8", "k", "40.7", "kB", "8.60"]
    );
    assert!(text.lines().all(|line| line.chars().count() < 170));
    assert!(line("Model:").contains("a shape of its own: architecture phi3, 2 layers of 32"), "{text}");
    assert!(line("8192 tokens").contains("MB"), "{text}");
}

#[test]
fn what_cannot_be_run_is_named() {
    let checkpoint = TestCheckpoint::new();
    let path = gguf(&checkpoint);
    // The architecture's name occurs first as the value of its key.
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(4).position(|word| word == b"phi3").unwrap();
    bytes[at..at + 4].copy_from_slice(b"phi9");
    let other = checkpoint.out().join("other.gguf");
    std::fs::write(&other, bytes).unwrap();
    let text = inspect(&other, &[]);
    assert!(text.contains("cannot be run") && text.contains("\"phi9\"") && text.contains("phimoe"), "{text}");
    let json: Value = serde_json::from_str(&inspect(&other, &["--json"])).unwrap();
    assert_eq!(json["model"]["runs"], false);
}

#[test]
fn json_holds_everything() {
    let checkpoint = TestCheckpoint::new();
    let path = gguf(&checkpoint);
    let short: Value = serde_json::from_str(&inspect(&path, &["--json"])).unwrap();
    let full: Value = serde_json::from_str(&inspect(&path, &["--json", "--full"])).unwrap();
    assert_eq!(short["metadata"]["tokenizer.ggml.tokens"]["length"], 300);
    assert_eq!(full["metadata"]["tokenizer.ggml.tokens"]["value"][290], "<|end|>");
    assert_eq!(full["metadata"]["phi3.attention.layer_norm_rms_epsilon"]["value"], 1e-5);
    assert_eq!(full["tensors"][2]["name"], "blk.0.attn_norm.weight");
    assert_eq!(full["tensors"].as_array().unwrap().len(), 17);
    assert_eq!(full["parameters"], 37_800);
    let model = &full["model"];
    assert_eq!((&model["runs"], &model["architecture"]), (&Value::from(true), &Value::from("phi3")));
    let contexts = model["contexts"].as_array().unwrap();
    assert_eq!(contexts.last().unwrap()["tokens"], 8192);
    assert!(contexts[0]["kv_cache_bytes"].as_u64() < contexts[1]["kv_cache_bytes"].as_u64());
}

#[test]
fn checkpoints_and_safetensors_are_shown() {
    let checkpoint = TestCheckpoint::new();
    let text = inspect(&checkpoint.path(), &[]);
    assert!(text.contains("(2 files)") && text.contains("rope_scaling.long_factor"), "{text}");
    assert!(text.contains("rows first") && text.contains("300 × 32"), "{text}");
    let one = inspect(&checkpoint.path().join("model-00001-of-00002.safetensors"), &["--json"]);
    let one: Value = serde_json::from_str(&one).unwrap();
    assert_eq!(one["tensors"].as_array().unwrap().len(), 6);
    assert_eq!(one["types"][0]["type"], "BF16");
}

#[test]
fn a_checkpoint_is_shown_as_the_files_it_can_become() {
    let checkpoint = TestCheckpoint::new();
    let text = inspect(&checkpoint.path(), &[]);
    assert!(text.contains("Model: a shape of its own: architecture phi3, 2 layers of 32"), "{text}");
    let row = text.lines().find(|line| line.trim_start().starts_with("Q4_K_M")).unwrap();
    assert!(row.ends_with("fits"), "{row}");
    assert!(text.contains("8192 tokens") && text.contains("BF16") && !text.contains("MXFP4"), "{text}");
    let json: Value = serde_json::from_str(&inspect(&checkpoint.path(), &["--json"])).unwrap();
    let model = &json["model"];
    assert_eq!((&model["runs"], &model["architecture"]), (&Value::from(true), &Value::from("phi3")));
    let types = model["as_gguf"].as_array().unwrap();
    for kind in ["BF16", "Q8_0", "Q4_K_M"] {
        let made = types.iter().find(|made| made["type"] == kind).unwrap();
        let file = checkpoint.out().join(kind);
        let done = phi().arg("quantize").arg(checkpoint.path()).arg(&file).arg(kind).output().unwrap();
        assert!(done.status.success());
        assert_eq!(made["file_bytes"], std::fs::metadata(&file).unwrap().len(), "{kind}");
        let of_file: Value = serde_json::from_str(&inspect(&file, &["--json"])).unwrap();
        for key in ["weights_bytes", "bytes_per_token"] {
            assert_eq!(made[key], of_file["model"][key], "{kind} {key}");
        }
        let caches = |contexts: &Value| {
            contexts.as_array().unwrap().iter().map(|c| c["needed_bytes"].clone()).collect::<Vec<_>>()
        };
        assert_eq!(caches(&made["contexts"]), caches(&of_file["model"]["contexts"]), "{kind}");
    }
}

#[test]
fn a_checkpoint_that_cannot_be_converted_is_shown_with_the_reason() {
    let checkpoint = TestCheckpoint::new();
    let path = checkpoint.path().join("config.json");
    let config = std::fs::read_to_string(&path).unwrap().replace("Phi3ForCausalLM", "LlamaForCausalLM");
    std::fs::write(&path, config).unwrap();
    let text = inspect(&checkpoint.path(), &[]);
    assert!(text.contains("300 × 32"), "{text}");
    let line = text.lines().find(|line| line.starts_with("Model:")).unwrap();
    assert!(
        line.contains("cannot be run")
            && line.contains("LlamaForCausalLM")
            && line.contains("Phi3ForCausalLM"),
        "{line}"
    );
}

#[test]
fn what_cannot_be_read_is_an_error() {
    let checkpoint = TestCheckpoint::new();
    for (path, expected) in [
        (checkpoint.path().join("config.json"), "not a GGUF file"),
        (checkpoint.path().join("none.gguf"), "cannot open"),
        (checkpoint.out(), "has no config.json"),
    ] {
        let done = phi().arg("inspect").arg(path).output().unwrap();
        assert_eq!(done.status.code(), Some(1));
        let stderr = String::from_utf8_lossy(&done.stderr);
        assert!(stderr.contains(expected), "{stderr}");
    }
}
