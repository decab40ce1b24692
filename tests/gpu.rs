//! Models with layers on a graphics processor give what the CPU gives. Any device will do, Mesa's software driver too;
//! without one, the tests say so and pass.
#![cfg(feature = "gpu")]

use std::ops::ControlFlow;
use std::path::Path;
use std::process::Output as Ran;
use std::sync::Arc;

use phi::backend::hybrid::Adapter;
use phi::engine::{Engine, EngineOptions, KvType, Logits, Offload, OffloadEvent, OffloadLayers, Sequence};
use phi::gguf::Gguf;
use serde_json::Value;

#[path = "common/family.rs"]
mod family;

use family::{FamilyCheckpoint, goldens};

fn device() -> Option<Adapter> {
    let found = Adapter::all(true).into_iter().next();
    if found.is_none() {
        eprintln!(
            "skipped: there is no device with a driver (Mesa's mesa-vulkan-drivers has one in software)"
        );
    }
    found
}

fn options(offload: Offload, cache: KvType) -> EngineOptions {
    EngineOptions {
        threads: Some(2),
        cache_type_k: cache,
        cache_type_v: cache,
        offload,
        ..EngineOptions::default()
    }
}

fn on(adapter: &Adapter, layers: OffloadLayers) -> Offload {
    Offload { layers, devices: vec![adapter.clone()], ..Offload::default() }
}

fn engine(gguf: &Arc<Gguf>, offload: Offload, cache: KvType) -> Engine {
    Engine::new(Arc::clone(gguf), options(offload, cache)).unwrap()
}

