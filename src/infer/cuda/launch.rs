//! One kernel launch as plain data: which function, over which grid, with which
//! arguments. Knows no device; memory is an address and a length.

use thiserror::Error;

use crate::infer::ComputeDtype;

/// What a buffer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    /// 4 bytes.
    F32,
    /// 2 bytes.
    F16,
    /// 2 bytes.
    Bf16,
    /// 4 bytes.
    I32,
    /// 4 bytes.
    U32,
}

impl Element {
    /// What matrices are multiplied as for a precision.
    ///
    /// # Errors
    /// [`LaunchError`] for one that has no kernels.
    pub fn of(dtype: ComputeDtype) -> Result<Self, LaunchError> {
        match dtype {
            ComputeDtype::F32 => Ok(Self::F32),
            ComputeDtype::F16 => Ok(Self::F16),
            ComputeDtype::Bf16 => Ok(Self::Bf16),
            ComputeDtype::Quantized => Err(LaunchError("no kernels for quantized".to_owned())),
        }
    }

    /// Bytes of one.
    #[must_use]
    pub const fn num_bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 | Self::I32 | Self::U32 => 4,
        }
    }
}

/// A stretch of device memory. It owns nothing: whoever made it keeps the
/// memory alive until all that was launched over it has run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// Address of the first element.
    pub ptr: u64,
    /// Number of elements.
    pub len: usize,
    /// What they are.
    pub element: Element,
}

impl View {
    /// Its length in bytes.
    #[must_use]
    pub const fn num_bytes(self) -> usize {
        self.len * self.element.num_bytes()
    }

    /// Elements `start..start + len`.
    ///
    /// # Errors
    /// [`LaunchError`] when they are not all there.
    pub fn slice(self, start: usize, len: usize) -> Result<Self, LaunchError> {
        match start.checked_add(len) {
            Some(end) if end <= self.len => {
                let ptr = self.ptr + (start * self.element.num_bytes()) as u64;
                Ok(Self { ptr, len, ..self })
            }
            _ => Err(LaunchError(format!("elements {start}+{len} of a view of {}", self.len))),
        }
    }

    /// Its address, if it holds `len` elements of `element` or more, and lies
    /// where 16 bytes can be loaded at once.
    ///
    /// # Errors
    /// [`LaunchError`] naming `name` and what does not fit.
    pub fn expect(self, name: &str, element: Element, len: usize) -> Result<u64, LaunchError> {
        if self.element != element {
            return Err(LaunchError(format!("{name} must be {element:?}, got {:?}", self.element)));
        }
        if self.len < len {
            return Err(LaunchError(format!("{name} must hold {len} elements, has {}", self.len)));
        }
        if !self.ptr.is_multiple_of(16) {
            return Err(LaunchError(format!("{name} must start at a multiple of 16 bytes")));
        }
        Ok(self.ptr)
    }
}

/// Arguments that a kernel cannot be launched with.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("kernel arguments do not fit: {0}")]
pub struct LaunchError(pub String);

/// A function, a grid, and arguments.
#[derive(Debug, Clone)]
pub struct Launch {
    /// Name of the `.cu` file, without its ending.
    pub module: &'static str,
    /// Name of the function in it.
    pub function: &'static str,
    /// Blocks, x first.
    pub grid: [u32; 3],
    /// Threads of a block, x first.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
    args: [u64; Self::MAX_ARGS],
    num_args: usize,
}

impl Launch {
    /// Most arguments that a kernel takes.
    pub const MAX_ARGS: usize = 24;

