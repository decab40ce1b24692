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

/// A folder with the model called "plain".
fn plain_model() -> tempfile::TempDir {
    golden_runs("plain").0
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Runs with `args`, expects a refusal that mentions `reason`, and no file but those of before.
fn assert_refused(folder: &Path, args: &[&str], reason: &str) {
    let before = names(folder);
    let done = quantize(folder, args);
    let message = String::from_utf8_lossy(&done.stderr);
    assert!(matches!(done.status.code(), Some(1 | 2)), "{args:?}: {:?} {message}", done.status);
    assert!(message.contains(reason), "{args:?}: {message}");
    let errors = message.lines().filter(|line| line.starts_with("error: ")).count();
    assert_eq!(errors, 1, "{args:?}: {message}");
    assert_eq!(names(folder), before, "{args:?}");
}

#[test]
fn what_makes_no_sense_is_refused_and_leaves_nothing() {
    let folder = plain_model();
    let at = folder.path();
    let refused = |args: &[&str], reason: &str| assert_refused(at, args, reason);
    refused(&["model.gguf", "out.gguf", "Q9_K"], "Q9_K");
    refused(&["model.gguf", "./model.gguf", "Q8_0"], "input");
    refused(&["model.gguf", "out.gguf", "IQ2_XXS"], "importance matrix");
    refused(
        &["--imatrix", "imatrix.gguf", "--include-weights", "ffn", "model.gguf", "out.gguf", "IQ2_XXS"],
        "attn",
    );
    refused(&["--imatrix", "model.gguf", "model.gguf", "out.gguf", "Q4_K"], "imatrix.datasets");
    refused(&["--imatrix", "absent.gguf", "model.gguf", "out.gguf", "Q4_K"], "absent.gguf");
    refused(&["absent.gguf", "out.gguf", "Q4_K"], "absent.gguf");
    refused(&["model.gguf", "absent/out.gguf", "Q4_K"], "absent");
    refused(&["--prune-layers", "7", "model.gguf", "out.gguf", "Q4_K"], "no layer 7");
    refused(&["--report", "report.txt", "model.gguf", "out.gguf", "Q4_K"], "report.txt");
    refused(&["--target-size", "1000", "model.gguf", "out.gguf"], "smallest possible");
    refused(&["--output-tensor-type", "q8_1", "model.gguf", "out.gguf", "Q4_K"], "q8_1");
    refused(&["--tensor-type", "ffn_down=q9", "model.gguf", "out.gguf", "Q4_K"], "q9");

    assert!(quantize(at, &["model.gguf", "q8.gguf", "Q8_0"]).status.success());
    refused(&["q8.gguf", "out.gguf", "Q4_K"], "--allow-requantize");
    std::fs::write(at.join("short.gguf"), &std::fs::read(at.join("q8.gguf")).unwrap()[..9000]).unwrap();
    refused(&["short.gguf", "out.gguf", "Q4_K"], "short.gguf");
}

#[test]
fn values_that_are_no_numbers_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let golden: Json = serde_json::from_str(include_str!("data/quantize.json")).unwrap();
    let metadata = metadata_of(&golden["models"][0]);
    let mut values = weights(1, &[256, 40]);
    values[256 * 17 + 3] = f32::NAN;
    write_f32(
        &at.join("nan.gguf"),
        &metadata,
        &[("token_embd.weight".into(), vec![256, 40], values.clone())],
    );
    assert_refused(
        at,
        &["nan.gguf", "out.gguf", "Q4_K"],
        "token_embd.weight has a value that is NaN or infinite, in row 17",
    );
    assert_refused(at, &["nan.gguf", "out.gguf", "COPY"], "row 17");
    values[256 * 17 + 3] = 1e9;
    write_f32(&at.join("huge.gguf"), &metadata, &[("token_embd.weight".into(), vec![256, 40], values)]);
    assert_refused(at, &["huge.gguf", "out.gguf", "F16"], "too large for F16, in row 17");
}

