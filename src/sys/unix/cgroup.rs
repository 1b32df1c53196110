//! Reads how many processes the kernel's out-of-memory killer has killed in the cgroup of this process.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The number of processes that the kernel's out-of-memory killer has killed in this cgroup. The kernel writes this
/// number as `oom_kill` to `memory.events` (cgroup v2) or to `memory.oom_control` (cgroup v1). If SIGKILL has killed a
/// worker and the number has grown, the kernel may have sent that SIGKILL. Both files count every process that was
/// killed, whichever memory limit was reached.
#[derive(Debug)]
pub(crate) struct OomCounter {
    file: Option<File>,
    taken: u64,
}

impl OomCounter {
    pub fn open() -> OomCounter {
        let mut counter = OomCounter { file: path_of_counter().and_then(|path| File::open(path).ok()), taken: 0 };
        counter.taken = counter.read().unwrap_or_default();
        counter
    }

    /// Returns true if the number of killed processes is known and zero.
    pub fn is_zero(&self) -> bool {
        self.read() == Some(0)
    }

    /// Returns true if the kernel has killed a process that no earlier call has counted. A call that returns true
    /// counts one killed process. Processes that were killed before `open` do not count. Returns `None` if the number
    /// cannot be read.
    pub fn take(&mut self) -> Option<bool> {
        let kills = self.read()?;
        let grown = kills > self.taken;
        self.taken += u64::from(grown);
        Some(grown)
    }

    fn read(&self) -> Option<u64> {
        let mut text = [0; 512];
        let length = self.file.as_ref()?.read_at(&mut text, 0).ok()?;
        value_of("oom_kill", std::str::from_utf8(&text[..length]).ok()?)
    }
}

fn value_of(key: &str, text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

fn path_of_counter() -> Option<PathBuf> {
    find_counter(&read("/proc/self/cgroup")?, &read("/proc/self/mountinfo")?)
}

/// Reads a file of proc(5) into a large buffer, so that a few calls of read(2) are enough. The kernel generates the
/// content of the file again for each call. Without that buffer, std would begin with small reads, because these files
/// have a size of 0.
fn read(path: &str) -> Option<String> {
    let mut text = String::with_capacity(16 * 1024);
    File::open(path).ok()?.read_to_string(&mut text).ok()?;
    Some(text)
}

/// Returns the path of the file that contains the number of killed processes. Prefers cgroup v1 if it has a memory
/// controller, because v2 has none in that case.
fn find_counter(groups: &str, mounts: &str) -> Option<PathBuf> {
    let group_of = |wanted: &dyn Fn(&str, &str) -> bool| {
        groups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let hierarchy = fields.next()?;
            let controllers = fields.next()?;
            let path = fields.next()?;
            wanted(hierarchy, controllers).then_some(path)
        })
    };
    let has_memory = |list: &str| list.split(',').any(|word| word == "memory");
    if let Some(group) = group_of(&|_, controllers| has_memory(controllers)) {
        return Some(
            locate(group, mounts, |kind, options| kind == "cgroup" && has_memory(options))?.join("memory.oom_control"),
        );
    }
    let group = group_of(&|hierarchy, controllers| hierarchy == "0" && controllers.is_empty())?;
    Some(locate(group, mounts, |kind, _| kind == "cgroup2")?.join("memory.events"))
}

/// Returns the directory of the cgroup `group`. `mounts` is the content of `/proc/self/mountinfo`
/// (proc_pid_mountinfo(5)). In each line, field 4 is the cgroup whose directory is visible at the mount point, and
/// field 5 is the mount point. A single hyphen precedes the last three fields: the filesystem type, the source and the
/// options.
fn locate(group: &str, mounts: &str, wanted: impl Fn(&str, &str) -> bool) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let root = mount.next()?;
        let point = mount.next()?;
        let mut filesystem = filesystem.split(' ');
        let kind = filesystem.next()?;
        let options = filesystem.nth(1)?;
        if !wanted(kind, options) {
            return None;
        }
        let below = Path::new(group).strip_prefix(root).ok()?;
        Some(Path::new(point).join(below))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "33 30 0:28 / /sys/fs/cgroup/cpu rw,relatime shared:11 - cgroup cgroup rw,cpu\n\
                      34 30 0:29 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                      39 30 0:34 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
    const V2: &str = "31 24 0:27 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
    const DOCKER: &str = "600 599 0:27 /docker/abc /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n";

    fn counter(groups: &str, mounts: &str) -> Option<String> {
        find_counter(groups, mounts).map(|path| path.display().to_string())
    }

    #[test]
    fn find_counter_supports_cgroup_v1_and_v2() {
        let hybrid = "4:memory:/a/b\n1:cpu:/\n0::/\n";
        assert_eq!(counter(hybrid, V1).as_deref(), Some("/sys/fs/cgroup/memory/a/b/memory.oom_control"));
        assert_eq!(counter("0::/user.slice\n", V2).as_deref(), Some("/sys/fs/cgroup/user.slice/memory.events"));
        assert_eq!(counter("0::/docker/abc\n", DOCKER).as_deref(), Some("/sys/fs/cgroup/memory.events"));
        assert_eq!(counter("0::/\n", ""), None);
    }

    #[test]
    fn value_of_matches_the_whole_key() {
        assert_eq!(value_of("oom_kill", "low 0\noom 3\noom_kill 2\noom_group_kill 1\n"), Some(2));
        assert_eq!(value_of("oom_kill", "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n"), Some(7));
        assert_eq!(value_of("oom_kill", "oom_kill_disable 0\n"), None);
    }
}
