//! `phi convert`, from a checkpoint folder to a file or an error.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{TestCheckpoint, encode, names, numbers, phi, tensors};
use phi::checkpoint::Checkpoint;
use phi::convert::{Conversion, Options, OutType};
use phi::gguf::{Array, Gguf, Source, TensorType, Value};
use safetensors::Dtype;
use serde_json::{Value as Json, json};

fn plan(checkpoint: &TestCheckpoint, outtype: OutType) -> phi::Result<Conversion> {
    let checkpoint = Checkpoint::open(&checkpoint.path())?;
    Conversion::plan(&checkpoint, &Options { outtype, ..Options::default() })
}

fn error(checkpoint: &TestCheckpoint) -> String {
    plan(checkpoint, OutType::Auto).err().expect("an error").to_string()
}

#[test]
fn tensors_and_metadata_are_complete_and_in_order() {
    let checkpoint = TestCheckpoint::new();
    let out = checkpoint.out().join("{ftype}.gguf");
    let done = phi()
        .args(["convert", "--outtype", "F16", "--outfile"])
        .arg(&out)
        .arg(checkpoint.path())
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let written = checkpoint.out().join("f16.gguf");
    assert_eq!(String::from_utf8(done.stdout).unwrap(), format!("{}\n", written.display()));
    let gguf = Gguf::open(&written).unwrap();
    let found: Vec<&str> = gguf.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
    let layer = |n: u32| {
        ["attn_norm", "ffn_down", "ffn_up", "ffn_norm", "attn_output", "attn_qkv"]
            .map(|part| format!("blk.{n}.{part}.weight"))
    };
    // By shard, then by the name in the checkpoint; the RoPE factors come first.
    let mut expected = vec!["rope_factors_long.weight".to_owned(), "rope_factors_short.weight".into()];
    expected.extend(layer(0));
    expected.extend(["output.weight".into(), "token_embd.weight".into()]);
    expected.extend(layer(1));
    expected.push("output_norm.weight".into());
    assert_eq!(found, expected);
    let down = gguf.tensor("blk.1.ffn_down.weight").unwrap();
    assert_eq!((down.kind, down.shape.as_slice()), (TensorType::F16, &[64, 32][..]));
    let numbers = numbers("model.layers.1.mlp.down_proj.weight", 64 * 32);
    assert_eq!(gguf.data(down), numbers.into_iter().flat_map(|n| encode(n, Dtype::F16)).collect::<Vec<u8>>());
    let norm = gguf.tensor("output_norm.weight").unwrap();
    assert_eq!(norm.kind, TensorType::F32);
    let metadata = gguf.metadata();
    assert_eq!(metadata.string("general.name"), Ok(Some("Phi 9 Mini Instruct")));
    assert_eq!(metadata.string("general.basename"), Ok(Some("Phi-9")));
    assert_eq!(metadata.get("general.file_type"), Some(&Value::U32(1)));
    assert_eq!(metadata.get("phi3.attention.sliding_window"), Some(&Value::U32(2047)));
    assert_eq!(metadata.get("phi3.rope.scaling.attn_factor"), Some(&Value::F32(1.040_833)));
    assert_eq!(metadata.get("phi.generation.eos_token_ids"), Some(&Value::Array(Array::I32(vec![2, 290]))));
    assert_eq!(metadata.get("phi.tokenizer.added.ids"), Some(&Value::Array(Array::I32(vec![0, 1, 2, 290]))));
    assert_eq!(
        metadata.get("phi.tokenizer.added.flags"),
        Some(&Value::Array(Array::I32(vec![16, 16, 2, 18])))
    );
    assert!(!metadata.contains("tokenizer.huggingface.json"), "the merges follow from the scores");
    let types = metadata.i32s("tokenizer.ggml.token_type").unwrap().unwrap();
    assert_eq!((types[2], types[3], types[259], types[289], types[290]), (4, 6, 1, 5, 3));
}

