//! A CUDA device of paper: what is launched on it is compiled to CUDA source and written down, nothing runs.
//!
//! It says that it has tensor cores, so that their variants are chosen too. The
//! sources are compiled by NVIDIA's NVRTC in `tests/gpu`, which needs no GPU.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use burn::tensor::backend::DeviceOps;
use burn_cubecl::CubeBackend;
use cubecl::prelude::*;
use cubecl::{
    ir::{
        ContiguousElements, DeviceProperties, ElemType, FloatKind, HardwareProperties,
        MatrixLayout, MemoryDeviceProperties, MmaProperties, TargetProperties, VectorSize,
        features::{Plane, TypeUsage},
    },
    zspace::{Shape, Strides},
};
use cubecl_common::{
    bytes::Bytes,
    device::{Device, DeviceId, DeviceService},
    future::DynFut,
    profile::{ProfileDuration, TimingMethod},
    stream_id::StreamId,
};
use cubecl_cpp::{
    DialectWmmaCompiler,
    cuda::{
        CudaDialect,
        arch::CudaArchitecture,
        mma::{CudaWmmaCompiler, contiguous_elements_cuda},
    },
    register_supported_types,
    shared::{CompilationOptions, CppCompiler, CppSupportedFeatures, register_wmma_features},
};
use cubecl_runtime::{
    allocator::ContiguousMemoryLayoutPolicy,
    compiler::CubeTask,
    logging::ServerLogger,
    memory_management::{
        ManagedMemoryHandle, MemoryAllocationMode, MemoryConfiguration, MemoryManagement,
        MemoryManagementOptions, MemoryUsage,
    },
    server::{
        Binding, ComputeServer, CopyDescriptor, ExecutionMode, KernelArguments, ProfileError,
        ProfilingToken, ServerCommunication, ServerError, ServerUtilities,
    },
    storage::{BytesResource, BytesStorage, ManagedResource},
    timestamp_profiler::TimestampProfiler,
};

type Compiler = CppCompiler<CudaDialect<CudaWmmaCompiler>>;
/// The backend of paper.
pub type Paper = CubeBackend<PaperRuntime, f32, i32, u8>;

/// Sources by the kernel's identity: what would be compiled once each. burn's own kernels are burn's to test.
static WRITTEN: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());
/// The oldest architecture to be served; later ones have all that it has.
const ARCHITECTURE: u32 = 80;

/// The one device.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PaperDevice;

impl Device for PaperDevice {
    fn from_id(_id: DeviceId) -> Self {
        Self
    }

    fn to_id(&self) -> DeviceId {
        DeviceId {
            type_id: 0,
            index_id: 0,
        }
    }
}

impl DeviceOps for PaperDevice {}

#[derive(Clone, Debug)]
pub struct PaperRuntime;

impl Runtime for PaperRuntime {
    type Compiler = Compiler;
    type Server = PaperServer;
    type Device = PaperDevice;

    fn client(device: &PaperDevice) -> ComputeClient<Self> {
        ComputeClient::load(device)
    }

    fn name(_client: &ComputeClient<Self>) -> &'static str {
        "paper"
    }

    fn max_cube_count() -> (u32, u32, u32) {
        (i32::MAX as u32, u16::MAX as u32, u16::MAX as u32)
    }

    fn can_read_tensor(shape: &Shape, strides: &Strides) -> bool {
        cubecl::zspace::striding::has_contiguous_row_major_strides(shape, strides)
    }

    fn target_properties() -> TargetProperties {
        TargetProperties {
            mma: MmaProperties {
                register_size_bits: 32,
                const_plane_size: 32,
                register_layout_a: MatrixLayout::RowMajor,
                register_layout_b: MatrixLayout::ColMajor,
                register_layout_acc: MatrixLayout::RowMajor,
                register_duplication_a: 1,
                register_duplication_b: 1,
                register_duplication_acc: 1,
                contiguous_elements: ContiguousElements::new(contiguous_elements_cuda),
            },
        }
    }

    fn enumerate_devices(_type_id: u16, _info: &()) -> Vec<DeviceId> {
        vec![PaperDevice.to_id()]
    }
}

