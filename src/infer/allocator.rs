//! What the engine asks of the system's allocator: to keep what a step frees for the
//! next one, and to give back what unloading freed. Frees nothing itself.

/// Has the allocator keep what a step frees for the next one. glibc returns
/// blocks from 128 KiB up to the system at once, and the next step pays for
/// their pages again, until a larger one was freed: then it keeps all up to
/// that size, of 32 MiB at most (`mallopt(3)`, dynamic mmap threshold). Whether
/// loading frees such a one is chance. Other allocators take no notice.
pub(super) fn keep_freed() {
    const LARGEST: usize = 31 << 20;
    drop(std::hint::black_box(Vec::<u8>::with_capacity(LARGEST)));
}

/// Gives what was freed back to the system. After [`keep_freed`] glibc keeps most of a
/// model's weights when they are dropped: the process would seem to hold an
/// engine that it has unloaded, and the next one would be measured on top of it.
pub(super) fn give_back() {
    // SAFETY: `malloc_trim(3)` takes the allocator's locks itself and gives back only
    // pages that hold no allocation.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::malloc_trim(0);
    }
}