#[test]
fn every_stored_type_becomes_every_output_type() {
    for stored in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        let checkpoint = TestCheckpoint::new();
        checkpoint.rewrite_weights(tensors(), stored);
        let kinds = [
            (OutType::F32, TensorType::F32),
            (OutType::F16, TensorType::F16),
            (OutType::Bf16, TensorType::BF16),
            (OutType::Q8_0, TensorType::Q8_0),
            (OutType::Auto, if stored == Dtype::BF16 { TensorType::BF16 } else { TensorType::F16 }),
        ];
        for (outtype, kind) in kinds {
            let conversion = plan(&checkpoint, outtype).unwrap();
            let path = checkpoint.out().join("x.gguf");
            let mut last = 0;
            conversion.write(&path, 2, &mut |bytes| last = bytes).unwrap();
            assert_eq!(last, conversion.tensor_bytes());
            let gguf = Gguf::open(&path).unwrap();
            for (index, tensor) in gguf.tensors().iter().enumerate() {
                assert_eq!(tensor.kind, if tensor.shape.len() == 1 { TensorType::F32 } else { kind });
                // What the file holds is what the conversion gives when it is read directly, by rows.
                let (mut rows, row) = (Vec::new(), tensor.row_bytes() as usize);
                for number in 0..tensor.rows() {
                    let mut bytes = vec![0; row];
                    conversion.bytes(index, number..number + 1, &mut bytes).unwrap();
                    rows.extend(bytes);
                }
                assert_eq!(gguf.data(tensor), rows, "{}", tensor.name);
                if let Some(raw) = conversion.raw(index) {
                    assert_eq!(gguf.data(tensor), raw, "{}", tensor.name);
                }
            }
        }
    }
}

#[test]
fn as_stored_nothing_is_converted_but_norms() {
    let checkpoint = TestCheckpoint::new();
    checkpoint.rewrite_weights(tensors(), Dtype::F32);
    let conversion = plan(&checkpoint, OutType::Stored).unwrap();
    assert!((0..conversion.tensors().len()).all(|index| conversion.raw(index).is_some()));
    assert!(conversion.bytes(0, 0..2, &mut [0; 32]).is_err());
    assert!(conversion.bytes(99, 0..1, &mut [0; 32]).is_err());
}

#[test]
fn the_file_is_named_after_the_model() {
    let checkpoint = TestCheckpoint::new();
    let conversion = plan(&checkpoint, OutType::Q8_0).unwrap();
    let named =
        |out: &Path| conversion.output_path(Some(out)).file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(named(&checkpoint.out()), "Phi-9-mini-instruct-Q8_0.gguf");
    assert_eq!(named(&checkpoint.out().join("a-{FTYPE}-{outtype}.gguf")), "a-Q8_0-q8_0.gguf");
    assert_eq!(conversion.output_path(None), checkpoint.path().join("Phi-9-mini-instruct-Q8_0.gguf"));
}

#[test]
fn a_dry_run_and_a_vocabulary() {
    let checkpoint = TestCheckpoint::new();
    let run = |arguments: &[&str]| {
        let out = checkpoint.out();
        let done = phi()
            .arg("convert")
            .arg(checkpoint.path())
            .arg("--outfile")
            .arg(out)
            .args(arguments)
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    };
    assert!(run(&["--dry-run"]).contains("17 tensors"));
    assert!(names(&checkpoint.out()).is_empty());
    // The weights need not be there.
    fs::remove_file(checkpoint.path().join("model-00001-of-00002.safetensors")).unwrap();
    run(&["--vocab-only", "--model-name", "Another Name"]);
    assert_eq!(names(&checkpoint.out()), ["Phi-9-instruct-vocab.gguf"]);
    let gguf = Gguf::open(&checkpoint.out().join("Phi-9-instruct-vocab.gguf")).unwrap();
    assert_eq!((gguf.tensors().len(), gguf.metadata().string("general.name")), (0, Ok(Some("Another Name"))));
}

#[test]
fn tied_embeddings_need_no_head() {
    let checkpoint = TestCheckpoint::new();
    let mut headless = tensors();
    headless.remove("lm_head.weight");
    checkpoint.rewrite_weights(headless, Dtype::BF16);
    assert!(error(&checkpoint).contains("\"lm_head.weight\" is missing"), "{}", error(&checkpoint));
    checkpoint.edit_json("config.json", |config| config["tie_word_embeddings"] = true.into());
    let conversion = plan(&checkpoint, OutType::Auto).unwrap();
    assert!(conversion.tensors().iter().all(|tensor| tensor.name != "output.weight"));
}

