//! A small server that speaks the hub's file interface, with the faults that a test asks for.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use sha2::{Digest, Sha256};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// Larger files are in large-file storage: redirected, with their SHA-256 for an etag.
const LARGE: usize = 100_000;

/// How it serves.
#[derive(Default)]
pub struct Faults {
    /// Answer requests for the model's description with this status and error code.
    pub refuse: Option<(u16, Option<&'static str>)>,
    /// Break off the contents of large files after so many bytes, so many times.
    pub drop_after: usize,
    pub drops: usize,
    /// Then do not close the connection, but send nothing more.
    pub stall: bool,
    /// Describe the model, but refuse its files to those without a token.
    pub gated: bool,
    /// Send contents from the beginning, whatever was asked for.
    pub no_ranges: bool,
    /// Flip a bit in large files.
    pub corrupt: bool,
    /// Further names to list.
    pub list: Vec<String>,
}

/// A request that came.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub range: Option<String>,
    pub token: Option<String>,
}

struct State {
    files: BTreeMap<String, Vec<u8>>,
    faults: Mutex<Faults>,
    log: Mutex<Vec<Request>>,
    port: u16,
    stop: AtomicBool,
}

/// Serves the model local/phi-tiny until it is dropped.
pub struct Server {
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(files: BTreeMap<String, Vec<u8>>, faults: Faults) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State {
            files,
            faults: Mutex::new(faults),
            log: Mutex::default(),
            port,
            stop: AtomicBool::new(false),
        });
        let shared = state.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.stop.load(SeqCst) {
                    return;
                }
                let (state, stream) = (shared.clone(), stream.unwrap());
                // A client that goes away ends its connection, nothing else.
                std::thread::spawn(move || while state.answer(&stream).is_some() {});
            }
        });
        Self { state, thread: Some(thread) }
    }

    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.state.port)
    }

    pub fn set(&self, faults: Faults) {
        *self.state.faults.lock().unwrap() = faults;
    }

    /// The requests since the last call.
    pub fn log(&self) -> Vec<Request> {
        std::mem::take(&mut self.state.log.lock().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.state.stop.store(true, SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.state.port));
        self.thread.take().unwrap().join().unwrap();
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl State {
    /// Answers a request; `None` when the connection is to end.
    fn answer(&self, mut stream: &TcpStream) -> Option<()> {
        let mut lines = BufReader::new(stream).lines();
        let first = lines.next()?.ok()?;
        let mut words = first.split(' ');
        let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
        let mut headers = BTreeMap::new();
        for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':')?;
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let range = headers.get("range").cloned();
        let token = headers.get("authorization").cloned();
        let gated = token.is_none() && path.contains("/resolve/") && self.faults.lock().unwrap().gated;
        if self.stop.load(SeqCst) {
            return None;
        }
        self.log.lock().unwrap().push(Request {
            method: method.clone(),
            path: path.clone(),
            range: range.clone(),
            token,
        });
        let (head, body) = match gated {
            true => ("401 Unauthorized\r\nX-Error-Code: GatedRepo".to_owned(), Vec::new()),
            false => self.respond(&path, range.as_deref()),
        };
        let head = format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).ok()?;
        if method == "HEAD" {
            return Some(());
        }
        let sent = if path.starts_with("/cdn/") { self.sent(body.len()) } else { body.len() };
        stream.write_all(&body[..sent]).ok()?;
        while sent < body.len() && self.faults.lock().unwrap().stall && !self.stop.load(SeqCst) {
            std::thread::sleep(Duration::from_millis(20));
        }
        (sent == body.len()).then_some(())
    }

    /// Bytes of a large file's contents to send before breaking off.
    fn sent(&self, length: usize) -> usize {
        let mut faults = self.faults.lock().unwrap();
        if faults.drops == 0 || faults.drop_after >= length {
            return length;
        }
        faults.drops -= 1;
        faults.drop_after
    }

    /// Status line with headers, and body.
    fn respond(&self, path: &str, range: Option<&str>) -> (String, Vec<u8>) {
        let missing = |code| (format!("404 Not Found\r\nX-Error-Code: {code}"), b"not found".to_vec());
        let resolve = format!("/local/phi-tiny/resolve/{COMMIT}/");
        if path == "/api/models/local/phi-tiny/revision/main" {
            return self.description();
        }
        if let Some(name) = path.strip_prefix("/old/name/resolve/") {
            return (
                format!("307 Temporary Redirect\r\nLocation: /local/phi-tiny/resolve/{name}"),
                Vec::new(),
            );
        }
        if path == "/api/models/old/name/revision/main" {
            let to = "/api/models/local/phi-tiny/revision/main";
            return (format!("307 Temporary Redirect\r\nLocation: {to}"), Vec::new());
        }
        if let Some(name) = path.strip_prefix(&resolve) {
            return match self.files.get(name) {
                None => missing("EntryNotFound"),
                Some(content) if content.len() > LARGE => {
                    // Another host than 127.0.0.1, as far as a client can tell.
                    let location = format!("http://localhost:{}/cdn/{name}", self.port);
                    let (hash, size) = (sha256(content), content.len());
                    let head = format!(
                        "302 Found\r\nX-Repo-Commit: {COMMIT}\r\nX-Linked-ETag: \"{hash}\"\r\nX-Linked-Size: {size}\r\nLocation: {location}"
                    );
                    (head, b"moved".to_vec())
                }
                Some(content) => {
                    self.content(content, &format!("ETag: \"{}\"", &sha256(content)[..40]), range)
                }
            };
        }
        match path.strip_prefix("/cdn/").and_then(|name| self.files.get(name)) {
            Some(content) => {
                let mut content = content.clone();
                if self.faults.lock().unwrap().corrupt {
                    content[LARGE / 2] ^= 1;
                }
                self.content(&content, "ETag: \"of-the-storage\"", range)
            }
            None => missing("RepoNotFound"),
        }
    }

    fn content(&self, content: &[u8], etag: &str, range: Option<&str>) -> (String, Vec<u8>) {
        let ranged = !self.faults.lock().unwrap().no_ranges;
        let from =
            range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
        match from.filter(|_| ranged) {
            Some(from) if from < content.len() => {
                let (last, size) = (content.len() - 1, content.len());
                let head =
                    format!("206 Partial Content\r\n{etag}\r\nContent-Range: bytes {from}-{last}/{size}");
                (head, content[from..].to_vec())
            }
            Some(_) => ("416 Range Not Satisfiable".to_owned(), Vec::new()),
            None => (format!("200 OK\r\n{etag}"), content.to_vec()),
        }
    }

    fn description(&self) -> (String, Vec<u8>) {
        let faults = self.faults.lock().unwrap();
        if let Some((status, code)) = faults.refuse {
            let code = code.map(|code| format!("\r\nX-Error-Code: {code}")).unwrap_or_default();
            return (format!("{status} Refused{code}"), b"{}".to_vec());
        }
        let names: BTreeSet<&String> = self.files.keys().chain(&faults.list).collect();
        let siblings: Vec<_> = names.iter().map(|name| serde_json::json!({"rfilename": name})).collect();
        let json = serde_json::json!({"id": "local/phi-tiny", "sha": COMMIT, "private": false, "siblings": siblings});
        ("200 OK\r\nContent-Type: application/json".to_owned(), json.to_string().into_bytes())
    }
}
