//! What the old parent has received from a candidate.

use std::mem;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::answer::{CheckedPool, End, Message};
use super::newest_common;
use super::reason::Reason;
use crate::listener::Given;

/// The largest numbers of messages, pools and sockets in an answer. So a broken program cannot fill the memory of the
/// running service.
const MOST_MESSAGES: usize = 10_000;
const MOST_POOLS: usize = 10_000;
const MOST_SOCKETS: usize = 100_000;

/// The answer of a checker whose checks have all passed.
#[derive(Debug)]
pub(crate) struct CheckAnswer {
    /// The versions of the state format that the new program can read. At least one of them is a version that this
    /// program can write.
    pub formats: RangeInclusive<u32>,
    /// The pools of the new program.
    pub pools: Vec<CheckedPool>,
    /// The sockets that the new program needs and that the service does not have yet.
    pub new_sockets: Vec<Given>,
}

/// A pool whose new program must prove itself by a trial worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PoolToTry {
    /// The position of the pool in the old program.
    pub index: usize,
    /// The ready timeout and the number of workers in the new program.
    pub ready_timeout: Option<Duration>,
    pub workers: usize,
}

impl CheckAnswer {
    /// Returns the newest version of the state format that both programs know. `writes` are the versions that this
    /// program can write.
    pub fn format(&self, writes: &RangeInclusive<u32>) -> Option<u32> {
        newest_common(&self.formats, writes)
    }

    /// Returns the pools that need a trial worker. `names` are the names of the old program's pools, in their order.
    ///
    /// The new program's settings decide. An optional pool needs none, because its failure does not end the service. A
    /// pool with `max_surge(0)` must not have two processes of one worker.
    pub fn pools_to_try(&self, names: &[&str]) -> Vec<PoolToTry> {
        let to_try = names.iter().enumerate().filter_map(|(index, name)| {
            let pool = self.pools.iter().find(|pool| pool.name == *name)?;
            let needs_trial = !pool.optional && pool.max_surge > 0;
            let &CheckedPool { ready_timeout, workers, .. } = pool;
            needs_trial.then_some(PoolToTry { index, ready_timeout, workers })
        });
        to_try.collect()
    }
}

/// The messages that a candidate has sent so far.
#[derive(Debug)]
pub(super) struct Received {
    /// The versions of the state format that this program can write.
    writes: RangeInclusive<u32>,
    reads: Option<RangeInclusive<u32>>,
    messages: usize,
    pools: Vec<CheckedPool>,
    sockets: Vec<Given>,
    end: Option<End>,
}

impl Received {
    pub fn new(writes: RangeInclusive<u32>) -> Received {
        Received { writes, reads: None, messages: 0, pools: Vec::new(), sockets: Vec::new(), end: None }
    }

    /// Adds a message with its descriptors. Returns an error if the program cannot be the new program.
    pub fn add(&mut self, bytes: &[u8], fds: Vec<OwnedFd>) -> Result<(), Reason> {
        let message = Message::parse(bytes).ok_or(Reason::NoAnswer("it has a wrong form"))?;
        let Message { formats, pools, sockets, end } = message;
        if newest_common(&formats, &self.writes).is_none() {
            return Err(Reason::Formats { reads: formats, writes: self.writes.clone() });
        }
        if let Some(End::Refused(problem)) = end {
            return Err(Reason::Refused(problem));
        }
        if self.reads.get_or_insert_with(|| formats.clone()) != &formats || self.end.is_some() {
            return Err(Reason::NoAnswer("its messages contradict each other"));
        }
        self.messages += 1;
        let is_too_long = self.messages > MOST_MESSAGES
            || self.pools.len() + pools.len() > MOST_POOLS
            || self.sockets.len() + sockets.len() > MOST_SOCKETS;
        if is_too_long {
            return Err(Reason::NoAnswer("it is too long"));
        }
        self.pools.extend(pools);
        let mut fds: Vec<Option<OwnedFd>> = fds.into_iter().map(Some).collect();
        for socket in sockets {
            let fd = fds.get_mut(socket.position).and_then(Option::take);
            let fd = fd.ok_or(Reason::NoAnswer("a descriptor is missing"))?;
            self.sockets.push(Given { spec: socket.spec, fd });
        }
        self.end = end;
        Ok(())
    }

    /// Returns whether the process has become a worker.
    pub fn has_reached(&self) -> bool {
        self.end == Some(End::Reached)
    }

    /// Returns the sockets of an answer that is not complete yet.
    pub fn sockets(&self) -> impl Iterator<Item = &Given> {
        self.sockets.iter()
    }

