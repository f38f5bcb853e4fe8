//! The fuzz targets of `tests/fuzz/targets/` for libFuzzer: one binary each, in `bins/`.

#[path = "../../tests/fuzz/targets/mod.rs"]
pub mod targets;

pub use libfuzzer_sys;

/// A binary that gives the target of this name what libFuzzer comes up with.
#[macro_export]
macro_rules! fuzz {
    ($name:literal) => {
        thread_local! {
            static RUN: std::cell::RefCell<$crate::targets::Run> =
                std::cell::RefCell::new(($crate::targets::target($name).start)());
        }
        $crate::libfuzzer_sys::fuzz_target!(|data: &[u8]| {
            RUN.with_borrow_mut(|run| run(data));
        });
    };
}
