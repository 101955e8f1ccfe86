//! The Vulkan devices of this machine.

use burn::backend::wgpu::WgpuDevice;

use crate::model::engine::vulkan::{Adapter, Chosen, Kind};

/// All of them, in the system's order. Empty without a Vulkan loader.
pub fn find() -> Vec<Adapter> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: wgpu::Backends::VULKAN,
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let adapters = cubecl::future::block_on(instance.enumerate_adapters(wgpu::Backends::VULKAN));
    let described = adapters.into_iter().map(|adapter| {
        let info = adapter.get_info();
        Adapter {
            name: info.name,
            kind: match info.device_type {
                wgpu::DeviceType::DiscreteGpu => Kind::Discrete,
                wgpu::DeviceType::IntegratedGpu => Kind::Integrated,
                wgpu::DeviceType::VirtualGpu => Kind::Virtual,
                wgpu::DeviceType::Cpu => Kind::Software,
                wgpu::DeviceType::Other => Kind::Other,
            },
        }
    });
    described.collect()
}

/// The device as burn names it.
pub fn device(chosen: Chosen) -> WgpuDevice {
    match chosen.kind {
        Kind::Discrete => WgpuDevice::DiscreteGpu(chosen.index),
        Kind::Integrated => WgpuDevice::IntegratedGpu(chosen.index),
        Kind::Virtual => WgpuDevice::VirtualGpu(chosen.index),
        Kind::Software => WgpuDevice::Cpu,
        Kind::Other => WgpuDevice::DefaultDevice,
    }
}
