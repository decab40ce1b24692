//! `phi perplexity` on models/phi-tiny beside llama-perplexity's figures (scripts/perplexity_goldens.py).

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value as Json;

use common::phi;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn golden() -> Json {
    serde_json::from_str(include_str!("golden/perplexity.json")).unwrap()
}

fn text() -> PathBuf {
    Path::new(ROOT).join("tests/data/text.txt")
}

/// `phi perplexity` on phi-tiny as `kind`.
fn command(kind: &str) -> Command {
    let mut command = phi();
    command.args(["perplexity", "--quantize", kind, "-m"]).arg(Path::new(ROOT).join("models/phi-tiny"));
    command
}

fn json(command: &mut Command) -> Json {
    let output = command.arg("--json").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn error(command: &mut Command, code: i32) -> String {
    let Output { status, stderr, .. } = command.output().unwrap();
    let text = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(code), "{text}");
    text
}

#[track_caller]
fn assert_near(found: &Json, expected: &Json, tolerance: f64) {
    let (found, expected) = (found.as_f64().unwrap(), expected.as_f64().unwrap());
    let difference = (found - expected).abs() / expected.abs();
    assert!(difference < tolerance, "{found} instead of {expected}");
}

#[test]
fn perplexity_is_llama_cpps() {
    let golden = golden();
    let found = json(command("F16").arg("-f").arg(text()));
    assert_near(&found["perplexity"], &golden["f16"][0], 1e-3);
    assert_near(&found["perplexity_error"], &golden["f16"][1], 1e-3);
    assert_eq!(found["chunks"].as_u64(), Some(14));
    let found = json(command("F16").arg("-f").arg(text()).args(["--ppl-stride", "512"]));
    assert_near(&found["perplexity"], &golden["f16_stride_512"], 1e-3);
}

#[test]
fn the_same_whatever_the_batch_and_the_threads() {
    let of = |arguments: &[&str]| {
        json(command("Q4_K_M").arg("-f").arg(text()).args(["-c", "100", "--chunks", "9"]).args(arguments))
    };
    let expected = of(&["-t", "1", "-b", "100"]);
    assert_eq!(of(&["-t", "3", "-b", "2048"]), expected);
    assert_eq!(of(&["-t", "2", "-ub", "64"]), expected);
}

#[test]
fn divergence_is_llama_cpps() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base");
    json(command("F16").arg("-f").arg(text()).arg("--kl-divergence-base").arg(&base));
    let compare =
        |kind: &str| json(command(kind).arg("--kl-divergence").arg("--kl-divergence-base").arg(&base));
    let (found, golden) = (compare("Q4_K_M"), &golden()["q4_k_m"]);
    assert_near(&found["perplexity"]["value"], &golden["Mean PPL(Q)"][0], 2e-3);
    assert_near(&found["ln_perplexity_ratio"]["value"], &golden["Mean ln(PPL(Q)/PPL(base))"][0], 1e-2);
    assert_near(&found["ln_perplexity_ratio"]["error"], &golden["Mean ln(PPL(Q)/PPL(base))"][1], 2e-2);
    assert_near(&found["kl_divergence"]["value"], &golden["Mean    KLD"][0], 3e-2);
    assert_near(&found["kl_divergence"]["error"], &golden["Mean    KLD"][1], 5e-2);
    assert_near(&found["kl_divergence_percentiles"]["p90"], &golden["90.0%   KLD"][0], 5e-2);
    assert_near(
        &(found["delta_p_rms"]["value"].as_f64().unwrap() * 100.0).into(),
        &golden["RMS Δp"][0],
        3e-2,
    );
    assert_near(
        &(found["same_top_p"]["value"].as_f64().unwrap() * 100.0).into(),
        &golden["Same top p"][0],
        1e-2,
    );
    let itself = compare("F16");
    assert!(itself["kl_divergence"]["value"].as_f64().unwrap().abs() < 1e-6);
    assert_eq!(itself["same_top_p"]["value"].as_f64(), Some(1.0));
}

#[test]
fn tasks_are_answered_with_what_the_model_has_learned() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let endings = "eight green cats sang\nthe type of the boat\nat almost twice the speed\n1 2 3 4 5 6\n";
    let hellaswag =
        write("hellaswag.txt", &format!("A file of half the size generates text\n2\n{endings}").repeat(3));
    let found = json(command("F16").arg("--hellaswag").arg("-f").arg(hellaswag));
    assert_eq!((found["tasks"].as_u64(), found["accuracy"].as_f64()), (Some(3), Some(1.0)));
    let sentence = "0,\"The letter at the end says how generous the mixture is: _ is small, M is medium and L is large.\",S,Q,1\n";
    let found = json(command("F16").arg("--winogrande").arg("-f").arg(write("wg.csv", &sentence.repeat(2))));
    assert_eq!((found["tasks"].as_u64(), found["right"].as_u64()), (Some(2), Some(2)));
    let broken = write("broken", "one\ntwo\n");
    let message = error(command("F16").arg("--hellaswag").arg("-f").arg(&broken), 1);
    assert!(message.contains("broken") && message.contains("2 lines"), "{message}");
    let message = error(command("F16").arg("--multiple-choice").arg("-f").arg(&broken), 1);
    assert!(message.contains("ends within"), "{message}");
}

#[test]
fn what_is_wrong_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let short = folder.path().join("short.txt");
    std::fs::write(&short, "a few words\n").unwrap();
    assert!(error(command("F16").arg("-f").arg(&short), 2).contains("nothing to score"));
    assert!(error(&mut command("F16"), 2).contains("-f FILE is missing"));
    assert!(
        error(command("F16").args(["--ppl-stride", "600", "-f"]).arg(text()), 2).contains("--ppl-stride 600")
    );
    let message = error(command("F16").arg("--kl-divergence").arg("--kl-divergence-base").arg(&short), 1);
    assert!(message.contains("short.txt: not a file of log probabilities"), "{message}");
}
