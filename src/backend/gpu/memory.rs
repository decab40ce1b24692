//! How much memory a device has left. WebGPU does not say, the interfaces below it do.

/// Bytes that can be taken, where that is known.
pub(super) fn free(adapter: &wgpu::Adapter) -> Option<u64> {
    #[cfg(not(target_vendor = "apple"))]
    return vulkan(adapter);
    #[cfg(target_vendor = "apple")]
    return metal(adapter);
}

/// Of the largest heap that is the device's own: what VK_EXT_memory_budget says, or all of it where there is no such
/// extension.
#[cfg(not(target_vendor = "apple"))]
fn vulkan(adapter: &wgpu::Adapter) -> Option<u64> {
    use ash::vk;
    // Sound: the adapter is only asked, and outlives the guard.
    let guard = unsafe { adapter.as_hal::<wgpu::hal::api::Vulkan>() }?;
    let (instance, device) = (guard.shared_instance().raw_instance(), guard.raw_physical_device());
    // Sound: the device is one of this instance.
    let extensions = unsafe { instance.enumerate_device_extension_properties(device) }.ok()?;
    let knows =
        extensions.iter().any(|one| one.extension_name_as_c_str() == Ok(ash::ext::memory_budget::NAME));
    let mut budget = vk::PhysicalDeviceMemoryBudgetPropertiesEXT::default();
    let mut properties = vk::PhysicalDeviceMemoryProperties2::default();
    if knows {
        properties = properties.push_next(&mut budget);
    }
    // Sound: as above; Vulkan 1.1, which wgpu asks for, has the call.
    unsafe { instance.get_physical_device_memory_properties2(device, &mut properties) };
    let heaps = properties.memory_properties;
    let local = (0..heaps.memory_heap_count as usize)
        .filter(|&i| heaps.memory_heaps[i].flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL))
        .max_by_key(|&i| heaps.memory_heaps[i].size)?;
    let size = heaps.memory_heaps[local].size;
    Some(if knows { budget.heap_budget[local].saturating_sub(budget.heap_usage[local]) } else { size })
}

/// Metal does not say either; the allocation itself tells.
#[cfg(target_vendor = "apple")]
fn metal(_adapter: &wgpu::Adapter) -> Option<u64> {
    None
}
