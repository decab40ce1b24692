//! Which layers go to graphics processors: as many as asked for, or as are fast there and fit.

use std::time::{Duration, Instant};

use regex::Regex;

use crate::backend::cpu::{CacheShape, Cpu, available_memory};
use crate::backend::hybrid::{Adapter, Device, Hybrid, Place};
use crate::backend::{Backend, Matrix};
use crate::kernel::kv::KvType;
use crate::model::{Layer, Model};
use crate::{Error, Result};

/// Bytes of a device that are left for buffers of the forward pass and for others.
const RESERVE: u64 = 384 << 20;

/// How many layers, counted from the last; beyond all of them, the head goes too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OffloadLayers {
    Count(usize),
    All,
    /// As many as fit, if they are faster there.
    #[default]
    Auto,
}

/// What is to be put on graphics processors.
#[derive(Clone, Debug, Default)]
pub struct Offload {
    pub layers: OffloadLayers,
    /// Which, in this order; the first layers go to the first. None: the host does everything.
    pub devices: Vec<Adapter>,
    /// How the layers are shared out between the devices; empty: by their free memory.
    pub shares: Vec<f32>,
    /// Keys and values stay on the host.
    pub kv_on_host: bool,
    /// Tensors whose names match go to this device, or stay on the host; the first match counts.
    pub overrides: Vec<(Regex, Option<usize>)>,
    /// Tokens of context to leave memory for, when the number of layers is chosen by it.
    pub context: usize,
    /// Element types of the cached keys and values.
    pub cache_types: Option<(KvType, KvType)>,
}

/// What the caller is told on the way.
pub enum OffloadEvent<'a> {
    /// So many bytes are going to be copied.
    Begin { bytes: u64 },
    /// So many have been.
    Copied { bytes: usize },
    /// A change of plan.
    Note(&'a str),
}

/// What went where.
#[derive(Clone, Debug, Default)]
pub struct Offloaded {
    /// Layers on each device, and bytes of weights.
    pub devices: Vec<(usize, u64)>,
    /// Layers of the model.
    pub layers: usize,
    /// Whether the head went too.
    pub head: bool,
    /// Why it is no more, or none at all.
    pub reason: Option<String>,
}

impl Offloaded {
    /// Layers on devices.
    pub fn count(&self) -> usize {
        self.devices.iter().map(|device| device.0).sum()
    }
}

/// A distribution of layers.
struct Plan {
    /// Of each layer.
    places: Vec<Place>,
    /// Of the head.
    head: Place,
}