/// Keeps memory as a real server would, and compiles instead of running.
#[derive(Debug)]
pub struct PaperServer {
    memory: MemoryManagement<BytesStorage>,
    timestamps: TimestampProfiler,
    utilities: Arc<ServerUtilities<Self>>,
    options: CompilationOptions,
}

impl DeviceService for PaperServer {
    fn init(_id: DeviceId) -> Self {
        let memory_properties = MemoryDeviceProperties {
            max_page_size: 1 << 30,
            alignment: 512,
        };
        let hardware = HardwareProperties {
            load_width: 128,
            plane_size_min: 32,
            plane_size_max: 32,
            max_bindings: 1024,
            max_shared_memory_size: 163 << 10,
            max_cube_count: PaperRuntime::max_cube_count(),
            max_units_per_cube: 1024,
            max_cube_dim: (1024, 1024, 64),
            num_streaming_multiprocessors: Some(108),
            num_tensor_cores: Some(4),
            min_tensor_cores_dim: Some(8),
            num_cpu_cores: None,
            max_vector_size: VectorSize::MAX,
        };
        let mut properties = DeviceProperties::new(
            Default::default(),
            memory_properties.clone(),
            hardware,
            TimingMethod::System,
        );
        register_supported_types(&mut properties);
        properties.register_type_usage(ElemType::Float(FloatKind::TF32), TypeUsage::Conversion);
        properties.features.plane.insert(Plane::Ops);
        properties.features.plane.insert(Plane::Sync);
        let architecture = CudaArchitecture {
            version: ARCHITECTURE,
        };
        let shapes = CudaWmmaCompiler::supported_wmma_combinations(&architecture);
        register_wmma_features(shapes, &mut properties);
        let logger = Arc::new(ServerLogger::default());
        let memory = MemoryManagement::from_configuration(
            BytesStorage::default(),
            &memory_properties,
            MemoryConfiguration::default(),
            logger.clone(),
            MemoryManagementOptions::new("paper"),
        );
        let policy = ContiguousMemoryLayoutPolicy::new(512);
        Self {
            memory,
            timestamps: TimestampProfiler::default(),
            utilities: Arc::new(ServerUtilities::new(properties, logger, (), policy)),
            options: CompilationOptions {
                supports_features: CppSupportedFeatures {
                    fast_math: true,
                    grid_constants: true,
                    ..Default::default()
                },
                ..Default::default()
            },
        }
    }

    fn utilities(&self) -> Arc<dyn std::any::Any + Send + Sync> {
        self.utilities.clone()
    }
}

impl ServerCommunication for PaperServer {
    const SERVER_COMM_ENABLED: bool = false;
}

impl ComputeServer for PaperServer {
    type Kernel = Box<dyn CubeTask<Compiler>>;
    type Info = ();
    type MemoryLayoutPolicy = ContiguousMemoryLayoutPolicy;
    type Storage = BytesStorage;

    fn initialize_memory(&mut self, memory: ManagedMemoryHandle, size: u64, _stream: StreamId) {
        let reserved = self.memory.reserve(size).unwrap();
        self.memory.bind(reserved, memory, 0).unwrap();
    }

    fn logger(&self) -> Arc<ServerLogger> {
        self.utilities.logger.clone()
    }

    fn utilities(&self) -> Arc<ServerUtilities<Self>> {
        self.utilities.clone()
    }

    /// Zeros: nothing was computed.
    fn read(
        &mut self,
        descriptors: Vec<CopyDescriptor>,
        _stream: StreamId,
    ) -> DynFut<Result<Vec<Bytes>, ServerError>> {
        let zeros = descriptors
            .into_iter()
            .map(|d| Bytes::from_bytes_vec(vec![0; d.handle.size_in_used() as usize]))
            .collect();
        Box::pin(async move { Ok(zeros) })
    }

    fn write(&mut self, _descriptors: Vec<(CopyDescriptor, Bytes)>, _stream: StreamId) {}

