//! Every type's blocks, decoded by a device, against [`quant::decode`].

use wgpu::util::DeviceExt;

use super::*;
use crate::quant;
use crate::quant::float::half_bits;

/// Stores all elements, decoded part by part.
const BY_PARTS: &str = "
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let parts = BLOCK_ELEMENTS / 16u;
    store(id.x, decode16(id.x / parts * BLOCK_BYTES, id.x % parts));
}
";

/// Stores all elements, decoded slice by slice.
const BY_SLICES: &str = "
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let parts = BLOCK_ELEMENTS / 16u;
    let slices = parts / SLICE_PARTS;
    let block = id.x / slices;
    let slice = id.x % slices;
    for (var k = 0u; k < SLICE_PARTS; k += 1u) {
        store(block * parts + part_of(slice, k), decode(block * BLOCK_BYTES, slice, k));
    }
}
";

const STORE: &str = "
@group(0) @binding(2) var<storage, read_write> elements: array<vec4<f32>>;

fn store(part: u32, m: mat4x4<f32>) {
    if 4u * part < arrayLength(&elements) {
        elements[4u * part] = m[0];
        elements[4u * part + 1u] = m[1];
        elements[4u * part + 2u] = m[2];
        elements[4u * part + 3u] = m[3];
    }
}
";

/// A device to compute with, and its queue.
struct Gpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
}

impl Gpu {
    /// Any device, a processor's own if there is one; none without Vulkan, Metal or DirectX 12.
    fn find() -> Option<Self> {
        let instance = wgpu::Instance::default();
        let mut adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
        adapters.sort_by_key(|adapter| adapter.get_info().device_type != wgpu::DeviceType::Cpu);
        let opened = adapters.first()?.request_device(&wgpu::DeviceDescriptor::default());
        let (device, queue) = pollster::block_on(opened).expect("the device opens");
        Some(Self { device, queue })
    }

    fn storage(&self, contents: &[u8]) -> wgpu::Buffer {
        let usage = wgpu::BufferUsages::STORAGE;
        self.device.create_buffer_init(&wgpu::util::BufferInitDescriptor { label: None, contents, usage })
    }

    fn buffer(&self, size: usize, usage: wgpu::BufferUsages) -> wgpu::Buffer {
        let size = size as u64;
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage,
            mapped_at_creation: false,
        })
    }

    fn decode(&self, kind: TensorType, kernel: &str, blocks: &[u8]) -> Vec<f32> {
        let count = blocks.len() / bytes(kind) * elements(kind);
        let mut padded = super::padded(kind, blocks).into_owned();
        padded.resize(padded.len().next_multiple_of(4), 0);
        let out = self.buffer(4 * count, wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC);
        let back = self.buffer(4 * count, wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST);
        let mut bound = vec![(0, self.storage(&padded)), (2, out.clone())];
        if let Some(words) = codebook(kind) {
            bound.push((
                1,
                self.storage(&words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>()),
            ));
        }
        let mut entries = Vec::new();
        for (binding, buffer) in &bound {
            entries.push(wgpu::BindGroupEntry { binding: *binding, resource: buffer.as_entire_binding() });
        }
        let pipeline = self.pipeline(kind, kernel);
        let group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        let mut encoder = self.device.create_command_encoder(&Default::default());
        let mut pass = encoder.begin_compute_pass(&Default::default());
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &group, &[]);
        pass.dispatch_workgroups((count / 16).div_ceil(64) as u32, 1, 1);
        drop(pass);
        encoder.copy_buffer_to_buffer(&out, 0, &back, 0, None);
        self.queue.submit([encoder.finish()]);
        back.map_async(wgpu::MapMode::Read, .., |mapped| mapped.expect("the buffer maps"));
        self.device.poll(wgpu::PollType::wait_indefinitely()).expect("the device answers");
        let view = back.get_mapped_range(..).expect("it is mapped");
        view.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
    }

    fn pipeline(&self, kind: TensorType, kernel: &str) -> wgpu::ComputePipeline {
        let source = [&prelude(kind), source(kind).expect("a decoder"), STORE, kernel].concat();
        let module = self.device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(kind.name()),
            source: wgpu::ShaderSource::Wgsl(source.into()),
        });
        self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(kind.name()),
            layout: None,
            module: &module,
            entry_point: Some("main"),
            compilation_options: Default::default(),
            cache: None,
        })
    }
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Roughly normal, of variance 1.
    fn bell(&mut self) -> f32 {
        (0..12).map(|_| (self.next() >> 40) as f32 / (1 << 24) as f32).sum::<f32>() - 6.0
    }

    /// Half-precision bits of either sign, from 2^-24 (so with subnormal ones) to 4.
    fn half(&mut self) -> u16 {
        let power = ((self.next() % 26) as f32 - 24.0).exp2();
        let magnitude = power * (1.0 + (self.next() % 1024) as f32 / 1024.0);
        half_bits(if self.next() & 1 == 0 { magnitude } else { -magnitude })
    }
}

