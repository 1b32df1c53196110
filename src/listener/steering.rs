//! Classic BPF programs that choose among sockets that share a port. They are attached with the socket option
//! `SO_ATTACH_REUSEPORT_CBPF` (socket(7), and filter.txt in the kernel's documentation).
//!
//! The sockets that share a port form a group. The kernel numbers these sockets in the order in which the parent has
//! opened them, so the index of a socket is its worker id. The kernel runs the program for each new connection and each
//! datagram. The program returns the index of the socket that gets the connection or datagram. Without a program, the
//! kernel chooses among all sockets of the group by a hash of the addresses. Only a program can exclude a socket
//! without closing it.

use crate::sys::Instruction;

/// `BPF_MAXINSNS`: the largest number of instructions that the kernel accepts in a program.
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

/// `SKF_AD_OFF + SKF_AD_CPU`: a load from this offset returns the CPU that handles the packet.
const CPU: u32 = (-0x1000_i32 + 36) as u32;
/// `SKF_NET_OFF`: the offset of the start of the IP header.
const IP: u32 = -0x10_0000_i32 as u32;

/// The index of the memory cell that holds the hash of the flow: `M[0]`.
const HASH: u32 = 0;

/// Returns a program that chooses one of the worker ids in `serving`. The ids must be in ascending order. If `cpus` is
/// empty, all packets from the same address and port get the same id.
///
/// If `cpus` is not empty, the program chooses among the ids that belong to the CPU that handles the packet. An id
/// belongs to the CPU `cpus[id % cpus.len()]`. If no id in `serving` belongs to a CPU, the program chooses among all
/// ids in `serving`. Returns `None` if the program is longer than the kernel accepts.
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

/// Returns a program that always chooses the first socket. A group that has only one socket uses this program.
pub(super) fn first_socket() -> [Instruction; 1] {
    [plain(RETURN, 0)]
}

/// Returns the instructions that store a hash of the sender's address and port in `HASH`.
///
/// If a packet has IPv4 options or IPv6 extension headers, the program reads their first bytes instead of the port. All
/// packets of a flow still get the same hash, because these bytes are also the same in all packets of the flow.
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
    // Multiply by the golden ratio, so that neighbouring values get very different hashes. Shift right, because the
    // upper bits of the product are mixed best.
    program.extend([plain(MULTIPLY, 0x9e37_79b1), plain(SHIFT_RIGHT, 16), plain(STORE, HASH)]);
    program
}

/// Returns the instructions that choose one of `ids` by the hash. Each run of consecutive ids needs only one
/// comparison. So the program stays short, because most ids are consecutive.
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