    fn sync(&mut self, _stream: StreamId) -> DynFut<Result<(), ServerError>> {
        Box::pin(async move { Ok(()) })
    }

    fn get_resource(
        &mut self,
        binding: Binding,
        _stream: StreamId,
    ) -> Result<ManagedResource<BytesResource>, ServerError> {
        let resource = self.memory.get_resource(
            binding.memory.clone(),
            binding.offset_start,
            binding.offset_end,
        )?;
        Ok(ManagedResource::new(binding.memory, resource))
    }

    unsafe fn launch(
        &mut self,
        kernel: Self::Kernel,
        _count: CubeCount,
        _bindings: KernelArguments,
        mode: ExecutionMode,
        _stream: StreamId,
    ) {
        if !kernel
            .name()
            .starts_with(module_path!().trim_end_matches("::sources"))
        {
            return;
        }
        let name = format!("{:?}", kernel.id());
        let compiled = kernel
            .compile(
                &mut Compiler::default(),
                &self.options,
                mode,
                kernel.address_type(),
            )
            .unwrap();
        WRITTEN.lock().unwrap().insert(name, compiled.source);
    }

    fn flush(&mut self, _stream: StreamId) -> Result<(), ServerError> {
        Ok(())
    }

    fn memory_usage(&mut self, _stream: StreamId) -> Result<MemoryUsage, ServerError> {
        Ok(self.memory.memory_usage())
    }

    fn memory_cleanup(&mut self, _stream: StreamId) {
        self.memory.cleanup(true);
    }

    fn start_profile(&mut self, _stream: StreamId) -> Result<ProfilingToken, ServerError> {
        Ok(self.timestamps.start())
    }

    fn end_profile(
        &mut self,
        _stream: StreamId,
        token: ProfilingToken,
    ) -> Result<ProfileDuration, ProfileError> {
        self.timestamps.stop(token)
    }

    fn allocation_mode(&mut self, mode: MemoryAllocationMode, _stream: StreamId) {
        self.memory.mode(mode);
    }
}

/// A pass and a training step of the full network, in each precision; on tensor units and without.
fn passes() {
    use crate::model::loss::{Target, deep_supervised};
    use crate::model::pct_net::{DropoutStream, Mode, PctNet, PctNetConfig, ReadyNet};
    use crate::model::precision::Precision;
    use burn::backend::Autodiff;
    use burn::tensor::Tensor;

    type A = Autodiff<Paper>;
    let size = [16, 32, 32];
    let config = PctNetConfig::pct_net(8, size, 1);
    let device = PaperDevice;
    let known = vec![vec![true; config.class_num]];
    let net = PctNet::<A>::new(&config, 0, &device).unwrap();
    let served = PctNet::<Paper>::new(&config, 0, &device).unwrap();
    let target = Target::<A>::new(&vec![0; size.iter().product()], size, &known, &device);
    let shape = [1, 1, size[0], size[1], size[2]];
    for precision in [Precision::F32, Precision::Bf16, Precision::F16] {
        let input = Tensor::<A, 5>::zeros(shape, &device);
        let off = DropoutStream::off();
        let logits = net.forward_in(input, Mode::Train(&off), precision);
        deep_supervised(&logits, &target).backward();
        let input = Tensor::<Paper, 5>::zeros(shape, &device);
        ReadyNet::new(&served, 1, size, precision).forward(input.clone());
        served.forward_finest(input.cast(precision.dtype()), Mode::Eval);
    }
}

/// What a training step has besides its pass.
fn steps() {
    use crate::model::kernels::{Keep, Kernels, raw, tests::adam};
    use burn::tensor::Tensor;

    let keep = Keep::with_probability(0.8);
    Paper::keep_mask(&crate::rng::Rng::new(1), [8].into(), keep, &PaperDevice);
    let tensors = [(); 4].map(|()| raw(Tensor::<Paper, 1>::zeros([8], &PaperDevice)));
    Paper::adam_step(tensors, adam(1));
}

