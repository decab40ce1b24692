//! `phi quantize`: the recipes against llama-quantize's choices, and the job from file to file.

use std::collections::BTreeMap;
use std::path::Path;

use assert_cmd::Command;
use phi::gguf::{Array, Metadata, TensorDecl, TensorType, Value, Writer};
use phi::quant::recipe::{Architecture, FileType, Recipe, RecipeFault, Tensor, layer_of};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

/// The models and choices of tests/data/recipes.json, taken by scripts/recipe_goldens.py.
fn golden_models() -> Vec<Json> {
    let golden: Json = serde_json::from_str(include_str!("data/recipes.json")).unwrap();
    golden["models"].as_array().unwrap().clone()
}

fn metadata_of(model: &Json) -> Metadata {
    let mut metadata = Metadata::new();
    for (key, value) in model["metadata"].as_object().unwrap() {
        let value = match value {
            Json::String(text) => Value::String(text.clone()),
            Json::Number(number) if number.is_u64() => Value::U32(number.as_u64().unwrap() as u32),
            other => Value::F32(other.as_f64().unwrap() as f32),
        };
        metadata.set(key, value);
    }
    metadata
}

/// The model's tensors, "blk.N" once a layer, in the order llama-quantize puts them in.
fn tensors_of(model: &Json, layers: u32) -> Vec<(String, Vec<u64>)> {
    let mut tensors = Vec::new();
    for tensor in model["tensors"].as_array().unwrap() {
        let (name, shape) = (tensor[0].as_str().unwrap(), &tensor[1]);
        let shape: Vec<u64> = shape.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
        let layers = if name.contains("blk.N") { layers } else { 1 };
        tensors.extend((0..layers).map(|n| (name.replace("blk.N", &format!("blk.{n}")), shape.clone())));
    }
    tensors.sort_by_key(|(name, _)| (layer_of(name), name.clone()));
    tensors
}

/// What a golden run says of each tensor: type by name. Tensors not in it stay F32.
fn expand(run: &Json) -> BTreeMap<String, TensorType> {
    let mut types = BTreeMap::new();
    for (name, kinds) in run.as_object().unwrap() {
        let mut layer = 0;
        for group in kinds.as_str().unwrap().split(' ') {
            let (kind, count) = group.split_once('*').unwrap_or((group, "1"));
            for _ in 0..count.parse().unwrap() {
                let name = name.replace("blk.N", &format!("blk.{layer}"));
                types.insert(name, TensorType::from_name(kind).unwrap());
                layer += 1;
            }
        }
    }
    types
}

#[test]
fn every_recipe_chooses_what_llama_quantize_chooses() {
    for model in golden_models() {
        let architecture = Architecture::from_metadata(&metadata_of(&model)).unwrap();
        let tensors = tensors_of(&model, architecture.layers);
        let subjects: Vec<Tensor> =
            tensors.iter().map(|(name, shape)| Tensor { name, shape, kind: TensorType::F32 }).collect();
        let runs = model["runs"].as_object().unwrap();
        for (run, golden) in runs {
            let (file_type, imatrix) = run.strip_suffix(".im").map_or((&**run, false), |name| (name, true));
            let file_type = FileType::from_name(file_type).unwrap();
            let recipe = Recipe { imatrix, ..Recipe::new(file_type) };
            let plan = recipe.plan(&architecture, &subjects);

            let golden = golden.as_str().map_or(golden, |same| &runs[same]);
            if golden.is_null() {
                assert!(matches!(plan, Err(RecipeFault::NoFallback { .. })), "{}: {run}", model["name"]);
                continue;
            }
            let golden = expand(golden);
            for (tensor, choice) in subjects.iter().zip(plan.unwrap()) {
                let expected = golden.get(tensor.name).copied().unwrap_or(TensorType::F32);
                assert_eq!(choice.kind, expected, "{}: {run}: {}", model["name"], tensor.name);
            }
        }
    }
}