    /// A launch without arguments yet.
    ///
    /// # Errors
    /// [`LaunchError`] for a grid or block that has no thread, or more than CUDA
    /// takes.
    pub fn new(
        module: &'static str,
        function: &'static str,
        grid: [usize; 3],
        block: [usize; 3],
    ) -> Result<Self, LaunchError> {
        // CUDA C++ Programming Guide, technical specifications per compute capability.
        const GRID_MAX: [usize; 3] = [i32::MAX as usize, 65535, 65535];
        let threads: usize = block.iter().product();
        let fits = grid.iter().zip(GRID_MAX).all(|(size, max)| (1..=max).contains(size));
        if !fits || !(1..=1024).contains(&threads) {
            return Err(LaunchError(format!("{function}: grid {grid:?}, block {block:?}")));
        }
        let narrow = |sizes: [usize; 3]| sizes.map(|size| u32::try_from(size).unwrap_or(u32::MAX));
        Ok(Self {
            module,
            function,
            grid: narrow(grid),
            block: narrow(block),
            shared_bytes: 0,
            args: [0; Self::MAX_ARGS],
            num_args: 0,
        })
    }

    /// With so many bytes of dynamic shared memory.
    #[must_use]
    pub const fn shared(mut self, bytes: u32) -> Self {
        self.shared_bytes = bytes;
        self
    }

    /// With one more argument: an address, or eight bytes.
    #[must_use]
    pub const fn arg(mut self, value: u64) -> Self {
        assert!(self.num_args < Self::MAX_ARGS, "a kernel with more arguments than fit");
        self.args[self.num_args] = value;
        self.num_args += 1;
        self
    }

    /// With one more argument: a count.
    ///
    /// # Errors
    /// [`LaunchError`] when the kernel's `int` cannot hold it.
    pub fn int(self, value: usize) -> Result<Self, LaunchError> {
        match i32::try_from(value) {
            Ok(value) => Ok(self.arg(u64::from(value.cast_unsigned()))),
            Err(_) => Err(LaunchError(format!("{}: {value} is no 32-bit count", self.function))),
        }
    }

    /// With one more argument: a `float`.
    #[must_use]
    pub const fn float(self, value: f32) -> Self {
        self.arg(value.to_bits() as u64)
    }

    /// The arguments in their order. An argument is the first bytes of its
    /// entry, as many as its type has: both sides are little-endian.
    #[must_use]
    pub fn args(&self) -> &[u64] {
        &self.args[..self.num_args]
    }
}

/// The name of the instance for an element type: `by_element!("f", element)`
/// is `f_f32`, `f_f16` or `f_bf16`.
macro_rules! by_element {
    ($name:literal, $element:expr) => {
        match $element {
            $crate::infer::cuda::Element::F32 => Ok(concat!($name, "_f32")),
            $crate::infer::cuda::Element::F16 => Ok(concat!($name, "_f16")),
            $crate::infer::cuda::Element::Bf16 => Ok(concat!($name, "_bf16")),
            other => Err($crate::infer::cuda::LaunchError(format!(
                concat!($name, " is not there for {:?}"),
                other
            ))),
        }
    };
}
pub(crate) use by_element;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_that_cuda_refuses_are_refused_here() {
        let launch = |grid, block| Launch::new("m", "f", grid, block).is_ok();
        assert!(launch([1 << 20, 65535, 1], [32, 8, 4]));
        assert!(!launch([0, 1, 1], [32, 1, 1]));
        assert!(!launch([1, 65536, 1], [32, 1, 1]));
        assert!(!launch([1, 1, 1], [1025, 1, 1]));
    }

    #[test]
    fn views_are_checked_for_length_type_and_alignment() {
        let view = View { ptr: 256, len: 10, element: Element::F32 };
        assert_eq!(view.expect("x", Element::F32, 10), Ok(256));
        for (element, len) in [(Element::F32, 11), (Element::Bf16, 10)] {
            assert!(view.expect("x", element, len).is_err());
        }
        assert_eq!(view.slice(4, 6).unwrap().ptr, 272);
        assert!(view.slice(1, 1).unwrap().expect("x", Element::F32, 1).is_err());
        assert!(view.slice(5, 6).is_err() && view.slice(usize::MAX, 2).is_err());
    }
}