#[test]
fn the_vocabulary_comes_from_tokenizer_json_where_tokenizer_model_is_missing() {
    let checkpoint = TestCheckpoint::new();
    let with_model = plan(&checkpoint, OutType::Auto).unwrap();
    fs::remove_file(checkpoint.path().join("tokenizer.model")).unwrap();
    let without = plan(&checkpoint, OutType::Auto).unwrap();
    assert!(with_model.metadata() == without.metadata());
    // Merges in an order that no scores give: tokenizer.json itself goes into the file.
    checkpoint.edit_json("tokenizer.json", |json| {
        json["model"]["vocab"]["abc"] = 279.into();
        json["model"]["merges"].as_array_mut().unwrap().extend([
            json!(["ab", "c"]),
            json!(["a", "bc"]),
            json!(["a", "b"]),
        ]);
    });
    let embedded = plan(&checkpoint, OutType::Auto).unwrap();
    let text = embedded.metadata().string("tokenizer.huggingface.json").unwrap().unwrap();
    assert_eq!(text, fs::read_to_string(checkpoint.path().join("tokenizer.json")).unwrap());
    fs::remove_file(checkpoint.path().join("tokenizer.json")).unwrap();
    assert!(error(&checkpoint).contains("neither tokenizer.model nor tokenizer.json"));
}

#[test]
fn an_unsupported_architecture_is_named_with_those_that_are_supported() {
    let checkpoint = TestCheckpoint::new();
    checkpoint.edit_json("config.json", |config| config["architectures"] = json!(["LlamaForCausalLM"]));
    let error = error(&checkpoint);
    assert!(
        error.contains("\"LlamaForCausalLM\"")
            && error.contains("supported: PhiForCausalLM, Phi3ForCausalLM"),
        "{error}"
    );
}

#[test]
fn a_config_that_contradicts_the_tensors_is_refused() {
    let changes: [(&str, Json, &str); 6] = [
        ("vocab_size", json!(301), "\"lm_head.weight\" has shape [300, 32]"),
        ("intermediate_size", json!(65), "asks for [32, 65]"),
        ("num_key_value_heads", json!(4), "num_key_value_heads) asks for [96, 32]"),
        ("num_hidden_layers", json!(1), "\"model.layers.1.input_layernorm.weight\" belongs to no part"),
        ("num_hidden_layers", json!(3), "\"model.layers.2.input_layernorm.weight\" is missing"),
        ("hidden_size", json!("32"), "the field \"hidden_size\" is \"32\"; a positive integer was expected"),
    ];
    for (field, value, expected) in changes {
        let checkpoint = TestCheckpoint::new();
        checkpoint.edit_json("config.json", |config| {
            config[field] = value;
        });
        let error = error(&checkpoint);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn missing_and_damaged_weights_are_named() {
    let checkpoint = TestCheckpoint::new();
    let shard = checkpoint.path().join("model-00002-of-00002.safetensors");
    let whole = fs::read(&shard).unwrap();
    for length in [0, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&shard, &whole[..length]).unwrap();
        let error = error(&checkpoint);
        assert!(error.contains("model-00002-of-00002.safetensors: not a valid safetensors file"), "{error}");
    }
    fs::remove_file(&shard).unwrap();
    assert!(error(&checkpoint).contains("\"model-00002-of-00002.safetensors\""), "{}", error(&checkpoint));

    let checkpoint = TestCheckpoint::new();
    checkpoint.edit_json("model.safetensors.index.json", |index| {
        index["weight_map"].as_object_mut().unwrap().remove("lm_head.weight");
    });
    assert!(
        error(&checkpoint)
            .contains("\"lm_head.weight\" in \"model-00002-of-00002.safetensors\" is not listed")
    );
    checkpoint
        .edit_json("model.safetensors.index.json", |index| index["weight_map"]["x"] = "../secret".into());
    assert!(error(&checkpoint).contains("\"../secret\", which is no plain file name"));

    let checkpoint = TestCheckpoint::new();
    let mut more = tensors();
    more.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), vec![4]);
    checkpoint.rewrite_weights(more.clone(), Dtype::F16);
    assert!(plan(&checkpoint, OutType::Auto).is_ok(), "buffers of old checkpoints are passed over");
    more.insert("model.layers.0.mlp.adapter.weight".into(), vec![4]);
    checkpoint.rewrite_weights(more, Dtype::F16);
    assert!(error(&checkpoint).contains("\"model.layers.0.mlp.adapter.weight\" belongs to no part"));
    checkpoint.rewrite_weights(tensors(), Dtype::I16);
    assert!(
        error(&checkpoint).contains("is stored as I16; BF16, F16 or F32 was expected"),
        "{}",
        error(&checkpoint)
    );
}