/// Patches of training with everything that can be done to them.
fn patches() {
    use crate::model::kernels::{Bend, Cut, FusionJob, Kernels, PatchJob, Tap, ValueChanges};

    let Some(maker) = Paper::patch_maker() else {
        panic!("GPUs make patches")
    };
    let job = PatchJob {
        size: [4; 3],
        low: [0; 3],
        shape: [4; 3],
        hu: vec![0; 64],
        labels: vec![0; 64],
        centre: [1.5; 3],
        matrix: [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        bend: Some(Bend {
            planes: [0; 3].map(|_| vec![0.0; 64]),
            step_z: 0.1,
        }),
        hu_window: [-200.0, 300.0],
        changes: ValueChanges {
            gamma: Some(1.1),
            contrast: Some(1.1),
            brightness: Some(0.1),
            low_resolution: Some([2.0; 3]),
            blur: Some([1.0; 3]),
            noise: Some((0.1, crate::rng::Rng::new(1))),
        },
        mirror: Some(vec![0]),
    };
    (maker.make)(&job, &PaperDevice);
    let tap = Tap {
        low: 0,
        high: 1,
        weight: 0.5,
    };
    let cut = Cut {
        shape: [4; 3],
        values: vec![0.0; 64],
        taps: [0; 3].map(|_| vec![tap; 4]),
        percents: [1.0, 99.0],
        gamma: 1.1,
    };
    let job = FusionJob {
        size: [4; 3],
        cuts: [cut.clone(), cut],
        inverted: false,
        classes: vec![0; 64],
        highest: 4,
    };
    (maker.fuse)(&job, &PaperDevice);
}

/// A whole scan, asked twice.
fn scans() {
    use crate::model::kernels::{Kernels, WindowJob, raw};
    use burn::tensor::{DType, Tensor};

    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let zeros = || raw(Tensor::<Paper, 1>::zeros([64], &PaperDevice));
        let axes = [0; 3].map(|_| vec![(0, 1, 0.5); 4]);
        let job = WindowJob {
            scan: zeros(),
            grid: [4; 3],
            patch: [4; 3],
            weights: zeros(),
            classes: 2,
            output: &axes,
            mirror: Some(&[0, 1]),
            channels: 3,
        };
        let Some(mut blend) = Paper::window_blend(job) else {
            panic!("GPUs blend")
        };
        let starts = [[0; 3]];
        for mirrored in [false, true] {
            blend.gather(&starts, dtype, mirrored);
        }
        let shape = [1, 2, 4, 4, 4];
        let logits = || raw(Tensor::<Paper, 5>::zeros(shape, &PaperDevice).cast(dtype));
        blend.add(&starts, logits(), None);
        blend.add(&starts, logits(), Some(logits()));
        blend.label(0..4, 4);
    }
}

/// Every kernel of inference and training written into the folder that `FEWLABEL_CUDA_SOURCES` names.
#[test]
fn gpu_cuda_sources() {
    passes();
    super::tiles::emulation::without(passes);
    steps();
    patches();
    scans();
    <Paper as burn::tensor::backend::Backend>::sync(&PaperDevice).unwrap();
    let written = WRITTEN.lock().unwrap();
    println!("{} kernels written", written.len());
    assert!(written.len() > 50);
    let of_tensor_units = |element: &str| {
        let factor = format!("matrix_a, 16, 16, {element}");
        written.values().any(|source| source.contains(&factor))
    };
    assert!(of_tensor_units("16, __nv_bfloat16"));
    assert!(of_tensor_units("16, __half"));
    assert!(of_tensor_units("8, nvcuda::wmma::precision::tf32"));
    if let Some(folder) = std::env::var_os("FEWLABEL_CUDA_SOURCES") {
        std::fs::create_dir_all(&folder).unwrap();
        for (number, (name, source)) in written.iter().enumerate() {
            let path = std::path::Path::new(&folder).join(format!("{number:04}.cu"));
            std::fs::write(path, format!("// {}\n{source}", name.replace('\n', " "))).unwrap();
        }
    }
}
