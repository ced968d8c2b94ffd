//! What the C library's heap keeps of memory that has been freed.
//!
//! glibc gives free memory back by itself only at the end of a heap, and after the buffers of a pull there
//! is always something small left behind them: a daemon would keep its largest pull's memory for as long
//! as it lives.

/// Has all threads allocate from one heap, of which [`give_back`] gives all back that is free. By itself glibc makes one for each
/// thread, up to eight a core, and malloc_trim(3) leaves the free end of all but the first as it is: what a pull freed last
/// would stay, once for each. Threads have to wait for each other here, but seldom and shortly: small pieces come from a
/// cache of each thread's own, and a pull uses its large buffers again and again. To be called before there are threads.
pub fn one_for_all() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    one_arena();
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "a function of the C library that nix does not have")]
fn one_arena() {
    // SAFETY: it takes two integers, and changes for threads to come how many heaps there may be (mallopt(3)). Where it is
    // refused (it is not, for this value) all goes on as before.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Gives whole pages of free memory of the heap back to the kernel. Takes milliseconds for each hundred megabytes, in which a
/// thread that allocates waits. Where the C library is not glibc nothing is done: there is nothing to ask.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    trim();
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "a function of the C library that nix does not have")]
fn trim() {
    // SAFETY: it takes an integer and touches free memory only, under the arenas' own locks (malloc_trim(3): MT-Safe). 0: no
    // room is kept at the end of the main heap.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests;
