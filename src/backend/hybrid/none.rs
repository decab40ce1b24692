//! What stands for devices in a build without them: types of which there are no values.

use std::convert::Infallible;
use std::ops::Range;

use crate::backend::{Backend, Gate, Heads, Matrix, MatrixId, Part, Rotation, Vector};
use crate::kernel::kv::KvType;
use crate::{Error, Result};

/// A graphics processor that was found: none ever is.
#[derive(Clone, Debug)]
pub struct Adapter(Infallible);

impl Adapter {
    pub fn all(_software: bool) -> Vec<Adapter> {
        Vec::new()
    }

    pub fn name(&self) -> &str {
        match self.0 {}
    }

    pub fn driver(&self) -> String {
        match self.0 {}
    }

    pub fn kind(&self) -> &'static str {
        match self.0 {}
    }

    pub fn is_software(&self) -> bool {
        match self.0 {}
    }

    pub fn shares_memory(&self) -> bool {
        match self.0 {}
    }

    pub fn limited(self, _bytes: u64) -> Self {
        match self.0 {}
    }

    pub fn free_memory(&self) -> Option<u64> {
        match self.0 {}
    }
}

/// A graphics processor: there is none.
pub struct Device(Infallible);

impl Device {
    pub fn open(adapter: &Adapter) -> Result<Self> {
        match adapter.0 {}
    }

    pub fn adapter(&self) -> &Adapter {
        match self.0 {}
    }

    pub fn takes(&self, _matrix: &Matrix) -> bool {
        match self.0 {}
    }

    pub fn bytes_for(_matrix: &Matrix) -> u64 {
        0
    }

    pub fn upload(&self, _matrix: &Matrix, _progress: &mut dyn FnMut(usize)) -> Result<()> {
        match self.0 {}
    }

    pub fn remove(&self, _matrix: MatrixId) {
        match self.0 {}
    }

    pub fn write(&self, _data: &[f32], _rows: usize, _columns: usize, _to: &mut DeviceBuffer) -> Result<()> {
        match self.0 {}
    }

    pub fn note(&self, _error: &Error) {
        match self.0 {}
    }
}

#[derive(Default)]
pub struct DeviceBuffer(());

impl DeviceBuffer {
    pub fn shape(&self) -> (usize, usize) {
        (0, 0)
    }
}

#[derive(Clone, Debug)]
pub struct DeviceShape {
    pub layers: Range<usize>,
    pub kv_heads: usize,
    pub head: usize,
    pub keys: KvType,
    pub values: KvType,
}

impl DeviceShape {
    pub fn bytes(&self, _positions: usize) -> u64 {
        0
    }

    pub fn saved_bytes(&self, _positions: usize) -> usize {
        0
    }
}

pub struct DeviceCache;

impl DeviceCache {
    pub fn new(_shape: DeviceShape) -> Self {
        Self
    }

    pub fn reserve(&mut self, device: &Device, _positions: usize) -> Result<()> {
        match device.0 {}
    }

    pub fn save(&self, device: &Device, _positions: Range<usize>, _out: &mut Vec<u8>) -> Result<()> {
        match device.0 {}
    }

    pub fn restore(&self, device: &Device, _positions: Range<usize>, _bytes: &mut &[u8]) -> Result<()> {
        match device.0 {}
    }
}

impl Backend for Device {
    type Buffer = DeviceBuffer;
    type Cache = DeviceCache;

    fn embed(&self, _: &Matrix, _: &[u32], _: &mut DeviceBuffer) -> Result<()> {
        match self.0 {}
    }

    fn rms_norm(&self, _: &DeviceBuffer, _: &Vector, _: f32, _: &mut DeviceBuffer) {
        match self.0 {}
    }

    fn layer_norm(&self, _: &DeviceBuffer, _: &Vector, _: &Vector, _: f32, _: &mut DeviceBuffer) {
        match self.0 {}
    }

    fn linear(&self, _: &Matrix, _: &DeviceBuffer, _: &mut DeviceBuffer) -> Result<()> {
        match self.0 {}
    }

    fn add(&self, _: &mut DeviceBuffer, _: &DeviceBuffer) {
        match self.0 {}
    }

    fn gate(&self, _: Gate, _: &DeviceBuffer, _: &mut DeviceBuffer) {
        match self.0 {}
    }

    fn gelu(&self, _: &mut DeviceBuffer) {
        match self.0 {}
    }

    fn add_bias(&self, _: &mut DeviceBuffer, _: &Vector) {
        match self.0 {}
    }

    fn scale(&self, _: &mut DeviceBuffer, _: f32) {
        match self.0 {}
    }

    fn concat(&self, _: &[&DeviceBuffer], _: &mut DeviceBuffer) {
        match self.0 {}
    }

    fn zeros_like(&self, _: &DeviceBuffer, _: &mut DeviceBuffer) {
        match self.0 {}
    }

    fn scatter_add(&self, _: &DeviceBuffer, _: &[usize], _: &[f32], _: &mut DeviceBuffer) {
        match self.0 {}
    }

    fn attention(
        &self,
        _: usize,
        _: &Heads,
        _: &Rotation,
        _: &DeviceBuffer,
        _: &mut [Part<'_, DeviceCache>],
        _: &mut DeviceBuffer,
    ) -> Result<()> {
        match self.0 {}
    }

    fn gather(&self, _: &DeviceBuffer, _: &[usize], _: &mut DeviceBuffer) {
        match self.0 {}
    }

    fn read(&self, _: &DeviceBuffer) -> Result<Vec<f32>> {
        match self.0 {}
    }
}
