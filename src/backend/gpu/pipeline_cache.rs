//! Compiled kernels on disk: drivers take up to seconds for what can be kept from one run to the next.

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use xxhash_rust::xxh3::xxh3_64;

use super::device::{Adapter, Device};
use crate::Error;
use crate::fs::{AtomicFile, cache_folder};

/// Begins the file: another layout would have another.
const MAGIC: &[u8; 8] = b"PHIPIPE1";

/// What the driver compiled, if it lets programs keep that.
pub(super) struct PipelineCache {
    raw: Option<wgpu::PipelineCache>,
    path: Option<PathBuf>,
    /// Whether there is something that the file has not.
    changed: AtomicBool,
}

impl PipelineCache {
    /// With what an earlier run left for this device and driver.
    pub fn open(adapter: &Adapter, device: &Device) -> Self {
        let nothing = Self { raw: None, path: None, changed: AtomicBool::new(false) };
        if !device.raw.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return nothing;
        }
        let path = adapter.cache_name().and_then(|name| Some(cache_folder()?.join("phi").join(name)));
        let kept = path.as_ref().and_then(|path| std::fs::read(path).ok());
        let kept = kept.as_deref().and_then(unwrapped);
        let descriptor = wgpu::PipelineCacheDescriptor { label: None, data: kept, fallback: true };
        // Sound: the data is what get_data gave, as the checksum says, or nothing.
        let raw = unsafe { device.raw.create_pipeline_cache(&descriptor) };
        Self { raw: Some(raw), path, changed: AtomicBool::new(false) }
    }

    pub fn raw(&self) -> Option<&wgpu::PipelineCache> {
        self.raw.as_ref()
    }

    /// Something new was compiled.
    pub fn grown(&self) {
        self.changed.store(true, Ordering::Relaxed);
    }

    /// Writes the file, if there is something new. Where that is not possible, the next run compiles again.
    pub fn save(&self) {
        let (Some(raw), Some(path)) = (&self.raw, &self.path) else { return };
        if !self.changed.swap(false, Ordering::Relaxed) {
            return;
        }
        let Some(data) = raw.get_data() else { return };
        let write = || -> crate::Result<()> {
            let folder = path.parent().unwrap_or(path);
            std::fs::create_dir_all(folder).map_err(|error| Error::io("create the folder", folder, error))?;
            let mut file = AtomicFile::create(path, data.len() as u64)?;
            let parts = [MAGIC.as_slice(), &xxh3_64(&data).to_le_bytes(), &data];
            file.write_all(&parts.concat()).map_err(|error| file.write_error(error))?;
            file.commit()
        };
        let _ = write();
    }
}

/// The data in a file, if it is whole.
fn unwrapped(file: &[u8]) -> Option<&[u8]> {
    let (sum, data) = file.strip_prefix(MAGIC)?.split_at_checked(8)?;
    (xxh3_64(data).to_le_bytes() == sum).then_some(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_files_are_taken() {
        let mut file = [MAGIC.as_slice(), &xxh3_64(b"compiled").to_le_bytes(), b"compiled"].concat();
        assert_eq!(unwrapped(&file), Some(&b"compiled"[..]));
        *file.last_mut().unwrap() ^= 1;
        assert_eq!(unwrapped(&file), None);
        assert!((0..file.len()).all(|end| unwrapped(&file[..end]).is_none()));
    }
}