    /// Takes the answer of a checker, once it is complete.
    pub fn take_answer(&mut self) -> Result<Option<CheckAnswer>, Reason> {
        match self.end {
            None => Ok(None),
            Some(End::Passed) if !self.pools.is_empty() => {
                let formats = self.reads.clone().unwrap_or_else(|| self.writes.clone());
                let pools = mem::take(&mut self.pools);
                Ok(Some(CheckAnswer { formats, pools, new_sockets: mem::take(&mut self.sockets) }))
            }
            Some(_) => Err(Reason::NoAnswer("it lists no pool")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    fn pool(name: &str, max_surge: usize, optional: bool) -> CheckedPool {
        CheckedPool { name: name.into(), workers: 4, max_surge, optional, ready_timeout: None }
    }

    fn message(pools: Vec<CheckedPool>, end: Option<End>) -> String {
        Message { pools, end, ..Message::new(1..=2) }.to_string()
    }

    fn socket() -> OwnedFd {
        UnixDatagram::unbound().expect("a socket").into()
    }

    fn answer_of(messages: &[&str]) -> Result<Option<CheckAnswer>, Reason> {
        let mut received = Received::new(1..=1);
        messages.iter().try_for_each(|text| received.add(text.as_bytes(), Vec::new()))?;
        received.take_answer()
    }

    #[test]
    fn an_answer_is_complete_after_its_last_message() {
        let first = message(vec![pool("web", 1, false)], None);
        let second = message(vec![pool("jobs", 1, false)], None);
        let last = message(vec![], Some(End::Passed));
        assert!(answer_of(&[&first, &second]).expect("no refusal").is_none());
        let answer = answer_of(&[&first, &second, &last]).expect("no refusal").expect("an answer");
        assert_eq!(answer.pools, [pool("web", 1, false), pool("jobs", 1, false)]);
        assert_eq!(answer.format(&(1..=1)), Some(1));
    }

    #[test]
    fn sockets_get_the_descriptors_of_their_message() {
        let spec = "lt,,127.0.0.1:0,0,,,,,";
        let text = format!("answer 1 1\nsocket {spec} 1\nlater {spec} 0\n");
        let mut received = Received::new(1..=1);
        for _ in 0..2 {
            received.add(text.as_bytes(), vec![socket(), socket()]).expect("no refusal");
        }
        received
            .add(message(vec![pool("", 1, false)], Some(End::Passed)).replace("1 2", "1 1").as_bytes(), vec![])
            .expect("no refusal");
        let answer = received.take_answer().expect("no refusal").expect("an answer");
        assert_eq!(answer.new_sockets.len(), 2);
        for fds in [vec![], vec![socket()]] {
            let refused = Received::new(1..=1).add(text.as_bytes(), fds);
            assert_eq!(refused, Err(Reason::NoAnswer("a descriptor is missing")));
        }
    }

    #[test]
    fn refusals_and_unknown_formats_end_the_check() {
        let refused = message(vec![], Some(End::Refused("workers: too few".into())));
        assert_eq!(answer_of(&[&refused]).expect_err("a refusal"), Reason::Refused("workers: too few".into()));
        let unknown = refused.replace("answer 1 2", "answer 2 3");
        let reason = Reason::Formats { reads: 2..=3, writes: 1..=1 };
        assert_eq!(answer_of(&[&unknown]).expect_err("a refusal"), reason, "its text may have another meaning");
        let passed = message(vec![], Some(End::Passed));
        let web = message(vec![pool("web", 1, false)], None);
        for wrong in [&["hello"][..], &[&passed], &[&web, &passed, &passed], &[&web, &web.replace("1 2", "1 1")]] {
            let reason = answer_of(wrong).expect_err("a refusal");
            assert!(matches!(reason, Reason::NoAnswer(_)), "{wrong:?}: {reason:?}");
        }
    }

    #[test]
    fn an_answer_has_a_limited_size() {
        let text = message(vec![pool("web", 1, false); 100], None);
        let mut received = Received::new(1..=1);
        let refused = (0..200).find_map(|_| received.add(text.as_bytes(), vec![]).err());
        assert_eq!(refused, Some(Reason::NoAnswer("it is too long")));
        assert!(received.pools.len() <= MOST_POOLS);
    }

    #[test]
    fn pools_with_room_for_a_second_process_are_tried() {
        let pools = vec![
            pool("new", 1, false),
            pool("jobs", 1, true),
            pool("exclusive", 0, false),
            CheckedPool { ready_timeout: Some(Duration::from_secs(3)), workers: 7, ..pool("web", 2, false) },
            pool("mail", 1, false),
        ];
        let answer = CheckAnswer { formats: 1..=1, pools, new_sockets: Vec::new() };
        let tried = answer.pools_to_try(&["jobs", "web", "removed", "exclusive", "mail"]);
        let web = PoolToTry { index: 1, ready_timeout: Some(Duration::from_secs(3)), workers: 7 };
        assert_eq!(tried, [web, PoolToTry { index: 4, ready_timeout: None, workers: 4 }]);
    }
}
