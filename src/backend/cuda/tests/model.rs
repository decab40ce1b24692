//! Whole models on a device.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use super::{Adapter, difference};
use crate::backend::hybrid;
use crate::checkpoint::Checkpoint;
use crate::convert::{self, Conversion, OutType};
use crate::engine::{Engine, EngineOptions, KvType, Logits, Offload, OffloadLayers, Sequence};
use crate::gguf::{Gguf, Output};
use crate::quant::recipe::{FileType, Recipe};
use crate::quantize::{self, Sink};

/// models/phi-tiny as `kind`.
fn phi_tiny(kind: &str) -> Arc<Gguf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/phi-tiny");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let options = convert::Options { outtype: OutType::Stored, ..convert::Options::default() };
    let conversion = Conversion::plan(&checkpoint, &options).unwrap();
    let options = quantize::Options::new(Some(Recipe::new(FileType::from_name(kind).unwrap())));
    let done = quantize::run(&conversion, Sink::Memory(kind), &options, &mut |_| ControlFlow::Continue(()));
    match done.unwrap().outputs.pop() {
        Some(Output::Memory(image)) => Arc::new(Gguf::from_bytes(image, kind).unwrap()),
        _ => unreachable!("one output was asked for, in memory"),
    }
}

fn engine(gguf: &Arc<Gguf>, offload: Offload) -> Engine {
    let options = EngineOptions {
        threads: Some(1),
        cache_type_k: KvType::F32,
        cache_type_v: KvType::F32,
        offload,
        ..EngineOptions::default()
    };
    Engine::new(Arc::clone(gguf), options).unwrap()
}

fn feed(engine: &Engine, sequence: &mut Sequence, ids: &[u32]) -> Vec<f32> {
    engine.feed(sequence, ids, 1, &mut |_| ControlFlow::Continue(())).unwrap()
}

/// A prompt, and then one token after the other, whose launches are the same each time.
#[test]
fn logits_of_phi_tiny_are_the_cpus() {
    let Some(adapter) = Adapter::all().into_iter().next() else { return };
    let gguf = phi_tiny("F32");
    let devices = vec![hybrid::Adapter::Cuda(adapter)];
    let offload = Offload { layers: OffloadLayers::All, devices, ..Offload::default() };
    let (host, device) = (engine(&gguf, Offload::default()), engine(&gguf, offload));
    assert!(device.offloaded().head, "{:?}", device.offloaded());
    let (mut on_host, mut on_device) = (host.sequence(64).unwrap(), device.sequence(64).unwrap());
    let ids: Vec<u32> = (0..18).map(|i| 40 + 7 * i).collect();
    let (prompt, rest) = ids.split_at(12);
    for ids in [prompt].into_iter().chain(rest.chunks(1)) {
        let want = feed(&host, &mut on_host, ids);
        let difference = difference(&feed(&device, &mut on_device, ids), &want);
        assert!(difference < 1e-3, "{} tokens: {difference:e}", on_host.tokens().len());
    }
    let go_on = &mut |_| ControlFlow::Continue(());
    let highest = device.feed_for(&mut on_device, &[40], 1, Some(3), go_on).unwrap();
    let Logits::Highest(highest) = &highest[0] else { panic!("the device finds them") };
    let all = feed(&host, &mut on_host, &[40]);
    assert!(all.iter().all(|logit| *logit <= all[highest[0].0 as usize]), "{highest:?}");
}
