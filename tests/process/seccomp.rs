//! Forbids system calls to this process and to the processes that it starts, as a container may do.

/// Makes the system call with this number fail with `EPERM` from now on (seccomp(2)). Needs no rights.
pub fn forbid(call: libc::c_long) {
    deny(call, None, libc::EPERM);
}

/// Makes the system call with this number fail with this error from now on (seccomp(2)). With `argument`, only calls
/// with this first argument fail. Needs no rights.
pub fn deny(call: libc::c_long, argument: Option<u32>, error: libc::c_int) {
    let number = u32::try_from(call).expect("a number");
    let instruction = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // The constants are small, and the kernel's structures store them in 16 bits.
    let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let jump_if_equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let ret = (libc::BPF_RET | libc::BPF_K) as u16;
    // Offset 0 of seccomp_data has the number of the call, and offset 16 has the first argument.
    let mut filter = match argument {
        Some(argument) => vec![
            instruction(load, 0, 0, 0),
            instruction(jump_if_equal, 0, 3, number),
            instruction(load, 0, 0, 16),
            instruction(jump_if_equal, 0, 1, argument),
        ],
        None => vec![instruction(load, 0, 0, 0), instruction(jump_if_equal, 0, 1, number)],
    };
    filter.push(instruction(ret, 0, 0, libc::SECCOMP_RET_ERRNO | error as u32));
    filter.push(instruction(ret, 0, 0, libc::SECCOMP_RET_ALLOW));
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: prctl(2) takes integers here.
    let privileges = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(privileges, 0, "no new privileges");
    // SAFETY: prctl(2) reads the program, which is valid during the call.
    let filtered = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    assert_eq!(filtered, 0, "a filter");
}