#[test]
fn folders_that_are_no_checkpoints_are_refused() {
    let checkpoint = TestCheckpoint::new();
    let open = |path: &Path| Checkpoint::open(path).unwrap_err().to_string();
    assert!(open(&checkpoint.out()).contains("has no config.json"));
    assert!(open(&checkpoint.path().join("none")).contains("cannot open the checkpoint folder"));
    assert!(
        open(&checkpoint.path().join("config.json")).contains("it is a file; a checkpoint is the folder")
    );
    fs::write(checkpoint.path().join("config.json"), "{\"architectures\": [").unwrap();
    assert!(error(&checkpoint).contains("config.json: not valid JSON"));
    fs::write(checkpoint.path().join("config.json"), "[".repeat(100_000)).unwrap();
    assert!(error(&checkpoint).contains("recursion limit"));
}

fn fails(command: &mut Command, expected: &str) {
    let done = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains(expected), "{stderr}");
    assert!(done.stdout.is_empty());
}

#[test]
fn failures_leave_nothing_behind() {
    let checkpoint = TestCheckpoint::new();
    let before = names(&checkpoint.path());
    let shard = checkpoint.path().join("model-00001-of-00002.safetensors");
    let bytes = fs::read(&shard).unwrap();
    let convert = |out: &Path| {
        let mut command = phi();
        command.arg("convert").arg(checkpoint.path()).arg("--outfile").arg(out);
        command
    };
    fails(&mut convert(&shard), "it is also the input");
    assert_eq!(fs::read(&shard).unwrap(), bytes);
    let config = checkpoint.path().join("config.json");
    let text = fs::read(&config).unwrap();
    fails(&mut convert(&config), "it is also the input");
    assert_eq!(fs::read(&config).unwrap(), text);
    fails(phi().arg("convert").arg(&shard), "it is a file; a checkpoint is the folder");
    fails(&mut convert(&checkpoint.out().join("none/x.gguf")), "none/x.gguf");
    if cfg!(target_os = "linux") {
        fails(&mut convert(Path::new("/dev/full")), "the disk is full");
        fails(&mut convert(Path::new("/proc/x.gguf")), "/proc/x.gguf");
    }
    assert_eq!(names(&checkpoint.path()), before);
    assert!(names(&checkpoint.out()).is_empty());
}