/// Where a block has half-precision numbers.
fn halves(kind: TensorType) -> &'static [usize] {
    use TensorType as T;
    match kind {
        T::Q4_1 | T::Q5_1 | T::Q4_K | T::Q5_K => &[0, 2],
        T::Q2_K => &[80, 82],
        T::Q3_K => &[108],
        T::Q6_K => &[208],
        T::TQ1_0 => &[52],
        T::TQ2_0 => &[64],
        T::F32 | T::F16 | T::BF16 | T::IQ1_M | T::MXFP4 | T::NVFP4 => &[],
        _ => &[0],
    }
}

/// `count` blocks of any bytes, but with scales that are small numbers.
fn random_blocks(kind: TensorType, count: usize, random: &mut Random) -> Vec<u8> {
    let size = bytes(kind);
    let mut blocks: Vec<u8> = (0..count * size).map(|_| random.next() as u8).collect();
    for block in blocks.chunks_exact_mut(size) {
        for &at in halves(kind) {
            block[at..at + 2].copy_from_slice(&random.half().to_le_bytes());
        }
        match kind {
            TensorType::MXFP4 => block[0] = 97 + random.next() as u8 % 60,
            TensorType::IQ1_M => {
                let d = random.half();
                for part in 0..4 {
                    let top = &mut block[49 + 2 * part];
                    *top = (*top & 15) | ((d >> (4 * part)) as u8) << 4;
                }
            }
            // Plain elements get an exponent below their type's largest.
            TensorType::F16 => block.iter_mut().skip(1).step_by(2).for_each(|byte| *byte &= 0xbf),
            TensorType::BF16 => {
                block.iter_mut().skip(1).step_by(2).for_each(|byte| *byte = *byte & 0x87 | 0x38)
            }
            TensorType::F32 => {
                block.iter_mut().skip(3).step_by(4).for_each(|byte| *byte = *byte & 0x87 | 0x38)
            }
            _ => {}
        }
    }
    blocks
}

/// `count` blocks made from normally distributed elements.
fn encoded_blocks(kind: TensorType, count: usize, random: &mut Random) -> Vec<u8> {
    let values: Vec<f32> = (0..count * elements(kind)).map(|_| random.bell() * 0.02).collect();
    let weights: Vec<f32> = (0..elements(kind)).map(|_| random.bell().abs() + 0.1).collect();
    let mut blocks = vec![0; count * bytes(kind)];
    quant::encode(kind, &values, elements(kind), Some(&weights), &mut blocks).unwrap();
    blocks
}

#[test]
fn a_device_decodes_every_type() {
    let Some(gpu) = Gpu::find() else {
        eprintln!("not tested: there is no GPU, nor a software one");
        return;
    };
    let mut random = Random(5);
    for kind in TensorType::all().filter(|&kind| quant::is_supported(kind)) {
        let mut blocks = random_blocks(kind, 97, &mut random);
        blocks.extend(encoded_blocks(kind, 6, &mut random));
        let mut expected = vec![0.0; blocks.len() / bytes(kind) * elements(kind)];
        quant::decode(kind, &blocks, &mut expected).unwrap();
        for kernel in [BY_PARTS, BY_SLICES] {
            compare(kind, &gpu.decode(kind, kernel, &blocks), &expected);
        }
    }
}

fn compare(kind: TensorType, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.chunks(16).zip(expected.chunks(16)).enumerate() {
        // A device may fuse a product with a difference whose terms cancel: what counts is the part's largest.
        let largest = expected.iter().fold(0.0_f32, |most, v| most.max(v.abs()));
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() <= 1e-6 * largest, "{kind}, part {i}: {found:?} instead of {expected:?}");
        }
    }
    let differing = found.iter().zip(expected).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    eprintln!("{kind}: {differing} of {} not the same bits", expected.len());
}

#[test]
fn slices_are_what_the_sources_say() {
    for kind in TensorType::all() {
        if let Some(source) = source(kind) {
            assert!(source.contains(&format!("const SLICE_PARTS: u32 = {}u;", slice_parts(kind))), "{kind}");
        }
    }
}

#[test]
fn every_supported_type_has_a_decoder() {
    for kind in TensorType::all() {
        assert_eq!(source(kind).is_some(), quant::is_supported(kind), "{kind}");
    }
}
