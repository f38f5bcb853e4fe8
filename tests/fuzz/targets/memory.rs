//! Counts the bytes this thread holds on the heap, so that a target can say how much an input may make it reserve.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, counting.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

// The layouts and pointers go to the system's allocator as they came; beside that two numbers are counted.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count(bytes as isize - layout.size() as isize);
        unsafe { System.realloc(pointer, layout, bytes) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn count(more: isize) {
    // A thread that ends frees what it held after its numbers are gone.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + more);
        let _ = MOST.try_with(|most| most.set(most.get().max(held.get())));
    });
}

/// Bytes that anything may hold, however short its input.
const CONSTANT_BYTES: usize = 256 * 1024;

/// Does something with an input of `bytes` bytes, which must not hold more than `bytes_each` for each of them at once.
#[track_caller]
pub fn bounded<T>(bytes: usize, bytes_each: usize, work: impl FnOnce() -> T) -> T {
    let before = HELD.get();
    MOST.set(before);
    let done = work();
    let held = (MOST.get() - before) as usize;
    let allowed = CONSTANT_BYTES + bytes * bytes_each;
    assert!(held <= allowed, "{bytes} bytes made it hold {held} bytes at once, more than {allowed}");
    done
}
