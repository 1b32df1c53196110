//! Classic BPF programs that choose among the sockets that share a port, for `SO_ATTACH_REUSEPORT_CBPF` (socket(7), and
//! filter.txt in the kernel's documentation).
//!
//! A program returns the index of a socket in its group, in the order in which the sockets were opened. This index is
//! the worker id. Without a program, the kernel chooses among all sockets by a hash of the addresses. Only a program
//! can leave sockets out without closing them.

use crate::sys::Instruction;

/// `BPF_MAXINSNS`: the most instructions that the kernel accepts.
const MAX_LEN: usize = 4096;

const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const LOAD_MEMORY: u16 = 0x60;
const STORE: u16 = 0x02;
const TO_X: u16 = 0x07;
const ADD: u16 = 0x04;
const MULTIPLY: u16 = 0x24;
const REMAINDER: u16 = 0x94;
const SHIFT_RIGHT: u16 = 0x74;
const XOR_X: u16 = 0xac;
const JUMP: u16 = 0x05;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_AT_LEAST: u16 = 0x35;
const RETURN_A: u16 = 0x16;
const RETURN: u16 = 0x06;

/// `SKF_AD_OFF + SKF_AD_CPU`: the CPU that handles the packet.
const CPU: u32 = (-0x1000_i32 + 36) as u32;
/// `SKF_NET_OFF`: offsets count from the start of the IP header.
const IP: u32 = -0x10_0000_i32 as u32;

/// The memory cell for the hash of the flow: `M[0]`.
const HASH: u32 = 0;

/// Returns a program that chooses one of the ids in `serving`, which must ascend. The same flow always gets the same
/// id.
///
/// With `cpus`, the program chooses among the ids of the CPU that handles the packet. `cpus[n]` has the ids with
/// `id % cpus.len() == n`. A CPU without a serving id uses all of them. Returns `None` if the program is too long.
pub(super) fn program(serving: &[usize], cpus: &[usize]) -> Option<Vec<Instruction>> {
    let mut program = hash_flow();
    if !cpus.is_empty() {
        program.push(plain(LOAD_WORD, CPU));
    }
    for (index, &cpu) in cpus.iter().enumerate() {
        let local: Vec<usize> = serving.iter().copied().filter(|id| id % cpus.len() == index).collect();
        if !local.is_empty() {
            let choice = choose(&local);
            program.push(Instruction { code: JUMP_IF_EQUAL, jt: 1, jf: 0, k: cpu as u32 });
            program.push(plain(JUMP, choice.len() as u32));
            program.extend(choice);
        }
    }
    program.extend(choose(serving));
    (program.len() <= MAX_LEN).then_some(program)
}

/// Returns a program that chooses the first socket, for a group that has only one.
pub(super) fn first_socket() -> [Instruction; 1] {
    [plain(RETURN, 0)]
}

/// Returns the instructions that store a hash of the sender's address and port in `HASH`.
///
/// If a packet has IPv4 options or IPv6 extension headers, their first bytes are read instead of the port. This still
/// keeps a flow together, because they too are the same for all its packets.
fn hash_flow() -> Vec<Instruction> {
    let v4 = [plain(LOAD_WORD, IP + 12), plain(TO_X, 0), plain(LOAD_HALF, IP + 20), plain(XOR_X, 0)];
    let mut v6 = vec![plain(LOAD_WORD, IP + 8)];
    for offset in [12, 16, 20] {
        v6.extend([plain(TO_X, 0), plain(LOAD_WORD, IP + offset), plain(XOR_X, 0)]);
    }
    v6.extend([plain(TO_X, 0), plain(LOAD_HALF, IP + 40), plain(XOR_X, 0)]);
    v6.push(plain(JUMP, v4.len() as u32));
    let mut program = vec![plain(LOAD_BYTE, IP), plain(SHIFT_RIGHT, 4)];
    program.push(Instruction { code: JUMP_IF_EQUAL, jt: 0, jf: v6.len() as u8, k: 6 });
    program.extend(v6);
    program.extend(v4);
    // A multiplication by the golden ratio spreads neighbouring values. The upper bits are spread best.
    program.extend([plain(MULTIPLY, 0x9e37_79b1), plain(SHIFT_RIGHT, 16), plain(STORE, HASH)]);
    program
}

/// Returns the instructions that choose one of `ids` by the hash. A run of consecutive ids takes one comparison,
/// because most ids are consecutive.
fn choose(ids: &[usize]) -> Vec<Instruction> {
    let mut program = vec![plain(LOAD_MEMORY, HASH), plain(REMAINDER, ids.len().max(1) as u32)];
    let mut start = 0;
    for run in ids.chunk_by(|one, next| one + 1 == *next) {
        let end = start + run.len();
        if end < ids.len() {
            program.push(Instruction { code: JUMP_IF_AT_LEAST, jt: 2, jf: 0, k: end as u32 });
        }
        program.extend([plain(ADD, (run[0] - start) as u32), plain(RETURN_A, 0)]);
        start = end;
    }
    program
}

fn plain(code: u16, k: u32) -> Instruction {
    Instruction { code, jt: 0, jf: 0, k }
}
