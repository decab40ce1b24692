//! `-hf`: downloads, against a small server that speaks the hub's file interface.

mod server;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use assert_cmd::cargo::cargo_bin;
use server::{COMMIT, Faults, Server, sha256};
use tempfile::TempDir;

const QUESTION: &str = "Can you introduce .NET";
/// What phi-tiny was trained to say; models/phi-tiny-training/questions.txt has it all.
const ANSWER: &str = ".NET is a free, open-source platform from Microsoft for building web, desktop, mobile and cloud applications. Programs are written in languages such as C#, F# and Visual Basic, and run on Windows, Linux and macOS.";
const WEIGHTS: &str = "model.safetensors";

/// A server and an empty cache.
struct Setup {
    server: Option<Server>,
    address: String,
    folder: TempDir,
}

impl Setup {
    fn new(files: BTreeMap<String, Vec<u8>>, faults: Faults) -> Self {
        let server = Server::start(files, faults);
        Self { address: server.address(), server: Some(server), folder: TempDir::new().unwrap() }
    }

    /// Serves models/phi-tiny.
    fn tiny(faults: Faults) -> Self {
        Self::new(tiny(), faults)
    }

    fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    fn repo(&self) -> PathBuf {
        self.home().join("hub/models--local--phi-tiny")
    }

    fn phi(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(cargo_bin("phi"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("HF_") {
                command.env_remove(name);
            }
        }
        command.args(arguments).stdin(Stdio::null()).current_dir(self.folder.path());
        command.env("HF_HOME", self.home()).env("HF_ENDPOINT", &self.address).env("NO_PROXY", "*");
        command
    }

    /// `phi run` at temperature 0, on one thread as tests run side by side.
    fn run(&self, arguments: &[&str]) -> Output {
        self.phi(&[&["run", "--temp", "0", "-t", "1", "-p", QUESTION], arguments].concat())
    }
}

fn tiny() -> BTreeMap<String, Vec<u8>> {
    let folder = tiny_folder();
    let entries = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: BTreeMap<_, _> = entries.map(|path| (name(&path), fs::read(&path).unwrap())).collect();
    files.insert("sample code.py".to_owned(), b"print()".to_vec());
    files
}

fn tiny_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/phi-tiny")
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

#[track_caller]
fn answers(output: &Output) -> String {
    let log = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(0), "{log}");
    let answer = String::from_utf8_lossy(&output.stdout);
    assert_eq!(answer.trim_end(), ANSWER, "{log}");
    log
}

/// The error of a command that must fail with `code` and print nothing else.
#[track_caller]
fn fails(output: &Output, code: i32) -> String {
    let log = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{log}");
    assert_eq!(output.stdout, b"");
    log.lines().find(|line| line.starts_with("error: ")).unwrap_or_else(|| panic!("{log}")).to_owned()
}

/// Names of the files in a folder; none if there is no folder.
fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<_> = entries.map(|entry| name(&entry.unwrap().path())).collect();
    names.sort();
    names
}

#[test]
fn a_checkpoint_is_downloaded_quantized_and_kept() {
    let mut setup = Setup::tiny(Faults::default());
    let log = answers(&setup.run(&["-hf", "local/phi-tiny:F16"]));
    assert!(log.contains("phi: downloading 1 file of local/phi-tiny, "), "{log}");
    let kept = setup.home().join(format!("phi/v1/local--phi-tiny-{COMMIT}-F16.gguf"));
    assert!(log.contains(&format!("is kept in {}", kept.display())) && kept.is_file(), "{log}");

    // The cache is laid out as the huggingface_hub package does it; what is not read is not downloaded.
    let snapshot = setup.repo().join("snapshots").join(COMMIT);
    let files = tiny();
    assert_eq!(fs::read(snapshot.join(WEIGHTS)).unwrap(), files[WEIGHTS]);
    assert!(setup.repo().join("blobs").join(sha256(&files[WEIGHTS])).is_file());
    assert_eq!(fs::read_to_string(setup.repo().join("refs/main")).unwrap(), COMMIT);
    assert!(!snapshot.join("sample code.py").exists() && !snapshot.join("special_tokens_map.json").exists());
    setup.server().log();

    // The second start asks once what "main" is, and nothing more.
    let log = answers(&setup.run(&["-hf", "local/phi-tiny:F16"]));
    assert!(!log.contains("download") && !log.contains("kept"), "{log}");
    let paths: Vec<String> = setup.server().log().into_iter().map(|request| request.path).collect();
    assert_eq!(paths, ["/api/models/local/phi-tiny/revision/main"]);

    setup.server = None;
    let log = answers(&setup.run(&["-hf", "local/phi-tiny:F16"]));
    assert!(log.contains("cannot be reached") && log.contains("going on with what was downloaded"), "{log}");
    let log = answers(&setup.run(&["-hf", "local/phi-tiny", "--quantize", "F16", "--offline"]));
    assert!(!log.contains("reached") && !log.contains("kept"), "{log}");
    // Another type is made from what is there.
    let log = answers(&setup.run(&["--hf-repo", "local/phi-tiny:q8_0", "--offline"]));
    assert!(log.contains("-Q8_0.gguf"), "{log}");
}

