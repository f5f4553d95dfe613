//! Matrix products by cuBLAS.

use std::ffi::{c_int, c_void};

use cudarc::cublas::result::{self, CublasError};
use cudarc::cublas::sys;
use cudarc::driver::sys::CUstream;

use crate::infer::cuda::device::{DeviceError, Product};
use crate::infer::cuda::{Element, LaunchError, View};

/// A handle on one stream.
pub(super) struct Blas {
    handle: sys::cublasHandle_t,
}

impl Blas {
    /// What NVIDIA recommends for Hopper, and more than for others
    /// (`cublasSetWorkspace`). Given by us, so that no product allocates.
    pub(super) const WORKSPACE_BYTES: usize = 32 << 20;

    pub(super) fn new(stream: CUstream) -> Result<Self, DeviceError> {
        let handle = result::create_handle().map_err(|error| failed("cublasCreate", error))?;
        let blas = Self { handle };
        // SAFETY: handle and stream are alive; both libraries name the same type.
        unsafe { result::set_stream(handle, stream.cast()) }
            .map_err(|error| failed("cublasSetStream", error))?;
        Ok(blas)
    }

    pub(super) fn set_workspace(&mut self, workspace: View) -> Result<(), DeviceError> {
        let ptr = workspace.ptr as *mut c_void;
        // SAFETY: device memory of this size that outlives the handle's last product.
        unsafe { sys::cublasSetWorkspace_v2(self.handle, ptr, workspace.num_bytes()) }
            .result()
            .map_err(|error| failed("cublasSetWorkspace", error))
    }

    /// Rows are cuBLAS's columns: `out^T[n, m] = w[n, k] * x^T[k, m]`, with `w` as
    /// the transpose of a `[k, n]` that is stored by columns.
    pub(super) fn product(&mut self, product: &Product) -> Result<(), DeviceError> {
        let count = |size: usize| {
            c_int::try_from(size)
                .map_err(|_| LaunchError(format!("a product with a side of {size}")))
        };
        let [m, n, k] = product.shape;
        let (m, n, k) = (count(m)?, count(n)?, count(k)?);
        let (alpha, beta) = (1.0_f32, if product.add { 1.0_f32 } else { 0.0 });
        // SAFETY: `Product::check` found the operands large enough for their
        // shapes; the scalars are read before the call returns.
        unsafe {
            result::gemm_ex(
                self.handle,
                sys::cublasOperation_t::CUBLAS_OP_T,
                sys::cublasOperation_t::CUBLAS_OP_N,
                n,
                m,
                k,
                (&raw const alpha).cast(),
                product.w.ptr as *const c_void,
                data_type(product.w.element)?,
                k,
                product.x.ptr as *const c_void,
                data_type(product.x.element)?,
                k,
                (&raw const beta).cast(),
                product.out.ptr as *mut c_void,
                data_type(product.out.element)?,
                n,
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .map_err(|error| failed("cublasGemmEx", error))
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: ours, destroyed once. A failure leaves nothing to do.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

fn data_type(element: Element) -> Result<sys::cudaDataType, LaunchError> {
    match element {
        Element::F32 => Ok(sys::cudaDataType::CUDA_R_32F),
        Element::F16 => Ok(sys::cudaDataType::CUDA_R_16F),
        Element::Bf16 => Ok(sys::cudaDataType::CUDA_R_16BF),
        other => Err(LaunchError(format!("a product of {other:?}"))),
    }
}

fn failed(what: &str, error: CublasError) -> DeviceError {
    DeviceError::Failed(format!("{what}: {error:?}"))
}