fn feed(engine: &Engine, sequence: &mut Sequence, ids: &[u32], last: usize) -> Vec<f32> {
    engine.feed(sequence, ids, last, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn ids(golden: &Value) -> Vec<u32> {
    golden["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn difference(ours: &[f32], want: &[f32]) -> f64 {
    let pairs = || ours.iter().zip(want).filter(|(_, want)| **want != f32::MIN);
    let error: f64 = pairs().map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (error / pairs().map(|(_, b)| f64::from(*b).powi(2)).sum::<f64>()).sqrt()
}

#[test]
fn every_model_of_the_family_runs_on_a_device() {
    let Some(adapter) = device() else { return };
    for (model, golden) in goldens().as_object().unwrap() {
        let gguf = FamilyCheckpoint::new(model).gguf("F32");
        let ids = ids(golden);
        let ids = &ids[..ids.len().min(200)];
        let host = engine(&gguf, Offload::default(), KvType::F32);
        let mut sequence = host.sequence(host.model_context().min(512)).unwrap();
        let want = feed(&host, &mut sequence, ids, 3);
        for layers in [OffloadLayers::Count(1), OffloadLayers::All] {
            let device = engine(&gguf, on(&adapter, layers), KvType::F32);
            assert!(device.offloaded().count() > 0, "{model}: nothing was put on the device");
            // In one go; and a few tokens at a time, as a conversation goes on.
            for step in [ids.len(), 60, 7] {
                let mut sequence = device.sequence(device.model_context().min(512)).unwrap();
                let (head, tail) = ids.split_at(ids.len() - 3);
                head.chunks(step).for_each(|some| drop(feed(&device, &mut sequence, some, 0)));
                let got: Vec<f32> =
                    tail.iter().flat_map(|id| feed(&device, &mut sequence, &[*id], 1)).collect();
                let difference = difference(&got, &want);
                assert!(difference < 1e-3, "{model}, {layers:?}, steps of {step}: {difference:e}");
            }
        }
    }
}

/// The highest logits, where a device finds them, are those of all that it gives.
#[test]
fn the_highest_logits_are_the_same_without_the_others() {
    let Some(adapter) = device() else { return };
    // The second one has tokens that it never says.
    for model in ["phi-4-mini", "phi-3-small-8k"] {
        let gguf = FamilyCheckpoint::new(model).gguf("F32");
        let ids = ids(&goldens()[model]);
        for layers in [OffloadLayers::Count(1), OffloadLayers::All] {
            let engine = engine(&gguf, on(&adapter, layers), KvType::F16);
            let (mut one, mut other) = (engine.sequence(64).unwrap(), engine.sequence(64).unwrap());
            let all = feed(&engine, &mut one, &ids[..9], 3);
            let go_on = &mut |_| ControlFlow::Continue(());
            let rows = engine.feed_for(&mut other, &ids[..9], 3, Some(20), go_on).unwrap();
            assert_eq!(rows.len(), 3);
            for (row, all) in rows.iter().zip(all.chunks_exact(engine.vocab_size())) {
                let mut order: Vec<u32> = (0..all.len() as u32).collect();
                order.sort_by(|a, b| all[*b as usize].total_cmp(&all[*a as usize]).then(a.cmp(b)));
                let want: Vec<_> = order.iter().take(20).map(|id| (*id, all[*id as usize])).collect();
                match row {
                    Logits::Highest(row) => assert_eq!(*row, want, "{model}"),
                    Logits::All(row) => assert!(row == all && engine.offloaded().count() == 1, "{model}"),
                }
            }
        }
    }
}

/// The layers' tensors may be anywhere, and keys and values too.
#[test]
fn tensors_go_where_they_are_sent() {
    let Some(adapter) = device() else { return };
    for model in ["phi-2", "phi-3.5-moe"] {
        let gguf = FamilyCheckpoint::new(model).gguf("F32");
        let ids = ids(&goldens()[model]);
        let ids = &ids[..ids.len().min(40)];
        let all = engine(&gguf, on(&adapter, OffloadLayers::All), KvType::F16);
        let mut sequence = all.sequence(128).unwrap();
        let want = feed(&all, &mut sequence, ids, 1);
        for pattern in ["attn_", "ffn_(up|gate).*", "ffn_down", "ffn_.*_exps", r"blk\.0\."] {
            for kv_on_host in [false, true] {
                let offload = Offload {
                    overrides: vec![(regex::Regex::new(pattern).unwrap(), None)],
                    kv_on_host,
                    ..on(&adapter, OffloadLayers::All)
                };
                let mixed = engine(&gguf, offload, KvType::F16);
                let mut sequence = mixed.sequence(128).unwrap();
                let got = feed(&mixed, &mut sequence, ids, 1);
                let difference = difference(&got, &want);
                assert!(difference < 1e-3, "{model}, {pattern}, {kv_on_host}: {difference:e}");
            }
        }
    }
}

#[test]
fn two_devices_share_the_layers() {
    let Some(adapter) = device() else { return };
    let gguf = FamilyCheckpoint::new("phi-4-mini").gguf("F32");
    let ids = ids(&goldens()["phi-4-mini"]);
    let ids = &ids[..ids.len().min(30)];
    let offload = Offload {
        devices: vec![adapter.clone(), adapter.clone()],
        shares: vec![1.0, 1.0],
        ..on(&adapter, OffloadLayers::All)
    };
    let two = engine(&gguf, offload, KvType::F16);
    assert!(two.offloaded().devices.iter().all(|(layers, _)| *layers > 0), "{:?}", two.offloaded());
    let one = engine(&gguf, on(&adapter, OffloadLayers::All), KvType::F16);
    let logits = |engine: &Engine| {
        let mut sequence = engine.sequence(64).unwrap();
        feed(engine, &mut sequence, ids, 1)
    };
    assert_eq!(logits(&two), logits(&one));
}

#[test]
fn sequences_of_a_batch_and_alone_give_the_same() {
    let Some(adapter) = device() else { return };
    let gguf = FamilyCheckpoint::new("phi-3.5-moe").gguf("F32");
    let ids = ids(&goldens()["phi-3.5-moe"]);
    let engine = engine(&gguf, on(&adapter, OffloadLayers::All), KvType::F16);
    let alone = |ids: &[u32]| {
        let mut sequence = engine.sequence(64).unwrap();
        feed(&engine, &mut sequence, ids, 1)
    };
    let (mut a, mut b) = (engine.sequence(64).unwrap(), engine.sequence(64).unwrap());
    let together = engine.step(&mut [(&mut a, &ids[..4]), (&mut b, &ids[4..7])]).unwrap();
    let (first, second) = together.split_at(together.len() / 2);
    assert!(difference(first, &alone(&ids[..4])) < 1e-4);
    assert!(difference(second, &alone(&ids[4..7])) < 1e-4);
}

#[test]
fn a_prompt_cache_holds_the_layers_of_a_device() {
    let Some(adapter) = device() else { return };
    let gguf = FamilyCheckpoint::new("phi-4-mini").gguf("Q8_0");
    let ids: Vec<u32> = ids(&goldens()["phi-4-mini"]).into_iter().cycle().take(250).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache");
    for (number, layers) in [OffloadLayers::Count(1), OffloadLayers::All].into_iter().enumerate() {
        let engine = engine(&gguf, on(&adapter, layers), KvType::Q8_0);
        let mut sequence = engine.sequence(256).unwrap();
        let mut next = engine.sequence(256).unwrap();
        if number > 0 {
            // Of another distribution of layers.
            let useless = engine.restore(&path, &mut next, &ids).unwrap().unwrap_err();
            assert!(useless.to_string().contains("-ngl"), "{useless}");
        }
        feed(&engine, &mut sequence, &ids[..249], 0);
        engine.save(&path, &mut sequence, 249).unwrap();
        let want = feed(&engine, &mut sequence, &ids[249..], 1);
        assert_eq!(engine.restore(&path, &mut next, &ids).unwrap(), Ok(249));
        assert_eq!(feed(&engine, &mut next, &ids[249..], 1), want);
    }
}

#[test]
fn fewer_layers_go_where_memory_is_short() {
    let Some(adapter) = device() else { return };
    let gguf = FamilyCheckpoint::new("phi-4-mini").gguf("F32");
    let layer: u64 = gguf
        .tensors()
        .iter()
        .filter(|tensor| tensor.name.starts_with("blk.1."))
        .map(|tensor| gguf.data(tensor).len() as u64)
        .sum();
    // One layer fits, and what a pass needs besides; two do not.
    #[allow(irrefutable_let_patterns, reason = "a build without CUDA has one kind")]
    let Adapter::Wgpu(adapter) = adapter else { return };
    let adapter = Adapter::Wgpu(adapter.limited(layer * 3 / 2 + 4096));
    let mut notes = Vec::new();
    let options = options(on(&adapter, OffloadLayers::All), KvType::F16);
    let engine = Engine::with_events(Arc::clone(&gguf), options, &mut |event| {
        if let OffloadEvent::Note(note) = event {
            notes.push(note.to_owned());
        }
    })
    .unwrap();
    assert!(notes[0].contains("of memory left"), "{notes:?}");
    assert!(engine.offloaded().count() <= 1 && !engine.offloaded().head, "{:?}", engine.offloaded());
}

fn phi(args: &[&str]) -> Ran {
    std::process::Command::new(env!("CARGO_BIN_EXE_phi")).args(args).output().unwrap()
}

/// The first device as `phi run --list-devices` calls it.
fn device_name() -> Option<String> {
    let listed = phi(&["run", "--list-devices"]);
    assert!(listed.status.success());
    let listed = String::from_utf8(listed.stdout).unwrap();
    listed.split_once(": ").map(|(name, _)| name.to_owned())
}

#[test]
fn answers_are_the_same_wherever_layers_are() {
    let Some(name) = device_name() else { return };
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/phi-tiny");
    let prompt = "<|user|>\nCan you introduce .NET<|end|>\n<|assistant|>\n";
    for kind in ["F16", "Q4_K_M"] {
        let answer = |more: &[&str]| {
            let tiny = tiny.to_str().unwrap();
            let mut args =
                vec!["run", "-m", tiny, "--quantize", kind, "--temp", "0", "-n", "64", "-p", prompt];
            args.extend(more);
            let ran = phi(&args);
            assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
            (String::from_utf8(ran.stdout).unwrap(), String::from_utf8(ran.stderr).unwrap())
        };
        let (want, _) = answer(&["-ngl", "0"]);
        assert!(want.contains(".NET is a free"), "{want}");
        for layers in ["1", "2", "4", "all"] {
            let (got, notes) = answer(&["-ngl", layers, "-dev", &name]);
            assert_eq!(got, want, "{kind}, {layers} layers");
            let count = layers.parse().unwrap_or(4);
            assert!(notes.contains(&format!("{count} of 4 layers on {name}")), "{notes}");
        }
        let (got, _) =
            answer(&["-ngl", "all", "-dev", &name, "-nkvo", "-ot", "ffn_down=CPU", "-ctk", "q8_0"]);
        assert_eq!(got, want, "{kind}, mixed");
    }
}

#[test]
fn a_device_that_is_not_there_is_named() {
    let ran = phi(&["run", "-dev", "Vulkan77", "-ngl", "1", "-p", "hi", "-n", "1"]);
    let notes = String::from_utf8(ran.stderr).unwrap();
    assert_eq!(ran.status.code(), Some(2), "{notes}");
    assert!(notes.contains("there is no device Vulkan77"), "{notes}");
}

/// Software drivers are not used unless they are named; with no other, the CPU does the work and says so.
#[test]
fn without_a_gpu_the_cpu_does_the_work() {
    if Adapter::all(false).is_empty() {
        let ran = phi(&["run", "--gpu-layers", "10", "--temp", "0", "-n", "4", "-p", "hi"]);
        let notes = String::from_utf8(ran.stderr).unwrap();
        assert!(ran.status.success() && !ran.stdout.is_empty(), "{notes}");
        assert_eq!(notes.matches("no GPU was found, so the CPU does all the work").count(), 1, "{notes}");
    }
}
