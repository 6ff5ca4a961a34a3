//! libFuzzer as a library: it calls us with each input, and never returns.

use std::ffi::{CString, c_char, c_int};
use std::sync::OnceLock;

type Run = Box<dyn Fn(&[u8]) + Send + Sync>;

static RUN: OnceLock<Run> = OnceLock::new();

unsafe extern "C" {
    /// `FuzzerInterface.h` of LLVM's libFuzzer: as its `main`, with this function for the inputs.
    fn LLVMFuzzerRunDriver(
        count: *mut c_int,
        arguments: *mut *mut *mut c_char,
        run: extern "C" fn(*const u8, usize) -> c_int,
    ) -> c_int;
}

/// Has libFuzzer run it with these arguments, of which the first is a name. The process ends with that.
pub fn fuzz(arguments: Vec<String>, run: impl Fn(&[u8]) + Send + Sync + 'static) -> ! {
    let _ = RUN.set(Box::new(run));
    let texts = arguments
        .into_iter()
        .filter_map(|argument| CString::new(argument).ok());
    let mut pointers: Vec<*mut c_char> = texts.map(CString::into_raw).collect();
    let mut count = c_int::try_from(pointers.len()).unwrap_or(0);
    pointers.push(std::ptr::null_mut());
    let mut arguments = pointers.as_mut_ptr();
    // SAFETY: as `main` is called: `count` texts that end with a zero byte, and a null pointer; all of them live until the
    // process ends.
    let code = unsafe { LLVMFuzzerRunDriver(&raw mut count, &raw mut arguments, one) };
    std::process::exit(code)
}

/// One input. A panic cannot leave a C function: the process aborts, which is what libFuzzer takes for a failure.
extern "C" fn one(data: *const u8, size: usize) -> c_int {
    let input = match size {
        0 => &[],
        // SAFETY: libFuzzer's input, which stays while this runs.
        _ => unsafe { std::slice::from_raw_parts(data, size) },
    };
    if let Some(run) = RUN.get() {
        run(input);
    }
    0
}

/// What the crate that brings libFuzzer wants of a program that uses its macro, which this one does not.
#[allow(
    improper_ctypes_definitions,
    reason = "it is called by Rust alone, and here by nobody"
)]
#[unsafe(no_mangle)]
extern "C" fn rust_fuzzer_test_input(_: &[u8]) -> i32 {
    0
}

use libfuzzer_sys as _;
