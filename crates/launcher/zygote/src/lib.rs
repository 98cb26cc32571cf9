//! The spawner for an interpreter that is held ready (`faena_launcher::zygote`): one function with a C name, which
//! the interpreter's shim calls when it has loaded all that is no user's.

/// Serves orders from standard input. Returns in a new instance, with what its process is to do, as
/// [`faena_launcher::zygote::serve`] has it, and how long that is. In the process that called it, it returns null at the
/// end of the orders. What it returns is never freed.
///
/// # Safety
/// `length` points to where a number can be written, and this process has one thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn faena_serve(length: *mut usize) -> *const u8 {
    let Some(begun) = faena_launcher::zygote::serve() else { return std::ptr::null() };
    // SAFETY: the caller promises that it can be written to.
    unsafe { length.write(begun.len()) };
    begun.leak().as_ptr()
}