/// Random bits as scripts/quantize_goldens.py makes them: splitmix64 of `seed` * 2^32 + `index`.
fn random_bits(seed: u64, index: u64) -> u64 {
    let mut z = (seed << 32).wrapping_add(index).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// About normal values; the first row is 0, the second constant, the third has one that stands out.
fn weights(seed: u64, shape: &[u64]) -> Vec<f32> {
    let value = |index| {
        let bits = random_bits(seed, index);
        let sum: i64 = [0, 16, 32, 48].iter().map(|shift| (bits >> shift & 0xFFFF) as i64).sum();
        (sum - 2 * 0xFFFF) as f32 * 2_f32.powi(-21)
    };
    let mut values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
    if shape.len() > 1 {
        let columns = shape[0] as usize;
        values[..columns].fill(0.0);
        values[columns..2 * columns].fill(0.125);
        values[2 * columns + 5] = 3.0;
    }
    values
}

/// Positive, over four orders of magnitude.
fn imatrix_values(seed: u64, count: u64) -> Vec<f32> {
    let value = |index| {
        let bits = random_bits(seed + 1000, index);
        let small = ((bits & 0xFFFF) as f32 + 1.0) * 2_f32.powi(-16);
        if bits >> 60 == 0 { small * 4096.0 } else { small }
    };
    (0..count).map(value).collect()
}

fn write_f32(path: &Path, metadata: &Metadata, tensors: &[(String, Vec<u64>, Vec<f32>)]) {
    let declared: Vec<TensorDecl> = tensors
        .iter()
        .map(|(name, shape, _)| TensorDecl {
            name: name.clone(),
            shape: shape.clone(),
            kind: TensorType::F32,
        })
        .collect();
    let mut writer = Writer::create(path, metadata, &declared).unwrap();
    for (_, _, values) in tensors {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        writer.write(&bytes).unwrap();
    }
    writer.finish().unwrap();
}

/// Writes model.gguf and imatrix.gguf of one of the models in tests/data/quantize.json.
fn write_model(folder: &Path, model: &Json) {
    let (mut stored, mut sums) = (Vec::new(), Vec::new());
    for (seed, tensor) in model["tensors"].as_array().unwrap().iter().enumerate() {
        let name = tensor[0].as_str().unwrap().to_owned();
        let shape: Vec<u64> = tensor[1].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
        if name.starts_with("blk.") && shape.len() > 1 {
            let matrices = shape.get(2).copied().unwrap_or(1);
            let values = imatrix_values(seed as u64, matrices * shape[0]);
            sums.push((format!("{name}.in_sum2"), vec![shape[0], matrices], values));
            let counts = (0..matrices).map(|n| 3.0 + n as f32).collect();
            sums.push((format!("{name}.counts"), vec![1, matrices], counts));
        }
        stored.push((name, shape.clone(), weights(seed as u64, &shape)));
    }
    write_f32(&folder.join("model.gguf"), &metadata_of(model), &stored);
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", Value::String("imatrix".into()));
    metadata.set("imatrix.datasets", Value::Array(Array::String(vec!["a text".into()])));
    metadata.set("imatrix.chunk_count", Value::U32(7));
    metadata.set("imatrix.chunk_size", Value::U32(512));
    write_f32(&folder.join("imatrix.gguf"), &metadata, &sums);
}

fn quantize(folder: &Path, args: &[&str]) -> std::process::Output {
    Command::cargo_bin("phi").unwrap().current_dir(folder).arg("quantize").args(args).output().unwrap()
}

fn sha256(path: &Path) -> String {
    let digest = Sha256::digest(std::fs::read(path).unwrap());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The runs of tests/data/quantize.json for `model`, with its files in a folder.
fn golden_runs(model: &str) -> (tempfile::TempDir, Vec<Json>) {
    let golden: Json = serde_json::from_str(include_str!("data/quantize.json")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let models = golden["models"].as_array().unwrap();
    write_model(folder.path(), models.iter().find(|entry| entry["name"] == model).unwrap());
    let runs = golden["runs"].as_array().unwrap().iter().filter(|run| run["model"] == model).cloned();
    (folder, runs.collect())
}

/// Quantizes as `run` says and compares the file's hash; `extra` options must not change it.
fn check_run(folder: &Path, run: &Json, extra: &[&str], threads: &str) -> Result<(), String> {
    let mut input = "model.gguf".to_owned();
    if let Some(kind) = run["from"].as_str() {
        input = format!("model-{kind}.gguf");
        if !folder.join(&input).exists() {
            quantize(folder, &["model.gguf", &input, kind]);
        }
    }
    let args: Vec<&str> = run["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap()).collect();
    let (kind, options) = args.split_last().unwrap();
    let out = folder.join("out.gguf");
    let _ = std::fs::remove_file(&out);
    let done = quantize(folder, &[options, extra, &[&input, "out.gguf", kind, threads]].concat());
    let message = String::from_utf8_lossy(&done.stderr);
    let fault = match run["sha256"].as_str() {
        Some(_) if !done.status.success() => message.to_string(),
        Some(expected) if sha256(&out) != expected => "another file".to_owned(),
        None if done.status.success() => "not refused".to_owned(),
        None if !message.starts_with("error: ") || message.lines().count() != 1 => message.to_string(),
        None if out.exists() || std::fs::read_dir(folder).unwrap().count() > 5 => {
            "files left behind".to_owned()
        }
        _ => return Ok(()),
    };
    Err(format!("{} from {} {args:?}: {fault}", run["model"], run["from"]))
}

fn assert_none(faults: &[String]) {
    assert!(faults.is_empty(), "{} runs differ:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn files_are_those_of_llama_quantize() {
    let mut faults = Vec::new();
    for model in ["plain", "odd", "odder", "experts"] {
        let (folder, runs) = golden_runs(model);
        faults.extend(runs.iter().filter_map(|run| check_run(folder.path(), run, &[], "2").err()));
    }
    assert_none(&faults);
}

#[test]
fn neither_threads_nor_buffers_change_a_byte() {
    let (folder, runs) = golden_runs("plain");
    let plain = runs.iter().filter(|run| run["args"].as_array().unwrap().len() == 1).step_by(3);
    let mut faults = Vec::new();
    for run in plain {
        faults.extend(check_run(folder.path(), run, &["--max-buffer-size", "1"], "1").err());
        faults.extend(check_run(folder.path(), run, &[], "7").err());
    }
    assert_none(&faults);
}
