//! `phi check` finds what is wrong with a file, all of it, and nothing in a sound one.

mod common;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use phi::check::{Report, Severity, check};
use phi::gguf::{Array, Gguf, Metadata, TensorDecl, TensorType, Value, Writer};

use common::{TestCheckpoint, phi};

/// A converted model in a folder, and its damaged copies.
struct Files {
    checkpoint: TestCheckpoint,
    model: PathBuf,
}

type Tensors = Vec<(TensorDecl, Vec<u8>)>;

impl Files {
    fn new() -> Self {
        let checkpoint = TestCheckpoint::new();
        let model = checkpoint.out().join("model.gguf");
        let mut convert = phi();
        convert.arg("convert").arg(checkpoint.path()).args(["--outtype", "f16", "--outfile"]).arg(&model);
        assert!(convert.output().unwrap().status.success());
        Self { checkpoint, model }
    }

    /// The model written anew after `edit`.
    fn edited(&self, edit: impl FnOnce(&mut Metadata, &mut Tensors)) -> PathBuf {
        let gguf = Gguf::open(&self.model).unwrap();
        let mut metadata = gguf.metadata().clone();
        let tensors = gguf.tensors().iter().map(|tensor| (tensor.declaration(), gguf.data(tensor).to_vec()));
        let mut tensors: Tensors = tensors.collect();
        edit(&mut metadata, &mut tensors);
        let path = self.checkpoint.out().join("edited.gguf");
        let declared: Vec<_> = tensors.iter().map(|(tensor, _)| tensor.clone()).collect();
        let mut writer = Writer::create(&path, &metadata, &declared).unwrap();
        tensors.iter().for_each(|(_, bytes)| writer.write(bytes).unwrap());
        writer.finish().unwrap();
        path
    }
}

fn report(path: &Path) -> Report {
    check(path, 2, &mut |_, _| ControlFlow::Continue(())).unwrap()
}

/// The messages of one severity.
fn messages(report: &Report, severity: Severity) -> Vec<&str> {
    let problems = report.problems.iter().filter(|problem| problem.severity == severity);
    problems.map(|problem| problem.message.as_str()).collect()
}

#[track_caller]
fn assert_errors(path: &Path, expected: &[&str]) {
    let report = report(path);
    let errors = messages(&report, Severity::Error);
    for part in expected {
        assert!(errors.iter().any(|error| error.contains(part)), "{part:?} is not told in {errors:#?}");
    }
    assert_eq!(errors.len(), expected.len(), "{errors:#?}");
}

#[test]
fn a_sound_model_is_sound_in_one_file_and_in_parts() {
    let files = Files::new();
    let sound = report(&files.model);
    assert!(sound.is_sound(), "{:?}", sound.problems);
    let prefix = files.checkpoint.out().join("part");
    let split = phi().arg("split").args(["--split-max-tensors", "5"]).arg(&files.model).arg(&prefix).output();
    assert!(split.unwrap().status.success());
    let first = std::fs::read_dir(files.checkpoint.out()).unwrap().map(|entry| entry.unwrap().path());
    let first = first.into_iter().find(|path| path.to_string_lossy().contains("part-00001-of")).unwrap();
    let parts = report(&first);
    assert_eq!((parts.tensors, parts.is_sound()), (sound.tensors, true), "{:?}", parts.problems);
    assert!(parts.files.len() > 1);
    std::fs::remove_file(
        first.with_file_name(first.file_name().unwrap().to_str().unwrap().replace("00001-of", "00002-of")),
    )
    .unwrap();
    assert_errors(&first, &["part 2 of"]);
}

#[test]
fn values_that_are_no_numbers_are_found_in_every_tensor() {
    let files = Files::new();
    let path = files.edited(|_, tensors| {
        for (tensor, bytes) in tensors.iter_mut() {
            match tensor.name.as_str() {
                "blk.1.attn_norm.weight" => bytes[4..8].copy_from_slice(&f32::NAN.to_le_bytes()),
                "blk.0.ffn_down.weight" => bytes[64 * 2 * 3 + 1] = 0x7c,
                _ => {}
            }
        }
    });
    assert_errors(
        &path,
        &[
            "blk.1.attn_norm.weight has a value that is NaN or infinite in row 0",
            "blk.0.ffn_down.weight has a value",
        ],
    );
}