/// Puts layers of `model` on the devices of `backend`, which are those of `options`.
///
/// # Errors
/// A device that fails; that one has too little memory is no error: fewer layers go there.
pub fn offload(
    backend: &mut Hybrid,
    model: &Model,
    options: &Offload,
    events: &mut dyn FnMut(OffloadEvent<'_>),
) -> Result<Offloaded> {
    let layers = model.layers.len();
    let mut done = Offloaded { layers, ..Offloaded::default() };
    if backend.devices().is_empty() {
        return Ok(done);
    }
    let mut count = match options.layers {
        OffloadLayers::Count(count) => count,
        OffloadLayers::All => layers + 1,
        OffloadLayers::Auto => {
            let (count, reason) = choose(backend, model, options)?;
            done.reason = reason;
            count
        }
    };
    loop {
        let plan = plan(backend, model, options, count);
        match carry_out(backend, model, options, &plan, events) {
            Ok(bytes) => {
                let on = |device| plan.places.iter().filter(|place| **place == Place::Device(device)).count();
                done.devices = bytes.into_iter().enumerate().map(|(i, bytes)| (on(i), bytes)).collect();
                done.head = plan.head != Place::Host;
                return Ok(done);
            }
            Err(error @ Error::Resources(_)) if count > 0 => {
                backend.clear();
                let fewer = count.min(layers) * 7 / 8;
                let fewer = fewer.min(count - 1);
                events(OffloadEvent::Note(&format!("{error}; trying {fewer} layers")));
                done.reason = Some("more do not fit its memory".to_owned());
                count = fewer;
            }
            Err(error) => return Err(error),
        }
    }
}

/// The last `count` layers on devices, each device a stretch of them.
fn plan(backend: &Hybrid, model: &Model, options: &Offload, count: usize) -> Plan {
    let layers = model.layers.len();
    let first = layers - count.min(layers);
    let shares = shares(backend, options);
    let total: f64 = shares.iter().sum();
    let mut places = vec![Place::Host; layers];
    for (i, place) in places.iter_mut().enumerate().skip(first) {
        // The layer's place among those that go, and the device whose share of them it falls into.
        let at = (i - first) as f64 / (layers - first) as f64 * total;
        let mut end = 0.0;
        let device = shares.iter().position(|share| {
            end += share;
            at < end
        });
        *place = Place::Device(device.unwrap_or(shares.len() - 1));
    }
    let head = if count >= layers { places.last().copied().unwrap_or_default() } else { Place::Host };
    Plan { places, head }
}

fn shares(backend: &Hybrid, options: &Offload) -> Vec<f64> {
    let count = backend.devices().len();
    let mut shares: Vec<f64> = options.shares.iter().map(|share| f64::from(*share)).take(count).collect();
    if shares.iter().sum::<f64>() > 0.0 {
        shares.resize(count, 0.0);
        return shares;
    }
    // Equal ones where any device keeps its memory to itself.
    let free: Option<Vec<u64>> = backend.devices().iter().map(budget).collect();
    let free = free.filter(|free| free.iter().sum::<u64>() > 0);
    free.map_or(vec![1.0; count], |free| free.into_iter().map(|bytes| bytes as f64).collect())
}

/// Bytes that may be put on `device`, where that is known.
fn budget(device: &Device) -> Option<u64> {
    let free = device.adapter().free_memory()?;
    let free = match available_memory() {
        // The weights are then in memory twice: in the file's pages and on the device.
        Some(available) if device.adapter().shares_memory() => free.min(available / 2),
        _ => free,
    };
    Some((free - free / 16).saturating_sub(RESERVE))
}

/// Uploads what `plan` wants on devices; bytes on each.
fn carry_out(
    backend: &mut Hybrid,
    model: &Model,
    options: &Offload,
    plan: &Plan,
    events: &mut dyn FnMut(OffloadEvent<'_>),
) -> Result<Vec<u64>> {
    let embedding = embedding_place(backend, model, options, plan);
    let moves: Vec<(&Matrix, usize)> = weights(model, plan)
        .chain([(&model.embedding, embedding)])
        .filter_map(|(matrix, place)| {
            let over = options.overrides.iter().find(|(pattern, _)| pattern.is_match(matrix.name()));
            let device = match (over, place) {
                (Some((_, target)), _) => (*target)?,
                (None, Place::Device(device)) => device,
                (None, Place::Host) => return None,
            };
            backend.devices()[device].takes(matrix).then_some((matrix, device))
        })
        .collect();
    events(OffloadEvent::Begin { bytes: moves.iter().map(|(matrix, _)| matrix.size() as u64).sum() });
    let mut bytes = vec![0; backend.devices().len()];
    for (matrix, device) in moves {
        backend.put(matrix, device, &mut |bytes| events(OffloadEvent::Copied { bytes }))?;
        bytes[device] += matrix.size() as u64;
    }
    let caches = if options.kv_on_host { Vec::new() } else { plan.places.clone() };
    backend.set_layers(plan.places.clone(), caches);
    Ok(bytes)
}

/// Where the embedding goes: to the first layer, if nothing else is left to the host and there is memory to spare, so that
/// a token is all the device's own work. Else the host takes a row of it. Where it is the head too, that decides.
fn embedding_place(backend: &Hybrid, model: &Model, options: &Offload, plan: &Plan) -> Place {
    let everything = plan.places.iter().chain([&plan.head]);
    let on_devices = everything.clone().all(|place| matches!(place, Place::Device(_)));
    let Some(&Place::Device(first)) = plan.places.first().filter(|_| on_devices) else { return Place::Host };
    if model.embedding.id() == model.head.weight.id() {
        return Place::Host;
    }
    let here = |place: &Place| *place == Place::Device(first);
    let matrices = weights(model, plan).filter(|(_, place)| here(place)).map(|(matrix, _)| matrix);
    let needed: u64 = matrices.chain([&model.embedding]).map(Device::bytes_for).sum();
    let caches = plan.places.iter().filter(|place| here(place)).count() as u64 * cache_bytes(model, options);
    let spare = budget(&backend.devices()[first]).is_some_and(|free| free >= needed + caches);
    if spare { Place::Device(first) } else { Place::Host }
}

/// All matrices but the embedding, and where their layer goes.
fn weights<'a>(model: &'a Model, plan: &'a Plan) -> impl Iterator<Item = (&'a Matrix, Place)> {
    let layers = model.layers.iter().zip(&plan.places);
    let layers =
        layers.flat_map(|(layer, place)| layer.matrices().into_iter().map(|matrix| (matrix, *place)));
    // The last layers first: they are the ones that stay when memory runs out.
    let mut all: Vec<_> = layers.collect();
    all.reverse();
    all.into_iter().chain([(&model.head.weight, plan.head)])
}

/// As many layers as fit, or none if a layer is not faster there; and why it is not all of them.
fn choose(backend: &mut Hybrid, model: &Model, options: &Offload) -> Result<(usize, Option<String>)> {
    let layers = model.layers.len();
    let name = backend.devices()[0].adapter().name().to_owned();
    let budgets: Option<Vec<u64>> = backend.devices().iter().map(budget).collect();
    let mut count = layers + 1;
    let mut reason = None;
    if let Some(budgets) = budgets {
        let total: u64 = budgets.iter().sum();
        let cache = cache_bytes(model, options);
        let mut needed = 0;
        let fitting = model.layers.iter().rev().map(|layer| layer_bytes(layer) + cache);
        let sizes = fitting.chain([Device::bytes_for(&model.head.weight)]);
        count = sizes
            .take_while(|bytes| {
                needed += bytes;
                needed <= total
            })
            .count();
        if count <= layers {
            reason = Some(format!("{} GiB are free there", gib(total)));
        }
    }
    let Some(last) = model.layers.last().filter(|_| count > 0) else { return Ok((0, reason)) };
    match probe(backend, last) {
        Ok((here, there)) if there >= here => {
            let (here, there) = (here.as_secs_f64() * 1e3, there.as_secs_f64() * 1e3);
            Ok((0, Some(format!("a layer takes {here:.2} ms here and {there:.2} ms on {name}"))))
        }
        Ok(_) => Ok((count, reason)),
        Err(error @ Error::Resources(_)) => Ok((0, Some(error.to_string()))),
        Err(error) => Err(error),
    }
}

fn gib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 30))
}

