//! `phi imatrix` on models/phi-tiny beside llama-imatrix's figures (scripts/perplexity_goldens.py).

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use phi::imatrix::Statistics;
use serde_json::Value as Json;

use common::{names, phi};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn model() -> PathBuf {
    Path::new(ROOT).join("models/phi-tiny")
}

/// `phi imatrix` on phi-tiny and the text, to `output`.
fn measure(output: &Path) -> Command {
    let mut command = phi();
    command.args(["imatrix", "-m"]).arg(model()).arg("-f").arg(Path::new(ROOT).join("tests/data/text.txt"));
    command.arg("-o").arg(output);
    command
}

/// Runs it and returns what it said on stderr.
#[track_caller]
fn done(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && output.stdout.is_empty(), "{text}");
    text
}

#[track_caller]
fn refused(command: &mut Command, code: i32, message: &str) {
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(code) && text.contains(message), "{text}");
}

#[test]
fn sums_and_counts_are_llama_imatrixs() {
    let golden: Json = serde_json::from_str(include_str!("golden/perplexity.json")).unwrap();
    let golden = golden["imatrix"].as_object().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("imatrix.gguf");
    let said = done(measure(&output).args(["--chunks", "4", "--process-output"]));
    assert!(said.contains("[4]27.4") && said.contains("Final estimate: PPL = 27.4"), "{said}");
    let found = Statistics::open(&output).unwrap();
    assert_eq!((found.chunks, found.chunk_size, found.datasets.len()), (4, 512, 1));
    let names: Vec<&String> = found.entries.keys().collect();
    let mut expected: Vec<&String> = golden.keys().collect();
    expected.sort();
    assert_eq!(names, expected);
    for (name, entry) in &found.entries {
        let of = |key: &str| golden[name][key].as_f64().unwrap();
        assert_eq!(entry.counts, [of("count") as i64], "{name}");
        for (found, expected) in [(entry.sums.iter().sum(), of("sum")), (entry.sums[0], of("first"))] {
            let found: f64 = found;
            assert!((found / expected - 1.0).abs() < 1e-3, "{name}: {found} instead of {expected}");
        }
    }
}

#[test]
fn parts_resumed_or_added_up_are_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    done(measure(&path("whole.gguf")).args(["--chunks", "4", "--no-ppl"]));
    done(measure(&path("part.gguf")).args(["--chunks", "2", "--no-ppl"]));
    done(measure(&path("rest.gguf")).args(["--chunks", "2", "--chunk", "2", "--no-ppl", "-b", "64"]));
    let whole = Statistics::open(&path("whole.gguf")).unwrap();
    let same = |other: &Path| {
        let other = Statistics::open(other).unwrap();
        assert_eq!(other.chunks, whole.chunks);
        for (name, entry) in &whole.entries {
            let other = &other.entries[name];
            let near = |(a, b): (f64, f64)| (a / b - 1.0).abs() < 1e-6;
            assert!(other.seen_means().zip(entry.seen_means()).all(near), "{name}");
        }
    };
    let mut add = phi();
    add.arg("imatrix").arg("--in-file").arg(path("part.gguf")).arg("--in-file").arg(path("rest.gguf"));
    done(add.arg("-o").arg(path("sum.dat")).args(["--output-format", "dat"]));
    same(&path("sum.dat"));
    let said = done(measure(&path("part.gguf")).args(["--chunks", "4", "--no-ppl", "--resume"]));
    assert!(said.contains("measuring 2 chunks"), "{said}");
    same(&path("part.gguf"));
    let said = done(measure(&path("part.gguf")).args(["--chunks", "4", "--no-ppl", "--resume"]));
    assert!(said.contains("all 4 chunks were measured already"), "{said}");
    let mut other = measure(&path("part.gguf"));
    refused(other.args(["-c", "256", "--resume"]), 1, "cannot be resumed with 256");
}

#[test]
fn it_is_saved_on_the_way_and_serves_to_quantize() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("i.gguf");
    done(measure(&output).args([
        "--chunks",
        "3",
        "--save-frequency",
        "2",
        "-ofreq",
        "1",
        "--no-ppl",
        "-t",
        "1",
    ]));
    assert_eq!(names(folder.path()), ["i.gguf", "i.gguf.at_2"]);
    let quantized = folder.path().join("q.gguf");
    let mut quantize = phi();
    quantize.arg("quantize").arg("--imatrix").arg(&output).arg(model()).arg(&quantized).arg("IQ2_XS");
    assert!(quantize.output().unwrap().status.success());
    let mut show = phi();
    let shown = show.args(["imatrix", "--show-statistics", "--in-file"]).arg(&output).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert_eq!(shown.lines().filter(|line| line.contains("attn_qkv")).count(), 4, "{shown}");
}

#[test]
fn what_is_wrong_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    refused(phi().args(["imatrix", "-o"]).arg(path("o")), 2, "-m MODEL is missing");
    refused(phi().args(["imatrix", "-m", "x", "-o"]).arg(path("o")), 2, "-f TEXT is missing");
    refused(measure(&path("o")).args(["--chunk", "99"]), 2, "there is nothing to measure");
    std::fs::write(path("junk"), "no imatrix").unwrap();
    refused(measure(&path("o")).arg("--in-file").arg(path("junk")), 1, "junk: neither a GGUF file nor");
    let mut other = Statistics { chunk_size: 512, ..Statistics::default() };
    other.add_rows("blk.0.attn_qkv.weight", (1, 0), 3, &[1.0; 6]).unwrap();
    other.save(&path("other.gguf"), phi::imatrix::Format::Gguf).unwrap();
    refused(measure(&path("o")).arg("--in-file").arg(path("other.gguf")), 2, "made from another model");
    assert!(!path("o").exists());
}
