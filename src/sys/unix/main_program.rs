//! Finds out whether this crate is part of the main program or of a library.
//!
//! # Safety
//! dl_iterate_phdr(3) passes a description of each loaded object to a function, which only reads it. dladdr(3) writes
//! one Dl_info.

/// Any address in this crate.
static ADDRESS: u8 = 0;

/// Returns whether the address of this crate is in the main program. Returns false for a library, which can be loaded
/// long after the program has started. Allocates no memory, because this runs before `main`.
pub(super) fn contains_this_crate() -> bool {
    main_program_contains((&raw const ADDRESS).addr())
}

#[cfg(not(target_os = "macos"))]
fn main_program_contains(address: usize) -> bool {
    use std::ptr;

    struct Search {
        address: usize,
        is_found: bool,
    }

    /// Examines the first object, which is the main program. Returns 1 to end the iteration.
    unsafe extern "C" fn examine(object: *mut libc::dl_phdr_info, _: libc::size_t, search: *mut libc::c_void) -> i32 {
        // SAFETY: dl_iterate_phdr(3) passes a valid description and the pointer that it got, which is to a Search.
        let (object, search) = unsafe { (&*object, &mut *search.cast::<Search>()) };
        for at in 0..usize::from(object.dlpi_phnum) {
            // SAFETY: there are `dlpi_phnum` headers at this address.
            let segment = unsafe { &*object.dlpi_phdr.add(at) };
            let start = (object.dlpi_addr as usize).wrapping_add(segment.p_vaddr as usize);
            let is_inside = search.address.wrapping_sub(start) < segment.p_memsz as usize;
            search.is_found |= segment.p_type == libc::PT_LOAD && is_inside;
        }
        1
    }

    let mut search = Search { address, is_found: false };
    // SAFETY: `examine` only reads the description, and writes to `search`, which outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(examine), ptr::from_mut(&mut search).cast()) };
    search.is_found
}

#[cfg(target_os = "macos")]
fn main_program_contains(address: usize) -> bool {
    use std::{mem, ptr};

    // SAFETY: Dl_info consists of pointers, for which zeroes are valid.
    let mut found: libc::Dl_info = unsafe { mem::zeroed() };
    let address = ptr::without_provenance(address);
    // SAFETY: dladdr(3) accepts any address and writes one Dl_info.
    let is_found = unsafe { libc::dladdr(address, &raw mut found) } != 0;
    // SAFETY: the call takes an integer. Image 0 is the main program (dyld(3)).
    #[expect(deprecated, reason = "libc recommends another crate for this function")]
    let main = unsafe { libc::_dyld_get_image_header(0) };
    is_found && !main.is_null() && found.dli_fbase.cast_const() == main.cast()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_not_the_main_program() {
        assert!(contains_this_crate());
        let in_libc: unsafe extern "C" fn(*const libc::c_char) -> *mut libc::c_char = libc::getenv;
        let is_static = cfg!(target_feature = "crt-static");
        assert_eq!(main_program_contains(in_libc as usize), is_static, "getenv(3) is in the C library");
        assert!(!main_program_contains(0));
    }
}