/// A checkpoint of 0.5 GB, nearly all of it a hole in a file: long enough to be interrupted.
#[cfg(unix)]
#[test]
fn an_interrupted_conversion_leaves_nothing_behind() {
    use std::io::{Seek, SeekFrom, Write};
    use std::time::Duration;
    let checkpoint = TestCheckpoint::new();
    const ROWS: usize = 4 << 20;
    checkpoint.edit_json("config.json", |config| config["vocab_size"] = ROWS.into());
    let mut header = serde_json::Map::new();
    let mut at = 0;
    let mut large = tensors();
    large.insert("lm_head.weight".into(), vec![ROWS, 32]);
    large.insert("model.embed_tokens.weight".into(), vec![ROWS, 32]);
    for (name, shape) in large {
        let end = at + 2 * shape.iter().product::<usize>();
        header.insert(name, json!({"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}));
        at = end;
    }
    checkpoint.rewrite_weights(tensors(), Dtype::BF16);
    let mut text = serde_json::to_vec(&header).unwrap();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut file = fs::File::create(checkpoint.path().join("model.safetensors")).unwrap();
    file.write_all(&(text.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&text).unwrap();
    file.seek(SeekFrom::Current(at as i64 - 1)).unwrap();
    file.write_all(&[0]).unwrap();
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGKILL] {
        let out = checkpoint.out().join("out.gguf");
        let mut child = phi()
            .arg("convert")
            .arg(checkpoint.path())
            .arg("--outfile")
            .arg(&out)
            .args(["--outtype", "f32"])
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(150));
        // SAFETY: sends a signal to the child that was just started and not yet waited for.
        unsafe { libc::kill(child.id() as libc::pid_t, signal) };
        let status = child.wait().unwrap();
        assert!(!status.success(), "the signal came too late to test anything");
        assert!(names(&checkpoint.out()).is_empty(), "{:?}", names(&checkpoint.out()));
    }
}

/// Values taken from convert_hf_to_gguf.py by `scripts/compare_convert.py --write-golden`.
#[test]
fn phi_tiny_is_converted_as_llama_cpp_does() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = root.join("models/phi-tiny");
    let golden = fs::read(root.join("tests/golden/convert-phi-tiny.json")).unwrap();
    let mut golden: Json = serde_json::from_slice(&golden).unwrap();
    let weights = sha256(&fs::read(folder.join("model.safetensors")).unwrap());
    let golden = golden.as_object_mut().unwrap();
    assert_eq!(
        golden.remove("weights"),
        Some(weights.into()),
        "models/phi-tiny has changed: take the values again"
    );
    let checkpoint = Checkpoint::open(&folder).unwrap();
    for (outtype, expected) in golden {
        let options = Options { outtype: OutType::from_name(outtype).unwrap(), ..Options::default() };
        let conversion = Conversion::plan(&checkpoint, &options).unwrap();
        let metadata = conversion.metadata();
        let ours = |key: &str| !key.starts_with("phi.") && key != "tokenizer.huggingface.json";
        let keys: Vec<&str> = metadata.iter().map(|(key, _)| key).filter(|key| ours(key)).collect();
        let expected_metadata = expected["metadata"].as_object().unwrap();
        assert_eq!(keys, expected_metadata.keys().map(String::as_str).collect::<Vec<_>>());
        for (key, expected) in expected_metadata {
            let value = metadata.get(key).unwrap();
            assert_eq!(json!(value.type_id()), expected[0], "{key}");
            let same = match value {
                Value::F32(number) => expected[1].as_f64().is_some_and(|n| n as f32 == *number),
                Value::Bool(flag) => expected[1] == *flag,
                Value::String(text) => expected[1] == *text,
                Value::Array(array) => expected[1] == array_digest(array),
                integer => integer.as_integer() == expected[1].as_i64().map(i128::from),
            };
            assert!(same, "{key}: {value:?}, expected {}", expected[1]);
        }
        let found: Vec<(String, String)> =
            (0..conversion.tensors().len()).map(|index| line(&conversion, index)).collect();
        let expected_tensors = expected["tensors"].as_object().unwrap();
        let expected: Vec<(String, String)> = expected_tensors
            .iter()
            .map(|(name, line)| (name.clone(), line.as_str().unwrap().to_owned()))
            .collect();
        assert_eq!(found, expected, "{outtype}");
    }
}

/// A tensor as the golden file has it: name, "TYPE shape sha256".
fn line(conversion: &Conversion, index: usize) -> (String, String) {
    let tensor = &conversion.tensors()[index];
    let mut bytes = vec![0; tensor.bytes() as usize];
    conversion.bytes(index, 0..tensor.rows(), &mut bytes).unwrap();
    let shape: Vec<String> = tensor.shape.iter().map(u64::to_string).collect();
    (tensor.name.clone(), format!("{} {} {}", tensor.kind, shape.join("x"), sha256(&bytes)))
}

/// "TYPE LENGTH SHA256" of an array's elements as they lie in a file.
fn array_digest(array: &Array) -> String {
    let bytes: Vec<u8> = match array {
        Array::String(texts) => texts
            .iter()
            .flat_map(|text| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat())
            .collect(),
        Array::F32(numbers) => numbers.iter().flat_map(|number| number.to_le_bytes()).collect(),
        Array::I32(numbers) => numbers.iter().flat_map(|number| number.to_le_bytes()).collect(),
        other => panic!("an array of {}", other.element_type_name()),
    };
    format!("{} {} {}", array.element_type_id(), array.len(), sha256(&bytes))
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
