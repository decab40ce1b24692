//! Runs this module's other tests once more with a driver that computes on the CPU, where there is a C++ compiler: the
//! kernels' sources are the same, and so is all that launches them.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use crate::backend::cuda::modules::names;

/// Set in the processes that this starts.
const INSIDE: &str = "PHI_EMULATED_CUDA";

#[test]
fn on_an_emulated_device() {
    if std::env::var_os(INSIDE).is_some() {
        return;
    }
    if cfg!(not(all(target_os = "linux", target_arch = "x86_64"))) || !there_is_a_compiler() {
        eprintln!("skipped: there is no g++ to compile the kernels for the CPU");
        return;
    }
    let test = std::env::current_exe().unwrap();
    let folder = build(test.parent().unwrap());
    let module = module_path!().split_once("::").unwrap().1.rsplit_once("::").unwrap().0;
    let done = Command::new(test)
        .args([module, "--test-threads", "2"])
        .env("LD_LIBRARY_PATH", folder)
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(done.status.success(), "{}\n{}", text(&done.stdout), text(&done.stderr));
}

#[test]
fn the_emulated_device_is_there() {
    if std::env::var_os(INSIDE).is_some() {
        let name = super::Adapter::all().first().map(|adapter| adapter.name().to_owned());
        assert_eq!(name.as_deref(), Some("emulated GPU"));
    }
}

fn there_is_a_compiler() -> bool {
    Command::new("g++").arg("--version").output().is_ok_and(|done| done.status.success())
}

/// Compiles the kernels and the emulated driver to a libcuda.so.1, in a folder below `place` that is named after what it
/// is made of.
fn build(place: &Path) -> PathBuf {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/backend/cuda/kernels");
    let folder = place.join(format!("cuda-emulation-{:016x}", hash(&sources)));
    let library = folder.join("libcuda.so.1");
    if library.exists() {
        return folder;
    }
    std::fs::create_dir_all(&folder).unwrap();
    let waiting = Mutex::new(names().map(Some).chain([None]).collect::<Vec<_>>());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, |n| n.get()) {
            scope.spawn(|| {
                loop {
                    let Some(module) = waiting.lock().unwrap().pop() else { break };
                    compile(&sources, &folder, module);
                }
            });
        }
    });
    let objects = names().chain(["emulation"]).map(|name| folder.join(format!("{name}.o")));
    let unfinished = folder.join("unfinished.so");
    run(Command::new("g++").arg("-shared").args(objects).arg("-o").arg(&unfinished));
    std::fs::rename(unfinished, library).unwrap();
    folder
}

/// Compiles one module, or the driver.
fn compile(sources: &Path, folder: &Path, module: Option<&str>) {
    let mut command = Command::new("g++");
    command.args(["-std=c++17", "-O1", "-fPIC", "-U_FORTIFY_SOURCE", "-DPHI_EMULATED", "-x", "c++", "-c"]);
    let upper = |name: &str| name.to_ascii_uppercase();
    let source = match module.map(|name| (name, name.split_once('_'))) {
        None => "emulation.cpp".to_owned(),
        Some((name, parts)) => {
            command.arg(format!("-DMODULE=\"{name}\""));
            match parts {
                Some(("weights", kind)) => {
                    let lanes = u32::from(!["f32", "f16", "bf16"].contains(&kind));
                    let tiles = u32::from(kind != "f32");
                    let options =
                        [("TYPE", upper(kind)), ("LANES", lanes.to_string()), ("TILES", tiles.to_string())];
                    command.args(options.map(|(name, value)| format!("-D{name}={value}")));
                    "weights.cu".to_owned()
                }
                Some((_, kind)) => {
                    command.arg(format!("-DKIND=KV_{}", upper(kind)));
                    "attention.cu".to_owned()
                }
                None => format!("{name}.cu"),
            }
        }
    };
    let object = folder.join(format!("{}.o", module.unwrap_or("emulation")));
    run(command.arg(sources.join(source)).arg("-o").arg(object));
}

fn run(command: &mut Command) {
    let done = command.output().unwrap();
    assert!(done.status.success(), "{command:?}:\n{}", String::from_utf8_lossy(&done.stderr));
}

/// Of everything in `folder`.
fn hash(folder: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    let mut folders = vec![folder.to_owned()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    names().for_each(|name| name.hash(&mut hasher));
    for file in files {
        std::fs::read(file).unwrap().hash(&mut hasher);
    }
    hasher.finish()
}