fn layer_bytes(layer: &Layer) -> u64 {
    layer.matrices().into_iter().map(Device::bytes_for).sum()
}

/// Bytes of keys and values of one layer.
fn cache_bytes(model: &Model, options: &Offload) -> u64 {
    let (keys, values) = options.cache_types.unwrap_or((KvType::F16, KvType::F16));
    let (kv_heads, head) = (model.hyper.kv_heads, model.hyper.head);
    let shape = CacheShape { layers: 1, kv_heads, head, keys, values };
    if options.kv_on_host { 0 } else { shape.bytes(options.context) }
}

/// How long one token's products with `layer` take here, and on the first device.
fn probe(backend: &mut Hybrid, layer: &Layer) -> Result<(Duration, Duration)> {
    let matrices: Vec<&Matrix> =
        layer.used_matrices().into_iter().filter(|matrix| backend.devices()[0].takes(matrix)).collect();
    let here = time(backend.cpu(), &matrices, |_: &Cpu, x, columns| {
        x.fill(&vec![0.5; columns], columns);
        Ok(())
    })?;
    for matrix in &matrices {
        backend.put(matrix, 0, &mut |_| {})?;
    }
    let there = time(&backend.devices()[0], &matrices, |device: &Device, x, columns| {
        device.write(&vec![0.5; columns], 1, columns, x)
    });
    backend.clear();
    Ok((here, there?))
}

/// The best of a few times that `backend` takes for a row through all of `matrices`; `fill` writes the row.
fn time<B: Backend>(
    backend: &B,
    matrices: &[&Matrix],
    fill: impl Fn(&B, &mut B::Buffer, usize) -> Result<()>,
) -> Result<Duration> {
    let mut buffers: Vec<(B::Buffer, B::Buffer)> = matrices.iter().map(|_| Default::default()).collect();
    for (matrix, (x, _)) in matrices.iter().zip(&mut buffers) {
        fill(backend, x, matrix.columns)?;
    }
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let start = Instant::now();
        for (matrix, (x, out)) in matrices.iter().zip(&mut buffers) {
            backend.linear(matrix, x, out)?;
        }
        if let Some((_, out)) = buffers.last() {
            backend.read(out)?;
        }
        best = best.min(start.elapsed());
    }
    Ok(best)
}