#[test]
fn the_token_goes_to_the_hub_and_to_nobody_else() {
    let setup = Setup::tiny(Faults::default());
    let output = setup
        .command(&["convert", "-hf", "local/phi-tiny", "--dry-run"])
        .env("HF_TOKEN", "hf_secret")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
    let log = setup.server().log();
    let (storage, hub): (Vec<_>, Vec<_>) =
        log.into_iter().partition(|request| request.path.starts_with("/cdn/"));
    assert!(!storage.is_empty() && storage.iter().all(|request| request.token.is_none()), "{storage:?}");
    assert!(hub.iter().all(|request| request.token.as_deref() == Some("Bearer hf_secret")), "{hub:?}");
    assert!(!storage.iter().any(|request| request.method == "HEAD"));
}

#[test]
fn convert_takes_a_checkpoint_of_the_hub_by_its_name() {
    let setup = Setup::tiny(Faults::default());
    let output = setup.phi(&["convert", "-hf", "local/phi-tiny", "--outtype", "f16", "--outfile", "a.gguf"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let folder = tiny_folder();
    let folder = folder.to_str().unwrap();
    let local = setup.phi(&["convert", folder, "--outtype", "f16", "--outfile", "b.gguf"]);
    assert_eq!(local.status.code(), Some(0));
    let read = |name: &str| fs::read(setup.folder.path().join(name)).unwrap();
    assert!(read("a.gguf") == read("b.gguf"), "the hub's model is the folder's, its name included");

    // Without --outfile the file is written here, not into the cache.
    let output = setup.phi(&["convert", "-hf", "local/phi-tiny", "--vocab-only"]);
    let path = String::from_utf8(output.stdout).unwrap();
    assert!(setup.folder.path().join(path.trim()).is_file() && path.ends_with("vocab.gguf\n"), "{path:?}");
    let error = fails(&setup.phi(&["convert", "-hf", "local/phi-tiny:Q4_K_M"]), 2);
    assert!(error.contains("no name of a model"), "{error}");
    fails(&setup.phi(&["convert", "x", "-hf", "local/phi-tiny"]), 2);
}

#[test]
fn gguf_files_are_chosen_by_type_and_split_ones_are_whole() {
    let source = Setup::new(BTreeMap::new(), Faults::default());
    let folder = tiny_folder();
    let make = |arguments: &[&str]| {
        let output = source.phi(arguments);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    };
    make(&["convert", folder.to_str().unwrap(), "--outtype", "f16", "--outfile", "m-F16.gguf"]);
    make(&["quantize", "m-F16.gguf", "m-Q8_0.gguf", "Q8_0", "1"]);
    make(&["split", "m-Q8_0.gguf", "m-Q8_0", "--split-max-tensors", "20"]);
    fs::remove_file(source.folder.path().join("m-Q8_0.gguf")).unwrap();
    let files = names(source.folder.path()).into_iter().filter(|name| name.ends_with(".gguf"));
    let files: BTreeMap<_, _> =
        files.map(|name| (name.clone(), fs::read(source.folder.path().join(&name)).unwrap())).collect();
    assert!(files.len() > 2);

    let setup = Setup::new(files.clone(), Faults::default());
    let snapshot = setup.repo().join("snapshots").join(COMMIT);
    answers(&setup.run(&["-hf", "local/phi-tiny"]));
    assert_eq!(names(&snapshot).len(), files.len() - 1, "all parts of the Q8_0 model, and nothing else");
    answers(&setup.run(&["-hf", "local/phi-tiny:f16"]));
    assert_eq!(names(&snapshot).len(), files.len());
    answers(&setup.run(&["-hf", "local/phi-tiny", "-hff", "m-F16.gguf", "--offline"]));
    assert!(!setup.home().join("phi").exists(), "nothing was quantized");

    let error = fails(&setup.run(&["-hf", "local/phi-tiny:Q2_K"]), 1);
    assert!(
        error.contains("local/phi-tiny: it has no GGUF file of type Q2_K; there are m-F16.gguf"),
        "{error}"
    );
    let error = fails(&setup.phi(&["convert", "-hf", "local/phi-tiny"]), 1);
    assert!(error.contains("only GGUF files"), "{error}");
}

#[test]
fn a_broken_download_goes_on_where_it_broke_off() {
    let weights = tiny()[WEIGHTS].len();
    let half = weights / 2;
    let setup = Setup::tiny(Faults { drop_after: half, drops: 1, ..Faults::default() });
    answers(&setup.run(&["-hf", "local/phi-tiny:F16"]));
    let log = setup.server().log();
    let ranges: Vec<_> = log.iter().filter(|request| request.path == "/cdn/model.safetensors").collect();
    let ranges: Vec<_> = ranges.into_iter().map(|request| request.range.clone()).collect();
    assert_eq!(ranges, [None, Some(format!("bytes={half}-"))]);
}

#[cfg(unix)]
#[test]
fn an_interrupted_download_is_resumed_by_the_next_run() {
    let files = tiny();
    let half = files[WEIGHTS].len() / 2;
    let setup = Setup::tiny(Faults { drop_after: half, drops: 1, stall: true, ..Faults::default() });
    let partial = setup.repo().join("blobs").join(format!("{}.incomplete", sha256(&files[WEIGHTS])));
    let length = || fs::metadata(&partial).map_or(0, |metadata| metadata.len());
    let mut command = setup.command(&["run", "-hf", "local/phi-tiny:F16", "-p", QUESTION]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while length() < half as u64 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    // SAFETY: it is a child that has not been waited for, so the number is still its own.
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) };
    let error = fails(&child.wait_with_output().unwrap(), 1);
    assert_eq!(error, "error: interrupted");
    assert_eq!(length(), half as u64);

    let error = fails(&setup.run(&["-hf", "local/phi-tiny:F16", "--offline"]), 1);
    assert!(error.contains("not been downloaded"), "{error}");
    setup.server().set(Faults { drops: usize::MAX, ..Faults::default() });
    let error = fails(&setup.run(&["-hf", "local/phi-tiny:F16"]), 1);
    assert!(error.contains("local/phi-tiny/model.safetensors: the download broke off after "), "{error}");
    assert!(error.contains("run the command again"), "{error}");
    assert_eq!(length(), half as u64);

    setup.server().set(Faults::default());
    setup.server().log();
    answers(&setup.run(&["-hf", "local/phi-tiny:F16"]));
    let log = setup.server().log();
    let range = log.iter().find(|request| request.path.starts_with("/cdn/")).unwrap().range.clone();
    assert_eq!(range, Some(format!("bytes={half}-")));
    assert!(!partial.exists());
}

#[test]
fn a_server_without_ranges_starts_again() {
    let half = tiny()[WEIGHTS].len() / 2;
    let setup = Setup::tiny(Faults { drop_after: half, drops: 1, no_ranges: true, ..Faults::default() });
    answers(&setup.run(&["-hf", "local/phi-tiny:F16"]));
}

#[test]
fn what_has_another_checksum_gets_no_name() {
    let files = tiny();
    let setup = Setup::tiny(Faults { corrupt: true, ..Faults::default() });
    let error = fails(&setup.run(&["-hf", "local/phi-tiny:F16"]), 1);
    let expected = sha256(&files[WEIGHTS]);
    assert!(error.contains("model.safetensors: what arrived has the SHA-256 "), "{error}");
    assert!(error.contains(&expected), "{error}");
    let blobs = names(&setup.repo().join("blobs"));
    assert!(!blobs.iter().any(|name| name.starts_with(&expected)), "{blobs:?}");
    assert!(!setup.repo().join("snapshots").join(COMMIT).join(WEIGHTS).exists());

    setup.server().set(Faults::default());
    answers(&setup.run(&["-hf", "local/phi-tiny:F16"]));
}

#[test]
fn refusals_say_what_to_do() {
    let setup = Setup::tiny(Faults::default());
    for (status, code, expected) in [
        (401, Some("GatedRepo"), "accept its licence on "),
        (403, Some("GatedRepo"), "set HF_TOKEN"),
        (401, Some("RepoNotFound"), "no such model, or it is private"),
        (404, Some("RepoNotFound"), "no such model"),
        (403, None, "access was denied"),
        (500, None, "status 500"),
    ] {
        setup.server().set(Faults { refuse: Some((status, code)), ..Faults::default() });
        let error = fails(&setup.run(&["-hf", "local/phi-tiny"]), 1);
        assert!(error.starts_with("error: local/phi-tiny: ") && error.contains(expected), "{error}");
    }
    setup.server().set(Faults { refuse: Some((401, None)), ..Faults::default() });
    let error = fails(&setup.run(&["-hf", "local/phi-tiny", "-hft", "hf_old"]), 1);
    assert!(error.contains("the token was refused") && !error.contains("hf_old"), "{error}");
    let error = fails(&setup.run(&["-hf", "local/nothing"]), 1);
    assert!(error.contains("local/nothing: there is no such model"), "{error}");
    // The hub describes gated models to everyone, and keeps their files.
    setup.server().set(Faults { gated: true, ..Faults::default() });
    let error = fails(&setup.run(&["-hf", "local/phi-tiny"]), 1);
    assert!(
        error.contains(&format!("gated: accept its licence on {}/local/phi-tiny", setup.address)),
        "{error}"
    );
    assert!(!setup.home().exists(), "a refusal leaves nothing behind");
    answers(&setup.run(&["-hf", "local/phi-tiny:F16", "-hft", "hf_good"]));
}

#[test]
fn no_network_and_nothing_downloaded() {
    let mut setup = Setup::tiny(Faults::default());
    setup.server = None;
    let error = fails(&setup.run(&["-hf", "local/phi-tiny"]), 1);
    assert!(error.contains("cannot be reached") && error.contains("check the connection"), "{error}");
    let error = fails(&setup.run(&["-hf", "local/phi-tiny", "--offline"]), 1);
    assert!(error.contains("local/phi-tiny: it has not been downloaded yet"), "{error}");
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    for name in
        ["../../evil-Q4_K_M.gguf", "/tmp/evil-Q4_K_M.gguf", "a\\..\\evil-Q4_K_M.gguf", "C:evil-Q4_K_M.gguf"]
    {
        let setup = Setup::new(BTreeMap::new(), Faults { list: vec![name.to_owned()], ..Faults::default() });
        let error = fails(&setup.run(&["-hf", "local/phi-tiny"]), 1);
        assert!(error.contains("no name to write to"), "{error}");
        assert_eq!(setup.server().log().len(), 1, "nothing is asked of such a file");
        assert!(!setup.home().exists());
    }
    let templates = "additional_chat_templates/../../../evil.jinja".to_owned();
    let setup = Setup::tiny(Faults { list: vec![templates], ..Faults::default() });
    answers(&setup.run(&["-hf", "local/phi-tiny:F16"]));
    assert!(!setup.server().log().iter().any(|request| request.path.contains("evil")));
}

#[test]
fn what_was_downloaded_can_be_inspected() {
    let setup = Setup::tiny(Faults::default());
    let inspect = |arguments: &[&str]| setup.phi(&[&["inspect", "-hf"], arguments].concat());
    let error = fails(&inspect(&["local/phi-tiny", "--offline"]), 1);
    assert!(error.contains("local/phi-tiny: it has not been downloaded yet; `phi run -hf`"), "{error}");
    answers(&setup.run(&["-hf", "local/phi-tiny:F16"]));
    setup.server().log();
    let text = |spec: &str| String::from_utf8(inspect(&[spec]).stdout).unwrap();
    let (checkpoint, made) = (text("local/phi-tiny"), text("local/phi-tiny:F16"));
    assert!(checkpoint.contains("Hugging Face checkpoint") && checkpoint.contains("Q4_K_M"), "{checkpoint}");
    assert!(made.contains("GGUF version 3") && made.contains("Model: "), "{made}");
    let error = fails(&inspect(&["local/phi-tiny:Q6_K"]), 2);
    assert!(error.contains("`phi run -hf local/phi-tiny:Q6_K`"), "{error}");
    assert!(setup.server().log().is_empty(), "nothing is asked of the network");
}

#[test]
fn what_was_not_downloaded_is_inspected_without_its_weights() {
    let setup = Setup::tiny(Faults::default());
    let inspect = |arguments: &[&str]| {
        let done = setup.phi(&[&["inspect", "--json"], arguments].concat());
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let mut report: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
        report["model"]["free_memory_bytes"].take();
        report
    };
    let outline = inspect(&["-hf", "local/phi-tiny"]);
    assert_eq!(outline, inspect(&[tiny_folder().to_str().unwrap()]), "as if it were here");
    let snapshot = setup.repo().join("snapshots").join(COMMIT);
    assert!(snapshot.join("config.json").exists() && !snapshot.join(WEIGHTS).exists());
    fails(&setup.phi(&["inspect", "-hf", "local/phi-tiny", "--offline"]), 1);
}

#[test]
fn gguf_files_that_were_not_downloaded_are_inspected_too() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("tiny-Q8_0.gguf");
    let mut convert = Command::new(cargo_bin("phi"));
    convert.arg("convert").arg(tiny_folder()).args(["--outtype", "q8_0", "--outfile"]).arg(&file);
    assert!(convert.output().unwrap().status.success());
    let files = BTreeMap::from([(name(&file), fs::read(&file).unwrap())]);
    let setup = Setup::new(files, Faults::default());
    let done = setup.phi(&["inspect", "-hf", "local/phi-tiny"]);
    let text = String::from_utf8(done.stdout).unwrap();
    assert!(text.starts_with("tiny-Q8_0.gguf: GGUF version 3, ") && text.contains("Model: "), "{text}");
    assert!(!setup.repo().exists(), "nothing is kept of it");
    let error = fails(&setup.phi(&["inspect", "-hf", "local/phi-tiny:Q2_K"]), 1);
    assert!(error.contains("no GGUF file of type Q2_K"), "{error}");
}

#[test]
fn tokenize_leaves_the_weights_where_they_are() {
    let setup = Setup::tiny(Faults::default());
    let done = setup.phi(&["tokenize", "-hf", "local/phi-tiny", "-p", "<|user|>", "--json"]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(String::from_utf8_lossy(&done.stdout).contains("<|user|>"));
    assert!(!setup.server().log().iter().any(|request| request.path.contains(WEIGHTS)));
}

#[test]
fn a_renamed_model_is_followed() {
    let setup = Setup::tiny(Faults::default());
    answers(&setup.run(&["-hf", "old/name:F16"]));
}

#[test]
fn wrong_usage() {
    let setup = Setup::new(BTreeMap::new(), Faults::default());
    for arguments in [
        &["-hf", "phi"][..],
        &["-hf", "../x"],
        &["-hf", "a/b", "-m", "c"],
        &["-hff", "c"],
        &["-hft", "hf_x"],
        &["-hf", "a/b", "-hft", "not a token"],
    ] {
        fails(&setup.run(arguments), 2);
    }
    assert!(setup.server().log().is_empty());
}