#[test]
fn an_imatrix_of_another_model_is_refused() {
    let (folder, other) = (plain_model(), golden_runs("odd").0);
    std::fs::copy(other.path().join("imatrix.gguf"), folder.path().join("other.gguf")).unwrap();
    let args = ["--imatrix", "other.gguf", "model.gguf", "out.gguf", "Q4_K"];
    assert_refused(folder.path(), &args, "another model");
}

#[test]
fn a_dry_run_writes_nothing_and_adds_up() {
    let folder = plain_model();
    let done = quantize(folder.path(), &["--dry-run", "model.gguf", "IQ2_XXS"]);
    let text = String::from_utf8(done.stdout).unwrap();
    assert!(done.status.success() && text.contains("IQ2_XXS") && text.contains("in all"), "{text}");
    assert!(String::from_utf8_lossy(&done.stderr).contains("needs an importance matrix"));
    assert_eq!(names(folder.path()), ["imatrix.gguf", "model.gguf"]);
}

#[test]
fn reports_tell_types_and_errors_by_tensor() {
    let folder = plain_model();
    let at = folder.path();
    let plain = ["--report", "a.json", "model.gguf", "a.gguf", "Q4_K_M"];
    let weighted = ["--imatrix", "imatrix.gguf", "--report", "b.html", "model.gguf", "b.gguf", "Q4_K_M"];
    for args in [&plain[..], &weighted[..]] {
        assert!(quantize(at, args).status.success(), "{args:?}");
    }
    let report: Json = serde_json::from_slice(&std::fs::read(at.join("a.json")).unwrap()).unwrap();
    let tensor = |name: &str| {
        report["tensors"].as_array().unwrap().iter().find(|t| t["name"] == name).unwrap().clone()
    };
    let up = tensor("blk.1.ffn_up.weight");
    assert_eq!((up["type"].as_str(), up["bits"].as_f64()), (Some("Q4_K"), Some(4.5)));
    assert!((0.02..0.12).contains(&up["error"].as_f64().unwrap()), "{up}");
    assert!(up["weighted_error"].is_null());
    assert!(tensor("output.weight")["error"].as_f64().unwrap() < up["error"].as_f64().unwrap());
    assert!(tensor("output_norm.weight")["error"].is_null());
    let page = std::fs::read_to_string(at.join("b.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("blk.2.ffn_down.weight") && page.contains("weighted"));
    assert!(!page.contains("src=") && !page.contains("href="), "needs nothing but itself");
}

/// The error of a whole model: the sum of its tensors' squared relative errors.
fn noise(report: &Path) -> f64 {
    let report: Json = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    report["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|t| t["error"].as_f64())
        .map(|error| error * error)
        .sum()
}

#[test]
fn a_size_is_kept_to_and_used_better_than_by_a_recipe() {
    let folder = plain_model();
    let at = folder.path();
    for recipe in ["Q3_K_M", "Q4_K_M", "Q5_K_M"] {
        assert!(quantize(at, &["--report", "r.json", "model.gguf", "r.gguf", recipe]).status.success());
        let size = std::fs::metadata(at.join("r.gguf")).unwrap().len();
        let args = ["--report", "t.json", "--target-size", &size.to_string(), "model.gguf", "t.gguf"];
        assert!(quantize(at, &args).status.success(), "{recipe}");
        let targeted = std::fs::metadata(at.join("t.gguf")).unwrap().len();
        assert!(targeted <= size && targeted > size * 9 / 10, "{recipe}: {targeted} of {size}");
        assert!(noise(&at.join("t.json")) < noise(&at.join("r.json")), "{recipe}");
    }
    assert!(quantize(at, &["--target-bpw", "4.5", "model.gguf", "t.gguf"]).status.success());
}

#[test]
fn split_models_merge_to_the_file_they_came_from() {
    let folder = plain_model();
    let at = folder.path();
    let phi = |args: &[&str]| Command::cargo_bin("phi").unwrap().current_dir(at).args(args).output().unwrap();
    for (limit, value) in [("--split-max-tensors", "4"), ("--split-max-size", "20k")] {
        let split = phi(&["split", limit, value, "model.gguf", "part"]);
        assert!(split.status.success(), "{}", String::from_utf8_lossy(&split.stderr));
        let parts: Vec<_> = names(at).into_iter().filter(|name| name.starts_with("part-")).collect();
        assert!(parts.len() > 2 && parts[0].starts_with("part-00001-of-000"), "{parts:?}");
        assert!(phi(&["merge", &parts[1], "merged.gguf"]).status.success());
        assert_eq!(sha256(&at.join("merged.gguf")), sha256(&at.join("model.gguf")));

        assert!(quantize(at, &[&parts[0], "whole.gguf", "Q4_K"]).status.success());
        assert!(quantize(at, &["model.gguf", "direct.gguf", "Q4_K"]).status.success());
        assert_eq!(sha256(&at.join("whole.gguf")), sha256(&at.join("direct.gguf")));
        assert!(quantize(at, &["--keep-split", &parts[0], "kept.gguf", "Q4_K"]).status.success());
        assert!(phi(&["merge", &parts[0].replace("part", "kept"), "merged.gguf"]).status.success());
        parts.iter().for_each(|part| std::fs::remove_file(at.join(part)).unwrap());
    }
}

/// A file of about 16 MB, which takes long enough to be interrupted.
#[cfg(unix)]
fn large_model(folder: &Path) {
    let golden: Json = serde_json::from_str(include_str!("data/quantize.json")).unwrap();
    let shape = vec![512, 2048];
    let tensor = |n| (format!("blk.{n}.ffn_up.weight"), shape.clone(), weights(n, &shape));
    let tensors: Vec<_> = (0..4).map(tensor).collect();
    write_f32(&folder.join("model.gguf"), &metadata_of(&golden["models"][0]), &tensors);
}

#[cfg(unix)]
#[test]
fn a_disk_that_refuses_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    large_model(folder.path());
    let phi = assert_cmd::cargo::cargo_bin("phi");
    // Files may take 1 MB, in blocks of 512 bytes; the signal is ignored so that the write fails instead.
    let script = "trap '' XFSZ; ulimit -f 2048; exec \"$0\" quantize model.gguf out.gguf Q8_0";
    let done = std::process::Command::new("sh")
        .args(["-c", script])
        .arg(phi)
        .current_dir(folder.path())
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(1), "{message}");
    assert!(message.contains("out.gguf"), "{message}");
    assert_eq!(names(folder.path()), ["model.gguf"]);
}

#[cfg(unix)]
#[test]
#[ignore = "takes a minute: kills the program fifty times"]
fn a_killed_run_leaves_a_whole_file_or_none() {
    use std::process::{Command, Stdio};
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    large_model(at);
    assert!(quantize(at, &["model.gguf", "whole.gguf", "Q6_K"]).status.success());
    let whole = sha256(&at.join("whole.gguf"));
    let start = std::time::Instant::now();
    assert!(quantize(at, &["model.gguf", "out.gguf", "Q6_K"]).status.success());
    let usual = start.elapsed();
    let mut finished = 0;
    for run in 0..50_u64 {
        let _ = std::fs::remove_file(at.join("out.gguf"));
        let mut child = Command::new(assert_cmd::cargo::cargo_bin("phi"))
            .args(["quantize", "model.gguf", "out.gguf", "Q6_K"])
            .current_dir(at)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(usual.mul_f64((random_bits(9, run) % 1000) as f64 / 900.0));
        let signal = [libc::SIGKILL, libc::SIGINT, libc::SIGTERM][run as usize % 3];
        // SAFETY: takes the number of a child that has not been waited for, and a signal's.
        unsafe { libc::kill(child.id() as libc::pid_t, signal) };
        child.wait().unwrap();
        match names(at).as_slice() {
            [_, out, _] if out == "out.gguf" => {
                assert_eq!(sha256(&at.join("out.gguf")), whole, "run {run}");
                finished += 1;
            }
            left => assert_eq!(left, ["model.gguf", "whole.gguf"], "run {run}"),
        }
    }
    assert!((1..50).contains(&finished), "{finished} of 50 runs were not hit");
}
