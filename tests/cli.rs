//! The binary as a user meets it: exit codes, messages, what goes to stdout.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use assert_cmd::cargo::cargo_bin;
use tempfile::TempDir;

const QUESTION: &str = "Can you introduce .NET";
const CONTROLLED: &str = r"<|user|>\nCan you introduce .NET<|end|>\n<|assistant|>\n";
/// What phi-tiny was trained to say; models/phi-tiny-training/questions.txt has it all.
const ANSWER: &str = ".NET is a free, open-source platform from Microsoft for building web, desktop, mobile and cloud applications. Programs are written in languages such as C#, F# and Visual Basic, and run on Windows, Linux and macOS.";

fn phi(arguments: &[&str]) -> Command {
    let mut command = Command::new(cargo_bin("phi"));
    // What a GPU of the machine gives may differ in the last bits: tests/gpu.rs is for that.
    command.args(arguments).stdin(Stdio::null()).env("PHI_DEVICE", "none");
    command
}

/// On one thread: tests run side by side, and threads that wait for each other need a core each.
const RUN: &[&str] = &["run", "--temp", "0", "-t", "1"];

/// `phi run` at temperature 0.
fn run(arguments: &[&str]) -> Output {
    phi(RUN).args(arguments).output().unwrap()
}

fn run_with_stdin(arguments: &[&str], stdin: &str) -> Output {
    let mut command = phi(RUN);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[track_caller]
fn stdout(output: &Output) -> &str {
    let error = std::str::from_utf8(&output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{error}");
    std::str::from_utf8(&output.stdout).unwrap()
}

/// The error of a command that must fail with `code`, say so in a line, and print nothing else.
#[track_caller]
fn error(output: &Output, code: i32) -> String {
    let log = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{log}");
    assert_eq!(output.stdout, b"", "a failure prints no result");
    let error =
        log.lines().find(|line| line.starts_with("error: ")).unwrap_or_else(|| panic!("no error: {log}"));
    assert!(code == 2 || log.ends_with(&format!("{error}\n")), "an error is the last line: {log}");
    error.to_owned()
}

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models")
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn help_goes_to_stdout_and_wrong_usage_to_stderr() {
    assert!(stdout(&phi(&["--help"]).output().unwrap()).contains("phi help COMMAND"));
    assert!(stdout(&phi(&["--version"]).output().unwrap()).starts_with("phi "));
    for command in ["convert", "quantize", "run", "tokenize", "inspect", "bench", "logits"] {
        let output = phi(&["help", command]).output().unwrap();
        assert!(stdout(&output).contains(&format!("Usage: phi {command}")));
    }
    for wrong in [&["no-such-command"][..], &["run", "--no-such-flag"], &["run", "-n"], &["run", "-l", "x"]] {
        error(&phi(wrong).output().unwrap(), 2);
    }
    assert_eq!(phi(&[]).output().unwrap().status.code(), Some(2));
}

#[test]
fn a_missing_prompt_is_wrong_usage_and_waits_for_nobody() {
    for arguments in [&[][..], &["-st"], &["-no-cnv"], &["-p", ""], &["-m", "/no/such/file"]] {
        let message = error(&run(arguments), 2);
        assert!(message.contains("no prompt"), "{message}");
    }
}

#[test]
fn models_that_cannot_be_read_are_named() {
    let folder = TempDir::new().unwrap();
    let missing = folder.path().join("missing.gguf");
    let message = error(&run(&["-m", path(&missing), "-p", "x"]), 1);
    assert!(message.contains("missing.gguf"), "{message}");

    let garbage = folder.path().join("garbage.gguf");
    std::fs::write(&garbage, "no model at all").unwrap();
    let message = error(&run(&["-m", path(&garbage), "-p", "x"]), 1);
    assert!(message.contains("garbage.gguf"), "{message}");

    let message = error(&run(&["-m", path(folder.path()), "-p", "x"]), 1);
    assert!(message.contains("config.json"), "{message}");

    let message = error(&run(&["-f", path(&missing)]), 1);
    assert!(message.contains("cannot read") && message.contains("missing.gguf"), "{message}");
}

#[test]
fn the_model_in_the_box_answers_and_says_who_it_is() {
    let output = run(&["-p", QUESTION]);
    assert_eq!(stdout(&output), ANSWER);
    let log = String::from_utf8(output.stderr.clone()).unwrap();
    for word in ["phi-tiny", "load", "prompt", "generate", "tokens/s", "GB/s"] {
        assert!(log.contains(word), "{word} is missing in {log}");
    }
    assert!(!String::from_utf8(run(&["-p", QUESTION, "--no-perf"]).stderr).unwrap().contains("tokens/s"));
}

#[test]
fn prompts_come_from_everywhere() {
    assert_eq!(stdout(&run(&["--prompt", CONTROLLED])), ANSWER);
    assert_eq!(stdout(&run(&["-p", CONTROLLED, "-st", "-ngl", "10"])), ANSWER);
    assert_eq!(stdout(&run_with_stdin(&[], QUESTION)), ANSWER);
    assert_eq!(stdout(&run_with_stdin(&["-e"], CONTROLLED)), ANSWER);
    assert_eq!(stdout(&run_with_stdin(&[], &CONTROLLED.replace(r"\n", "\n"))), ANSWER);

    let folder = TempDir::new().unwrap();
    let file = folder.path().join("prompt.txt");
    std::fs::write(&file, format!("{QUESTION}\n")).unwrap();
    assert_eq!(stdout(&run(&["-f", path(&file)])), ANSWER);
}

#[test]
fn stops() {
    assert_eq!(stdout(&run(&["-p", QUESTION, "-n", "0"])), "");
    let short = run(&["-p", QUESTION, "-n", "5"]);
    let short = stdout(&short);
    assert!(ANSWER.starts_with(short) && short.len() < 40 && !short.is_empty(), "{short:?}");
    assert_eq!(stdout(&run(&["-p", QUESTION, "-r", ", open"])), ".NET is a free");
    assert_eq!(stdout(&run(&["-p", QUESTION, "-r", "nowhere", "-r", " is"])), ".NET");

    let more = run(&["-p", QUESTION, "--ignore-eos", "-n", "100"]);
    assert!(stdout(&more).len() > ANSWER.len());

    let full = run(&["-p", QUESTION, "-c", "24"]);
    assert!(ANSWER.starts_with(stdout(&full)));
    assert!(String::from_utf8(full.stderr).unwrap().contains("context of 24 tokens is full"));
    assert!(error(&run(&["-p", QUESTION, "-c", "3"]), 2).contains("context holds 3"));
}

#[test]
fn sampling_is_reproducible() {
    let hot = ["-p", "xyzzy", "-n", "20", "--temp", "2", "--top-k", "0", "--top-p", "1", "--min-p", "0"];
    let say = |seed: &str| stdout(&run(&[&hot[..], &["-s", seed]].concat())).to_owned();
    assert_eq!(say("7"), say("7"));
    let others: std::collections::BTreeSet<_> = ["1", "2", "3", "4"].iter().map(|seed| say(seed)).collect();
    assert!(others.len() > 1, "{others:?}");
}

#[test]
fn a_conversation_from_a_pipe_answers_line_by_line() {
    let output = run_with_stdin(&["-cnv"], &format!("Hello\n\n{QUESTION}\n/regen\n/clear\n/exit\nHello\n"));
    let hello = "Hello! I am phi-tiny. Ask me something about Phi, GGUF, quantization or .NET.";
    let lines: Vec<_> = stdout(&output).lines().collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert_eq!(lines[0], hello);
    assert_eq!(lines[1], lines[2], "the same answer again at temperature 0");

    let output = run_with_stdin(&["-cnv", "-p", QUESTION], "this is not read\n");
    assert_eq!(stdout(&output).trim_end(), ANSWER);
}

#[test]
fn the_whole_road() {
    let folder = TempDir::new().unwrap();
    let source = models().join("phi-tiny");
    let f16 = folder.path().join("f16.gguf");
    let output =
        phi(&["convert", path(&source), "--outtype", "f16", "--outfile", path(&f16)]).output().unwrap();
    stdout(&output);
    assert_eq!(stdout(&run(&["-m", path(&f16), "-p", QUESTION])), ANSWER);
    for kind in ["Q8_0", "Q4_K_M"] {
        let small = folder.path().join(kind);
        stdout(&phi(&["quantize", path(&f16), path(&small), kind]).output().unwrap());
        assert_eq!(stdout(&run(&["-m", path(&small), "--prompt", CONTROLLED])), ANSWER, "{kind}");
        assert_eq!(
            stdout(&run(&["-m", path(&source), "--quantize", kind, "-p", QUESTION])),
            ANSWER,
            "{kind} in memory"
        );
    }
    error(&run(&["-m", path(&source), "--quantize", "Q9", "-p", QUESTION]), 2);
}

#[test]
fn logits_are_json() {
    let ids =
        stdout(&phi(&["logits", "-p", QUESTION, "--json", "--last", "2", "--top", "3"]).output().unwrap())
            .to_owned();
    let report: serde_json::Value = serde_json::from_str(&ids).unwrap();
    let count = report["ids"].as_array().unwrap().len() as u64;
    let positions = report["positions"].as_array().unwrap();
    assert_eq!(positions.len(), 2);
    assert_eq!(positions[1]["position"].as_u64(), Some(count - 1));
    for position in positions {
        assert!(position["l2"].is_f64() && position["mean"].is_f64());
        let top = position["top"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        assert!(
            top[0]["id"].is_u64()
                && top[0]["piece"].is_string()
                && top[0]["logprob"].as_f64().unwrap() <= 0.0
        );
        assert!(top[0]["logit"].as_f64() >= top[1]["logit"].as_f64());
    }
    let spelled: Vec<_> = report["ids"].as_array().unwrap().iter().map(ToString::to_string).collect();
    let again = phi(&["logits", "--ids", &spelled.join(","), "--json", "--last", "2", "--top", "3"])
        .output()
        .unwrap();
    assert_eq!(stdout(&again), ids);

    assert!(stdout(&phi(&["logits", "--ids", "5,6"]).output().unwrap()).starts_with("position 1: l2 "));
    for wrong in
        [&["logits"][..], &["logits", "--ids", "x"], &["logits", "--ids", "99999"], &["logits", "-p", ""]]
    {
        error(&phi(wrong).output().unwrap(), 2);
    }
}

#[cfg(unix)]
mod signals {
    use std::io::Read;

    use super::*;

    /// An answer that would never end, its first bytes already there.
    fn endless() -> std::process::Child {
        let mut command = phi(RUN);
        command.args(["-p", QUESTION, "--ignore-eos", "--no-perf"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 4]).unwrap();
        child
    }

    #[test]
    fn a_signal_stops_the_answer() {
        for signal in [libc::SIGINT, libc::SIGTERM] {
            let child = endless();
            // SAFETY: the child has not been waited for, so its id is its own.
            unsafe { libc::kill(child.id() as libc::pid_t, signal) };
            let output = child.wait_with_output().unwrap();
            assert_eq!(output.status.code(), Some(1));
            let log = String::from_utf8(output.stderr).unwrap();
            assert!(log.ends_with("error: interrupted\n"), "{log}");
        }
    }

    #[test]
    fn a_reader_that_goes_away_is_no_error() {
        let mut child = endless();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let log = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{log}");
        assert!(!log.contains("panic") && !log.contains("error"), "{log}");
    }
}

/// Guessed tokens change the time that an answer takes and nothing else, on both sides of the LongRoPE limit.
#[test]
fn guesses_change_no_answer() {
    let folder = TempDir::new().unwrap();
    let text =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/text.txt")).unwrap();
    // Some 200 tokens, said twice in part, so that there is something to look up.
    let file = folder.path().join("prompt.txt");
    std::fs::write(&file, format!("{0} {0}", &text[..text.floor_char_boundary(250)])).unwrap();
    let phi_tiny = models().join("phi-tiny");
    let lookup = ["--lookup", "--lookup-ngram-min", "1", "--draft-max", "6"];
    let draft = ["-md", path(&phi_tiny), "--draft-p-min", "0.1", "--draft", "5"];
    let mut guessed = 0;
    for temperature in ["0", "0.7"] {
        let same =
            ["-f", path(&file), "-no-cnv", "--temp", temperature, "-s", "7", "-n", "120", "--ignore-eos"];
        let plain = run(&same);
        for flags in [&lookup[..], &draft] {
            let output = run(&[&same[..], flags].concat());
            assert_eq!(stdout(&output), stdout(&plain), "{flags:?}");
            guessed += usize::from(String::from_utf8_lossy(&output.stderr).contains("guessed"));
        }
    }
    assert!(guessed > 0, "nothing was ever guessed, so nothing was tested");
    let message = error(&run(&["-p", "x", "--lookup", "--lookup-ngram-max", "99"]), 2);
    assert!(message.contains("n-grams of 1 to 99"), "{message}");
}

#[test]
fn a_prompt_cache_is_used_kept_and_never_believed_blindly() {
    let folder = TempDir::new().unwrap();
    let cache = folder.path().join("cache");
    let ask =
        |flags: &[&str]| run(&[&["-p", QUESTION, "-v", "--prompt-cache", path(&cache)], flags].concat());
    let log = |output: &Output| String::from_utf8(output.stderr.clone()).unwrap();

    assert_eq!(stdout(&ask(&["--prompt-cache-ro"])), ANSWER);
    assert!(!cache.exists(), "a read-only cache is not made");
    assert_eq!(stdout(&ask(&[])), ANSWER);
    let first = std::fs::read(&cache).unwrap();
    let again = ask(&[]);
    assert_eq!(stdout(&again), ANSWER);
    assert!(log(&again).contains("tokens come from"), "{}", log(&again));
    assert_eq!(std::fs::read(&cache).unwrap(), first, "there was nothing new to write");
    assert_eq!(stdout(&ask(&["--prompt-cache-all"])), ANSWER);
    assert!(std::fs::read(&cache).unwrap().len() > first.len(), "the answer is kept too");

    let mut damaged = first.clone();
    damaged[first.len() / 2] ^= 1;
    std::fs::write(&cache, damaged).unwrap();
    let output = ask(&["--prompt-cache-ro"]);
    assert_eq!(stdout(&output), ANSWER);
    assert!(log(&output).contains("it is damaged"), "{}", log(&output));
    assert_eq!(stdout(&ask(&[])), ANSWER);
    assert_eq!(std::fs::read(&cache).unwrap(), first, "a damaged cache is written anew");

    std::fs::write(&cache, "my notes").unwrap();
    let message = error(&ask(&[]), 1);
    assert!(message.contains("no prompt cache"), "{message}");
    assert_eq!(std::fs::read(&cache).unwrap(), b"my notes");
}

#[test]
fn a_bench_reports_each_test_beside_the_limits() {
    let bench = |flags: &[&str]| {
        let quick = ["bench", "--shape", "tiny", "-r", "2", "-t", "1"];
        phi(&[&quick[..], flags].concat()).output().unwrap()
    };
    let flags = ["--type", "Q4_K_M,Q8_0", "-p", "8,16", "-n", "4", "-np", "1,3", "-d", "0,5", "-o", "json"];
    let rows: Vec<serde_json::Value> = serde_json::from_str(stdout(&bench(&flags))).unwrap();
    assert_eq!(rows.len(), 2 * (2 * 2 + 2 * 2));
    for row in &rows {
        assert_eq!(row["samples_ns"].as_array().unwrap().len(), 2);
        for rate in ["avg_ts", "avg_gbs", "avg_gmacs", "limit_gbs", "limit_int8_gmacs", "limit_f32_gmacs"] {
            assert!(row[rate].as_f64().unwrap() > 0.0, "{rate}: {row}");
        }
    }
    let table = bench(&["-pg", "4,2", "--progress", "-oe", "jsonl", "-ctk", "q8_0"]);
    let lines: Vec<&str> = stdout(&table).lines().collect();
    assert!(lines.len() == 3 && lines[2].contains("pp4+tg2"), "{lines:?}");
    assert!(String::from_utf8(table.stderr.clone()).unwrap().contains("\"n_gen\":2"));
    for (flags, code, word) in [
        (&["-p", "0", "-n", "0"][..], 2, "nothing to measure"),
        (&["-t", "0"], 2, "-t is 0"),
        (&["-m", "/no/such.gguf"], 1, "such.gguf"),
        (&["-d", "5000"], 2, "more than the 4096"),
    ] {
        let message = error(&bench(flags), code);
        assert!(message.contains(word), "{message}");
    }
}

#[test]
fn tokenize_without_a_model_takes_the_one_in_the_box() {
    let boxed = phi(&["tokenize", "-p", CONTROLLED, "--ids"]).output().unwrap();
    let folder = models().join("phi-tiny");
    let named = phi(&["tokenize", "-m", path(&folder), "-p", CONTROLLED, "--ids"]).output().unwrap();
    assert_eq!(stdout(&boxed), stdout(&named));
    assert!(String::from_utf8_lossy(&boxed.stderr).contains("phi-tiny"));
}

#[test]
fn a_folder_that_is_not_there_and_a_model_that_is_on_the_hub_are_told() {
    let folder = models().join("phi-tiny");
    let out = "none/of/these/model.gguf";
    let error_of = |arguments: &[&str]| error(&phi(arguments).output().unwrap(), 1);
    let message = error_of(&["convert", path(&folder), "--outfile", out]);
    assert!(message.contains("the folder none/of/these does not exist"), "{message}");
    for command in [&["convert", "microsoft/phi-4"][..], &["inspect", "microsoft/phi-4"]] {
        assert!(error_of(command).ends_with("give -hf microsoft/phi-4"));
    }
}