#[test]
fn missing_misshapen_and_surplus_tensors_are_all_told() {
    let files = Files::new();
    let path = files.edited(|_, tensors| {
        tensors.retain(|(tensor, _)| {
            tensor.name != "blk.0.attn_qkv.weight" && tensor.name != "output_norm.weight"
        });
        for (tensor, bytes) in tensors.iter_mut().filter(|(tensor, _)| tensor.name == "blk.1.ffn_up.weight") {
            tensor.shape[1] -= 2;
            bytes.truncate(bytes.len() - 2 * 2 * tensor.shape[0] as usize);
        }
        let surplus = TensorDecl { name: "blk.7.odd.weight".into(), shape: vec![4], kind: TensorType::F32 };
        tensors.push((surplus, vec![0; 16]));
    });
    assert_errors(
        &path,
        &[
            "the tensor blk.0.attn_qkv.weight is missing",
            "the tensor output_norm.weight is missing",
            "the tensor blk.1.ffn_up.weight has the shape",
        ],
    );
    let report = report(&path);
    assert!(messages(&report, Severity::Warning).iter().any(|text| text.contains("blk.7.odd.weight")));
}

#[test]
fn an_incomplete_download_is_told_with_how_much_is_lacking() {
    let files = Files::new();
    let whole = std::fs::read(&files.model).unwrap();
    let cut = files.checkpoint.out().join("cut.gguf");
    std::fs::write(&cut, &whole[..whole.len() * 3 / 4]).unwrap();
    let report = report(&cut);
    let errors = messages(&report, Severity::Error);
    assert!(errors[0].contains("incomplete download"), "{errors:?}");
    assert!(errors.last().unwrap().contains("more tensors have the same fault"), "{errors:?}");
    std::fs::write(&cut, &whole[..100]).unwrap();
    assert_errors(&cut, &["room for"]);
    std::fs::write(&cut, b"PK").unwrap();
    assert_errors(&cut, &["not a GGUF file"]);
    assert!(check(&files.checkpoint.out().join("none"), 1, &mut |_, _| ControlFlow::Continue(())).is_err());
}

#[test]
fn metadata_of_a_wrong_type_is_told() {
    let files = Files::new();
    let path = files.edited(|metadata, _| {
        metadata.set("phi3.context_length", Value::U64(4096));
        metadata.set("phi3.rope.freq_base", Value::F32(f32::INFINITY));
        metadata.set("general.name", Value::U32(3));
    });
    assert_errors(
        &path,
        &[
            "phi3.context_length is of type UINT64; UINT32 was expected",
            "general.name is of type UINT32",
            "phi3.rope.freq_base is NaN or infinite",
            "phi3.rope.freq_base is inf",
        ],
    );
    let path = files.edited(|metadata, _| {
        metadata.remove("general.architecture");
    });
    assert_errors(&path, &["general.architecture is missing"]);
}

#[test]
fn faults_of_vocabulary_and_template_are_all_told() {
    let files = Files::new();
    let path = files.edited(|metadata, _| {
        let mut tokens = metadata.strings("tokenizer.ggml.tokens").unwrap().unwrap().to_vec();
        tokens[262] = tokens[261].clone();
        tokens.push("surplus".into());
        metadata.set("tokenizer.ggml.tokens", Value::Array(Array::String(tokens)));
        metadata.set("tokenizer.ggml.eos_token_id", Value::U32(7_000));
        metadata.set("tokenizer.chat_template", Value::from("{% if %}"));
    });
    assert_errors(
        &path,
        &[
            "tokenizer.ggml.scores has 300 entries for 301 tokens",
            "tokenizer.ggml.token_type has 300 entries for 301 tokens",
            "tokenizer.ggml.eos_token_id is 7000, but there are 301 tokens",
            "token_embd.weight has 300 rows for 301 tokens",
            "chat template",
        ],
    );
    let report = report(&path);
    assert!(messages(&report, Severity::Warning).iter().any(|text| text.contains("more than one token")));
}

#[test]
fn the_command_says_it_in_a_line_and_by_its_exit_code() {
    let files = Files::new();
    let sound = phi().arg("check").arg(&files.model).output().unwrap();
    let text = String::from_utf8(sound.stdout).unwrap();
    assert!(sound.status.success() && text.lines().next().unwrap().contains(": sound"), "{text}");
    let path = files.edited(|metadata, _| {
        metadata.set("tokenizer.ggml.bos_token_id", Value::U32(300));
    });
    let broken = phi().arg("check").arg(&path).output().unwrap();
    assert_eq!(broken.status.code(), Some(1));
    assert!(String::from_utf8(broken.stdout).unwrap().contains("NOT SOUND: 1 error"));
    let json = phi().arg("check").arg("--json").arg(&path).output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((json["sound"].as_bool(), json["errors"].as_u64()), (Some(false), Some(1)));
    assert_eq!(phi().arg("check").arg(files.checkpoint.path()).output().unwrap().status.code(), Some(2));
}
