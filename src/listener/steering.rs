//! Which of the sockets that share a port gets what: a program in the kernel's classic BPF, for `SO_ATTACH_REUSEPORT_CBPF`
//! (socket(7), and filter.txt of the kernel's documentation).
//!
//! It returns the socket's place in the order in which they were made, which is the id. Without a program, the kernel chooses
//! among all by a hash of the addresses. A program is what it takes to leave some out without closing them.

use crate::sys::Instruction;

/// `BPF_MAXINSNS`.
const LONGEST: usize = 4096;

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
/// `SKF_NET_OFF`: from the beginning of the IP header.
const IP: u32 = -0x10_0000_i32 as u32;

/// In `M[0]`, from the flow.
const HASH: u32 = 0;

/// Among the ids in `serving`, which ascend, each flow gets one, and always the same. With `cpus`, that of the CPU: the ids on
/// the n-th of them are n, n + their number, and so on. None, if it would be too long.
pub(super) fn program(serving: &[usize], cpus: &[usize]) -> Option<Vec<Instruction>> {
    let mut program = hash_of_the_flow();
    if !cpus.is_empty() {
        program.push(plain(LOAD_WORD, CPU));
    }
    for (place, &cpu) in cpus.iter().enumerate() {
        let local: Vec<usize> = serving.iter().copied().filter(|id| id % cpus.len() == place).collect();
        if !local.is_empty() {
            let choice = choice(&local);
            program.push(Instruction { code: JUMP_IF_EQUAL, jt: 1, jf: 0, k: cpu as u32 });
            program.push(plain(JUMP, choice.len() as u32));
            program.extend(choice);
        }
    }
    program.extend(choice(serving));
    (program.len() <= LONGEST).then_some(program)
}

/// For a socket that is alone.
pub(super) fn to_the_first() -> [Instruction; 1] {
    [plain(RETURN, 0)]
}

/// From the sender's address and port: what belongs together stays together. (Options of IPv4 or extension headers of IPv6,
/// if there are any, are taken for the port, and are the same for a flow as well.)
fn hash_of_the_flow() -> Vec<Instruction> {
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
    // By the golden ratio, so that neighbours are far apart; the upper bits are the better ones.
    program.extend([plain(MULTIPLY, 0x9e37_79b1), plain(SHIFT_RIGHT, 16), plain(STORE, HASH)]);
    program
}

/// By the hash, one of these; run by run, because ids mostly follow one another.
fn choice(ids: &[usize]) -> Vec<Instruction> {
    let mut program = vec![plain(LOAD_MEMORY, HASH), plain(REMAINDER, ids.len().max(1) as u32)];
    let mut before = 0;
    for run in ids.chunk_by(|one, next| one + 1 == *next) {
        let after = before + run.len();
        if after < ids.len() {
            program.push(Instruction { code: JUMP_IF_AT_LEAST, jt: 2, jf: 0, k: after as u32 });
        }
        program.extend([plain(ADD, (run[0] - before) as u32), plain(RETURN_A, 0)]);
        before = after;
    }
    program
}

fn plain(code: u16, k: u32) -> Instruction {
    Instruction { code, jt: 0, jf: 0, k }
}
